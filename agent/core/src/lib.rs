//! What a device decides: which workloads run, when they are started, stopped and tried again,
//! and what is told to the controller.
//!
//! Inputs go in through [`Agent::handle`], effects come out of [`Agent::poll_effect`], and
//! [`Agent::poll_timeout`] says when to come back. No IO, no clock, no randomness: time and the
//! seed are arguments, so that a simulation replays exactly. Effects are idempotent, and the shell
//! may carry them out in any order except where an input is waited for.
#![forbid(unsafe_code)]
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::iter_over_hash_type)]

mod agent;
mod backoff;
mod checkpoint;
mod io;
mod outbox;
mod owner;
mod reconnect;
mod slot;
pub mod upgrade;

pub use agent::{Agent, Own, Start};
pub use checkpoint::{Checkpoint, RecordedLife, SlotRecord};
pub use io::{Effect, Found, FoundState, Input, LocalAction, Message, StreamOrder};
pub use owner::{
    DeviceRule, MemoryShare, Owner, PathRule, PathUse, Refusal, RegistryRule, Rule, RuleError,
};
pub use reconnect::{KeepAlive, Reconnect, Turn};
