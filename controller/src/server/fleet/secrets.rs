//! Secrets: set, followed by the deployments that name them, sealed to the devices that run those.
//!
//! A deployment runs with the latest version of each of its secrets: another version is another
//! revision, rolled out as any change is.

use std::collections::BTreeMap;

use limpet_controller_core::{Deployment, Scope, Secret, Secrets, plan, secrets};
use limpet_protocol::sealed::{SEALED_BYTES_MORE, SECRET_BYTES_MAX};
use limpet_protocol::{
    DesiredState, DeviceId, Held, Plaintext, SealedSecret, SealingKey, SecretName, WorkloadSpec,
    cbor,
};

use super::{Caller, Entry, Fleet};
use crate::server::store::StoreError;
use crate::view::{SecretResult, SecretView};

/// Secrets at most: a fleet has one for each thing that it talks to.
const SECRETS_MAX: usize = 4096;
/// What the list of a workload's sealed secrets takes beside them.
const LIST_BYTES: usize = 8;

/// Why a secret is not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(in crate::server) enum SecretRefusal {
    #[error("the value of the secret {0} is empty")]
    Empty(SecretName),
    #[error("the secret has {0} bytes, at most {SECRET_BYTES_MAX} fit")]
    TooLong(usize),
    #[error("there are {SECRETS_MAX} secrets, which is as many as there can be")]
    TooMany,
    #[error("deployment {deployment} cannot run with that: {why}")]
    Deployment { deployment: String, why: String },
    #[error("this token is restricted to {0}: secrets are everybody's, and need one that is not")]
    Restricted(Scope),
    #[error("there is no secret {0}")]
    Absent(SecretName),
    #[error(
        "the secret {name} is in use: {users} name it; delete those first, or take it out of them"
    )]
    InUse { name: SecretName, users: String },
}

type Result<T> = std::result::Result<T, SecretRefusal>;

