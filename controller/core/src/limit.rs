//! How often: per key, with bounded memory. Time is an argument, in milliseconds.

use std::collections::BTreeMap;

/// What is allowed at once, and in the long run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// One more is allowed after each such time, in milliseconds.
    pub every_ms: u64,
    /// As many at once.
    pub burst: u64,
    /// Keys that are told apart. Those that come when there is no room share one allowance: who
    /// can come from everywhere pays with everybody else who comes from everywhere.
    pub keys_max: usize,
}

/// Counts what happens per key against a rate.
///
/// Per key it keeps one time: when the key's whole allowance is there again (GCRA, ITU-T I.371).
/// A key that has its whole allowance is forgotten.
#[derive(Debug)]
pub struct Limit<K> {
    rate: Rate,
    whole_at_ms: BTreeMap<Option<K>, u64>,
}

impl<K: Ord + Clone> Limit<K> {
    /// One that has counted nothing.
    pub fn new(rate: Rate) -> Self {
        Self { rate, whole_at_ms: BTreeMap::new() }
    }

    /// Counts one more of a key.
    ///
    /// # Errors
    /// When it is one too many, which is not counted: the time until the next is allowed, in
    /// milliseconds.
    pub fn count(&mut self, key: &K, now_ms: u64) -> Result<(), u64> {
        let key = self.place(key, now_ms);
        let Rate { every_ms, burst, .. } = self.rate;
        let whole_at_ms = self.whole_at_ms.get(&key).copied().unwrap_or(0).max(now_ms);
        let after_ms = whole_at_ms.saturating_add(every_ms);
        let bound_ms = now_ms.saturating_add(every_ms.saturating_mul(burst));
        if after_ms > bound_ms {
            return Err(after_ms.saturating_sub(bound_ms));
        }
        self.whole_at_ms.insert(key, after_ms);
        Ok(())
    }

    /// Where a key is counted: with others where there is no room for it.
    fn place(&mut self, key: &K, now_ms: u64) -> Option<K> {
        let own = Some(key.clone());
        if self.whole_at_ms.contains_key(&own) || self.whole_at_ms.len() < self.rate.keys_max {
            return own;
        }
        self.whole_at_ms.retain(|_, whole_at_ms| *whole_at_ms > now_ms);
        (self.whole_at_ms.len() < self.rate.keys_max).then_some(own)?
    }
}

/// Tells of what happens again and again once in a time, with how often it has happened.
#[derive(Debug)]
pub struct Quiet<K> {
    every_ms: u64,
    keys_max: usize,
    told: BTreeMap<Option<K>, Told>,
}

#[derive(Debug)]
struct Told {
    untold: u64,
    quiet_until_ms: u64,
}

impl<K: Ord + Clone> Quiet<K> {
    /// One that has told nothing; `keys_max` keys are told apart, and those that come when there is
    /// no room are told of together.
    pub fn new(every_ms: u64, keys_max: usize) -> Self {
        Self { every_ms, keys_max, told: BTreeMap::new() }
    }

    /// It has happened again: how many before this one were not told, where this one is to be
    /// told.
    pub fn again(&mut self, key: &K, now_ms: u64) -> Option<u64> {
        let mut key = Some(key.clone());
        if self.told.len() >= self.keys_max && !self.told.contains_key(&key) {
            self.told.retain(|key, told| key.is_none() || now_ms < told.quiet_until_ms);
            if self.told.len() >= self.keys_max {
                key = None;
            }
        }
        let quiet_until_ms = now_ms.saturating_add(self.every_ms);
        match self.told.get_mut(&key) {
            Some(told) if now_ms < told.quiet_until_ms => {
                told.untold = told.untold.saturating_add(1);
                None
            }
            Some(told) => {
                let untold = std::mem::take(&mut told.untold);
                told.quiet_until_ms = quiet_until_ms;
                Some(untold)
            }
            None => {
                self.told.insert(key, Told { untold: 0, quiet_until_ms });
                Some(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { every_ms: 6000, burst: 10, keys_max: 3 };

    #[test]
    fn ten_at_once_then_one_in_six_seconds() {
        let mut limit = Limit::new(RATE);
        for _ in 0..10 {
            assert_eq!(limit.count(&"a", 1000), Ok(()));
        }
        assert_eq!(limit.count(&"a", 1000), Err(6000));
        assert_eq!(limit.count(&"b", 1000), Ok(()), "another key is not held up");
        assert_eq!(limit.count(&"a", 6999), Err(1));
        assert_eq!(limit.count(&"a", 7000), Ok(()));
        assert_eq!(limit.count(&"a", 7000), Err(6000));
        for _ in 0..10 {
            assert_eq!(limit.count(&"a", 1_000_000), Ok(()));
        }
    }

    #[test]
    fn keys_beyond_the_bound_share_and_take_no_memory() {
        let mut limit = Limit::new(RATE);
        for key in 0..13 {
            assert_eq!(limit.count(&key, 0), Ok(()));
        }
        assert_eq!(limit.count(&13, 0), Err(6000), "three of their own, ten shared");
        assert_eq!(limit.whole_at_ms.len(), 4);
        assert_eq!(limit.count(&0, 0), Ok(()), "who was there before is not held up");
        assert_eq!(limit.count(&14, 100_000), Ok(()));
        assert_eq!(limit.whole_at_ms.len(), 1, "what is over is forgotten");
        assert_eq!(limit.count(&0, u64::MAX), Ok(()), "the end of time is no overflow");
    }

    #[test]
    fn what_is_repeated_is_told_once_with_its_count() {
        let mut quiet = Quiet::new(1000, 2);
        assert_eq!(quiet.again(&"a", 0), Some(0));
        assert_eq!([quiet.again(&"a", 1), quiet.again(&"a", 999)], [None, None]);
        assert_eq!(quiet.again(&"b", 999), Some(0));
        assert_eq!([quiet.again(&"c", 999), quiet.again(&"d", 999)], [Some(0), None], "together");
        assert_eq!(quiet.again(&"a", 1000), Some(2));
        assert_eq!(quiet.again(&"b", 1999), Some(0));
        assert_eq!(quiet.again(&"e", 1999), Some(1), "those that had no room");
        assert_eq!(quiet.again(&"a", 9000), Some(0));
        assert_eq!(quiet.told.len(), 3);
    }
}
