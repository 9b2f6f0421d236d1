//! A broker that speaks MQTT to the letter, but for what fills the memory of a device.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use limpet_tests::{Agent, Door, Lab};

/// What the broker does to each connection, one after the other.
const ATTACKS: [Attack; 3] = [Attack::Aliases, Attack::AliasesAtOnce, Attack::GreetsTwice];
/// Aliases that it uses, of the 65,535 that there are: their topics have 240 MB.
const ALIASES: u16 = 4000;
const TOPIC_BYTES: usize = 60_000;
/// A device at rest has some 10 MB.
const MEMORY_KB_MAX: u64 = 60_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attack {
    /// Once the device has subscribed, it sends messages, each with an alias of its own.
    Aliases,
    /// The same before it has answered to any subscription.
    AliasesAtOnce,
    /// It goes on greeting.
    GreetsTwice,
}

const GREETING: [u8; 5] = [0x20, 3, 0, 0, 0];

impl Attack {
    /// Serves a device until it hangs up; gives the packets that it took before.
    fn serve(self, mut device: TcpStream) -> std::io::Result<u16> {
        packet(&mut device)?;
        device.write_all(&GREETING)?;
        let subscriptions = if self == Self::AliasesAtOnce { 0 } else { 3 };
        for _ in 0..subscriptions {
            let subscribe = packet(&mut device)?;
            device.write_all(&[0x90, 4, subscribe[0], subscribe[1], 0, 1])?;
        }
        let sent = (1..=ALIASES).take_while(|alias| {
            let packet = match self {
                Self::Aliases | Self::AliasesAtOnce => publish(*alias),
                Self::GreetsTwice => GREETING.repeat(1000),
            };
            device.write_all(&packet).is_ok()
        });
        Ok(u16::try_from(sent.count()).unwrap())
    }
}

/// What follows the header of the next packet (MQTT 5, section 2.1).
fn packet(device: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut byte = [0];
    device.read_exact(&mut byte)?;
    let mut length = 0;
    for shift in [0, 7, 14, 21] {
        device.read_exact(&mut byte)?;
        length |= usize::from(byte[0] & 0x7f) << shift;
        if byte[0] & 0x80 == 0 {
            break;
        }
    }
    let mut body = vec![0; length];
    device.read_exact(&mut body)?;
    Ok(body)
}

/// A message on a long topic, with this alias for it.
fn publish(alias: u16) -> Vec<u8> {
    let topic = format!("{alias:a>TOPIC_BYTES$}");
    let length = 2 + topic.len() + 4;
    let header = [0x30, (length & 0x7f) as u8 | 0x80, (length >> 7 & 0x7f) as u8 | 0x80];
    let mut packet = header.to_vec();
    packet.push(u8::try_from(length >> 14).unwrap());
    packet.extend(u16::try_from(topic.len()).unwrap().to_be_bytes());
    packet.extend(topic.into_bytes());
    packet.extend([3, 0x23]);
    packet.extend(alias.to_be_bytes());
    packet
}

fn attack(listener: &TcpListener, told: &Sender<(Attack, u16)>) {
    for attack in ATTACKS {
        let (device, _) = listener.accept().unwrap();
        let taken = attack.serve(device);
        told.send((attack, taken.unwrap())).unwrap();
    }
}

#[test]
fn a_broker_that_uses_aliases_or_greets_twice_is_left_and_takes_no_memory() {
    let lab = Lab::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("mqtt://{}", listener.local_addr().unwrap());
    let (told, ended) = channel();
    std::thread::spawn(move || attack(&listener, &told));
    let agent = Agent::with_config(&lab, "dev-0", Door::Broker(&url), "keep_alive_s = 6\n");
    for attack in ATTACKS {
        let (tried, taken) = ended.recv_timeout(Duration::from_secs(60)).unwrap();
        assert_eq!(tried, attack);
        assert!(taken < ALIASES, "{attack:?}: the device took all of it");
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.process.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    println!("at most {peak} kB");
    assert!(peak < MEMORY_KB_MAX, "{peak} kB");
    let log = agent.process.log();
    for why in ["uses topic aliases", "greets a second time"] {
        assert!(log.contains(why), "{why} in {log}");
    }
}
