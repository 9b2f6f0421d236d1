//! The first thing that `limpet-agent run` does, with one thread: it hands over to the program that is
//! to run. Whatever is damaged or in doubt, the one that was installed goes on itself.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use limpet_agent_core::upgrade::{Launch, Now, Program};
use limpet_protocol::Digest;
use nix::unistd::alarm;

use super::{FOLDER, LAUNCHED, UpgradeError, arguments, digest_of, io};
use crate::{clock, state};

/// What this process is.
#[derive(Debug, Clone)]
pub struct Launched {
    /// The program that was installed, and that starts whenever an agent does.
    pub base: PathBuf,
    /// This program has yet to prove itself; it is ended when its time is over.
    pub on_trial: bool,
    /// What was damaged, for a person.
    pub lost: Vec<String>,
}

impl Launched {
    /// As the launcher said it, where there was one.
    fn told() -> Option<Self> {
        let told = std::env::var(LAUNCHED).ok()?;
        let (how, base) = told.split_once(':')?;
        Some(Self { base: base.into(), on_trial: how == "trial", lost: Vec::new() })
    }
}

/// Hands over to the program that is to run; comes back in that one, which may be this one.
pub fn launch(data_dir: &Path) -> Launched {
    if let Some(launched) = Launched::told() {
        return launched;
    }
    let base = std::env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into());
    let mut launched = Launched { base, on_trial: false, lost: Vec::new() };
    if let Err(error) = launched.choose(data_dir) {
        launched.lost.push(format!("{error}: the agent that was installed runs"));
    }
    launched
}

impl Launched {
    fn choose(&mut self, data_dir: &Path) -> Result<(), UpgradeError> {
        let (record, lost) = state::upgrade_record(data_dir);
        self.lost.extend(lost);
        let Some(mut record) = record.filter(|record| !record.is_of_base()) else {
            return Ok(());
        };
        // Where another agent runs, its trial is not over: this process ends when it says so.
        let Ok(_lock) = state::lock(data_dir) else { return Ok(()) };
        let (boot, at_ms) = (clock::boot_id(), clock::boot_ms());
        let now = Now { base: digest_of(&self.base)?, boot, at_ms };
        // A program that cannot be begun is taken out of the record: there are two at most.
        loop {
            let Launch { program, write, deadline_s } = record.clone().launch(now);
            if let Some(write) = write {
                record = write;
                if let Err(error) = state::store_upgrade_record(data_dir, &record) {
                    log::error!("{error}: no other agent is tried");
                    record.trial = None;
                    continue;
                }
            }
            let Program::Fetched(digest) = program else {
                self.on_trial = deadline_s.is_some();
                arm(deadline_s);
                return Ok(());
            };
            let error =
                self.begin(&data_dir.join(FOLDER).join(digest.to_string()), digest, deadline_s);
            log::error!("{error}");
            let on_trial = deadline_s.is_some();
            if on_trial {
                record.fail_trial(error.to_string());
            } else {
                record.good = None;
                self.lost.push(error.to_string());
            }
            // What may pass is tried again at the next start.
            if on_trial || error.is_lost() {
                state::store_upgrade_record(data_dir, &record)?;
            }
        }
    }

    /// Becomes another program, as the same process. Comes back where that cannot be.
    fn begin(&self, path: &Path, digest: Digest, deadline_s: Option<u16>) -> UpgradeError {
        match digest_of(path) {
            Ok(actual) if actual == digest => {}
            Ok(_) => return UpgradeError::Damaged(path.into()),
            Err(error) => return error,
        }
        let how = if deadline_s.is_some() { "trial" } else { "good" };
        // It goes on through exec, is no child's, and ends a program that has not cancelled it.
        arm(deadline_s);
        let told = format!("{how}:{}", self.base.display());
        let source = Command::new(path).args(arguments()).env(LAUNCHED, told).exec();
        alarm::cancel();
        io("start", path)(source)
    }
}

fn arm(deadline_s: Option<u16>) {
    if let Some(seconds) = deadline_s {
        alarm::set(u32::from(seconds).max(1));
    }
}
