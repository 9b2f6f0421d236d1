use limpet_protocol::{HostDevice, HostMount};
use proptest::prelude::*;

use super::*;

fn owner(paths: &[&str], devices: &[&str]) -> Owner {
    let paths = paths.iter().map(|path| PathRule::try_from((*path).to_owned()).unwrap());
    let devices = devices.iter().map(|path| DeviceRule::try_from((*path).to_owned()).unwrap());
    Owner { host_paths: paths.collect(), host_devices: devices.collect(), ..Owner::default() }
}

fn says<T: fmt::Debug>(judged: Result<T, Refusal>) -> String {
    judged.map_or_else(|refusal| refusal.to_string(), |found| format!("{found:?}"))
}

#[test]
fn paths_are_allowed_by_the_rule_that_says_most() {
    let owner = owner(&["/srv/data", "/srv/data/keys:ro", "/run/foo:ro"], &[]);
    for (asked, real, answer) in [
        ("/srv/data", "/srv/data", "AsAsked"),
        ("/srv/data/x", "/srv/data/x", "AsAsked"),
        ("/srv/data/keys/a", "/srv/data/keys/a", "ReadOnly"),
        ("/srv/data/keysmith", "/srv/data/keysmith", "AsAsked"),
        ("/run/foo", "/run/foo", "ReadOnly"),
        ("/link", "/srv/data/x", "AsAsked"),
        (
            "/srv/database",
            "/srv/database",
            "refused by this device's owner: host_paths does not allow /srv/database",
        ),
        (
            "/srv/data/x",
            "/etc",
            "refused by this device's owner: host_paths does not allow /etc, which /srv/data/x \
             leads to",
        ),
        (
            "/srv/data/..",
            "/srv/data/..",
            "refused by this device's owner: host_paths does not allow /srv/data/..",
        ),
    ] {
        assert_eq!(says(owner.host_path(asked, real, &[])), answer);
    }
}

#[test]
fn no_rule_gives_what_is_the_agent_s_own() {
    let owner = owner(&["/"], &[]);
    let own = ["/var/lib/limpet".to_owned(), "/run/limpet".to_owned()];
    for (path, given) in [
        ("/", false),
        ("/var/lib", false),
        ("/var/lib/limpet", false),
        ("/var/lib/limpet/identity", false),
        ("/var/lib/limpet-of-another", true),
        ("/run", false),
        ("/run/limpet/containers", false),
        ("/run/dbus", true),
    ] {
        assert_eq!(owner.host_path(path, path, &own).is_ok(), given, "{path}");
    }
    let why = says(owner.host_path("/link", "/var", &own));
    assert!(
        why.ends_with(
            "/link leads to: it is above, at or below /var/lib/limpet, which is the agent's own"
        ),
        "{why}"
    );
}

#[test]
fn devices_are_allowed_by_pattern() {
    let owner = owner(&[], &["/dev/ttyUSB*", "/dev/serial/by-id/*", "/dev/*/card?", "/dev/fuse"]);
    for (asked, real, allowed) in [
        ("/dev/ttyUSB0", "/dev/ttyUSB0", true),
        ("/dev/ttyUSB", "/dev/ttyUSB", true),
        ("/dev/gps", "/dev/ttyUSB12", true),
        ("/dev/serial/by-id/usb-x", "/dev/ttyACM0", true),
        ("/dev/dri/card?", "/dev/dri/card?", true),
        ("/dev/dri/card0", "/dev/dri/card0", false),
        ("/dev/ttyUSB0/x", "/dev/ttyUSB0/x", false),
        ("/dev/serial/by-id/a/b", "/dev/sda", false),
        ("/dev/fuse2", "/dev/fuse2", false),
        ("/dev/gps", "/dev/sda", false),
    ] {
        assert_eq!(owner.host_device(asked, real).is_ok(), allowed, "{asked} {real}");
    }
}

#[test]
fn what_a_workload_says_of_itself_is_judged() {
    let memory = Memory { machine: 1_000_000_000, taken: 300_000_000 };
    let spec = |change: fn(&mut WorkloadSpec)| {
        let mut spec = WorkloadSpec::of("a");
        change(&mut spec);
        spec
    };
    let share = Owner { memory_share: Some(MemoryShare(500)), ..Owner::default() };
    let no_network = Owner { host_network: false, ..Owner::default() };
    for (owner, spec, rule) in [
        (&Owner::default(), spec(|_| {}), None),
        (&Owner::default(), spec(|spec| spec.host.privileged = true), Some(Rule::Privileged)),
        (&no_network, spec(|_| {}), Some(Rule::HostNetwork)),
        (&share, spec(|_| {}), Some(Rule::MemoryShare)),
        (&share, spec(|spec| spec.resources.memory_bytes = Some(200_000_000)), None),
        (
            &share,
            spec(|spec| spec.resources.memory_bytes = Some(200_000_001)),
            Some(Rule::MemoryShare),
        ),
        (
            &Owner::default(),
            spec(|spec| {
                let (host, path) = ("/etc".to_owned(), "/x".to_owned());
                spec.host.mounts = vec![HostMount { host, path, read_only: true }];
            }),
            Some(Rule::HostPaths),
        ),
        (
            &Owner::default(),
            spec(|spec| {
                let host = "/dev/sda".to_owned();
                let access = limpet_protocol::DeviceAccess::Read;
                spec.host.devices = vec![HostDevice { host, path: None, access }];
            }),
            Some(Rule::HostDevices),
        ),
    ] {
        assert_eq!(owner.judge(&spec, memory).err().map(|refusal| refusal.rule), rule);
    }
}

