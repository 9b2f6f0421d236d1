//! What tells this machine from all others, for a name: the serial number that its maker gave it, or
//! the address of its first network card.

use std::fs;
use std::path::Path;

use limpet_protocol::DeviceId;
use ring::rand::{SecureRandom, SystemRandom};

/// Where serial numbers are: device trees have them, and firmware of PCs.
const SERIALS: [&str; 3] = [
    "proc/device-tree/serial-number",
    "sys/class/dmi/id/product_serial",
    "sys/class/dmi/id/board_serial",
];

/// What makers leave where a serial number should be.
const NO_SERIAL: [&str; 13] = [
    "chassis", "default", "empty", "filled", "invalid", "n/a", "none", "not ", "o.e.m", "serial",
    "system", "tbd", "unknown",
];

/// Of a serial number.
const CHARS: std::ops::RangeInclusive<usize> = 4..=32;

/// A name for a device that has none: `PREFIX-` and what tells this machine from others, or a random
/// number where nothing does.
pub fn device_id(prefix: &str) -> Option<DeviceId> {
    DeviceId::lossy(&format!("{prefix}-{}", of_machine(Path::new("/")).or_else(random)?))
}

fn of_machine(root: &Path) -> Option<String> {
    let read = |path: &&str| fs::read_to_string(root.join(path)).ok();
    SERIALS.iter().filter_map(read).find_map(|text| serial(&text)).or_else(|| address(root))
}

/// A serial number that is one, in small letters.
fn serial(text: &str) -> Option<String> {
    let text = text.trim_matches(|c: char| c == '\0' || c.is_whitespace()).to_ascii_lowercase();
    let mut chars: Vec<_> = text.chars().collect();
    let counted = ["0123456789abcdef", "1234567890"].iter().any(|count| count.starts_with(&text));
    let is_one = CHARS.contains(&chars.len())
        && chars.iter().all(|c| c.is_ascii_graphic() || *c == ' ')
        && !counted
        && !NO_SERIAL.iter().any(|word| text.contains(word));
    chars.sort_unstable();
    chars.dedup();
    // One that repeats itself was filled in by nobody.
    (is_one && chars.len() > 2).then(|| text.replace([' ', '/'], "-"))
}

/// The address that the maker of a network card gave it, of the first that has one; wired before
/// wireless.
fn address(root: &Path) -> Option<String> {
    let interfaces = fs::read_dir(root.join("sys/class/net")).ok()?;
    let mut found: Vec<_> = interfaces
        .flatten()
        .filter_map(|entry| {
            let folder = entry.path();
            let read = |file| fs::read_to_string(folder.join(file)).unwrap_or_default();
            let own = folder.join("device").exists() && read("addr_assign_type").trim() == "0";
            let digits: String = read("address").chars().filter(char::is_ascii_hexdigit).collect();
            let first = u8::from_str_radix(digits.get(..2)?, 16).ok()?;
            // Neither a group's (bit 0) nor one that software made up (bit 1).
            let is_makers = digits.len() == 12 && first & 3 == 0 && digits != "000000000000";
            let wireless = folder.join("phy80211").exists();
            (own && is_makers).then(|| (wireless, entry.file_name(), digits))
        })
        .collect();
    found.sort();
    found.into_iter().next().map(|(_, _, digits)| digits)
}

fn random() -> Option<String> {
    let mut bytes = [0; 4];
    SystemRandom::new().fill(&mut bytes).ok()?;
    Some(format!("{:08x}", u32::from_be_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_serial_number_is_not_taken() {
        for text in ["10000000ABCDEF01\0", "C02XK1JKJGH5\n", "VMware-56 4d"] {
            assert!(serial(text).is_some(), "{text}");
        }
        assert_eq!(serial("10000000ABCDEF01\0").unwrap(), "10000000abcdef01");
        for text in [
            "",
            "0",
            "\n",
            "None",
            "To be filled by O.E.M.",
            "Default string",
            "0123456789",
            "123456",
            "00000000",
            "System Serial Number",
            "0123456789ABCDEF",
            "Empty",
            "TBD by OEM",
            "Not Specified",
            "XXXXXXXX",
            "0000000000000000\0",
            "ü123",
        ] {
            assert_eq!(serial(text), None, "{text}");
        }
    }

    #[test]
    fn a_card_of_the_machine_stands_in() {
        let root = tempfile::tempdir().unwrap();
        let card = |name: &str, address: &str, assigned: &str, inside: &[&str]| {
            let folder = root.path().join("sys/class/net").join(name);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("address"), address).unwrap();
            fs::write(folder.join("addr_assign_type"), assigned).unwrap();
            inside.iter().for_each(|name| fs::create_dir(folder.join(name)).unwrap());
        };
        card("lo", "00:00:00:00:00:00\n", "0\n", &[]);
        card("br0", "dc:a6:32:00:00:01\n", "0\n", &[]);
        card("eth0", "52:54:00:12:34:56\n", "0\n", &["device"]);
        card("eth1", "dc:a6:32:00:00:02\n", "1\n", &["device"]);
        assert_eq!(of_machine(root.path()), None);
        card("a-wlan", "dc:a6:32:00:00:03\n", "0\n", &["device", "phy80211"]);
        assert_eq!(of_machine(root.path()).unwrap(), "dca632000003");
        card("usb0", "dc:a6:32:00:00:04\n", "0\n", &["device"]);
        assert_eq!(of_machine(root.path()).unwrap(), "dca632000004");
        let folder = root.path().join("proc/device-tree");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("serial-number"), "100000002f6a1c77\0").unwrap();
        assert_eq!(of_machine(root.path()).unwrap(), "100000002f6a1c77");
    }

    #[test]
    fn nothing_at_all_still_gives_a_name() {
        let [one, other] = [random().unwrap(), random().unwrap()];
        assert_ne!(one, other);
        assert!(device_id("gw").unwrap().as_str().starts_with("gw-"));
    }
}
