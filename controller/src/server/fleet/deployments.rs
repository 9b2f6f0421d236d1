//! Deployments: taken in, placed, scaled, deleted; over HTTP and over MQTT alike.

use std::collections::BTreeSet;

use limpet_controller_core::manifest::{self, Fault, Format};
use limpet_controller_core::placement::Candidate;
use limpet_controller_core::{Count, Deployment, Scope, plan, secrets};
use limpet_protocol::{DeploymentName, DeviceId, Feature, SecretName, Topic, envelope};

use super::{Caller, Deployed, DeviceRecord, Entry, Fleet};
use crate::server::store::{EventRow, Table};
use crate::view::{DeployResult, FaultView};

/// A token is restricted, and this is not in what it is restricted to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "this token may change only deployments that select {scope}, and {name} does not: add that to \
     its `select`, or take another name where the deployment is somebody else's"
)]
pub(in crate::server) struct OutOfScope {
    name: DeploymentName,
    scope: Scope,
}

impl Fleet {
    /// Takes a manifest that an operator published; the answer goes to the topic of results. The
    /// error says why the publish itself is refused.
    pub(in crate::server) fn manifest_published(
        &mut self,
        by: &Caller,
        topic: &str,
        payload: &[u8],
    ) -> Result<(), String> {
        let name = match Topic::parse(&self.prefix, topic) {
            Ok(Topic::Deploy(name)) => name,
            Ok(Topic::Device(..) | Topic::DeployResult(_)) => {
                return Err("operators publish on deploy/NAME only".to_owned());
            }
            Err(error) => return self.answer_bad_name(topic, &error.to_string()),
        };
        match envelope::is_signed(payload) {
            true => self.signed_manifest(by.from, &name, payload),
            false => self.obey(by, &name, payload),
        }
        Ok(())
    }

    /// Does what a manifest says that was published; an empty one deletes.
    pub(super) fn obey(&mut self, by: &Caller, name: &DeploymentName, payload: &[u8]) {
        let result = if payload.is_empty() {
            self.delete(by, name)
                .unwrap_or_else(|| refused(name.as_str(), "there is no such deployment"))
        } else {
            let applied = self.apply(by, Some(name), payload, Format::Detect);
            applied.unwrap_or_else(|why| refused(name.as_str(), &why.to_string()))
        };
        // What was refused, and what changed nothing, is answered here only: it is nobody else's.
        if !matches!(result.action.as_deref(), Some("created" | "updated" | "deleted")) {
            self.publish_result(name, &result);
        }
    }

    /// Answers on a topic whose name is none, as far as an answer can be given there.
    fn answer_bad_name(&mut self, topic: &str, why: &str) -> Result<(), String> {
        let name = topic.strip_prefix(&format!("{}/deploy/", self.prefix));
        if let Some(name) = name.filter(|name| !name.is_empty() && !name.contains('/')) {
            let result = serde_json::to_vec(&refused(name, why)).unwrap_or_default();
            self.publish(format!("{topic}/result"), result, false);
        }
        self.refuse("deployment-refused", None, why);
        Err(why.to_owned())
    }

    fn publish_result(&mut self, name: &DeploymentName, result: &DeployResult) {
        let json = serde_json::to_string(result).unwrap_or_default();
        let put = self.store.put_result(name.as_str(), &json);
        self.stored(put);
        let topic = Topic::DeployResult(name.clone()).under(&self.prefix);
        self.publish(topic, json.into_bytes(), true);
    }

    /// Puts the answers back on their topics: the broker forgot them when it ended.
    pub(super) fn publish_results(&mut self) -> Result<(), crate::server::store::StoreError> {
        self.put_results_back()?;
        for message in self.to_publish.drain(..) {
            if self.outgoing.send(message).is_err() {
                break;
            }
        }
        Ok(())
    }

    /// The same with what else is published by the work under way.
    pub(super) fn put_results_back(&mut self) -> Result<(), crate::server::store::StoreError> {
        for (name, json) in self.store.results()? {
            if let Ok(name) = name.parse() {
                let topic = Topic::DeployResult(name).under(&self.prefix);
                self.publish(topic, json.into_bytes(), true);
            }
        }
        Ok(())
    }

    /// Takes a manifest in. A bad one changes nothing.
    pub(in crate::server) fn apply(
        &mut self,
        by: &Caller,
        name: Option<&DeploymentName>,
        bytes: &[u8],
        format: Format,
    ) -> Result<DeployResult, OutOfScope> {
        let read = manifest::parse(name, bytes, format)
            .and_then(|deployment| self.permitted(deployment))
            .and_then(|deployment| self.with_secrets(by, deployment));
        match read {
            Ok(deployment) => self.change(by, "deployment.apply", deployment),
            Err(faults) => {
                let name = name.map(ToString::to_string).unwrap_or_default();
                let why = summary(&faults);
                let object = format!("deployment/{name}");
                let entry = Entry { action: "deployment.apply", object, ..Entry::default() };
                self.audit_failed(by, entry, &why);
                self.note_deployment("deployment-refused", &name, why);
                let faults = faults.into_iter().map(fault_view).collect();
                Ok(DeployResult { accepted: false, name, action: None, revision: None, faults })
            }
        }
    }

