//! How long to wait before something is tried again.

/// The first wait, after the first try that came without any.
const FIRST_MS: u64 = 1_000;
/// The longest wait: a fault that is mended is noticed within five minutes.
const LONGEST_MS: u64 = 300_000;
/// Doublings after which the longest wait is reached for certain.
const DOUBLINGS_MAX: u32 = 9;

/// The wait before try number `failures` + 1: none, 1 s, 2 s, 4 s ... 5 min, each up to a quarter
/// longer by `jitter`, so that many devices do not try together.
pub(crate) fn wait_ms(failures: u32, jitter: &mut Jitter) -> u64 {
    let Some(doublings) = failures.checked_sub(1) else {
        return 0;
    };
    let wait = FIRST_MS.checked_shl(doublings.min(DOUBLINGS_MAX)).unwrap_or(LONGEST_MS);
    let wait = wait.min(LONGEST_MS);
    wait.saturating_add(jitter.below(wait / 4))
}

/// A small generator (splitmix64): the same seed gives the same waits.
#[derive(Debug, Clone)]
pub(crate) struct Jitter(pub(crate) u64);

impl Jitter {
    /// A number from 0 to below `bound`; 0 where that is 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)).checked_rem(bound).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_restart_is_at_once_and_no_wait_is_too_long() {
        let mut jitter = Jitter(1);
        assert_eq!(wait_ms(0, &mut jitter), 0);
        for failures in 1..100 {
            let wait = wait_ms(failures, &mut jitter);
            let base = (1_000u64 << (failures - 1).min(20)).min(LONGEST_MS);
            assert!((base..=base + base / 4).contains(&wait), "{failures}: {wait}");
        }
    }
}
