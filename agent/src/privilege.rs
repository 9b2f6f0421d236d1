//! The capabilities of the agent's process: those that it needs itself. Shims get all of root's back
//! when they are executed (capabilities(7), "Capabilities and execution of programs by root"): making
//! a container takes most of them.

use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, no_new_privs, set_capabilities};

/// What the agent does that takes more than being the user root.
const NEEDED: CapabilitySet = CapabilitySet::empty()
    // Files of an image belong to its users; the local socket to the group `limpet`.
    .union(CapabilitySet::CHOWN)
    // Writing below, and removing, folders of those users; a file to preload.
    .union(CapabilitySet::DAC_OVERRIDE)
    // Modes, times and attributes of their files.
    .union(CapabilitySet::FOWNER)
    // Setuid and setgid bits on them.
    .union(CapabilitySet::FSETID)
    // Containers' processes may have any user.
    .union(CapabilitySet::KILL)
    // Files of an image that carry capabilities.
    .union(CapabilitySet::SETFCAP)
    // `trusted.overlay.opaque`, by which a layer hides a folder of the one below (xattr(7)).
    .union(CapabilitySet::SYS_ADMIN);

/// Why the process keeps what it does not need.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    /// Shims would not get theirs back.
    #[error("no_new_privs is set: capabilities that are dropped would be missed by containers")]
    NoNewPrivileges,
    /// The kernel refuses.
    #[error("cannot drop capabilities: {0}")]
    Drop(#[from] rustix::io::Errno),
}

/// Drops what this process does not need. To be called while it has one thread: each has its own.
///
/// # Errors
/// When all is kept as it was.
pub fn drop_unneeded() -> Result<(), PrivilegeError> {
    if no_new_privs()? {
        return Err(PrivilegeError::NoNewPrivileges);
    }
    let own = capabilities(None)?;
    let kept = own.permitted & NEEDED;
    let sets =
        CapabilitySets { effective: kept, permitted: kept, inheritable: kept & own.inheritable };
    Ok(set_capabilities(None, sets)?)
}
