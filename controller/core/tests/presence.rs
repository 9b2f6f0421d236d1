//! Who is there, through silence, sleep, restarts and clocks that jump.

use limpet_controller_core::Presence;
use limpet_controller_core::presence::{Heard, Patience, reconnect_spread_ms};
use proptest::prelude::*;

const PATIENCE: Patience = Patience { grace_ms: 100, lost_after_ms: 1000 };

/// What becomes of a device that is known since 0, by what is heard at which time.
fn story(begin: Presence, heard: &[(u64, Heard)]) -> Vec<String> {
    let mut presence = begin;
    let step = |(now_ms, heard): &(u64, Heard)| {
        presence = presence.next(*now_ms, *heard, PATIENCE);
        format!("{presence} since {}", presence.since_ms())
    };
    heard.iter().map(step).collect()
}

#[test]
fn nothing_is_assumed_of_who_could_not_speak_yet() {
    let told = story(
        Presence::Unknown { since_ms: 0 },
        &[
            (99, Heard::Nothing),
            (100, Heard::Nothing),
            (999, Heard::Nothing),
            (1000, Heard::Nothing),
        ],
    );
    assert_eq!(told, ["unknown since 0", "offline since 0", "offline since 0", "lost since 0"]);
    let told =
        story(Presence::Unknown { since_ms: 0 }, &[(50, Heard::Hello), (99_999, Heard::Nothing)]);
    assert_eq!(told, ["online since 50", "online since 50"]);
}

#[test]
fn who_announces_sleep_is_asleep_whatever_ends_the_connection() {
    let told = story(
        Presence::Online { since_ms: 0 },
        &[
            (10, Heard::Sleeps(500)),
            (11, Heard::Gone),
            (609, Heard::Nothing),
            (610, Heard::Nothing),
            (1509, Heard::Nothing),
            (1510, Heard::Nothing),
            (2000, Heard::Gone),
            (2001, Heard::Hello),
        ],
    );
    assert_eq!(
        told,
        [
            "asleep since 10",
            "asleep since 10",
            "asleep since 10",
            "offline since 510",
            "offline since 510",
            "lost since 510",
            "lost since 510",
            "online since 2001",
        ]
    );
}

#[test]
fn of_those_that_nobody_can_hear_nothing_is_known_and_their_time_begins_anew() {
    let told = story(
        Presence::Online { since_ms: 0 },
        &[
            (500, Heard::Nobody),
            (900, Heard::Nobody),
            (999, Heard::Nothing),
            (1000, Heard::Nothing),
            (1001, Heard::Nobody),
        ],
    );
    let unknown = ["unknown since 500", "unknown since 900", "unknown since 900"];
    assert_eq!(told[..3], unknown);
    assert_eq!(told[3..], ["offline since 900", "offline since 900"]);
}

#[test]
fn a_long_silence_of_the_controller_itself_ends_in_one_step() {
    let told = story(Presence::Asleep { since_ms: 0, for_ms: 5 }, &[(u64::MAX, Heard::Nothing)]);
    assert_eq!(told, ["lost since 5"]);
}

#[test]
fn a_grace_is_one_and_a_half_keep_alives_and_the_time_to_return() {
    assert_eq!(Patience::new(600, 1, 7), Patience { grace_ms: 1_050_002, lost_after_ms: 7 });
    assert_eq!(Patience::new(6, 0, 7), Patience { grace_ms: 159_001, lost_after_ms: 7 });
}

#[test]
fn the_spread_of_reconnects_follows_the_fleet_in_large_steps() {
    let spreads = [0, 1, 500, 1000, 1024, 1025, 100_000].map(reconnect_spread_ms);
    assert_eq!(spreads, [1, 2, 1024, 2048, 2048, 4096, 262_144]);
    assert_eq!(reconnect_spread_ms(usize::MAX), u32::MAX);
}

