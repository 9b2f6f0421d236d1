//! Ending all containers of a machine that is to have no agent any more.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Runtime, RuntimeError};

/// How long all of them together may take to end by themselves.
const GRACE: Duration = Duration::from_secs(10);

impl Runtime {
    /// Asks every container to end, and takes all of them away; gives how many ran. Whoever has the
    /// run folder open is the only one who uses it.
    ///
    /// # Errors
    /// When something would not go.
    pub fn end_all(&self) -> Result<usize, RuntimeError> {
        let found = self.scan()?;
        let running: Vec<_> = found.iter().filter_map(|(_, running)| running.as_ref()).collect();
        for (found, _) in found.iter().filter(|(_, running)| running.is_some()) {
            // It is ended in any case.
            let _ = self.signal(&found.container, None);
        }
        let deadline = Instant::now() + GRACE;
        for running in &running {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).ok();
            let mut fds = [PollFd::new(&running.ended, PollFlags::IN)];
            let _ = poll(&mut fds, left.as_ref());
        }
        let count = running.len();
        for (found, _) in &found {
            self.remove(&found.container)?;
        }
        Ok(count)
    }
}
