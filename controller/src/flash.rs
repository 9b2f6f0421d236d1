//! Cards for devices: images that are built from a distribution's packages, images of a distribution
//! that are adapted, and the writing of either.
//!
//! All of it is work on files, done by the tools of the machine that it runs on, without root and
//! without loop devices. It belongs to the command line: nothing here knows a controller.

pub mod adapt;
mod apt;
pub mod board;
mod boot;
pub mod build;
mod cpio;
mod data;
mod debugfs;
pub mod disk;
mod elf;
mod initrd;
mod kernel;
mod partitions;
mod preload;
pub mod settings;
mod sources;
mod system;
mod tool;
pub mod write;
