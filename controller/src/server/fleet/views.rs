//! What is known, as the API says it.

use limpet_controller_core::settling::{Seen, Settling, settle};
use limpet_controller_core::{Count, Presence};
use limpet_protocol::{ContainerId, DeploymentName, DeviceId, Exit, Feature, Phase, WorkloadId};

use super::{Deployed, Device, Fleet, Known};
use crate::server::clock::rfc3339;
use crate::server::store::EventFilter;
use crate::view::{DeploymentView, DeviceView, EventView, ExitView, WorkloadView};

impl Fleet {
    pub(in crate::server) fn knows(&self, id: &DeviceId) -> bool {
        self.devices.contains_key(id)
    }

    pub(in crate::server) fn device_views(&self) -> Vec<DeviceView> {
        self.devices.iter().map(|(id, device)| self.device_view(id, device)).collect()
    }

    fn device_view(&self, id: &DeviceId, device: &Device) -> DeviceView {
        let record = &device.record;
        let slots = self.deployments.values().flat_map(|deployed| &deployed.slots);
        let variant = match record.facts.variant.as_str() {
            "" => String::new(),
            variant => format!("/{variant}"),
        };
        DeviceView {
            id: id.to_string(),
            labels: record.labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
            arch: format!("{}{variant}", record.facts.arch),
            presence: match device.record.ahead {
                Some(_) => "on hold".to_owned(),
                None => self.presence(device).to_string(),
            },
            presence_age_s: self.age_s(device.heard_ms),
            agent_version: record.agent_version.to_string(),
            kernel: record.facts.kernel.to_string(),
            memory_bytes: record.facts.memory_bytes,
            cpus: record.facts.cpus,
            features: record.features.iter().map(Feature::to_string).collect(),
            epoch: record.held.epoch,
            generation: record.held.generation,
            applied_generation: device.inbox.cursor.applied.generation,
            workloads: slots.filter(|(device, _)| device == id).count(),
        }
    }

    pub(in crate::server) fn deployment_views(&self) -> Vec<DeploymentView> {
        self.deployments.values().map(|deployed| self.deployment_view(deployed)).collect()
    }

    fn deployment_view(&self, deployed: &Deployed) -> DeploymentView {
        let Deployed { deployment, revision, .. } = deployed;
        let seen: Vec<Seen<'_>> =
            deployed.slots.iter().map(|(id, workload)| self.seen(id, workload)).collect();
        let running = seen
            .iter()
            .filter_map(|seen| seen.status)
            .filter(|status| status.revision == *revision && status.phase == Phase::Running);
        let running = u32::try_from(running.count()).unwrap_or(u32::MAX);
        let placed = u32::try_from(deployed.slots.len()).unwrap_or(u32::MAX);
        let (status, reason) = match self.settle(deployed, &seen) {
            Settling::Settled => ("settled", None),
            Settling::Progressing => ("progressing", None),
            Settling::Stuck(why) => ("stuck", Some(why)),
        };
        let (replicas, everywhere) = match deployment.count {
            Count::Replicas(count) => (Some(count), false),
            Count::Everywhere => (None, true),
        };
        DeploymentView {
            name: deployment.name.to_string(),
            revision: revision.short(),
            image: deployment.spec.image.clone(),
            replicas,
            everywhere,
            select: deployment.select.clone(),
            desired: replicas.unwrap_or(placed),
            running,
            status: status.to_owned(),
            reason,
            refusals: deployed
                .refusals
                .iter()
                .map(|(id, why)| (id.to_string(), why.clone()))
                .collect(),
            age_s: self.age_s(deployed.changed_ms),
        }
    }

