use limpet_agent_core::{RecordedLife, SlotRecord};
use limpet_protocol::{BootId, Event, EventKind, Exit, OutboxId};

use super::*;

fn id() -> Option<DeviceId> {
    "pi-1".parse().ok()
}

fn checkpoint() -> Checkpoint {
    let mut checkpoint = Checkpoint::first(OutboxId([7; 8]));
    checkpoint.next_event = 3;
    checkpoint.next_sequence = 4;
    checkpoint.next_container = 5;
    checkpoint.events.push(Event {
        number: 2,
        boot: BootId([1; 16]),
        at_ms: 9,
        kind: EventKind::Started,
        workload: "web".parse().ok(),
        container: Some(4),
        exit: None,
        message: "pid 7".into(),
    });
    let record = SlotRecord {
        container: 4,
        made: None,
        previous: None,
        life: RecordedLife::Started,
        restarts: 1,
        exit: Some(Exit::Code(7)),
        message: "m".into(),
        stopped: false,
    };
    checkpoint.slots.insert("web".parse().unwrap(), record);
    checkpoint
}

/// A folder as a device leaves it after a while.
fn filled() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let Opened { state, lost, .. } = State::open(folder.path(), id()).unwrap();
    assert!(lost.is_empty(), "{lost:?}");
    state.store_desired(b"signed").unwrap();
    state.copy_desired().unwrap();
    state.store_clock_floor(1_800_000_000_000).unwrap();
    state.store_checkpoint(&Checkpoint { next_event: 2, ..checkpoint() }).unwrap();
    state.store_checkpoint(&checkpoint()).unwrap();
    drop(state);
    // So that the test damages files and not room that is only kept free.
    std::fs::remove_file(folder.path().join("reserve")).unwrap();
    folder
}

#[test]
fn what_is_stored_is_found() {
    let folder = filled();
    let opened = State::open(folder.path(), id()).unwrap();
    assert_eq!(opened.lost, [""; 0]);
    assert_eq!(opened.desired.unwrap(), b"signed");
    assert_eq!(opened.checkpoint.unwrap(), checkpoint());
    assert_eq!(opened.clock_floor_ms, 1_800_000_000_000);
}

/// Written by version 0.1.0: one file, replaced whole.
const FORMAT_1: &str = "4c4d50540301000000000000000000c0ba3e5052d3c563c8a6666f757462\
    6f784807070707070707076a6e6578745f6576656e74036d6e6578745f73\
    657175656e6365046e6e6578745f636f6e7461696e657205666576656e74\
    7381a7616e0261625001010101010101010101010101010101617409616b\
    6773746172746564617763776562616304616d65706964203765736c6f74\
    73a163776562a669636f6e7461696e657204646d616465f6646c69666567\
    53746172746564687265737461727473016465786974a1616307676d6573\
    73616765616d";

#[test]
fn a_checkpoint_of_format_1_is_taken_over() {
    let folder = filled();
    for name in ["checkpoint.0", "checkpoint.1"] {
        std::fs::remove_file(folder.path().join(name)).unwrap();
    }
    let hex = FORMAT_1.as_bytes();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    let bytes: Vec<u8> = hex.chunks(2).map(byte).collect();
    std::fs::write(folder.path().join("checkpoint"), bytes).unwrap();
    for _ in 0..2 {
        let opened = State::open(folder.path(), id()).unwrap();
        assert_eq!(opened.checkpoint.unwrap(), checkpoint());
        assert_eq!(opened.lost, [""; 0]);
        assert!(!folder.path().join("checkpoint").exists());
    }
}

