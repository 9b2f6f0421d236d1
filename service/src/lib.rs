//! What both programs have to do with the init system: a supervisor is told how they fare, and units
//! and programs are put in place. Knows nothing of fleets.

pub mod install;
mod supervisor;

pub use supervisor::{Supervisor, beat_every};