impl Fleet {
    /// All secrets, without their values; to whoever is restricted, those that the deployments name which
    /// they see.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(in crate::server) fn secret_views(
        &self,
        scope: &Scope,
    ) -> std::result::Result<Vec<SecretView>, String> {
        let rows = self.store.secret_rows().map_err(|e| e.to_string())?;
        let seen = |name: &SecretName| -> Vec<String> {
            let users = self.users(name).into_iter().filter(|d| scope.has_select(&d.select));
            users.map(|deployment| deployment.name.to_string()).collect()
        };
        let view = |(name, version, created_ms)| SecretView {
            version,
            bytes: self.secrets.get(&name).map_or(0, |secret| secret.bytes),
            age_s: self.now_ms.saturating_sub(created_ms) / 1000,
            deployments: seen(&name),
            name: name.to_string(),
        };
        let views = rows.into_iter().map(view);
        Ok(views.filter(|view| scope.is_all() || !view.deployments.is_empty()).collect())
    }

    /// Sets a secret: its next version. The deployments that name it get another revision; where one
    /// of them could not run with it, nothing is changed.
    pub(in crate::server) fn set_secret(
        &mut self,
        by: &Caller,
        name: &SecretName,
        value: &Plaintext,
    ) -> Result<SecretResult> {
        let before = self.secrets.get(name).map(described);
        let done = unrestricted(by).and_then(|()| self.next_secret(name, value));
        let after = self.secrets.get(name).filter(|_| done.is_ok()).map(described);
        self.audit_secret(by, "secret.set", (name, before, after), done.as_ref().err());
        done
    }

    fn next_secret(&mut self, name: &SecretName, value: &Plaintext) -> Result<SecretResult> {
        let bytes = value.expose().len();
        if bytes == 0 {
            return Err(SecretRefusal::Empty(name.clone()));
        }
        if bytes > SECRET_BYTES_MAX {
            return Err(SecretRefusal::TooLong(bytes));
        }
        if !self.secrets.contains_key(name) && self.secrets.len() >= SECRETS_MAX {
            return Err(SecretRefusal::TooMany);
        }
        let version = self.next_version(name);
        let mut after = self.secrets.clone();
        after.insert(name.clone(), Secret::of(version, value.expose()));
        let users = self.try_secrets(name, &after)?;
        let put = self.store.put_secret(&(name.clone(), version, self.now_ms), value);
        self.stored(put);
        self.secrets = after;
        self.note("secret-set", None, format!("{name}, version {version}"));
        let deployments = users.into_iter().map(|user| self.deploy(user)).collect();
        Ok(SecretResult { name: name.to_string(), version, deployments })
    }

    /// The deployments that name a secret, as they will be; all of them can be.
    fn try_secrets(&self, name: &SecretName, after: &Secrets) -> Result<Vec<Deployment>> {
        let (mut trial, fleet) = (self.deployments.clone(), self.candidates());
        let mut users: Vec<Deployment> = self.users(name).into_iter().cloned().collect();
        for user in &mut users {
            let refused =
                |why: String| SecretRefusal::Deployment { deployment: user.name.to_string(), why };
            if let Err(faults) = secrets::resolve(&mut user.spec, after) {
                let whys: Vec<String> = faults.into_iter().map(|(_, why)| why).collect();
                return Err(SecretRefusal::Deployment {
                    deployment: user.name.to_string(),
                    why: whys.join("; "),
                });
            }
            let sealed = sealed_bytes(&user.spec, after);
            plan::deploy(&mut trial, user.clone(), sealed, self.now_ms, &fleet).map_err(refused)?;
        }
        Ok(users)
    }

    /// Above every version that this name has had, in the store or, as far as a restored store
    /// learned of it, on a device.
    fn next_version(&mut self, name: &SecretName) -> u32 {
        let read = self.store.secret_version(name);
        let stored = self.stored(read).unwrap_or(0);
        let used = self.users(name).into_iter().flat_map(|user| &user.spec.secrets);
        let used = used.filter(|used| used.name == *name).map(|used| used.version);
        used.max().unwrap_or(0).max(stored).saturating_add(1)
    }

    /// Deletes a secret that no deployment names.
    pub(in crate::server) fn delete_secret(
        &mut self,
        by: &Caller,
        name: &SecretName,
    ) -> Result<()> {
        let before = self.secrets.get(name).map(described);
        let done = unrestricted(by).and_then(|()| self.end_secret(name));
        self.audit_secret(by, "secret.delete", (name, before, None), done.as_ref().err());
        done
    }

    fn audit_secret(
        &mut self,
        by: &Caller,
        action: &'static str,
        (name, before, after): (&SecretName, Option<String>, Option<String>),
        refused: Option<&SecretRefusal>,
    ) {
        let object = format!("secret/{name}");
        self.audit_done(by, Entry { action, object, before, after, ..Entry::default() }, refused);
    }

    fn end_secret(&mut self, name: &SecretName) -> Result<()> {
        let users: Vec<String> =
            self.users(name).iter().map(|user| user.name.to_string()).collect();
        if !self.secrets.contains_key(name) {
            return Err(SecretRefusal::Absent(name.clone()));
        }
        if !users.is_empty() {
            return Err(SecretRefusal::InUse { name: name.clone(), users: users.join(", ") });
        }
        let deleted = self.store.delete_secret(name);
        self.stored(deleted);
        self.secrets.remove(name);
        self.note("secret-deleted", None, name.to_string());
        Ok(())
    }

    fn users(&self, name: &SecretName) -> Vec<&Deployment> {
        let all = self.deployments.values().map(|deployed| &deployed.deployment);
        all.filter(|deployment| secrets::names(&deployment.spec, name)).collect()
    }

    /// The desired state of a device, with the secrets that it names sealed to it.
    pub(super) fn sealed_desired(&mut self, id: &DeviceId, held: Held) -> DesiredState {
        let mut desired = self.desired(id, held);
        for workload in &mut desired.workloads {
            workload.sealed = self.seal(id, &workload.spec);
        }
        desired
    }

    /// The secrets of a template, sealed to a device: once per version, and then always the same.
    fn seal(&mut self, id: &DeviceId, spec: &WorkloadSpec) -> Vec<SealedSecret> {
        let key = self.devices.get(id).and_then(|device| device.record.sealing_key);
        let Some(key) = key else { return Vec::new() };
        let mut sealed: BTreeMap<(&SecretName, u32), SealedSecret> = BTreeMap::new();
        for wanted in &spec.secrets {
            let which = (&wanted.name, wanted.version);
            if sealed.contains_key(&which) {
                continue;
            }
            let one = self.seal_one((id, &key), which);
            // The device says what it lacks when it makes the container.
            sealed.extend(self.stored(one).flatten().map(|one| (which, one)));
        }
        sealed.into_values().collect()
    }

    /// None where the store has no such version: a device had it before the store was restored.
    fn seal_one(
        &self,
        (id, key): (&DeviceId, &SealingKey),
        (name, version): (&SecretName, u32),
    ) -> std::result::Result<Option<SealedSecret>, StoreError> {
        let before = self.store.sealed((id.as_str(), key), (name, version))?;
        if before.is_some() {
            return Ok(before);
        }
        let Some(value) = self.store.secret(name, version)? else {
            log::warn!("the secret {name}, version {version}, is not in the store");
            return Ok(None);
        };
        let Ok(sealed) = SealedSecret::seal(key, id, (name, version), &value) else {
            log::warn!("device {id} gave a sealing key that is none");
            return Ok(None);
        };
        self.store.put_sealed((id.as_str(), key), &sealed)?;
        Ok(Some(sealed))
    }

    /// Keeps what a device holds of secrets, which this store may lack.
    pub(super) fn keep_sealed(&mut self, id: &DeviceId, document: &DesiredState) {
        let key = self.devices.get(id).and_then(|device| device.record.sealing_key);
        let Some(key) = key else { return };
        for secret in document.workloads.iter().flat_map(|workload| &workload.sealed) {
            let put = self.store.put_sealed((id.as_str(), &key), secret);
            self.stored(put);
        }
    }

    /// What its secrets add to each workload of a template.
    pub(super) fn sealed_bytes(&self, spec: &WorkloadSpec) -> usize {
        sealed_bytes(spec, &self.secrets)
    }
}

/// What is told of a secret.
fn described(secret: &Secret) -> String {
    format!("version {}, {} bytes", secret.version, secret.bytes)
}

fn unrestricted(by: &Caller) -> Result<()> {
    match by.scope() {
        scope if scope.is_all() => Ok(()),
        scope => Err(SecretRefusal::Restricted(scope.clone())),
    }
}

fn sealed_bytes(spec: &WorkloadSpec, secrets: &Secrets) -> usize {
    let named: BTreeMap<&SecretName, &Secret> =
        spec.secrets.iter().filter_map(|wanted| secrets.get_key_value(&wanted.name)).collect();
    let one = |(name, secret): (&SecretName, &Secret)| {
        let (name, version) = (name.clone(), secret.version);
        let sealed = vec![0; secret.bytes + SEALED_BYTES_MORE];
        cbor::encode(&SealedSecret { name, version, sealed }).len()
    };
    match named.len() {
        0 => 0,
        _ => LIST_BYTES + named.into_iter().map(one).sum::<usize>(),
    }
}