    fn settle(&self, deployed: &Deployed, seen: &[Seen<'_>]) -> Settling {
        let held = deployed.slots.iter().find(|(id, _)| {
            self.devices.get(id).is_some_and(|device| device.record.ahead.is_some())
        });
        if let Some((id, _)) = held {
            return Settling::Stuck(format!(
                "device {id} holds a later desired state than this controller: was it restored from \
                 an old backup? Nothing is published to the device until it has joined anew"
            ));
        }
        let name = &deployed.deployment.name;
        let leaving = self.devices.iter().filter(|(_, device)| device.link.is_some());
        let leaving = leaving.flat_map(|(id, device)| {
            device.inbox.statuses().keys().map(move |workload| (id.clone(), workload.clone()))
        });
        let leaving = leaving.filter(|slot| slot.1.deployment() == *name);
        let leaving = leaving.filter(|slot| !deployed.slots.contains(slot)).count();
        let placement = deployed.placement();
        settle(&deployed.deployment, deployed.revision, &placement, seen, leaving)
    }

    pub(super) fn presence(&self, device: &Device) -> Presence {
        let age_ms = self.now_ms.saturating_sub(self.started_ms);
        Presence::of(device.link.is_some(), device.went, age_ms)
    }

    fn seen<'a>(&'a self, id: &DeviceId, workload: &WorkloadId) -> Seen<'a> {
        let device = self.devices.get(id);
        let known = device.and_then(|device| device.inbox.statuses().get(workload));
        Seen {
            name: format!("{id}/{workload}"),
            presence: device.map_or(Presence::Offline, |device| self.presence(device)),
            status: known.map(|known| &known.status),
            age_ms: known.map_or(0, |known| self.now_ms.saturating_sub(known.at_ms)),
        }
    }

    pub(in crate::server) fn manifest(&self, name: &DeploymentName) -> Option<String> {
        let deployed = self.deployments.get(name)?;
        Some(limpet_controller_core::manifest::render(&deployed.deployment))
    }

    /// What is placed, and what is still reported of what was.
    pub(in crate::server) fn workload_views(&self, name: Option<&str>) -> Vec<WorkloadView> {
        let placed = self.deployments.values().flat_map(|deployed| &deployed.slots).cloned();
        let reported = self.devices.iter().flat_map(|(id, device)| {
            device.inbox.statuses().keys().map(|w| (id.clone(), w.clone()))
        });
        let all: std::collections::BTreeSet<(WorkloadId, DeviceId)> =
            placed.chain(reported).map(|(device, workload)| (workload, device)).collect();
        all.iter()
            .filter(|(workload, _)| name.is_none_or(|n| workload.deployment().as_str() == n))
            .map(|(workload, id)| self.workload_view(workload, id))
            .collect()
    }

    fn workload_view(&self, workload: &WorkloadId, id: &DeviceId) -> WorkloadView {
        let device = self.devices.get(id);
        let known = device.and_then(|device| device.inbox.statuses().get(workload));
        let mut view = WorkloadView {
            id: workload.to_string(),
            deployment: workload.deployment().to_string(),
            revision: String::new(),
            device: id.to_string(),
            phase: Phase::Pending.to_string(),
            online: device.is_some_and(|device| device.link.is_some()),
            exit: None,
            restarts: 0,
            pid: None,
            container: None,
            message: String::new(),
            age_s: 0,
        };
        if let Some(Known { at_ms, status, .. }) = known {
            view.revision = status.revision.short();
            view.phase = status.phase.to_string();
            view.exit = status.exit.map(|exit| match exit {
                Exit::Code(code) => ExitView::Code(code),
                Exit::Signal(signal) => ExitView::Signal(signal),
                Exit::Unknown => ExitView::Unknown(true),
            });
            view.restarts = status.restarts;
            view.pid = status.pid;
            view.container = (status.container > 0)
                .then(|| ContainerId::new(workload, status.container).to_string());
            view.message.clone_from(&status.message);
            view.age_s = self.age_s(*at_ms);
        }
        view
    }

    /// What cannot be read is told to whoever asked: it takes nobody else's work back.
    pub(in crate::server) fn event_views(
        &self,
        filter: &EventFilter,
    ) -> Result<Vec<EventView>, String> {
        let rows = self.store.events(filter).map_err(|e| e.to_string())?;
        let views = rows
            .into_iter()
            .map(|row| EventView {
                seq: row.seq,
                at: row.at_ms.and_then(rfc3339),
                device: row.device,
                workload: row.workload,
                deployment: row.deployment,
                kind: row.kind,
                message: row.message,
            })
            .collect();
        Ok(views)
    }

    fn age_s(&self, at_ms: u64) -> u64 {
        self.now_ms.saturating_sub(at_ms) / 1000
    }
}
