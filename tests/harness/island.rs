//! A network of one device's own, joined to this machine by a cable that can be pulled.

use std::process::Command;

use crate::{Chance, Lab, run};

/// A network namespace; taken away when it is dropped.
pub struct Island {
    /// This machine's address on the cable.
    pub shore: String,
    name: String,
    cable: String,
}

impl Island {
    /// The island that belongs to this number in this lab.
    pub fn make(lab: &Lab, number: usize) -> Self {
        let name = lab.name(&format!("island-{number}"));
        // A name of an interface has at most 15 characters: the lab's own part has six.
        let own: String = name.chars().skip("limpet-test-".len()).take(6).collect();
        let cable = format!("lt{own}{number}");
        let seed = own.bytes().fold(number as u64, |seed, byte| seed * 256 + u64::from(byte));
        let mut chance = Chance(seed);
        let net = format!("10.{}.{}", 100 + chance.below(100), chance.below(256));
        let (shore, island) = (format!("{net}.1"), format!("{net}.2"));
        let island_made = Self { shore, name, cable };
        let Self { name, cable, shore } = &island_made;
        ip(&["netns", "add", name]);
        ip(&["link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name]);
        ip(&["address", "add", &format!("{shore}/30"), "dev", cable]);
        ip(&["link", "set", cable, "up"]);
        ip(&["-n", name, "address", "add", &format!("{island}/30"), "dev", "eth0"]);
        ip(&["-n", name, "link", "set", "eth0", "up"]);
        ip(&["-n", name, "route", "add", "default", "via", shore]);
        island_made
    }

    /// Pulls the cable out.
    pub fn cut(&self) {
        ip(&["link", "set", &self.cable, "down"]);
    }

    /// Puts the cable back.
    pub fn heal(&self) {
        ip(&["link", "set", &self.cable, "up"]);
    }

    /// Builds a wall around it: packets to other ports vanish.
    pub fn let_out_only(&self, ports: &[u16]) {
        let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
        let rules = format!(
            "flush ruleset\ntable inet wall {{\n chain out {{\n\
             type filter hook output priority 0; policy drop;\n\
             oif \"lo\" accept\n tcp dport {{ {} }} accept\n }}\n}}\n",
            ports.join(", ")
        );
        run(
            "sh",
            &["-c", "printf %s \"$1\" | nsenter --net=/run/netns/$0 nft -f -", &self.name, &rules],
        );
    }

    /// What a program is started through that lives there.
    pub fn through(&self) -> Vec<String> {
        vec!["nsenter".to_owned(), format!("--net=/run/netns/{}", self.name)]
    }
}

impl Drop for Island {
    fn drop(&mut self) {
        // Its end of the cable goes with it, and with that end the other.
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).status();
        let _ = Command::new("ip").args(["link", "delete", &self.cable]).output();
    }
}

/// An address of this machine that every island reaches, whichever cables are pulled.
pub struct Harbour {
    /// The address.
    pub address: String,
}

impl Harbour {
    /// The one that belongs to this lab.
    pub fn make(lab: &Lab) -> Self {
        let own = lab.name("");
        let seed = own.bytes().fold(1, |seed: u64, byte| seed.wrapping_mul(257) ^ u64::from(byte));
        let mut chance = Chance(seed);
        let address = format!("10.{}.{}.1", 200 + chance.below(50), chance.below(256));
        let made = Self { address };
        ip(&["address", "add", &format!("{}/32", made.address), "dev", "lo", "label", "lo:limpet"]);
        made
    }
}

impl Drop for Harbour {
    fn drop(&mut self) {
        let address = format!("{}/32", self.address);
        let _ = Command::new("ip").args(["address", "delete", &address, "dev", "lo"]).status();
    }
}

fn ip(args: &[&str]) {
    run("ip", args);
}