/// Damages one file in every way: nothing but what it alone held is lost, and it is said.
#[test]
fn whatever_becomes_of_one_file_nothing_else_is_lost() {
    let folder = filled();
    let path = |name: &str| folder.path().join(name);
    let identity = State::open(folder.path(), id()).unwrap().identity.key.public();
    for name in [
        "identity",
        "identity.old",
        "desired",
        "desired.old",
        "clock",
        "checkpoint.0",
        "checkpoint.1",
    ] {
        let whole = std::fs::read(path(name)).unwrap();
        let content = whole.len() - whole.iter().rev().take_while(|byte| **byte == 0).count();
        let prefixes = (0..content).map(|end| whole[..end].to_vec());
        let flips = (0..content).map(|byte| {
            let mut flipped = whole.clone();
            flipped[byte] ^= 1 << (byte % 8);
            flipped
        });
        let damages = prefixes.chain(flips).chain([vec![0; whole.len()]]).map(Some).chain([None]);
        for (number, damage) in damages.enumerate() {
            match damage {
                Some(bytes) => std::fs::write(path(name), bytes).unwrap(),
                None => std::fs::remove_file(path(name)).unwrap(),
            }
            let opened = State::open(folder.path(), id()).unwrap();
            let what = format!("{name}, damage {number}: {:?}", opened.lost);
            let is_first = !name.ends_with(".old");
            let says = opened.lost.iter().any(|lost| lost.contains(name));
            // Nothing tells that there was a clock, or a second checkpoint.
            let looked_for = path(name).exists() || !["clock", "checkpoint.0"].contains(&name);
            assert_eq!(says, is_first && looked_for, "{what}");
            assert_eq!(opened.desired.unwrap(), b"signed", "{what}");
            assert_eq!(opened.identity.key.public(), identity, "{what}");
            let checkpoint = opened.checkpoint.unwrap();
            // The latest is in one of the two.
            assert!(checkpoint.next_event >= 2, "{what}");
            assert!(name == "checkpoint.0" || checkpoint.next_event == 3, "{what}");
            if name.starts_with("identity") || name.starts_with("desired") {
                assert_eq!(std::fs::read(path(name)).unwrap(), whole, "{what} was not mended");
            }
            std::fs::write(path(name), &whole).unwrap();
        }
    }
}

/// Whatever becomes of what is known of programs, the device starts: with it, or with its base.
#[test]
fn no_record_of_programs_keeps_a_device_from_booting() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let mut record = Record::new(limpet_protocol::Digest([1; 32]));
    assert_eq!(upgrade_record(folder.path()), (None, vec![]));
    record.settle(7, None);
    store_upgrade_record(folder.path(), &record).unwrap();
    let whole = std::fs::read(path("upgrade")).unwrap();
    let content = document::seal(Kind::Upgrade, b"no record");
    let newer = {
        let mut newer = whole.clone();
        newer[5] += 1;
        let check = limpet_protocol::Digest::of(&[&newer[..16], &newer[24..]].concat());
        newer[16..24].copy_from_slice(&check.0[..8]);
        newer
    };
    for damage in [b"".to_vec(), whole[..9].to_vec(), vec![0; whole.len()], content, newer] {
        std::fs::write(path("upgrade"), &damage).unwrap();
        let (read, lost) = upgrade_record(folder.path());
        assert!(read.is_none_or(|read| read == record) && lost.len() == 1, "{lost:?}");
        std::fs::write(path("upgrade.old"), &damage).unwrap();
        let (read, lost) = upgrade_record(folder.path());
        assert!(read.is_none() && lost.len() == 1, "{lost:?}");
        // What takes its place is read again.
        store_upgrade_record(folder.path(), &record).unwrap();
        assert_eq!(upgrade_record(folder.path()), (Some(record.clone()), vec![]));
    }
}

#[test]
fn nothing_at_all_is_a_new_device_and_both_copies_gone_is_said() {
    let folder = filled();
    for name in
        ["identity", "identity.old", "desired", "desired.old", "checkpoint.0", "checkpoint.1"]
    {
        std::fs::write(folder.path().join(name), b"junk").unwrap();
    }
    let opened = State::open(folder.path(), id()).unwrap();
    assert_eq!(opened.lost.len(), 4, "{:?}", opened.lost);
    assert!(opened.desired.is_none() && opened.checkpoint.is_none());
    assert_eq!(opened.identity.device, id().unwrap());
}

