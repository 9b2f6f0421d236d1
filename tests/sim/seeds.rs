//! Seeds that have found something: they run first, whatever else is asked for.

/// Each with what it found.
pub(crate) const FOUND: &[(u64, &str)] = &[];
