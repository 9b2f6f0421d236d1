//! Registries that do not answer: how long each is left alone, whoever wants something of it.
//!
//! ```text
//!              failed                       time             failed (twice as long)
//!   Answers ───────────▶ Out, left alone ─────────▶ One asks ─────────▶ Out, left alone
//!      ▲                                               │
//!      └───────────────────── answered ────────────────┘
//! ```
//!
//! Knows no clock and no chance: both are arguments.

use std::collections::BTreeMap;
use std::time::Duration;

/// The first wait. It doubles with each failure.
const FIRST_MS: u64 = 1_000;
/// The longest wait: a registry that is back is noticed within five minutes.
const LONGEST_MS: u64 = 300_000;
/// Doublings after which the longest wait is reached for certain.
const DOUBLINGS_MAX: u32 = 9;
/// One that asked and has not come back with an answer after this long is no longer waited for.
const ASKING_MS_MAX: u64 = 120_000;
/// Registries that are remembered: far more than one device has images of.
const OUTAGES_MAX: usize = 256;

/// The registries that did not answer when they were last asked.
#[derive(Debug, Default)]
pub(super) struct Outages(BTreeMap<String, Outage>);

#[derive(Debug)]
struct Outage {
    failures: u32,
    reason: String,
    stage: Stage,
}

#[derive(Debug, Clone, Copy)]
enum Stage {
    LeftAlone { until_ms: u64 },
    Asked { since_ms: u64 },
}

impl Outages {
    /// Whether a registry may be asked; otherwise what to tell whoever wants something of it.
    ///
    /// # Errors
    /// While it is left alone, or another is finding out whether it is back.
    pub(super) fn ask(&mut self, registry: &str, now_ms: u64) -> Result<(), String> {
        let Some(outage) = self.0.get_mut(registry) else {
            return Ok(());
        };
        match outage.stage {
            Stage::LeftAlone { until_ms } if until_ms > now_ms => {
                let wait_ms = until_ms.saturating_sub(now_ms);
                Err(format!("{}; it is asked again in {}", outage.reason, seconds(wait_ms)))
            }
            Stage::Asked { since_ms } if now_ms.saturating_sub(since_ms) < ASKING_MS_MAX => {
                Err(format!("{}; it is being asked again", outage.reason))
            }
            Stage::LeftAlone { .. } | Stage::Asked { .. } => {
                outage.stage = Stage::Asked { since_ms: now_ms };
                Ok(())
            }
        }
    }

    /// A registry gave an answer, whatever it was.
    pub(super) fn answered(&mut self, registry: &str) {
        self.0.remove(registry);
    }

    /// A registry gave no answer, or asked to be left alone, for `wished`; gives the text for whoever
    /// wants something of it. `random` is any number: many devices must not ask together.
    pub(super) fn failed(
        &mut self,
        registry: &str,
        now_ms: u64,
        (reason, wished): (String, Option<Duration>),
        random: u64,
    ) -> String {
        if !self.0.contains_key(registry) && self.0.len() >= OUTAGES_MAX {
            self.0.pop_first();
        }
        let fresh =
            Outage { failures: 0, reason: String::new(), stage: Stage::Asked { since_ms: now_ms } };
        let outage = self.0.entry(registry.to_owned()).or_insert(fresh);
        outage.reason = reason;
        let until_ms = match outage.stage {
            // Asked at the same time as another, who was told before.
            Stage::LeftAlone { until_ms } if until_ms > now_ms => until_ms,
            Stage::LeftAlone { .. } | Stage::Asked { .. } => {
                let wait_ms = wait_ms(outage.failures, wished);
                outage.failures = outage.failures.saturating_add(1);
                let spread = random.checked_rem(wait_ms / 4).unwrap_or(0);
                now_ms.saturating_add(wait_ms.saturating_add(spread).min(LONGEST_MS))
            }
        };
        outage.stage = Stage::LeftAlone { until_ms };
        let wait_ms = until_ms.saturating_sub(now_ms);
        format!("{}; it is asked again in {}", outage.reason, seconds(wait_ms))
    }

