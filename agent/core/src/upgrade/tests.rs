#![expect(clippy::arithmetic_side_effects, reason = "tests count a few")]

use limpet_protocol::cbor;
use proptest::prelude::*;

use super::*;

const BASE: Digest = Digest([1; 32]);
const OLD: Digest = Digest([2; 32]);
const NEW: Digest = Digest([3; 32]);
const OTHER_BASE: Digest = Digest([4; 32]);

fn now(boot: u8, at_ms: u64) -> Now {
    Now { base: BASE, boot: BootId([boot; 16]), at_ms }
}

fn trial(digest: Digest) -> Trial {
    let order = Upgrade {
        order: 7,
        version: "0.2.0".parse().unwrap(),
        digest,
        size: 1,
        deadline_s: 300,
        from: None,
    };
    Trial::new(&order, BootId([1; 16]), vec!["web.0.3".parse().unwrap()])
}

/// On trial, beside one that is good.
fn tried() -> Record {
    let mut record = Record::new(BASE);
    record.good = Some(OLD);
    record.try_out(BASE, trial(NEW));
    record
}

/// Launches, and has on disk what must be.
fn launch(record: &mut Record, now: Now) -> (Program, Option<u16>) {
    let Launch { program, write, deadline_s } = record.clone().launch(now);
    *record = write.unwrap_or_else(|| record.clone());
    (program, deadline_s)
}

fn reason(record: &Record) -> &str {
    record.failure.as_ref().map_or("", |failure| &failure.reason)
}

#[test]
fn one_that_proves_itself_stays() {
    let mut record = tried();
    assert_eq!(launch(&mut record, now(1, 5)), (Program::Fetched(NEW), Some(300)));
    record.keep_trial();
    for boot in [1, 2, 3] {
        assert_eq!(launch(&mut record, now(boot, 9)), (Program::Fetched(NEW), None));
    }
    assert_eq!((record.settled, record.failure, record.trial), (7, None, None));
}

#[test]
fn one_that_ended_in_the_same_boot_is_not_tried_again() {
    for (later_ms, says) in [
        (1_000, "it ended after 1 s, before it had proved itself"),
        (300_000, "it has not proved itself in 300 s"),
    ] {
        let mut record = tried();
        launch(&mut record, now(1, 5));
        assert_eq!(launch(&mut record, now(1, 5 + later_ms)), (Program::Fetched(OLD), None));
        assert!(reason(&record).starts_with(says), "{record:?}");
        assert_eq!((record.settled, &record.trial), (7, &None));
        assert_eq!(launch(&mut record, now(2, 0)), (Program::Fetched(OLD), None));
    }
}

#[test]
fn a_power_cut_is_not_its_fault_but_three_are() {
    let mut record = tried();
    for boot in [1, 2, 3] {
        assert_eq!(launch(&mut record, now(boot, 5)), (Program::Fetched(NEW), Some(300)));
    }
    assert_eq!(launch(&mut record, now(4, 5)), (Program::Fetched(OLD), None));
    assert_eq!(reason(&record), "the machine went down 3 times while it was on trial");
}

#[test]
fn another_base_wins_over_all_that_is_recorded() {
    let mut record = tried();
    let now = Now { base: OTHER_BASE, ..now(1, 5) };
    assert_eq!(launch(&mut record, now), (Program::Base, None));
    assert_eq!((record.base, record.good, record.settled), (OTHER_BASE, None, 7));
    assert!(reason(&record).starts_with("the installed agent was replaced"), "{record:?}");
    // Also where it was replaced while another ran, and something is tried then.
    let mut record = tried();
    record.try_out(OTHER_BASE, trial(NEW));
    assert_eq!(launch(&mut record, now), (Program::Fetched(NEW), Some(300)));
    assert_eq!(launch(&mut record, now), (Program::Base, None));
}

