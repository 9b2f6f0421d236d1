//! Agents' programs: uploaded, listed, and ordered on devices.
//!
//! Their files are beside the store, named by their digests; a backup does not hold them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use limpet_controller_core::Scope;
use limpet_protocol::upgrade::{DEADLINE_S, DEADLINE_S_MAX, DEADLINE_S_MIN};
use limpet_protocol::{AgentVersion, DeviceId, Digest, Feature, Upgrade};
use serde::{Deserialize, Serialize};

use super::{Caller, Device, Entry, Fleet};
use crate::server::store::{StoreError, Table};
use crate::view::{AgentView, UpgradeRequest, UpgradeResult, UpgradeView};

/// What the list of programs is stored under.
const KEY: &str = "agents";
/// Programs at most: a few versions for each architecture.
const PROGRAMS_MAX: usize = 64;

/// A program that was uploaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::server) struct Program {
    pub(in crate::server) version: AgentVersion,
    pub(in crate::server) arch: String,
    pub(in crate::server) digest: Digest,
    pub(in crate::server) size: u64,
    pub(in crate::server) uploaded_ms: u64,
}

/// Why a program is not taken, removed or ordered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(in crate::server) enum ProgramRefusal {
    #[error(
        "this token is restricted to {0}: agents' programs are everybody's, and need one that is not"
    )]
    Restricted(Scope),
    #[error(
        "there are {PROGRAMS_MAX} programs: remove a version with `limpet device upgrade --remove`"
    )]
    TooMany,
    #[error(
        "{version} for {arch} is there, and is another program: give this one another version, or \
         remove that with `limpet device upgrade --remove {version}`"
    )]
    Taken { version: AgentVersion, arch: String },
    #[error("nobody has uploaded the agent {version}: there is {there}; add it with --from")]
    Absent { version: AgentVersion, there: String },
    #[error("the agent {version} is still to be fetched by {devices}")]
    InUse { version: AgentVersion, devices: String },
    #[error("there is no device {0}")]
    Unknown(String),
    #[error("no device is picked")]
    Nobody,
    #[error("a deadline of {0} s: use {DEADLINE_S_MIN} to {DEADLINE_S_MAX} seconds")]
    Deadline(u16),
    #[error("nothing is ordered:\n{}", lines(.0))]
    Devices(BTreeMap<DeviceId, String>),
}

fn lines(whys: &BTreeMap<DeviceId, String>) -> String {
    let lines: Vec<String> = whys.iter().map(|(id, why)| format!("  {id}: {why}")).collect();
    lines.join("\n")
}

type Result<T> = std::result::Result<T, ProgramRefusal>;

impl Fleet {
    pub(super) fn load_programs(&mut self) -> std::result::Result<(), StoreError> {
        self.programs = self.store.record(Table::Settings, KEY)?.unwrap_or_default();
        Ok(())
    }

    /// Where a program's file is.
    pub(in crate::server) fn program_path(&self, digest: &Digest) -> PathBuf {
        self.store.programs().join(digest.to_string())
    }

    /// Devices fetch programs here, where nobody is asked who it is: `http://HOST:PORT`.
    pub(in crate::server) fn set_plain_api(&mut self, url: String) {
        self.plain_api = Some(url);
    }

    pub(in crate::server) fn program_views(&self) -> Vec<AgentView> {
        let view = |program: &Program| AgentView {
            version: program.version.to_string(),
            arch: program.arch.clone(),
            digest: program.digest.to_string(),
            bytes: program.size,
            age_s: self.now_ms.saturating_sub(program.uploaded_ms) / 1000,
            is_here: self.has_file(program),
        };
        self.programs.iter().map(view).collect()
    }

    fn has_file(&self, program: &Program) -> bool {
        let file = self.program_path(&program.digest).metadata();
        file.is_ok_and(|file| file.len() == program.size)
    }

    /// Why a program that is about to come would not be taken.
    pub(in crate::server) fn may_upload(&self, by: &Caller) -> Result<()> {
        unrestricted(by)
    }

    /// Takes a program whose file is there.
    pub(in crate::server) fn add_program(&mut self, by: &Caller, program: Program) -> Result<()> {
        let object = format!("agent/{}", program.version);
        let after = Some(format!("{}, sha256:{}", program.arch, program.digest));
        let done = unrestricted(by)
            .and_then(|()| self.list_program(Program { uploaded_ms: self.now_ms, ..program }));
        let entry = Entry { action: "agent.upload", object, after, ..Entry::default() };
        self.audit_done(by, entry, done.as_ref().err());
        done
    }