fn any_presence() -> impl Strategy<Value = Presence> {
    let time = any::<u64>();
    prop_oneof![
        time.prop_map(|since_ms| Presence::Unknown { since_ms }),
        time.prop_map(|since_ms| Presence::Online { since_ms }),
        (time, time).prop_map(|(since_ms, for_ms)| Presence::Asleep { since_ms, for_ms }),
        time.prop_map(|since_ms| Presence::Offline { since_ms }),
        time.prop_map(|since_ms| Presence::Lost { since_ms }),
    ]
}

fn any_heard() -> impl Strategy<Value = Heard> {
    prop_oneof![
        Just(Heard::Hello),
        any::<u64>().prop_map(Heard::Sleeps),
        Just(Heard::Gone),
        Just(Heard::Nobody),
        Just(Heard::Nothing),
    ]
}

proptest! {
    /// Time alone brings nobody back, and what it changes does not depend on how often one looks.
    #[test]
    fn looking_more_often_changes_nothing(
        begin in any_presence(), mut looks in prop::collection::vec(any::<u64>(), 1..20),
    ) {
        looks.sort_unstable();
        let last = looks[looks.len() - 1];
        let often = looks.iter().fold(begin, |p, now| p.next(*now, Heard::Nothing, PATIENCE));
        prop_assert_eq!(often, begin.next(last, Heard::Nothing, PATIENCE));
        prop_assert_eq!(often.is_online(), begin.is_online());
        prop_assert!(often.rank() >= begin.rank());
    }

    /// A device is online exactly when the last word of it was a hello.
    #[test]
    fn only_a_hello_makes_it_online(
        begin in any_presence(), heard in prop::collection::vec((any::<u64>(), any_heard()), 1..20),
    ) {
        let end = heard.iter().fold(begin, |p, (now, heard)| p.next(*now, *heard, PATIENCE));
        let last = heard.iter().map(|(_, heard)| heard).rfind(|heard| **heard != Heard::Nothing);
        let online = last.map_or(begin.is_online(), |heard| *heard == Heard::Hello);
        prop_assert_eq!(end.is_online(), online);
        prop_assert_eq!(end.due_ms(PATIENCE).is_none(), end.is_online() || end.rank() == 3);
    }

    /// Through a restart, whatever the wall clock did meanwhile: who was asleep sleeps no longer
    /// than announced from the restart on, and nobody is back without a hello.
    #[test]
    fn a_restart_under_a_jumping_clock_invents_nothing(
        begin in any_presence(), now_ms: u32, wall_ms: u32, later_wall_ms: u32, later_ms: u32,
    ) {
        let [now_ms, wall_ms, later_wall_ms, later_ms] =
            [now_ms, wall_ms, later_wall_ms, later_ms].map(u64::from);
        let stored = begin.to_store().map(|presence| presence.moved(now_ms, wall_ms));
        prop_assert_eq!(stored.is_some(), begin.rank() > 0);
        let Some(stored) = stored else { return Ok(()) };
        let found = stored.moved(later_wall_ms, later_ms);
        prop_assert!(found.since_ms() <= later_ms);
        prop_assert_eq!(found.rank(), begin.rank());
        if let Presence::Asleep { for_ms, .. } = begin {
            let latest = later_ms.saturating_add(for_ms).saturating_add(PATIENCE.grace_ms);
            prop_assert!(found.due_ms(PATIENCE) <= Some(latest));
        }
    }

    /// A clock that has gone on evenly changes no age.
    #[test]
    fn ages_survive_a_change_of_clocks(since_ms: u32, age_ms: u32, wall_ms: u32) {
        let now_ms = u64::from(since_ms) + u64::from(age_ms);
        let wall_ms = u64::from(wall_ms) + now_ms;
        let presence = Presence::Offline { since_ms: since_ms.into() };
        let stored = presence.moved(now_ms, wall_ms);
        prop_assert_eq!(wall_ms - stored.since_ms(), u64::from(age_ms));
        prop_assert_eq!(stored.moved(wall_ms, now_ms), presence);
    }
}
