//! The `limpet` binary: `limpet up` serves a fleet; every other verb is an operator's command
//! over the HTTP API.
#![forbid(unsafe_code)]

mod backup;
pub mod cli;
pub mod flash;
pub mod pem;
pub mod server;
pub mod view;