    /// Gives a deployment the latest versions of its secrets. Whoever is restricted may keep those that
    /// it has, and name no others: a secret that any program could be given would be everybody's.
    fn with_secrets(
        &self,
        by: &Caller,
        mut deployment: Deployment,
    ) -> Result<Deployment, Vec<Fault>> {
        let before = self.deployments.get(&deployment.name).map(|d| &d.deployment.spec);
        let has = |name| before.is_some_and(|spec| secrets::names(spec, name));
        let wanted = deployment.spec.secrets.iter().enumerate();
        let foreign = wanted.filter(|(_, wanted)| !by.scope().is_all() && !has(&wanted.name));
        let foreign = foreign.map(|(index, wanted)| (index, restricted(&wanted.name)));
        let foreign: Vec<(usize, String)> = foreign.collect();
        let fault =
            |(index, message)| Fault { path: format!("secrets[{index}]"), line: None, message };
        let resolved = match foreign.is_empty() {
            true => secrets::resolve(&mut deployment.spec, &self.secrets),
            false => Err(foreign),
        };
        match resolved {
            Ok(()) => Ok(deployment),
            Err(faults) => Err(faults.into_iter().map(fault).collect()),
        }
    }

    /// Makes a deployment what a caller says, where both what it was and what it becomes are the
    /// caller's to change.
    fn change(
        &mut self,
        by: &Caller,
        action: &'static str,
        deployment: Deployment,
    ) -> Result<DeployResult, OutOfScope> {
        let (scope, name) = (by.scope(), deployment.name.clone());
        let before = self.deployments.get(&name).map(|deployed| &deployed.deployment);
        let object = format!("deployment/{name}");
        if !before.into_iter().chain([&deployment]).all(|d| scope.has_select(&d.select)) {
            let why = OutOfScope { name, scope: scope.clone() };
            self.audit_failed(by, Entry { action, object, ..Entry::default() }, &why);
            return Err(why);
        }
        let before = before.map(manifest::render);
        let after = manifest::render(&deployment);
        let result = self.deploy(deployment);
        let entry = Entry { action, object, ..Entry::default() };
        match &result.action {
            None => self.audit_failed(by, entry, &refusal(&result)),
            Some(done) if done == "unchanged" => {
                self.audit(by, Entry { outcome: done.clone(), ..entry });
            }
            Some(done) => {
                let (after, outcome) = (Some(after), done.clone());
                self.audit(by, Entry { before, after, outcome, ..entry });
            }
        }
        Ok(result)
    }

    /// Asks for another number of replicas; None where the caller sees no such deployment.
    pub(in crate::server) fn scale(
        &mut self,
        by: &Caller,
        name: &DeploymentName,
        replicas: u32,
    ) -> Option<DeployResult> {
        let deployment = self.known_to(by, "deployment.scale", name)?.deployment.clone();
        let (action, max) = ("deployment.scale", limpet_controller_core::deployment::REPLICAS_MAX);
        let why = match deployment.count {
            Count::Everywhere => "it runs everywhere: it has no number of replicas".to_owned(),
            Count::Replicas(_) if replicas > max => format!("at most {max} replicas"),
            Count::Replicas(_) => {
                let deployment = Deployment { count: Count::Replicas(replicas), ..deployment };
                return self.change(by, action, deployment).ok();
            }
        };
        let object = format!("deployment/{name}");
        self.audit_failed(by, Entry { action, object, ..Entry::default() }, &why);
        Some(refused(name.as_str(), &why))
    }

    /// A deployment that the caller sees; that there is none is in the audit log.
    fn known_to(
        &mut self,
        by: &Caller,
        action: &'static str,
        name: &DeploymentName,
    ) -> Option<&Deployed> {
        if self.deployment(by.scope(), name).is_none() {
            let object = format!("deployment/{name}");
            let entry = Entry { action, object, ..Entry::default() };
            self.audit_failed(by, entry, &"there is no such deployment");
        }
        self.deployment(by.scope(), name)
    }

