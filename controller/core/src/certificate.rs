//! When certificates are renewed: those of members, and the controller's own.

/// How often the controller looks whether its own is due, in milliseconds, at most.
const LOOK_MS_MAX: u64 = 3_600_000;
const LOOK_MS_MIN: u64 = 500;

/// Whether half of a certificate's life is over, by the wall clock; all times in milliseconds.
pub fn is_due(now_ms: u64, until_ms: u64, lives_ms: u64) -> bool {
    until_ms.saturating_sub(now_ms) <= lives_ms / 2
}

/// How often to look, so that a certificate that is due has most of its second half left.
pub fn look_every_ms(lives_ms: u64) -> u64 {
    (lives_ms / 16).clamp(LOOK_MS_MIN, LOOK_MS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_due_from_half_of_its_life_on_whatever_the_clock_does() {
        let day_ms = 86_400_000;
        for (now_ms, until_ms, due) in [
            (0, 90 * day_ms, false),
            (45 * day_ms - 1, 90 * day_ms, false),
            (45 * day_ms, 90 * day_ms, true),
            (91 * day_ms, 90 * day_ms, true),
            // A clock that was put back: it is good all the same.
            (0, 900 * day_ms, false),
            (u64::MAX, 90 * day_ms, true),
        ] {
            assert_eq!(is_due(now_ms, until_ms, 90 * day_ms), due, "{now_ms} {until_ms}");
        }
    }

    #[test]
    fn it_is_looked_for_often_enough_that_none_ends() {
        for lives_ms in [2_000, 60_000, 86_400_000, 90 * 86_400_000, u64::MAX] {
            assert!(look_every_ms(lives_ms) < lives_ms / 2, "{lives_ms}");
        }
        assert_eq!(look_every_ms(90 * 86_400_000), 3_600_000);
    }
}
