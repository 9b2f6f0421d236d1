//! What is known, as the API says it.

use limpet_controller_core::placement::Placement;
use limpet_controller_core::settling::{Seen, Settling, settle};
use limpet_controller_core::{Count, Presence, Scope};
use limpet_protocol::{ContainerId, DeploymentName, DeviceId, Exit, Phase, WorkloadId};

use super::{Deployed, Device, Fleet, Known, recover};
use crate::server::clock::rfc3339;
use crate::server::store::{EventFilter, EventRow};
use crate::view::{DeploymentView, EventView, ExitView, WorkloadView};

mod devices;

impl Fleet {
    pub(in crate::server) fn knows(&self, id: &DeviceId) -> bool {
        self.devices.contains_key(id)
    }

    /// Whether a device is in what somebody is restricted to.
    pub(in crate::server) fn sees(&self, scope: &Scope, id: &DeviceId) -> bool {
        let known = self.devices.get(id).map(|device| &device.record.labels);
        let labels = known.or_else(|| self.members.records.get(id).map(|member| &member.labels));
        scope.is_all() || labels.is_some_and(|labels| scope.has_device(labels))
    }

    /// A deployment, where it is in what somebody is restricted to.
    pub(super) fn deployment(&self, scope: &Scope, name: &DeploymentName) -> Option<&Deployed> {
        let deployed = self.deployments.get(name);
        deployed.filter(|deployed| scope.has_select(&deployed.deployment.select))
    }

    pub(in crate::server) fn deployment_views(&self, scope: &Scope) -> Vec<DeploymentView> {
        let seen = self.deployments.keys().filter_map(|name| self.deployment(scope, name));
        seen.map(|deployed| self.deployment_view(scope, deployed)).collect()
    }

    fn deployment_view(&self, scope: &Scope, deployed: &Deployed) -> DeploymentView {
        // Why devices are unfit tells of their labels: of those only that are seen.
        let mut placement = deployed.placement();
        placement.refusals.retain(|(id, _)| self.sees(scope, id));
        let Deployed { deployment, revision, .. } = deployed;
        let seen: Vec<Seen<'_>> =
            deployed.slots.iter().map(|(id, workload)| self.seen(id, workload)).collect();
        let is_running = |seen: &&Seen<'_>| {
            let status = seen.status.filter(|status| status.revision == *revision);
            status.is_some_and(|status| status.phase == Phase::Running)
        };
        let (here, away): (Vec<_>, Vec<_>) =
            seen.iter().filter(is_running).partition(|seen| seen.presence.is_online());
        let running = u32::try_from(here.len()).unwrap_or(u32::MAX);
        let running_unheard = u32::try_from(away.len()).unwrap_or(u32::MAX);
        let placed = u32::try_from(deployed.slots.len()).unwrap_or(u32::MAX);
        let (status, reason) = match self.settle(deployed, &placement, &seen) {
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
            running_unheard,
            status: status.to_owned(),
            reason,
            refusals: placement
                .refusals
                .into_iter()
                .map(|(id, why)| (id.to_string(), why))
                .collect(),
            age_s: self.age_s(deployed.changed_ms.max(deployed.as_of_ms)),
        }
    }

    fn settle(&self, deployed: &Deployed, placement: &Placement, seen: &[Seen<'_>]) -> Settling {
        let mut devices = deployed.slots.iter().map(|(id, _)| (id, self.devices.get(id)));
        if let Some(why) = devices.find_map(|(id, device)| recover::hold(id, device?)) {
            return Settling::Stuck(why);
        }
        if deployed.pinned {
            let why = "it was taken over from devices, and its manifest would place it elsewhere: it \
                       stays as it is until it is applied again, scaled or deleted";
            return Settling::Stuck(why.to_owned());
        }
        let name = &deployed.deployment.name;
        let leaving = self.devices.iter().filter(|(_, device)| device.link.is_some());
        let leaving = leaving.flat_map(|(id, device)| {
            device.inbox.statuses().keys().map(move |workload| (id.clone(), workload.clone()))
        });
        let leaving = leaving.filter(|slot| slot.1.deployment() == *name);
        let leaving = leaving.filter(|slot| !deployed.slots.contains(slot)).count();
        settle(&deployed.deployment, deployed.revision, placement, seen, leaving)
    }

    fn seen<'a>(&'a self, id: &DeviceId, workload: &WorkloadId) -> Seen<'a> {
        let device = self.devices.get(id);
        let known = device.and_then(|device| device.inbox.statuses().get(workload));
        Seen {
            name: format!("{id}/{workload}"),
            presence: device.map_or(Presence::Lost { since_ms: 0 }, |device| device.presence),
            status: known.map(|known| &known.status),
            age_ms: known.map_or(0, |known| self.steady_ms.saturating_sub(known.at_ms)),
        }
    }

    pub(in crate::server) fn manifest(
        &self,
        scope: &Scope,
        name: &DeploymentName,
    ) -> Option<String> {
        let deployed = self.deployment(scope, name)?;
        Some(limpet_controller_core::manifest::render(&deployed.deployment))
    }

    /// What is placed, and what is still reported of what was.
    pub(in crate::server) fn workload_views(
        &self,
        scope: &Scope,
        name: Option<&str>,
    ) -> Vec<WorkloadView> {
        let placed = self.deployments.values().flat_map(|deployed| &deployed.slots).cloned();
        let reported = self.devices.iter().flat_map(|(id, device)| {
            device.inbox.statuses().keys().map(|w| (id.clone(), w.clone()))
        });
        let all: std::collections::BTreeSet<(WorkloadId, DeviceId)> =
            placed.chain(reported).map(|(device, workload)| (workload, device)).collect();
        all.iter()
            .filter(|(workload, _)| name.is_none_or(|n| workload.deployment().as_str() == n))
            .filter(|(_, id)| self.sees(scope, id))
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
            online: device.is_some_and(|device| device.presence.is_online()),
            presence: device.map(|device| device.presence.to_string()).unwrap_or_default(),
            heard_age_s: device.and_then(|device| self.heard_age_s(device)),
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
            view.age_s = self.steady_ms.saturating_sub(*at_ms) / 1000;
        }
        view
    }

    /// What cannot be read is told to whoever asked: it takes nobody else's work back.
    pub(in crate::server) fn event_views(
        &self,
        scope: &Scope,
        filter: &EventFilter,
    ) -> Result<Vec<EventView>, String> {
        let rows = self.store.events(filter).map_err(|e| e.to_string())?;
        let rows: Vec<EventRow> =
            rows.into_iter().filter(|row| self.sees_event(scope, row)).collect();
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

    /// Of an event that names a device, who sees the device; of others, who sees the deployment.
    fn sees_event(&self, scope: &Scope, row: &EventRow) -> bool {
        if scope.is_all() {
            return true;
        }
        match (&row.device, &row.deployment) {
            (Some(id), _) => id.parse().is_ok_and(|id| self.sees(scope, &id)),
            (None, Some(name)) => {
                name.parse().is_ok_and(|name| self.deployment(scope, &name).is_some())
            }
            (None, None) => false,
        }
    }

    /// How long ago a device was last heard; None where this controller does not know.
    pub(super) fn heard_age_s(&self, device: &Device) -> Option<u64> {
        device.heard_ms.map(|at_ms| self.steady_ms.saturating_sub(at_ms) / 1000)
    }

    fn age_s(&self, at_ms: u64) -> u64 {
        self.now_ms.saturating_sub(at_ms) / 1000
    }
}
