//! Devices, as the API says them: those that said hello, and those that only joined.

use std::collections::{BTreeMap, BTreeSet};

use limpet_controller_core::{Presence, Scope};
use limpet_protocol::{DeviceId, Feature, Labels};

use super::super::members::{Member, Standing};
use super::super::{Device, Fleet, recover};
use crate::server::clock::rfc3339;
use crate::view::DeviceView;

impl Fleet {
    pub(in crate::server) fn device_views(&self, scope: &Scope) -> Vec<DeviceView> {
        let all: BTreeSet<&DeviceId> =
            self.devices.keys().chain(self.members.records.keys()).collect();
        let seen = all.into_iter().filter(|id| self.sees(scope, id));
        seen.filter_map(|id| self.device_view(id)).collect()
    }

    fn device_view(&self, id: &DeviceId) -> Option<DeviceView> {
        let member = self.members.records.get(id);
        let mut view = match (self.devices.get(id), member) {
            (Some(device), _) => self.heard_view(id, device),
            (None, member) => self.unheard_view(id, member?),
        };
        view.joined_at = member.and_then(|member| rfc3339(member.joined_ms));
        view.presence = match member.map(|member| member.standing) {
            Some(Standing::Waiting) => "waiting".to_owned(),
            Some(Standing::Revoked) => "revoked".to_owned(),
            Some(Standing::Member) | None => view.presence,
        };
        Some(view)
    }

    /// One that joined, and has not said hello yet.
    fn unheard_view(&self, id: &DeviceId, member: &Member) -> DeviceView {
        DeviceView {
            id: id.to_string(),
            labels: texts(&member.labels),
            presence: "joined".to_owned(),
            presence_age_s: self.now_ms.saturating_sub(member.joined_ms) / 1000,
            ..DeviceView::default()
        }
    }

    fn heard_view(&self, id: &DeviceId, device: &Device) -> DeviceView {
        let record = &device.record;
        let slots = self.deployments.values().flat_map(|deployed| &deployed.slots);
        let variant = match record.facts.variant.as_str() {
            "" => String::new(),
            variant => format!("/{variant}"),
        };
        DeviceView {
            id: id.to_string(),
            labels: texts(&record.labels),
            joined_at: None,
            arch: format!("{}{variant}", record.facts.arch),
            presence: device.presence.to_string(),
            presence_age_s: self.steady_ms.saturating_sub(device.presence.since_ms()) / 1000,
            asleep_until: match device.presence {
                Presence::Asleep { since_ms, for_ms } => {
                    let until_ms = since_ms.saturating_add(for_ms);
                    let ahead_ms = until_ms.saturating_sub(self.steady_ms);
                    // The two clocks tick apart: only whole seconds stay the same.
                    let at_ms = self.now_ms.saturating_add(ahead_ms).saturating_add(500);
                    rfc3339(at_ms / 1000 * 1000).map(|at| at.replace(".000Z", "Z"))
                }
                Presence::Unknown { .. }
                | Presence::Online { .. }
                | Presence::Offline { .. }
                | Presence::Lost { .. } => None,
            },
            heard_age_s: self.heard_age_s(device),
            keep_alive_s: record.keep_alive_s,
            on_hold: recover::hold(id, device),
            agent_version: record.agent_version.to_string(),
            upgrade: device.upgrade_view(),
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
}

fn texts(labels: &Labels) -> BTreeMap<String, String> {
    labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}
