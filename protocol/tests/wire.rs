//! The wire keeps its bytes, and nothing but the very message that was signed is accepted.
#![expect(clippy::unwrap_used, reason = "a test stops where its premise fails")]

use expect_test::expect;
use limpet_protocol::envelope::{open, seal};
use limpet_protocol::*;
use proptest::prelude::*;

fn key() -> SigningKey {
    SigningKey::from_seed(&[7; 32]).unwrap()
}

fn header(kind: Kind) -> Header {
    Header {
        prefix: "limpet/v1".to_owned(),
        device: "pi-1".parse().unwrap(),
        kind,
        epoch: 1,
        number: 2,
    }
}

fn accept(message: &[u8]) -> Result<Envelope, EnvelopeError> {
    let (prefix, device) = (Prefix::default(), "pi-1".parse().unwrap());
    let signer = key().public();
    open(
        message,
        Expected { prefix: &prefix, device: &device, kind: Kind::Desired, signer: Some(&signer) },
    )
}

fn desired() -> DesiredState {
    let spec = WorkloadSpec {
        image: "node:alpine".to_owned(),
        command: vec![],
        args: vec!["-v".to_owned()],
        env: [("K".to_owned(), "V".to_owned())].into(),
        workdir: None,
        user: None,
        resources: Resources { memory_bytes: Some(1 << 26), ..Resources::default() },
        restart: Restart::OnFailure,
        stop: Stop::default(),
        secrets: vec![],
        host: HostAccess::default(),
    };
    DesiredState {
        held: Held { epoch: 1, generation: 2 },
        at_ms: 3,
        reconnect_spread_ms: 0,
        policy: None,
        upgrade: None,
        workloads: vec![Workload {
            id: "web.0".parse().unwrap(),
            deployment: "web".parse().unwrap(),
            revision: spec.digest(),
            requires: spec.requires(),
            policy: None,
            spec,
            sealed: vec![],
        }],
    }
}

