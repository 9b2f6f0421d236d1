//! The device side of Limpet: the shell around `limpet-agent-core`. It feeds the core inputs and
//! carries out its effects; it decides nothing.

mod alive;
pub mod cli;
pub mod clock;
pub mod config;
pub mod device;
pub mod facts;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod hardware;
pub mod image;
pub mod join;
pub mod link;
pub mod local;
pub mod logs;
pub mod privilege;
pub mod proxy;
pub mod runtime;
pub mod state;
pub mod tls;
mod tree;
pub mod upgrade;
pub mod version;
