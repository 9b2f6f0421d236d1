//! What it costs the embedded broker to let somebody in.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use limpet_tests::{Controller, Lab, Member, output, program};

use crate::mqtt::{Client, tls};
use crate::{median, ms, process, row};

/// How long connections are made.
const TIME: Duration = Duration::from_secs(10);
/// Clients that do it side by side; they share the machine's processors with the broker.
const CLIENTS: usize = 8;
/// Devices that join one after the other.
const JOINS: usize = 20;

pub(crate) fn measure() {
    let lab = Lab::new();
    let secured = Controller::start(&lab);
    joins(&lab, &secured);
    let members: Vec<Member> =
        (0..CLIENTS).map(|n| Member::join(&lab, &format!("member-{n}"), &secured)).collect();
    let doors: Vec<_> = members
        .iter()
        .map(|member| (member.client_id(), tls(member.files.each_ref().map(String::as_str))))
        .collect();
    connections("TLS 1.3, both certificates verified", &secured, |number| {
        let (id, tls) = &doors[number];
        Client::connect(secured.mqtt_port, Some(tls), id)
    });
    let lab = Lab::new();
    let plain = Controller::insecure(&lab, &[]);
    connections("plain MQTT", &plain, |number| {
        Client::connect(plain.mqtt_port, None, &format!("client-{number}"))
    });
}

/// From the start of `limpet-agent join STRING` to its end.
fn joins(lab: &Lab, controller: &Controller) {
    let string = controller.invitation();
    let times = (0..JOINS).map(|n| {
        let (id, data) = (format!("join-{n}"), lab.path(&format!("join-{n}.data")));
        let data = data.display().to_string();
        let began = Instant::now();
        let args = ["join", string, "--device-id", &id, "--data-dir", &data];
        let done = output(program("limpet-agent"), &args);
        assert_eq!(done.status, 0, "{done:?}");
        began.elapsed()
    });
    row("`limpet-agent join STRING`, whole command", &ms(median(times.collect())), "1 s");
}

/// Connects, is acknowledged, and leaves, again and again.
fn connections(
    how: &str,
    controller: &Controller,
    connect: impl Fn(usize) -> Option<Client> + Sync,
) {
    let (made, pid) = (AtomicU32::new(0), controller.process.pid());
    let (cpu, began) = (process::cpu(pid), Instant::now());
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            let (made, connect) = (&made, &connect);
            scope.spawn(move || {
                while began.elapsed() < TIME {
                    if connect(number).is_some() {
                        made.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let (took, cpu) = (began.elapsed(), process::cpu(pid) - cpu);
    let made = made.into_inner();
    let rate = f64::from(made) / took.as_secs_f64();
    row(&format!("connections a second, {how}"), &format!("{rate:.0}"), "");
    row(&format!("controller's processor time for each, {how}"), &ms(cpu / made), "");
}