/// The workload of a desired state, with secrets.
fn with_secret() -> Workload {
    let name: SecretName = "db".parse().unwrap();
    let secret = |place| SecretUse { name: name.clone(), version: 3, place };
    let file = secret(SecretPlace::File("/run/secrets/db".to_owned()));
    let env = secret(SecretPlace::Env("DB".to_owned()));
    let spec = WorkloadSpec { secrets: vec![file, env], ..WorkloadSpec::of("box") };
    Workload {
        id: "web".parse().unwrap(),
        deployment: "web".parse().unwrap(),
        revision: Digest([5; 32]),
        requires: spec.requires(),
        policy: None,
        spec,
        sealed: vec![SealedSecret { name, version: 3, sealed: vec![1, 2] }],
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
#[expect(clippy::too_many_lines, reason = "one value of every message")]
fn golden_bytes() {
    let hello = Hello {
        boot: BootId([1; 16]),
        connection: 5,
        nonce: Nonce([2; 16]),
        agent_version: "0.1.0".try_into().unwrap(),
        features: vec![Feature::known(Feature::LIMIT_PIDS)],
        labels: [("site".try_into().unwrap(), "berlin".try_into().unwrap())].into(),
        facts: Facts { arch: "arm".try_into().unwrap(), memory_bytes: 1, ..Facts::default() },
        held: Held { epoch: 1, generation: 2 },
        arriving: None,
        reported: Digest([3; 32]),
        outbox: OutboxId([4; 8]),
        keep_alive_s: 600,
        sealing_key: None,
        sent_ms: 0,
        recorded: None,
        controller: None,
    };
    let reported = Reported {
        outbox: OutboxId([4; 8]),
        sequence: 9,
        applied: Held { epoch: 1, generation: 2 },
        complete: false,
        records: vec![Record {
            workload: "web".parse().unwrap(),
            status: Some(WorkloadStatus {
                deployment: "web".parse().unwrap(),
                revision: Digest([5; 32]),
                phase: Phase::Backoff,
                container: 3,
                pid: None,
                restarts: 2,
                exit: Some(Exit::Code(7)),
                message: "exited with 7".to_owned(),
            }),
        }],
        whole: Digest([6; 32]),
        upgrade: None,
    };
    let batch = EventBatch {
        outbox: OutboxId([4; 8]),
        boot: BootId([1; 16]),
        sent_ms: 10,
        oldest: 1,
        events: vec![Event {
            number: 1,
            boot: BootId([1; 16]),
            at_ms: 9,
            kind: EventKind::Exited,
            workload: Some("web".parse().unwrap()),
            container: Some(3),
            exit: Some(Exit::Signal(9)),
            message: String::new(),
        }],
    };
    let ack = Ack { outbox: OutboxId([4; 8]), events: 1, sequence: 2, send_whole: true };
    let command = Command {
        nonce: Nonce([2; 16]),
        action: Action::Logs {
            stream: StreamId([8; 8]),
            workload: "web".parse().unwrap(),
            tail: 10,
            follow: true,
            lease_ms: 1000,
            key: None,
        },
    };
    let give_back = Command { nonce: Nonce([2; 16]), action: Action::ReturnDesired };
    let chunk = StreamChunk {
        lines: vec![LogLine { stream: LogStream::Stderr, at_ms: 1, bytes: b"x".to_vec() }],
        gap_bytes: 0,
        end: true,
    };
    let sealing_key = SealingKey([9; 32]);
    let sealed_chunk = SealedChunk { sender: sealing_key, body: vec![1, 2] };
    let with_key = Hello { sealing_key: Some(sealing_key), ..hello.clone() };
    let of_member = Hello { controller: Some(PublicKey([8; 32])), ..hello.clone() };
    let mut sealed_command = command.clone();
    if let Action::Logs { key: none, .. } = &mut sealed_command.action {
        *none = Some(sealing_key);
    }
    let presence = Presence { state: PresenceState::Offline, boot: BootId([1; 16]), connection: 5 };
    let asleep = Presence { state: PresenceState::Asleep { for_ms: 9 }, ..presence };
    let lines = [
        ("desired", hex(&cbor::encode(&desired()))),
        ("hello", hex(&cbor::encode(&hello))),
        ("reported", hex(&cbor::encode(&reported))),
        ("event", hex(&cbor::encode(&batch))),
        ("ack", hex(&cbor::encode(&ack))),
        ("command", hex(&cbor::encode(&command))),
        ("command-return", hex(&cbor::encode(&give_back))),
        ("returned", hex(&cbor::encode(&Returned { signed: vec![1, 2] }))),
        ("result", hex(&cbor::encode(&CommandResult { error: None }))),
        ("chunk", hex(&cbor::encode(&chunk))),
        ("sealed-chunk", hex(&cbor::encode(&sealed_chunk))),
        ("desired-secret", hex(&cbor::encode(&with_secret()))),
        ("hello-secret", hex(&cbor::encode(&with_key))),
        ("hello-member", hex(&cbor::encode(&of_member))),
        ("renew", hex(&cbor::encode(&Renew { controller: None }))),
        ("renew-member", hex(&cbor::encode(&Renew { controller: of_member.controller }))),
        ("command-key", hex(&cbor::encode(&sealed_command))),
        ("presence", hex(&cbor::encode(&presence))),
        ("asleep", hex(&cbor::encode(&asleep))),
        ("sealed", hex(&seal(&key(), &header(Kind::Presence), &presence))),
    ]
    .map(|(name, hex)| format!("{name} {hex}\n"));
    expect![[r#"
        desired a46168a2616501616702617403617200617781a56169657765622e3061646377656261765820b5999fc0cc7aea27ab19803f7d611860aae9eaa19913a27a6646dcca281a58086171816c6c696d69742e6d656d6f72796173a661696b6e6f64653a616c70696e65616181622d766165a1614b6156616ca1616d1a04000000617261666173a16167192710
        hello ab61625001010101010101010101010101010101616305616e5002020202020202020202020202020202617665302e312e306171816a6c696d69742e70696473616ca16473697465666265726c696e6166a561616361726d617660616d01616300616b606168a2616501616702616458200303030303030303030303030303030303030303030303030303030303030303616f480404040404040404616b190258
        reported a6616f480404040404040404616e096168a26165016167026163f4617281a26177637765626173a761646377656261765820050505050505050505050505050505050505050505050505050505050505050561706262616163036172026178a1616307616d6d65786974656420776974682037616458200606060606060606060606060606060606060606060606060606060606060606
        event a5616f4804040404040404046162500101010101010101010101010101010161740a616601616581a7616e0161625001010101010101010101010101010101617409616b666578697465646177637765626163036178a1617309
        ack a4616f4804040404040404046165016172026177f5
        command a2616e50020202020202020202020202020202026161a1636c6f67a5617348080808080808080861776377656261740a6166f5616c1903e8
        command-return a2616e5002020202020202020202020202020202616163726574
        returned a16164420102
        result a16165f6
        chunk a3616c81a361736165617401616241786167006165f5
        sealed-chunk a2616b582009090909090909090909090909090909090909090909090909090909090909096162420102
        desired-secret a661696377656261646377656261765820050505050505050505050505050505050505050505050505050505050505050561718167736563726574736173a5616963626f78616ca0617261616173a16167192710617882a3616e6264626176036170a161666f2f72756e2f736563726574732f6462a3616e6264626176036170a16165624442617881a3616e6264626176036162420102
        hello-secret ac61625001010101010101010101010101010101616305616e5002020202020202020202020202020202617665302e312e306171816a6c696d69742e70696473616ca16473697465666265726c696e6166a561616361726d617660616d01616300616b606168a2616501616702616458200303030303030303030303030303030303030303030303030303030303030303616f480404040404040404616b190258617858200909090909090909090909090909090909090909090909090909090909090909
        hello-member ac61625001010101010101010101010101010101616305616e5002020202020202020202020202020202617665302e312e306171816a6c696d69742e70696473616ca16473697465666265726c696e6166a561616361726d617660616d01616300616b606168a2616501616702616458200303030303030303030303030303030303030303030303030303030303030303616f480404040404040404616b190258617958200808080808080808080808080808080808080808080808080808080808080808
        renew a0
        renew-member a1616b58200808080808080808080808080808080808080808080808080808080808080808
        command-key a2616e50020202020202020202020202020202026161a1636c6f67a6617348080808080808080861776377656261740a6166f5616c1903e8616b58200909090909090909090909090909090909090909090909090909090909090909
        presence a36173636f666661625001010101010101010101010101010101616305
        asleep a36173a16661736c656570a161660961625001010101010101010101010101010101616305
        sealed d2845847a30127045820ea4a6c63e29c520abef5507b132ec5f9954776aebebe7b92421eea691446d22c3a000100008601696c696d7065742f76316470692d316870726573656e63650102a0581da36173636f66666162500101010101010101010101010101010161630558406c386f138499e5039cf6d5ff1c47ee10b1f00a35d4b41936a5f506064cdadb0b323b657e0b43438b2da754c10ca5887b978948658486be9fb5c9a7c0a4297c0e
    "#]].assert_eq(&lines.concat());
}

#[test]
fn golden_bytes_of_policies() {
    let key = "-----BEGIN PUBLIC KEY-----\n\
               MCowBQYDK2VwAyEAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n\
               -----END PUBLIC KEY-----";
    let policy = ImagePolicy {
        digest: DigestRule::Required,
        registries: vec!["ghcr.io/acme".parse().unwrap()],
        keys: vec![ImageKey::from_pem(key).unwrap()],
    };
    let mut state = desired();
    state.policy = Some(ImagePolicy { digest: DigestRule::Required, ..ImagePolicy::default() });
    state.workloads[0].policy = Some(policy);
    let bytes = cbor::encode(&state);
    assert_eq!(cbor::decode::<DesiredState>(&bytes, bytes.len()).unwrap(), state);
    expect!["a56168a26165016167026174036172006170a161646172617781a66169657765622e3061646377656261765820b5999fc0cc7aea27ab19803f7d611860aae9eaa19913a27a6646dcca281a58086171816c6c696d69742e6d656d6f72796170a3616461726172816c676863722e696f2f61636d65616b81582c302a300506032b657003210000000000000000000000000000000000000000000000000000000000000000006173a661696b6e6f64653a616c70696e65616181622d766165a1614b6156616ca1616d1a04000000617261666173a16167192710"].assert_eq(&hex(&bytes));
}

#[test]
fn golden_bytes_of_upgrades() {
    let order = Upgrade {
        order: 9,
        version: "0.2.0".parse().unwrap(),
        digest: Digest([4; 32]),
        size: 5,
        deadline_s: 300,
        from: None,
    };
    let to_stranger = Upgrade { from: Some("http://127.0.0.1:8420".to_owned()), ..order.clone() };
    let status = UpgradeStatus {
        order: 9,
        version: order.version.clone(),
        phase: UpgradePhase::Failed,
        message: "it ended".to_owned(),
    };
    let state = DesiredState { upgrade: Some(order.clone()), workloads: vec![], ..desired() };
    let bytes = cbor::encode(&state);
    assert_eq!(cbor::decode::<DesiredState>(&bytes, bytes.len()).unwrap(), state);
    let lines = [&hex(&bytes), &hex(&cbor::encode(&to_stranger)), &hex(&cbor::encode(&status))];
    expect![[r#"
        a56168a26165016167026174036172006175a5616e09617665302e322e30616458200404040404040404040404040404040404040404040404040404040404040404617305617419012c617780
        a6616e09617665302e322e30616458200404040404040404040404040404040404040404040404040404040404040404617305617419012c616675687474703a2f2f3132372e302e302e313a38343230
        a4616e09617665302e322e306170666661696c6564616d68697420656e646564
    "#]]
    .assert_eq(&lines.map(|line| format!("{line}\n")).concat());
    assert_eq!(order.path(), format!("/api/v1/agents/{}", "04".repeat(32)));
    // A phase of a later version does not make a report unreadable.
    let later = "a3616e09617665302e322e306170687265626f6f746564";
    let later: UpgradeStatus = cbor::decode(&unhex(later), 64).unwrap();
    assert_eq!(later.phase, UpgradePhase::Unknown);
}

#[test]
fn golden_bytes_of_signed_manifests() {
    let (prefix, name) = (Prefix::default(), "web".parse().unwrap());
    let manifest = SignedManifest { until_ms: 7_200_000, manifest: b"image: box".to_vec() };
    let bytes = manifest.seal(&key(), &prefix, &name, 3_600_000);
    let (envelope, opened) = SignedManifest::open(&bytes, &prefix, &name).unwrap();
    assert_eq!((envelope.header.number, opened), (3_600_000, manifest));
    let other = "web-2".parse().unwrap();
    assert!(SignedManifest::open(&bytes, &prefix, &other).is_err());
    expect!["d284584aa30127045820ea4a6c63e29c520abef5507b132ec5f9954776aebebe7b92421eea691446d22c3a000100008601696c696d7065742f763163776562686d616e6966657374001a0036ee80a055a261751a006ddd00616d4a696d6167653a20626f7858401877b805a6b477431e71eaef384d83a0ff1f0e9133212257d343f7477fcae150c91c019761023b84b32c25f12b8690d3038acb135b7ee7af56c0d24c13738a02"].assert_eq(&hex(&bytes));
}

#[test]
fn a_hello_says_when_it_was_said_and_what_was_recorded() {
    let older = "aa61625001010101010101010101010101010101616305616e500202020202020202020202020202\
        0202617665302e312e306171816a6c696d69742e70696473616ca16473697465666265726c696e61\
        66a561616361726d617660616d01616300616b606168a26165016167026164582003030303030303\
        03030303030303030303030303030303030303030303030303616f480404040404040404";
    let hello: Hello = cbor::decode(&unhex(older), 1024).unwrap();
    assert_eq!((hello.sent_ms, hello.recorded), (0, None), "an older agent says neither");
    let hello = Hello { sent_ms: 9, recorded: Some(0), ..hello };
    assert_eq!(cbor::decode(&cbor::encode(&hello), 1024).ok(), Some(hello));
}

fn unhex(text: &str) -> Vec<u8> {
    let byte = |at| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(byte).collect()
}

#[test]
fn a_hello_of_an_agent_that_names_no_keep_alive_is_read() {
    let older = "aa61625001010101010101010101010101010101616305616e500202020202020202020202020202\
        0202617665302e312e306171816a6c696d69742e70696473616ca16473697465666265726c696e61\
        66a561616361726d617660616d01616300616b606168a26165016167026164582003030303030303\
        03030303030303030303030303030303030303030303030303616f480404040404040404";
    let bytes: Vec<u8> = older
        .as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect();
    let hello: Hello = cbor::decode(&bytes, 1024).unwrap();
    assert_eq!((hello.connection, hello.keep_alive_s), (5, 0));
}

#[test]
fn a_sealed_message_opens() {
    let envelope = accept(&seal(&key(), &header(Kind::Desired), &desired())).unwrap();
    assert_eq!(envelope.header, header(Kind::Desired));
    assert_eq!(envelope.read::<DesiredState>().unwrap(), desired());
}

#[test]
fn what_is_not_the_signed_message_is_refused() {
    let other = SigningKey::from_seed(&[8; 32]).unwrap();
    let signed_by_other = seal(&other, &header(Kind::Desired), &desired());
    assert!(matches!(accept(&signed_by_other), Err(EnvelopeError::Signer { .. })));

    let other_kind = seal(&key(), &header(Kind::Command), &desired());
    assert!(matches!(accept(&other_kind), Err(EnvelopeError::Misdirected { .. })));

    let other_device = Header { device: "pi-2".parse().unwrap(), ..header(Kind::Desired) };
    let other_device = seal(&key(), &other_device, &desired());
    assert!(matches!(accept(&other_device), Err(EnvelopeError::Misdirected { .. })));

    let good = seal(&key(), &header(Kind::Desired), &desired());
    let mut later = good.clone();
    let label = [0x3a, 0x00, 0x01, 0x00, 0x00, 0x86];
    let at = good.windows(label.len()).position(|bytes| bytes == label).unwrap() + label.len();
    later[at] = 2;
    assert!(matches!(accept(&later), Err(EnvelopeError::Version(2))));

    let mut trailing = good.clone();
    trailing.push(0);
    let huge = [&[0xd2, 0x9b, 0, 0, 1, 0, 0, 0, 0, 0][..], &good].concat();
    let huge_bytes = [&[0xd2, 0x84, 0x5b, 0, 0, 1, 0, 0, 0, 0, 0][..], &good].concat();
    let deep = [vec![0xd2], vec![0x81; 100_000]].concat();
    let long = [vec![0xd2], vec![0; cbor::MESSAGE_BYTES_MAX + 1]].concat();
    for (name, bytes) in [
        ("empty", &vec![]),
        ("trailing", &trailing),
        ("2^40 items", &huge),
        ("2^40 bytes", &huge_bytes),
        ("deep", &deep),
        ("long", &long),
    ] {
        assert!(accept(bytes).is_err(), "{name}");
    }
}

proptest! {
    #[test]
    fn no_changed_byte_is_accepted(at in any::<prop::sample::Index>(), flip in 1u8..) {
        let mut message = seal(&key(), &header(Kind::Desired), &desired());
        let at = at.index(message.len());
        message[at] ^= flip;
        prop_assert!(accept(&message).is_err());
    }

    #[test]
    fn no_prefix_is_accepted(at in any::<prop::sample::Index>()) {
        let message = seal(&key(), &header(Kind::Desired), &desired());
        prop_assert!(accept(&message[..at.index(message.len())]).is_err());
    }

    #[test]
    fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(accept(&bytes).is_err());
        let signed = [&[0xd2, 0x84][..], &bytes].concat();
        prop_assert!(accept(&signed).is_err());
    }
}
