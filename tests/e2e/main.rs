//! End to end: the real binaries, a real broker, a real registry, the real kernel.
//!
//! Each test has a fleet of its own and leaves nothing behind.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test stops where its premise fails"
)]

mod container;
mod exits;
mod hostile;
mod images;
mod operate;
mod publish;
mod start;
mod survive;