#[test]
fn the_base_can_be_ordered_back() {
    let mut record = tried();
    record.try_out(BASE, trial(BASE));
    assert_eq!(launch(&mut record, now(1, 5)), (Program::Base, Some(300)));
    record.keep_trial();
    assert!(record.is_of_base());
    assert_eq!(launch(&mut record, now(1, 6)), (Program::Base, None));
}

#[test]
fn golden_bytes() {
    let mut record = tried();
    launch(&mut record, now(1, 5));
    record.failure =
        Some(Failure { version: "0.2.0".parse().unwrap(), reason: "r".to_owned(), told: true });
    let bytes = cbor::encode(&record);
    assert_eq!(cbor::decode::<Record>(&bytes, bytes.len()).unwrap(), record);
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    expect_test::expect!["a56162582001010101010101010101010101010101010101010101010101010101010101016167582002020202020202020202020202020202020202020202020202020202020202026174a8616f07617665302e322e30616458200303030303030303030303030303030303030303030303030303030303030303617419012c61625001010101010101010101010101010101617281677765622e302e33616e01616c825001010101010101010101010101010101056173006166a3617665302e322e30616d61726174f5"].assert_eq(&hex);
    // What the first agent wrote that could replace itself is read for ever, and what comes to it is
    // passed over.
    let least = [&[0xa2, 0x61, b'b', 0x58, 0x20][..], &[1; 32], &[0x61, b'z', 0x07]].concat();
    assert_eq!(cbor::decode::<Record>(&least, 64).unwrap(), Record::new(BASE));
}

/// What happens to a device between two launches.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Ends,
    PowerCut,
    Proves,
    Ordered(u8),
    Installed(u8),
    /// The launch before did not come to its end: what it wrote is there, or is not.
    Torn,
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        Just(Fate::Ends),
        Just(Fate::PowerCut),
        Just(Fate::Proves),
        (1u8..6).prop_map(Fate::Ordered),
        (10u8..12).prop_map(Fate::Installed),
        Just(Fate::Torn),
    ]
}

proptest! {
    /// Whatever happens: only what has proved itself runs without a deadline, the base aside; a trial is
    /// on disk before it runs, not begun twice in a boot, and not more than three times at all.
    #[test]
    fn nothing_unproved_stays(fates in prop::collection::vec(fate(), 0..40)) {
        let mut base = Digest([10; 32]);
        let (mut record, mut boot, mut proved) = (Record::new(base), 0u8, vec![]);
        let (mut begun, mut order) = (vec![], 0);
        for (at_ms, fate) in (0u64..).zip(fates) {
            let now = Now { base, boot: BootId([boot; 16]), at_ms };
            let Launch { program, write, deadline_s } = record.clone().launch(now);
            let next = write.clone().unwrap_or_else(|| record.clone());
            let before = std::mem::replace(&mut record, next);
            if deadline_s.is_some() {
                prop_assert!(write.is_some(), "the attempt is written first");
                prop_assert!(!begun.contains(&(order, boot)), "twice in a boot");
                begun.push((order, boot));
                prop_assert!(begun.iter().filter(|(o, _)| *o == order).count() <= 3);
            } else if let Program::Fetched(digest) = program {
                prop_assert!(proved.contains(&digest), "{digest} has not proved itself");
                prop_assert!(record.trial.is_none());
            }
            match fate {
                Fate::Ends => {}
                Fate::PowerCut => boot += 1,
                Fate::Torn => {
                    boot += 1;
                    begun.retain(|(o, b)| (*o, *b + 1) != (order, boot));
                    record = before;
                }
                Fate::Proves if deadline_s.is_some() => {
                    proved.push(record.trial.as_ref().unwrap().digest);
                    record.keep_trial();
                }
                Fate::Proves => {}
                Fate::Ordered(digest) if deadline_s.is_none() => {
                    order += 1;
                    let trial = Trial { order, ..trial(Digest([digest; 32])) };
                    record.try_out(base, trial);
                }
                Fate::Ordered(_) => {}
                Fate::Installed(digest) => base = Digest([digest; 32]),
            }
        }
    }
}