#[test]
fn a_membership_keeps_the_key_before_the_present_one_through_a_restart() {
    let key = |byte| SigningKey::from_seed(&[byte; 32]).unwrap().public();
    let membership = |byte| Membership {
        controller: key(byte),
        roots: vec![],
        certificates: vec![],
        brokers: vec![],
        servers: vec![],
        broker_roots: vec![],
    };
    let folder = tempfile::tempdir().unwrap();
    // As it joins, takes another certificate, another key, another certificate, and yet another key.
    for (controller, before) in
        [(1, None), (1, None), (2, Some(1)), (2, Some(1)), (3, Some(2)), (1, Some(3))]
    {
        let Opened { state, identity, .. } = State::open(folder.path(), id()).unwrap();
        state.store_identity(&identity.with_membership(membership(controller))).unwrap();
        drop(state);
        let known = State::open(folder.path(), id()).unwrap().identity;
        assert_eq!(known.controller, Some(key(controller)));
        assert_eq!(known.controller_before, before.map(key), "{controller}");
        assert_eq!(known.key.public(), identity.key.public());
        assert_eq!(known.membership, Some(membership(controller)));
    }
}

#[test]
fn a_copy_that_was_not_written_before_the_power_went_is_written_at_the_next_start() {
    let folder = filled();
    let copies = || {
        ["identity.old", "desired.old"].map(|name| std::fs::read(folder.path().join(name)).unwrap())
    };
    let older = copies();
    let Opened { state, identity, .. } = State::open(folder.path(), id()).unwrap();
    let controller = Some(SigningKey::generate().unwrap().public());
    state.store_identity(&Identity { controller, ..identity }).unwrap();
    state.store_desired(b"another").unwrap();
    for (name, copy) in ["identity.old", "desired.old"].into_iter().zip(&older) {
        std::fs::write(folder.path().join(name), copy).unwrap();
    }
    drop(state);
    assert_eq!(State::open(folder.path(), id()).unwrap().identity.controller, controller);
    for name in ["identity", "desired"] {
        std::fs::remove_file(folder.path().join(name)).unwrap();
    }
    let opened = State::open(folder.path(), id()).unwrap();
    assert_eq!(opened.identity.controller, controller);
    assert_eq!(opened.desired.unwrap(), b"another");
}

/// A folder in place of a file stands for a disk that would not read it.
#[test]
fn a_key_that_the_disk_would_not_give_for_once_is_not_replaced() {
    let folder = filled();
    let path = |name: &str| folder.path().join(name);
    let key = || State::open(folder.path(), id()).map(|opened| opened.identity.key.public());
    let before = key().unwrap();
    let names = ["identity", "identity.old"];
    let hide = |name: &str| {
        std::fs::rename(path(name), path(&format!("{name}.hidden"))).unwrap();
        std::fs::create_dir(path(name)).unwrap();
    };
    let show = |name: &str| {
        std::fs::remove_dir(path(name)).unwrap();
        std::fs::rename(path(&format!("{name}.hidden")), path(name)).unwrap();
    };
    for name in names {
        hide(name);
        assert_eq!(key().unwrap(), before, "{name}: the other has it");
        show(name);
    }
    names.into_iter().for_each(hide);
    let why = key().unwrap_err().to_string();
    assert!(why.starts_with("cannot read ") && why.contains("/identity: "), "{why}");
    names.into_iter().for_each(show);
    // Nor is one whose copy the disk would not give, where it is damaged itself.
    let whole = std::fs::read(path("identity")).unwrap();
    std::fs::write(path("identity"), b"junk").unwrap();
    hide("identity.old");
    assert!(key().is_err());
    show("identity.old");
    std::fs::write(path("identity"), whole).unwrap();
    assert_eq!(key().unwrap(), before);
}

#[test]
fn what_nobody_understands_of_a_key_is_kept_beside_the_next_one() {
    let folder = filled();
    let path = |name: &str| folder.path().join(name);
    let foreign = document::seal(Kind::Identity, b"no CBOR of an identity");
    std::fs::write(path("identity"), &foreign).unwrap();
    std::fs::write(path("identity.old"), b"junk").unwrap();
    let opened = State::open(folder.path(), id()).unwrap();
    assert!(opened.lost[0].starts_with("the identity cannot be read: "), "{:?}", opened.lost);
    assert_eq!(std::fs::read(path("identity.damaged")).unwrap(), foreign);
    assert_eq!(std::fs::read(path("identity.old.damaged")).unwrap(), b"junk");
}