#[test]
fn registries_are_allowed_whole_or_in_part() {
    let rule = |text: &str| RegistryRule::try_from(text.to_owned()).unwrap();
    let registries = Some(vec![rule("docker.io"), rule("ghcr.io/acme"), rule("10.0.0.1:5000")]);
    let owner = Owner { registries, ..Owner::default() };
    for (image, refused) in [
        ("nginx", None),
        ("ghcr.io/acme/web:1", None),
        ("10.0.0.1:5000/x", None),
        ("no name at all", None),
        ("ghcr.io/acme-evil/web", Some("registries does not allow ghcr.io/acme-evil/web")),
        ("ghcr.io/other", Some("registries does not allow ghcr.io/other")),
        ("10.0.0.1/x", Some("registries does not allow 10.0.0.1/x")),
    ] {
        let memory = Memory { machine: 0, taken: 0 };
        let judged = owner.judge(&WorkloadSpec::of(image), memory);
        let refused = refused.map(|why| format!("refused by this device's owner: {why}"));
        assert_eq!(judged.err().map(|refusal| refusal.to_string()), refused, "{image}");
    }
}

#[test]
fn features_that_the_owner_forbids_are_told_as_such() {
    let names = [Feature::LIMIT_CPU, Feature::PRIVILEGED, Feature::HOST_PATHS];
    let features: Vec<Feature> = names.map(Feature::known).into();
    let told = |owner: &Owner| -> Vec<String> {
        owner.features(features.clone()).iter().map(Feature::to_string).collect()
    };
    let open = Owner { privileged: true, ..owner(&["/srv"], &[]) };
    assert_eq!(told(&open), names);
    assert_eq!(told(&Owner::default()), ["limit.cpu", "denied:privileged", "denied:host.paths"]);
}

#[test]
fn rules_that_cannot_be_are_refused() {
    for text in ["", "srv", "/srv/", "/srv/../etc", "/srv:rw/..", ":ro"] {
        assert!(PathRule::try_from(text.to_owned()).is_err(), "{text}");
    }
    for text in ["", "ttyUSB*", "/dev", "/dev/", "/dev/../etc/*", "/etc/*"] {
        assert!(DeviceRule::try_from(text.to_owned()).is_err(), "{text}");
    }
    for text in ["", "https://ghcr.io", "a.io//b", "a b"] {
        assert!(RegistryRule::try_from(text.to_owned()).is_err(), "{text}");
    }
    for share in [0.0, -1.0, 1.01, f64::NAN, f64::INFINITY] {
        assert!(MemoryShare::try_from(share).is_err(), "{share}");
    }
    assert_eq!(MemoryShare::try_from(0.8), Ok(MemoryShare(800)));
    assert_eq!(MemoryShare::try_from(1.0), Ok(MemoryShare(1000)));
}

/// Paths of few parts, so that rules and what is asked for meet.
fn path() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec!["a", "b", "ab", "..", ".", "a:ro", ""]);
    prop::collection::vec(part, 0..5).prop_map(|parts| format!("/{}", parts.join("/")))
}

/// The parts of a path that lead anywhere, or None where it goes up.
fn parts(path: &str) -> Option<Vec<&str>> {
    let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    (!parts.contains(&"..")).then_some(parts)
}

proptest! {
    #[test]
    fn nothing_outside_of_what_is_allowed_is_allowed(rule in path(), real in path()) {
        let Ok(rule) = PathRule::try_from(rule) else { return Ok(()) };
        let folder = rule.path.clone();
        let owner = Owner { host_paths: vec![rule], ..Owner::default() };
        let allowed = owner.host_path(&real, &real, &[]).is_ok();
        let inside = parts(&real).zip(parts(&folder)).is_some_and(|(real, folder)| real.starts_with(&folder));
        prop_assert!(inside || !allowed, "{} {}", folder, real);
        // What is written as the kernel writes it, and is inside, is allowed.
        prop_assert!(allowed || !inside || !is_clean(&real), "{} {}", folder, real);
    }

    #[test]
    fn no_device_outside_of_its_folder_is_allowed(name in "[a-z*]{1,4}", real in "/dev/[a-z/.]{1,6}") {
        let owner = owner(&[], &[&format!("/dev/{name}")]);
        if owner.host_device(&real, &real).is_ok() {
            prop_assert!(!real["/dev/".len()..].contains('/'), "{} {}", name, real);
        }
    }
}