    /// Deletes a deployment; None where the caller sees no such one.
    pub(in crate::server) fn delete(
        &mut self,
        by: &Caller,
        name: &DeploymentName,
    ) -> Option<DeployResult> {
        self.known_to(by, "deployment.delete", name)?;
        let deployed = self.deployments.remove(name)?;
        self.audit(
            by,
            Entry {
                action: "deployment.delete",
                object: format!("deployment/{name}"),
                before: Some(manifest::render(&deployed.deployment)),
                after: None,
                outcome: "deleted".to_owned(),
            },
        );
        let deleted = self.store.delete(Table::Deployments, name.as_str());
        self.stored(deleted);
        self.ordered(name);
        self.note_deployment("deployment-deleted", name.as_str(), String::new());
        let devices: BTreeSet<DeviceId> = deployed.slots.into_iter().map(|(id, _)| id).collect();
        for id in devices {
            self.publish_desired(&id);
        }
        // What it took is free for those that wait.
        self.place_all();
        let result = DeployResult {
            accepted: true,
            name: name.to_string(),
            action: Some("deleted".to_owned()),
            revision: None,
            faults: Vec::new(),
        };
        self.publish_result(name, &result);
        Some(result)
    }

    pub(super) fn deploy(&mut self, deployment: Deployment) -> DeployResult {
        let name = deployment.name.clone();
        let revision = deployment.spec.digest();
        let action = match self.deployments.get(&name) {
            None => "created",
            Some(before) if before.deployment == deployment && !before.pinned => "unchanged",
            Some(_) => "updated",
        };
        let result = DeployResult {
            accepted: true,
            name: name.to_string(),
            action: Some(action.to_owned()),
            revision: Some(revision.short()),
            faults: Vec::new(),
        };
        if action == "unchanged" {
            return result;
        }
        let candidates = self.candidates();
        let sealed = self.sealed_bytes(&deployment.spec);
        let taken =
            plan::deploy(&mut self.deployments, deployment, sealed, self.now_ms, &candidates);
        let touched = match taken {
            Ok(touched) => touched,
            Err(why) => {
                self.note_deployment("deployment-refused", name.as_str(), why.clone());
                return refused(name.as_str(), &why);
            }
        };
        self.put_deployed(&name);
        self.ordered(&name);
        self.note_deployment(
            "deployment-accepted",
            name.as_str(),
            format!("{action}, revision {}", revision.short()),
        );
        for id in touched {
            self.publish_desired(&id);
        }
        // What it has given up is free for those that wait.
        self.place_all();
        self.publish_result(&name, &result);
        result
    }

    pub(super) fn put_deployed(&mut self, name: &DeploymentName) {
        if let Some(deployed) = self.deployments.get(name) {
            let put = self.store.put(Table::Deployments, name.as_str(), deployed);
            self.stored(put);
        }
    }

    /// Places every deployment again: devices have come, gone or changed.
    pub(super) fn place_all(&mut self) {
        let candidates = self.candidates();
        let changes = plan::place_again(&mut self.deployments, &candidates);
        for name in &changes.deployments {
            self.put_deployed(name);
        }
        for id in changes.devices {
            self.publish_desired(&id);
        }
    }

    /// The devices as placement sees them, as if nothing were placed on them.
    pub(super) fn candidates(&self) -> Vec<Candidate> {
        let candidate = |(id, device): (&DeviceId, &super::Device)| Candidate {
            id: id.clone(),
            labels: device.record.labels.clone(),
            features: features(&device.record),
            presence: device.presence,
            on_hold: device.record.ahead.is_some(),
            memory_free_bytes: device.record.facts.memory_bytes,
            workloads: 0,
        };
        self.devices.iter().map(candidate).collect()
    }

    fn note_deployment(&mut self, kind: &str, name: &str, message: String) {
        self.event(EventRow {
            at_ms: Some(self.now_ms),
            deployment: Some(name.to_owned()),
            kind: kind.to_owned(),
            message,
            ..EventRow::default()
        });
    }
}

/// Why a manifest was refused, for the audit log.
fn refusal(result: &DeployResult) -> String {
    result.faults.iter().map(|fault| fault.message.as_str()).collect::<Vec<_>>().join("; ")
}

/// The first of all that is wrong with a document.
pub(super) fn summary(faults: &[Fault]) -> String {
    let first = faults.first().map(ToString::to_string).unwrap_or_default();
    match faults.len() {
        0 | 1 => first,
        count => format!("{first} (and {} more faults)", count - 1),
    }
}

/// What a device can do. Without a key to seal to it takes no secrets, whatever its agent says.
fn features(record: &DeviceRecord) -> Vec<Feature> {
    let sealable = record.sealing_key.is_some();
    let can = |feature: &&Feature| sealable || feature.as_str() != Feature::SECRETS;
    record.features.iter().filter(can).cloned().collect()
}

fn restricted(name: &SecretName) -> String {
    format!(
        "the token is restricted, and the deployment does not have the secret {name} yet: somebody whose \
         token is not must give it that"
    )
}

pub(super) fn refused(name: &str, why: &str) -> DeployResult {
    let fault = FaultView { path: String::new(), line: None, message: why.to_owned() };
    DeployResult {
        accepted: false,
        name: name.to_owned(),
        action: None,
        revision: None,
        faults: vec![fault],
    }
}

pub(super) fn fault_view(fault: Fault) -> FaultView {
    FaultView { path: fault.path, line: fault.line, message: fault.message }
}
