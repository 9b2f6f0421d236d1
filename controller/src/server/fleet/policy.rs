//! The fleet's policy: what the images of all deployments must be.

use std::collections::{BTreeMap, BTreeSet};

use limpet_controller_core::Deployment;
use limpet_controller_core::manifest::{self, Fault, Format, image_faults};
use limpet_protocol::{DeviceId, ImagePolicy};

use super::deployments::{fault_view, summary};
use super::{Caller, Entry, Fleet};
use crate::server::store::{StoreError, Table};
use crate::view::PolicyResult;

/// What the policy is stored under.
const KEY: &str = "policy";

/// What becomes of deployments that break the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::server) enum Breaking {
    /// The policy is refused for their sake.
    Refuse,
    /// It holds: they go on where they run, and are not started again.
    Accept,
}

impl Fleet {
    pub(super) fn load_policy(&mut self) -> Result<(), StoreError> {
        self.policy = self.store.record(Table::Settings, KEY)?;
        Ok(())
    }

    /// The policy, in YAML; empty where everything is permitted.
    pub(in crate::server) fn policy_text(&self) -> String {
        let policy = self.policy.as_ref();
        policy.map(|policy| manifest::render_policy(policy, "")).unwrap_or_default()
    }

    /// Sets the policy. A bad one changes nothing.
    pub(in crate::server) fn set_policy(
        &mut self,
        by: &Caller,
        bytes: &[u8],
        format: Format,
        breaking: Breaking,
    ) -> PolicyResult {
        let text = |policy: &ImagePolicy| manifest::render_policy(policy, "");
        let (action, object) = ("policy.set", "policy".to_owned());
        let before = self.policy.as_ref().map(text);
        let entry = Entry { action, object, before, ..Entry::default() };
        let policy = match manifest::parse_policy(bytes, format) {
            Ok(policy) => policy,
            Err(faults) => {
                self.audit_failed(by, entry, &summary(&faults));
                let faults = faults.into_iter().map(fault_view).collect();
                return PolicyResult { accepted: false, faults, breaking: BTreeMap::new() };
            }
        };
        let broken = self.broken_by(&policy);
        let accepted = broken.is_empty() || breaking == Breaking::Accept;
        let after = Some(text(&policy));
        let refused = (!accepted).then(|| format!("{} deployments break it", broken.len()));
        self.audit_done(by, Entry { after, ..entry }, refused.as_ref());
        if accepted {
            self.take_policy(Some(policy).filter(|policy| !policy.is_empty()));
        }
        PolicyResult { accepted, faults: Vec::new(), breaking: broken }
    }

    /// The deployments that would break a policy, and how.
    fn broken_by(&self, policy: &ImagePolicy) -> BTreeMap<String, Vec<String>> {
        let broken = self.deployments.iter().filter_map(|(name, deployed)| {
            let faults = image_faults(&deployed.deployment.spec.image, policy, WHOSE);
            let faults: Vec<String> = faults.into_iter().map(|fault| fault.message).collect();
            (!faults.is_empty()).then(|| (name.to_string(), faults))
        });
        broken.collect()
    }

    fn take_policy(&mut self, policy: Option<ImagePolicy>) {
        if self.policy == policy {
            return;
        }
        let put = match &policy {
            Some(policy) => self.store.put(Table::Settings, KEY, policy),
            None => self.store.delete(Table::Settings, KEY),
        };
        self.stored(put);
        self.policy = policy;
        let said = match self.policy {
            Some(_) => self.policy_text().lines().collect::<Vec<_>>().join("; "),
            None => "none".to_owned(),
        };
        self.note("policy-changed", None, said);
        let slots = self.deployments.values().flat_map(|deployed| &deployed.slots);
        let devices: BTreeSet<DeviceId> = slots.map(|(device, _)| device.clone()).collect();
        for id in devices {
            self.publish_desired(&id);
        }
    }

    /// The deployment, where its image is what the policy permits, as far as its name says.
    pub(super) fn permitted(&self, deployment: Deployment) -> Result<Deployment, Vec<Fault>> {
        let policy = self.policy.iter();
        let faults: Vec<Fault> =
            policy.flat_map(|policy| image_faults(&deployment.spec.image, policy, WHOSE)).collect();
        if faults.is_empty() { Ok(deployment) } else { Err(faults) }
    }
}

const WHOSE: &str = "the fleet's policy";
