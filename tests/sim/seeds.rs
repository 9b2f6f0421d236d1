//! Seeds that have found something: they run first, whatever else is asked for.

/// Each with what it found.
pub(crate) const FOUND: &[(u64, &str)] = &[
    (
        0,
        "two documents of one number, one of them on its way to a full disk while a backup came back",
    ),
    (
        4,
        "a hello that was rolled back left its connection, and a device was rolled back through it",
    ),
    (
        59,
        "a stop on site came back with an old checkpoint and ended what a later state had started",
    ),
    (91, "a second restart after a rotten checkpoint swept events away"),
    (
        5750,
        "a hello of the boot before came late, and the controller answered a connection that was gone",
    ),
    (524, "a repeated hello that was rolled back took the connection with it"),
];