    fn list_program(&mut self, program: Program) -> Result<()> {
        let same =
            |known: &&Program| known.version == program.version && known.arch == program.arch;
        match self.programs.iter().find(same) {
            Some(known) if known.digest == program.digest => return Ok(()),
            Some(Program { version, arch, .. }) => {
                let (version, arch) = (version.clone(), arch.clone());
                return Err(ProgramRefusal::Taken { version, arch });
            }
            None if self.programs.len() >= PROGRAMS_MAX => return Err(ProgramRefusal::TooMany),
            None => {}
        }
        self.programs.push(program);
        self.put_programs();
        Ok(())
    }

    fn put_programs(&mut self) {
        let put = self.store.put(Table::Settings, KEY, &self.programs);
        self.stored(put);
    }

    /// Forgets a version that no device has yet to fetch; gives the files that nothing names any more.
    pub(in crate::server) fn remove_programs(
        &mut self,
        by: &Caller,
        version: &AgentVersion,
    ) -> Result<Vec<PathBuf>> {
        let object = format!("agent/{version}");
        let done = unrestricted(by).and_then(|()| self.removed(version));
        let entry = Entry { action: "agent.remove", object, ..Entry::default() };
        self.audit_done(by, entry, done.as_ref().err());
        done
    }

    fn removed(&mut self, version: &AgentVersion) -> Result<Vec<PathBuf>> {
        let (gone, kept): (Vec<Program>, Vec<Program>) =
            self.programs.iter().cloned().partition(|program| program.version == *version);
        if gone.is_empty() {
            return Err(self.absent(version));
        }
        let waits = |device: &Device| {
            let order = device.record.upgrade.as_ref().filter(|order| order.version == *version);
            order.is_some_and(|order| !matches!(device.phase(order), "done" | "failed"))
        };
        let devices: Vec<String> = self
            .devices
            .iter()
            .filter(|(_, device)| waits(device))
            .map(|(id, _)| id.to_string())
            .collect();
        if !devices.is_empty() {
            let (version, devices) = (version.clone(), devices.join(", "));
            return Err(ProgramRefusal::InUse { version, devices });
        }
        let needed: BTreeSet<Digest> = kept.iter().map(|program| program.digest).collect();
        let unneeded = gone.iter().filter(|program| !needed.contains(&program.digest));
        let files = unneeded.map(|program| self.program_path(&program.digest)).collect();
        self.programs = kept;
        self.put_programs();
        Ok(files)
    }

    fn absent(&self, version: &AgentVersion) -> ProgramRefusal {
        let there: BTreeSet<&str> = self.programs.iter().map(|p| p.version.as_str()).collect();
        let there: Vec<&str> = there.into_iter().collect();
        let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
        ProgramRefusal::Absent { version: version.clone(), there }
    }

    /// Has devices run another version of their agent: all that are picked, or none.
    pub(in crate::server) fn upgrade(
        &mut self,
        by: &Caller,
        version: &AgentVersion,
        request: &UpgradeRequest,
    ) -> Result<UpgradeResult> {
        let done = self.order_upgrades(by, version, request);
        if let Err(why) = &done {
            let object = format!("agent/{version}");
            let entry = Entry { action: "device.upgrade", object, ..Entry::default() };
            self.audit_failed(by, entry, why);
        }
        done
    }

    fn order_upgrades(
        &mut self,
        by: &Caller,
        version: &AgentVersion,
        request: &UpgradeRequest,
    ) -> Result<UpgradeResult> {
        let deadline_s = request.deadline_s.unwrap_or(DEADLINE_S);
        if !(DEADLINE_S_MIN..=DEADLINE_S_MAX).contains(&deadline_s) {
            return Err(ProgramRefusal::Deadline(deadline_s));
        }
        if !self.programs.iter().any(|program| program.version == *version) {
            return Err(self.absent(version));
        }
        let picked = self.picked(by.scope(), request)?;
        let mut orders = BTreeMap::new();
        let mut refused = BTreeMap::new();
        for id in picked {
            match self.program_for(&id, version) {
                Ok(program) => drop(orders.insert(id, program)),
                Err(why) => drop(refused.insert(id, why)),
            }
        }
        if !refused.is_empty() {
            return Err(ProgramRefusal::Devices(refused));
        }
        let order = |(id, program)| {
            let number = self.order_upgrade(by, &id, program, deadline_s);
            (id.to_string(), number)
        };
        Ok(UpgradeResult { orders: orders.into_iter().map(order).collect() })
    }

