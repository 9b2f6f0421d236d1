//! End to end: the real binaries, a real broker, a real registry, the real kernel.
//!
//! Each test has a fleet of its own and leaves nothing behind.
#![expect(clippy::unwrap_used, reason = "a test stops where its premise fails")]
#![expect(clippy::too_many_lines, reason = "a test tells one story from beginning to end")]

mod aliases;
mod chaos;
mod clients;
mod container;
mod cuts;
mod dark;
mod exits;
mod external;
mod flash;
mod hostile;
mod hostile_broker;
mod images;
mod join;
mod links;
mod on_site;
mod operate;
mod operators;
mod owner;
mod policy;
mod preload;
mod presence;
mod processes;
mod publish;
mod recover;
mod registries;
mod replace;
mod rotate;
mod secrets;
mod secured;
mod start;
mod supervised;
mod survive;
mod upgrade;
mod upgrade_cuts;
mod wall;
