//! What is left on a device, compared with what should be there.

use std::collections::BTreeSet;
use std::path::Path;

use limpet_tests::{Agent, Fleet, Image, agent, processes_with};

/// Waits until a device has exactly these containers, with all that belongs to them, and exactly
/// these layers; fails with what is too many or missing.
pub(crate) fn exactly(fleet: &Fleet, agent: &Agent, wanted: &BTreeSet<String>, layers: &[String]) {
    limpet_tests::eventually_or(
        &format!("exactly {wanted:?} on {}", agent.id),
        || {
            let faults = differences(agent, wanted, layers);
            // They are shown where they do not go away.
            std::fs::write(fleet.lab.path("differences"), faults.join("\n")).unwrap();
            faults.is_empty().then_some(())
        },
        || {
            let faults = std::fs::read_to_string(fleet.lab.path("differences")).unwrap();
            format!("{faults}\n{}", agent.process.tail())
        },
    )
}

/// The names that an image's layers have in a store.
pub(crate) fn layers(image: &Image) -> Vec<String> {
    let config: limpet_tests::Value = serde_json::from_slice(&image.config()).unwrap();
    let ids = config["rootfs"]["diff_ids"].as_array().unwrap();
    let name = |id: &limpet_tests::Value| id.as_str().unwrap()["sha256:".len()..][..32].to_owned();
    ids.iter().map(name).collect()
}

fn differences(agent: &Agent, wanted: &BTreeSet<String>, layers: &[String]) -> Vec<String> {
    let layers: BTreeSet<String> = layers.iter().cloned().collect();
    let images = agent.data.join("images");
    let mut faults = Vec::new();
    let mut compare = |what: &str, found: BTreeSet<String>, wanted: &BTreeSet<String>| {
        if found != *wanted {
            let more: Vec<_> = found.difference(wanted).collect();
            let less: Vec<_> = wanted.difference(&found).collect();
            faults.push(format!("{what}: too many {more:?}, missing {less:?}"));
        }
    };
    compare("run folders", names(&agent.run.join("containers")), wanted);
    compare("writable layers", names(&agent.data.join("containers")), wanted);
    // What nothing needs stays where there is room, and goes where there is none: both are right.
    let known = names(&images.join("layers"));
    match wanted.is_empty() {
        true => compare("layers", known.difference(&layers).cloned().collect(), &BTreeSet::new()),
        false => compare("layers", known, &layers),
    }
    for folder in ["blobs", "names"] {
        let half = names(&images.join(folder)).into_iter().filter(|name| name.contains('.'));
        compare(folder, half.collect(), &BTreeSet::new());
    }
    // A hierarchy without controllers may do without.
    let groups = agent::hierarchies().into_iter().flat_map(|hierarchy| {
        let group = hierarchy.join(agent.cgroup.trim_start_matches('/'));
        names(&group).into_iter().filter(move |name| group.join(name).is_dir())
    });
    compare("control groups", groups.collect(), wanted);
    faults.extend(processes(agent, wanted.len()));
    faults
}

/// Processes, mounts and namespaces: one shim and one main process for each container.
fn processes(agent: &Agent, wanted: usize) -> Vec<String> {
    let folder = agent.run.join("containers").display().to_string();
    let mut faults = Vec::new();
    let shims = processes_with(&format!("shim-wait\0{folder}"));
    let mains = agent.mains();
    if (shims.len(), mains.len()) != (wanted, wanted) {
        faults.push(format!("{} shims and {} main processes", shims.len(), mains.len()));
    }
    let allowed: BTreeSet<i32> = shims.iter().chain(&mains).copied().collect();
    let makers = processes_with(&format!("shim\0{folder}"));
    faults.extend(makers.iter().map(|pid| format!("process {pid} is making a container")));
    for pid in processes_with("").into_iter().filter(|pid| !allowed.contains(pid)) {
        // What belongs to a container sees its root; nobody else does.
        let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        if mounts.contains(&folder) {
            let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            faults.push(format!("process {pid}, {line:?}, is in a container's mount namespace"));
        }
    }
    let network = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let ours = network("self");
    let strangers = mains.iter().filter(|pid| network(&pid.to_string()) != ours);
    faults.extend(strangers.map(|pid| format!("process {pid} has a network of its own")));
    faults
}

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}