    /// The device's own link was down: that no registry answered says nothing of them.
    pub(super) fn forget(&mut self) {
        self.0.clear();
    }
}

/// 1 s, 2 s, 4 s ... 5 min, or as long as the registry asks for, up to the same bound.
fn wait_ms(failures: u32, wished: Option<Duration>) -> u64 {
    let doubled = FIRST_MS.checked_shl(failures.min(DOUBLINGS_MAX)).unwrap_or(LONGEST_MS);
    let wished_ms = wished.map_or(0, |wait| u64::try_from(wait.as_millis()).unwrap_or(LONGEST_MS));
    doubled.max(wished_ms).min(LONGEST_MS)
}

fn seconds(ms: u64) -> String {
    format!("{} s", ms.div_ceil(1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEAD: &str = "https://dead";

    fn fail(outages: &mut Outages, now_ms: u64, wished: Option<u64>, random: u64) -> String {
        let wished = wished.map(Duration::from_secs);
        outages.failed(DEAD, now_ms, ("refused".to_owned(), wished), random)
    }

    #[test]
    fn waits_double_up_to_a_bound_and_spread() {
        let mut outages = Outages::default();
        let mut now_ms = 5_000;
        for (failure, expected_s) in [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300].iter().enumerate()
        {
            let random = if failure % 2 == 0 { 0 } else { u64::MAX };
            assert_eq!(outages.ask(DEAD, now_ms), Ok(()), "{failure}");
            fail(&mut outages, now_ms, None, random);
            let (least, most) = (expected_s * 1_000, (expected_s * 1_250).min(LONGEST_MS));
            assert!(outages.ask(DEAD, now_ms + least - 1).is_err(), "{failure}: too soon");
            now_ms += most;
        }
    }

    #[test]
    fn one_asks_for_all_and_an_answer_frees_all() {
        let mut outages = Outages::default();
        assert_eq!(fail(&mut outages, 0, None, 0), "refused; it is asked again in 1 s");
        // Twenty that were on their way count as one failure.
        for _ in 0..20 {
            fail(&mut outages, 10, None, 0);
        }
        assert_eq!(outages.ask(DEAD, 400).unwrap_err(), "refused; it is asked again in 1 s");
        assert_eq!(outages.ask(DEAD, 1_000), Ok(()));
        assert_eq!(outages.ask(DEAD, 1_000).unwrap_err(), "refused; it is being asked again");
        assert_eq!(outages.ask("https://alive", 1_000), Ok(()), "others are not concerned");
        outages.answered(DEAD);
        for _ in 0..20 {
            assert_eq!(outages.ask(DEAD, 1_001), Ok(()));
        }
        // It begins at the first wait again.
        assert_eq!(fail(&mut outages, 2_000, None, 0), "refused; it is asked again in 1 s");
    }

    #[test]
    fn one_that_never_comes_back_is_not_waited_for() {
        let mut outages = Outages::default();
        fail(&mut outages, 0, None, 0);
        assert_eq!(outages.ask(DEAD, 1_000), Ok(()));
        assert!(outages.ask(DEAD, 1_000 + ASKING_MS_MAX - 1).is_err());
        assert_eq!(outages.ask(DEAD, 1_000 + ASKING_MS_MAX), Ok(()));
    }

    #[test]
    fn a_registry_may_ask_for_a_longer_wait_within_bounds() {
        let mut outages = Outages::default();
        assert_eq!(fail(&mut outages, 0, Some(40), 0), "refused; it is asked again in 40 s");
        outages.answered(DEAD);
        assert_eq!(fail(&mut outages, 0, Some(86_400), 9), "refused; it is asked again in 300 s");
        outages.forget();
        assert_eq!(outages.ask(DEAD, 1), Ok(()));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut outages = Outages::default();
        for number in 0..1_000 {
            outages.failed(&format!("https://r{number}"), 0, (String::new(), None), 0);
        }
        assert_eq!(outages.0.len(), OUTAGES_MAX);
    }
}
