//! Manifests: what is written is what is read, and nothing that is written can do harm.
#![expect(clippy::unwrap_used, reason = "a test stops where its premise fails")]

use expect_test::expect;
use limpet_controller_core::manifest::{Format, parse, parse_policy, render, render_policy};
use limpet_controller_core::{Count, Deployment};
use limpet_protocol::{
    DeviceAccess, DigestRule, HostAccess, HostDevice, HostMount, ImageKey, ImagePolicy, Resources,
    Restart, SecretPlace, SecretUse, Signal, Stop, WorkloadSpec,
};
use proptest::prelude::*;

/// Every fault, a line each.
fn faults(text: &str) -> String {
    match parse(None, text.as_bytes(), Format::Detect) {
        Ok(deployment) => format!("{deployment:?}"),
        Err(faults) => faults.iter().map(|fault| format!("{fault}\n")).collect(),
    }
}

#[test]
fn every_fault_is_told_with_its_place() {
    expect![[r#"
        line 1: name: deployment name "Web": use lower-case letters, digits and '-', beginning and ending with a letter or digit
        line 3: replicas: must be 0 to 1000, is 5000
        line 4: imgae: there is no such field; did you mean `image`?
        line 6: resources.memory: must be 4Mi to 16Ti
        line 7: resources.disk: there is no such field; resources has cpus, memory, pids
        line 8: env: must be names with values, is a list
        line 9: restart: must be always or on-failure or never, is "sometimes"
        line 10: workdir: must be an absolute path
    "#]]
    .assert_eq(&faults(
        "name: Web\nimage: a\nreplicas: 5000\nimgae: b\nresources:\n  memory: 1\n  disk: 5\n\
         env: [A]\nrestart: sometimes\nworkdir: tmp\n",
    ));
}

#[test]
fn secrets_are_named_with_their_place() {
    let text = "name: a\nimage: b\nsecrets:\n  - db\n  - {name: key, file: /srv/key}\n  \
                - {name: key, env: KEY}\n";
    let deployment = parse(None, text.as_bytes(), Format::Detect).unwrap();
    expect![[r#"
        name: a
        image: b
        replicas: 1
        secrets:
          - name: db
            file: /run/secrets/db
          - name: key
            file: /srv/key
          - name: key
            env: KEY
        restart: always
    "#]]
    .assert_eq(&render(&deployment));
}

#[test]
fn every_fault_of_a_secret_is_told_with_its_place() {
    expect![[r#"
        line 5: secrets[0]: secret name "Db": use lower-case letters, digits and '-', beginning and ending with a letter or digit
        line 6: secrets[1]: must be one value, is a list
        line 7: secrets[2].name: is missing: say which secret
        line 8: secrets[3].file: must be the absolute path of a file, is "a/b"
        line 9: secrets[4].file: must be the absolute path of a file, is "/a/../b"
        line 10: secrets[5].file: /proc is the runtime's: use another place, such as /run/secrets
        line 11: secrets[6].env: says where, but so does `file`: keep one, or list the secret twice
        line 12: secrets[7].env: a variable's name is not empty and has no '='
        line 13: secrets[8]: `env` has the variable "TAKEN" already: keep one
        line 14: secrets[9].path: there is no such field; secrets has env, file, name
        line 15: secrets[10]: "/run/secrets/b/c" is taken by the secret b
        line 16: secrets[11].version: there is no such field; secrets has env, file, name
    "#]].assert_eq(&faults(
        "name: a\nimage: b\nenv: {TAKEN: x}\nsecrets:\n  - Db\n  - [a]\n  - {file: /a}\n  \
         - {name: b, file: a/b}\n  - {name: b, file: /a/../b}\n  - {name: b, file: /proc/self}\n  \
         - {name: b, file: /x, env: X}\n  - {name: b, env: A=B}\n  - {name: b, env: TAKEN}\n  \
         - {name: b, path: /x}\n  - {name: c, file: /run/secrets/b/c}\n  - {name: d, version: 3}\n",
    ));
    let faults = faults("name: a\nimage: b\nsecrets: {db: x}\n");
    assert_eq!(faults, "line 3: secrets: must be a list, is fields with values\n");
}

#[test]
fn what_is_wanted_of_the_host_is_told_with_its_place() {
    expect![[r#"
        line 4: mounts[0].path: nothing can be mounted over /proc/sys
        line 5: mounts[1].host: must be an absolute path without . and .., is "/srv/../etc"
        line 5: mounts[1].path: is missing
        line 6: mounts[2]: must be fields: host, path and, if need be, read_only
        line 7: mounts[3].readonly: there is no such field; did you mean `read_only`?
        line 8: devices[0]: must be below /dev
        line 8: devices[1].access: must be rw or r or w, is "rwm"
    "#]]
    .assert_eq(&faults(
        "name: a\nimage: a\nmounts:\n  - {host: /srv, path: /proc/sys}\n  - {host: /srv/../etc}\n  \
         - /srv:/data\n  - {host: /srv, path: /data, readonly: true}\n\
         devices: [/sys/gpio, {host: /dev/a, access: rwm}]\n",
    ));
    let twice = "name: a\nimage: a\ndevices: [/dev/a, {host: /dev/b, path: /dev/a}]\n";
    assert_eq!(faults(twice), "line 3: devices: \"/dev/a\" is there twice\n");
    let read = parse(None, b"name: a\nimage: a\ndevices: [/dev/a]\n", Format::Yaml).unwrap();
    assert_eq!(read.spec.requires()[0].as_str(), "host.devices");
    assert_ne!(read.spec.digest(), WorkloadSpec::of("a").digest());
}

#[test]
fn what_yaml_can_do_beyond_fields_is_refused() {
    for text in [
        "image: a\nname: b\nname: c\n",
        "--- \nname: a\nimage: b\n---\nname: c\nimage: d\n",
        "name: a\nimage: b\nenv: {<<: {A: b}}\n? [1, 2]\n: 3\n",
    ] {
        assert!(parse(None, text.as_bytes(), Format::Yaml).is_err(), "{text}");
    }
    let laugh = |n: u32| format!("x{n}: &x{n} [{}]\n", format!("*x{},", n - 1).repeat(9));
    let laughs: String = (1..12).map(laugh).collect();
    let laughs = format!("name: a\nimage: b\nx0: &x0 [ha]\n{laughs}");
    let faults = parse(None, laughs.as_bytes(), Format::Yaml).unwrap_err();
    assert!(faults[0].message.contains("more than 10000 values"), "{faults:?}");
    let deep = format!("name: a\nimage: b\nenv: {}", "[".repeat(10_000));
    assert!(parse(None, deep.as_bytes(), Format::Yaml).is_err());
}

#[test]
fn aliases_repeat_no_more_than_a_manifest_has() {
    let text = "x".repeat(4000);
    let args =
        |times: usize| format!("name: a\nimage: b\nargs: [&t {text}{}]", ", *t".repeat(times));
    assert!(parse(None, args(15).as_bytes(), Format::Yaml).is_ok());
    assert!(faults(&args(17)).contains("aliases repeat over 65536 bytes"));
}

#[test]
fn what_could_not_be_read_back_is_refused() {
    // Six bytes each in JSON, ten in YAML.
    let arg = format!("{:?}", "\\u007f".repeat(3500)).replace("\\\\", "\\");
    let manifest = format!(r#"{{"name": "a", "image": "b", "args": [{arg}, {arg}]}}"#);
    assert!(manifest.len() < 65_536);
    assert!(faults(&manifest).starts_with("written out it has 70"), "{:.200}", faults(&manifest));
}

#[test]
fn a_key_that_is_long_when_it_is_quoted_reads_back() {
    for name in ["\u{c}".repeat(200), "x".repeat(4000)] {
        let json = serde_json::json!({ "name": "a", "image": "b", "env": { name: "c" } });
        let deployment = parse(None, json.to_string().as_bytes(), Format::Json).unwrap();
        let again = parse(None, render(&deployment).as_bytes(), Format::Detect);
        assert_eq!(again, Ok(deployment));
    }
}

#[test]
fn what_is_wrong_is_quoted_in_part() {
    let long = "z".repeat(10_000);
    for text in [
        long.clone(),
        format!("{long}: 1"),
        format!("restart: {long}"),
        format!("image: {}", "1".repeat(10_000)),
        format!("resources: {{memory: {long}, cpus: {long}, {long}: 1}}"),
        format!("args: [{}]", "[], ".repeat(9000)),
    ] {
        let faults = parse(None, text.as_bytes(), Format::Yaml).unwrap_err();
        assert!(faults.len() <= 100);
        assert!(faults.iter().all(|fault| fault.to_string().len() < 512), "{faults:?}");
    }
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z0-9:/._-]{1,12}",
        "[ -~]{1,12}",
        "\\PC{1,8}",
        Just("true".into()),
        Just("1e3".into())
    ]
}

/// Policies that permit the images of [`deployments`], which come from Docker's registry, by tag.
fn policies() -> impl Strategy<Value = ImagePolicy> {
    let registries = prop::collection::vec("[a-z]{1,5}\\.io(:[1-9][0-9]{3})?(/[a-z]{1,5})?", 0..3);
    let keys = prop::collection::vec(prop::sample::select(&KEYS[..]), 1..3);
    (registries, keys).prop_map(|(registries, keys)| ImagePolicy {
        digest: DigestRule::Optional,
        registries: registries
            .iter()
            .map(String::as_str)
            .chain(["docker.io"])
            .map(|registry| registry.parse().unwrap())
            .collect(),
        keys: keys.into_iter().map(|pem| ImageKey::from_pem(pem).unwrap()).collect(),
    })
}

/// Of containers/image, signature/fixtures/cosign.pub and cosign2.pub: made by cosign.
const KEYS: [&str; 2] = [
    "-----BEGIN PUBLIC KEY-----\n\
     MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEFNLqFhf4fiN6o/glAuYnq2jYUeL0\n\
     vRuLu/z39pmbVwS9ff5AYnlwaP9sxREajdLY9ynM6G1sy6AAmb7Z63TsLg==\n\
     -----END PUBLIC KEY-----\n",
    "-----BEGIN PUBLIC KEY-----\n\
     MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEwOkOF9xpfG8ghueIhnZ66ooujwt1\n\
     +ReV3HupgKnGFYnEh3Hh1YTg5L6kN1Yakkt5WltRoav8/R3hpCtUO3Rldw==\n\
     -----END PUBLIC KEY-----\n",
];

#[test]
fn an_image_policy_is_read_and_what_it_refuses_is_told() {
    let head = "name: web\nimage: node:1\nimage_policy:\n";
    expect![[r#"
        line 2: image: image_policy (digest): it must be named by digest (docker.io/library/node@sha256:...): a tag can change what it stands for
        line 2: image: image_policy (registries): its registry is not allowed: docker.io/library/node is in none of ghcr.io
    "#]]
    .assert_eq(&faults(&format!("{head}  digest: required\n  registries: [ghcr.io]\n")));
    expect![[r#"
        line 4: image_policy.digest: must be required or optional, is "yes"
        line 5: image_policy.registries[1]: "https://ghcr.io" is no registry: write HOST[:PORT][/PATH], as docker.io or ghcr.io/acme
        line 6: image_policy.keys[0]: is no public key in PEM (`-----BEGIN PUBLIC KEY-----` and so on, as in cosign.pub): it does not begin so
        line 7: image_policy.key: there is no such field; did you mean `keys`?
    "#]]
    .assert_eq(&faults(&format!(
        "{head}  digest: yes\n  registries: [docker.io, 'https://ghcr.io']\n  keys: [cosign.pub]\n  key: a\n"
    )));
    let key: String = KEYS[0].lines().map(|line| format!("      {line}\n")).collect();
    let text = format!("{head}  registries: [docker.io/library]\n  keys:\n  - |\n{key}");
    let deployment = parse(None, text.as_bytes(), Format::Yaml).unwrap();
    expect![[r#"
        name: web
        image: "node:1"
        replicas: 1
        image_policy:
          registries: [docker.io/library]
          keys:
          - |
            -----BEGIN PUBLIC KEY-----
            MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEFNLqFhf4fiN6o/glAuYnq2jYUeL0
            vRuLu/z39pmbVwS9ff5AYnlwaP9sxREajdLY9ynM6G1sy6AAmb7Z63TsLg==
            -----END PUBLIC KEY-----
        restart: always
    "#]]
    .assert_eq(&render(&deployment));
    let bare = Deployment { image_policy: None, ..deployment.clone() };
    assert_eq!(bare.spec.digest(), deployment.spec.digest(), "it makes no other revision");
    let nothing = format!("{head}  digest: optional\n");
    let nothing = parse(None, nothing.as_bytes(), Format::Yaml).unwrap();
    assert_eq!(nothing.image_policy, None);
}

proptest! {
    #[test]
    fn a_policy_reads_back(policy in policies(), strict in any::<bool>()) {
        let digest = if strict { DigestRule::Required } else { DigestRule::Optional };
        let policy = ImagePolicy { digest, ..policy };
        let read = parse_policy(render_policy(&policy, "").as_bytes(), Format::Detect);
        prop_assert_eq!(read, Ok(policy));
    }
}

/// Each in a place of its own.
fn secrets() -> impl Strategy<Value = Vec<SecretUse>> {
    let file = "[a-z]{1,6}".prop_map(|part| SecretPlace::File(format!("/run/x {part}'#:/s")));
    let env = "[A-Z]{1,6}0".prop_map(|key| SecretPlace::Env(format!("{key} \u{7f}")));
    let one = ("[a-z]([a-z0-9-]{0,8}[a-z0-9])?", prop_oneof![file, env]);
    prop::collection::vec(one, 0..4).prop_map(|all| {
        let mut places = std::collections::BTreeSet::new();
        let all = all.into_iter().filter(|(_, place)| places.insert(format!("{place:?}")));
        let of = |(name, place): (String, _)| SecretUse {
            name: name.parse().unwrap(),
            version: SecretUse::LATEST,
            place,
        };
        all.map(of).collect()
    })
}

fn hosts() -> impl Strategy<Value = HostAccess> {
    let part = "[a-zA-Z0-9 :,{}#_-]{1,6}";
    let mount = (part, prop::collection::vec(part, 1..3), any::<bool>());
    let mount = mount.prop_map(|(host, path, read_only)| HostMount {
        host: format!("/{host}"),
        path: format!("/in/{}", path.join("/")),
        read_only,
    });
    let access =
        [DeviceAccess::ReadWrite, DeviceAccess::Read, DeviceAccess::Write].map(Just).to_vec();
    let device = (part, prop::option::of(part), prop::strategy::Union::new(access));
    let device = device.prop_map(|(host, path, access)| HostDevice {
        host: format!("/dev/a/{host}"),
        path: path.map(|path| format!("/dev/b/{path}")),
        access,
    });
    let lists = (prop::collection::vec(mount, 0..3), prop::collection::vec(device, 0..3));
    (any::<bool>(), lists).prop_map(|(privileged, (mut mounts, mut devices))| {
        mounts.sort_by(|a, b| a.path.cmp(&b.path));
        mounts.dedup_by(|a, b| a.path == b.path);
        devices.sort_by(|a, b| a.path().cmp(b.path()));
        devices.dedup_by(|a, b| a.path() == b.path());
        HostAccess { privileged, mounts, devices }
    })
}

fn deployments() -> impl Strategy<Value = Deployment> {
    let texts = || prop::collection::vec(text(), 0..3);
    let pairs = || prop::collection::btree_map("[A-Za-z_][A-Za-z0-9_]{0,6}", text(), 0..3);
    let labels = prop::collection::btree_map("[a-z]{1,6}", "[a-z0-9]{1,6}", 0..3);
    let count = prop_oneof![(0u32..=1000).prop_map(Count::Replicas), Just(Count::Everywhere)];
    let restart =
        prop_oneof![Just(Restart::Always), Just(Restart::OnFailure), Just(Restart::Never)];
    let limits = (
        prop::option::of(4u64 << 20..1 << 40),
        prop::option::of(10u32..1_000_000),
        prop::option::of(1u32..4_000_000),
    );
    let stop = (prop::option::of(1u8..=64), 0u32..=3_600_000);
    let rest =
        (count, labels, restart, limits, stop, (prop::option::of(policies()), secrets(), hosts()));
    let user = prop::option::of("[a-z0-9]{1,8}(:[a-z0-9]{1,8})?");
    (
        "[a-z]([a-z0-9-]{0,20}[a-z0-9])?",
        "[a-z]{1,9}(:[a-z0-9]{1,5})?",
        texts(),
        texts(),
        pairs(),
        user,
        rest,
    )
        .prop_map(|(name, image, command, args, env, user, rest)| {
            let (count, select, restart, limits, (signal, grace_ms), rest) = rest;
            let (image_policy, secrets, host) = rest;
            let (memory_bytes, cpu_millis, pids) = limits;
            let signal = signal.map(|number| Signal::try_from(number).unwrap());
            let spec = WorkloadSpec {
                image,
                command,
                args,
                env,
                workdir: Some("/srv".to_owned()),
                user,
                resources: Resources { memory_bytes, cpu_millis, pids },
                restart,
                stop: Stop { signal, grace_ms },
                secrets,
                host,
            };
            Deployment { name: name.parse().unwrap(), spec, image_policy, count, select }
        })
}

proptest! {
    #[test]
    fn what_is_rendered_reads_back(deployment in deployments()) {
        let manifest = render(&deployment);
        let read = parse(None, manifest.as_bytes(), Format::Detect);
        prop_assert_eq!(read, Ok(deployment), "{}", manifest);
    }

    #[test]
    fn noise_is_refused_and_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        for format in [Format::Detect, Format::Yaml, Format::Json, Format::Cbor] {
            prop_assert!(parse(None, &bytes, format).is_err());
        }
    }

    #[test]
    fn a_changed_byte_never_panics(
        deployment in deployments(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut manifest = render(&deployment).into_bytes();
        let at = at.index(manifest.len());
        manifest[at] = byte;
        let _ = parse(None, &manifest, Format::Detect);
    }
}
