//! Programs of the agent in a data folder: looked at, asked what they are, let go of.
//!
//! In a process of its own: what it starts holds open files of other tests for a moment, their locks too.
#![expect(clippy::unwrap_used, reason = "a test stops where its premise fails")]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use limpet_agent::proxy::Proxies;
use limpet_agent::state::{self, Opened, State};
use limpet_agent::upgrade::{Fault, Launched, Programs, Source};
use limpet_agent_core::upgrade::Record;
use limpet_protocol::{Digest, Upgrade};

/// Where programs are in a data folder.
const FOLDER: &str = "agent";

fn digest_of(path: &Path) -> Digest {
    Digest::of(&std::fs::read(path).unwrap())
}

/// A data folder, and the order of a program that is there under its digest.
fn placed(program: &str) -> (tempfile::TempDir, Upgrade) {
    let data = tempfile::tempdir().unwrap();
    let digest = Digest::of(program.as_bytes());
    let folder = data.path().join(FOLDER);
    std::fs::create_dir(&folder).unwrap();
    let path = folder.join(digest.to_string());
    std::fs::write(&path, program).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o500)).unwrap();
    let (version, size) = ("0.2.0".parse().unwrap(), program.len() as u64);
    (data, Upgrade { order: 7, version, digest, size, deadline_s: 60, from: None })
}

fn obtain(data: &Path, order: &Upgrade) -> Result<bool, Fault> {
    let launched = Launched { base: "/bin/sh".into(), on_trial: false, lost: vec![] };
    let state = tempfile::tempdir().unwrap();
    let Opened { identity, .. } = State::open(state.path(), "pi-1".parse().ok()).unwrap();
    let source = Source { identity: &identity, proxies: &Proxies::default() };
    Programs::new(data, launched, &mut vec![]).obtain(order, &source, &|_| {})
}

#[test]
fn what_is_not_what_was_ordered_is_not_even_tried() {
    for (script, says) in [
        ("#!/bin/sh\necho limpet-agent 0.2.0\n", ""),
        ("#!/bin/sh\necho limpet-agent 0.1.0\n", "it says that it is \"limpet-agent 0.1.0\""),
        ("#!/bin/sh\necho limpet-agent 0.2.0 or so\n", "it is not 0.2.0"),
        ("#!/bin/sh\nexit 3\n", "does not start here: asked for its version, it ended with"),
        ("#!/no/such/loader\n", "does not start here: No such file"),
        ("\u{7f}ELF and no more", "does not start here: Exec format error"),
    ] {
        let (data, order) = placed(script);
        match obtain(data.path(), &order) {
            Ok(runs) => assert!(!runs && says.is_empty(), "{script}"),
            Err(Fault { reason, may_pass }) => {
                assert!(!says.is_empty() && reason.contains(says) && !may_pass, "{reason}");
            }
        }
    }
}

#[test]
fn the_program_that_runs_and_the_base_are_not_fetched() {
    let data = tempfile::tempdir().unwrap();
    let order = |path: &str| Upgrade {
        size: std::fs::metadata(path).unwrap().len(),
        digest: digest_of(Path::new(path)),
        ..placed("").1
    };
    assert!(obtain(data.path(), &order("/proc/self/exe")).unwrap());
    // The base is asked what it is, as any other.
    let why = obtain(data.path(), &order("/bin/sh")).unwrap_err().reason;
    assert!(why.contains("0.2.0 does not start here"), "{why}");
}

#[test]
fn a_program_that_is_damaged_on_the_disk_is_fetched_anew() {
    let (data, order) = placed("#!/bin/sh\necho limpet-agent 0.2.0\n");
    let path = data.path().join(FOLDER).join(order.digest.to_string());
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "#!/bin/sh\necho limpet-agent 0.2.1\n").unwrap();
    // It is nowhere to be had.
    let why = obtain(data.path(), &order).unwrap_err();
    assert!(why.reason.contains("does not say where") && !why.may_pass, "{why:?}");
}

#[test]
fn what_is_neither_good_nor_on_trial_goes() {
    let (data, order) = placed("#!/bin/sh\n");
    let launched = Launched { base: "/bin/sh".into(), on_trial: false, lost: vec![] };
    let programs = Programs::new(data.path(), launched, &mut vec![]);
    let base = digest_of(Path::new("/bin/sh"));
    let mut record = Record::new(base);
    record.good = Some(order.digest);
    state::store_upgrade_record(data.path(), &record).unwrap();
    let folder = data.path().join(FOLDER);
    std::fs::write(folder.join("another"), "x").unwrap();
    std::fs::write(folder.join("a.part"), "x").unwrap();
    programs.settle(9, None).unwrap();
    let left: Vec<_> = std::fs::read_dir(&folder).unwrap().flatten().collect();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].file_name().to_string_lossy(), order.digest.to_string());
    assert_eq!(programs.record().unwrap().settled, 9);
}
