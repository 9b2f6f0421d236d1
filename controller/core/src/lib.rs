//! What a controller decides: how a manifest is read, where workloads go, when a change has
//! settled, who is present, what a restored one takes over, what a token lets in. Values in, values out: no IO, no clock, no threads.
#![forbid(unsafe_code)]
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::iter_over_hash_type)]

pub mod certificate;
pub mod deployment;
mod greetings;
mod inbox;
pub mod limit;
pub mod manifest;
pub mod placement;
pub mod plan;
pub mod presence;
pub mod program;
pub mod recover;
pub mod secrets;
pub mod settling;
pub mod token;

pub use deployment::{Count, Deployment};
pub use greetings::{Greetings, Outdated};
pub use inbox::{Cursor, Inbox, Known, Told};
pub use plan::{Deployed, Deployments};
pub use presence::Presence;
pub use secrets::{Secret, Secrets};
pub use token::{Grant, Role, Scope, TokenRecord};