    fn picked(&self, scope: &Scope, request: &UpgradeRequest) -> Result<Vec<DeviceId>> {
        let carries = |device: &Device| {
            let label = |key: &str| device.record.labels.iter().find(|(k, _)| k.as_str() == key);
            let mut select = request.select.iter();
            select.all(|(key, value)| label(key).is_some_and(|(_, v)| v.as_str() == value))
        };
        let named = |text: &String| {
            let id = text.parse::<DeviceId>().ok().filter(|id| self.sees(scope, id));
            id.ok_or_else(|| ProgramRefusal::Unknown(text.clone()))
        };
        let picked: Vec<DeviceId> = if request.devices.is_empty() {
            let seen = self.devices.iter().filter(|(id, _)| self.sees(scope, id));
            seen.filter(|(_, device)| carries(device)).map(|(id, _)| id.clone()).collect()
        } else {
            request.devices.iter().map(named).collect::<Result<_>>()?
        };
        if picked.is_empty() { Err(ProgramRefusal::Nobody) } else { Ok(picked) }
    }

    /// The program of that version for a device; otherwise why there is none.
    fn program_for(
        &self,
        id: &DeviceId,
        version: &AgentVersion,
    ) -> std::result::Result<Program, String> {
        let Some(device) = self.devices.get(id) else {
            return Err("it has not said what it is yet: start its agent".to_owned());
        };
        if let Some(why) = super::recover::hold(id, device) {
            return Err(format!("it is on hold: {why}"));
        }
        let record = &device.record;
        if !record.features.contains(&Feature::known(Feature::UPGRADE)) {
            let has = &record.agent_version;
            return Err(format!("its agent, {has}, cannot replace itself: install another there"));
        }
        let arch = record.facts.arch.as_str();
        let mut programs = self.programs.iter();
        let program = programs.find(|program| program.version == *version && program.arch == arch);
        match program {
            None => {
                Err(format!("it is {arch}, and there is no {version} for that: add it with --from"))
            }
            Some(program) if !self.has_file(program) => Err(format!(
                "the file of {version} for {arch} is not there (a backup does not hold it): add it \
                 again with --from"
            )),
            Some(program) => Ok(program.clone()),
        }
    }

    fn order_upgrade(
        &mut self,
        by: &Caller,
        id: &DeviceId,
        program: Program,
        deadline_s: u16,
    ) -> u64 {
        let Some(device) = self.devices.get_mut(id) else { return 0 };
        let ordered = device.record.upgrade.as_ref().map_or(0, |before| before.order);
        let told = device.record.upgrading.as_ref().map_or(0, |told| told.order);
        let before = ordered.max(told);
        // Grows through restarts, and through a store that comes back from a backup.
        let order = self.now_ms.max(before + 1);
        let Program { version, digest, size, .. } = program;
        let from = self.plain_api.clone();
        let after = format!("{version}, sha256:{digest}");
        let before = Some(device.record.agent_version.to_string());
        device.record.upgrade = Some(Upgrade { order, version, digest, size, deadline_s, from });
        let entry = Entry {
            action: "device.upgrade",
            object: format!("device/{id}"),
            before,
            after: Some(after),
            outcome: "ok".to_owned(),
        };
        self.audit(by, entry);
        self.publish_desired(id);
        order
    }

    /// The size of a program that whoever shows this name and key may fetch; otherwise why not.
    pub(in crate::server) fn may_fetch(
        &self,
        shown: Option<(DeviceId, String)>,
        digest: &Digest,
    ) -> std::result::Result<u64, (bool, String)> {
        if self.members.terms().is_some() {
            let nobody = || (false, crate::server::websocket::NOBODY.to_owned());
            let (id, fingerprint) = shown.ok_or_else(nobody)?;
            if let Some(why) = self.keeps_out(&id, &fingerprint) {
                return Err((false, why));
            }
        }
        let program = self.programs.iter().find(|program| program.digest == *digest);
        program.map(|program| program.size).ok_or_else(|| {
            (true, "the controller does not have this program: somebody has removed it".to_owned())
        })
    }
}

impl Device {
    /// How far it has come with an order, as people read it.
    fn phase(&self, order: &Upgrade) -> &'static str {
        use limpet_protocol::UpgradePhase as Phase;
        match self.record.upgrading.as_ref().filter(|status| status.order == order.order) {
            None => "ordered",
            Some(status) => match status.phase {
                Phase::Fetching => "fetching",
                Phase::Trying => "trying",
                Phase::Done => "done",
                Phase::Failed => "failed",
                Phase::Unknown => "unknown",
            },
        }
    }

    pub(super) fn upgrade_view(&self) -> Option<UpgradeView> {
        let order = self.record.upgrade.as_ref()?;
        let status = self.record.upgrading.as_ref().filter(|status| status.order == order.order);
        Some(UpgradeView {
            order: order.order,
            version: order.version.to_string(),
            phase: self.phase(order).to_owned(),
            message: status.map(|status| status.message.clone()).unwrap_or_default(),
        })
    }
}

fn unrestricted(by: &Caller) -> Result<()> {
    match by.scope() {
        scope if scope.is_all() => Ok(()),
        scope => Err(ProgramRefusal::Restricted(scope.clone())),
    }
}
