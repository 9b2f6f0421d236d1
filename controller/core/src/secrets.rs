//! Which versions of secrets deployments run with: always the latest.

use std::collections::BTreeMap;

use limpet_protocol::{SecretName, SecretPlace, WorkloadSpec};

/// A secret, but for its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Secret {
    /// Its latest version.
    pub version: u32,
    /// Its size, in bytes.
    pub bytes: usize,
    /// Whether a variable can hold it: text without NUL.
    pub is_text: bool,
}

impl Secret {
    /// A version with this value.
    pub fn of(version: u32, value: &[u8]) -> Self {
        let is_text = std::str::from_utf8(value).is_ok_and(|text| !text.contains('\0'));
        Self { version, bytes: value.len(), is_text }
    }
}

/// All secrets.
pub type Secrets = BTreeMap<SecretName, Secret>;

/// Gives each secret that a template names its latest version.
///
/// # Errors
/// What is wrong with each that cannot be given: where in `secrets`, and why.
pub fn resolve(spec: &mut WorkloadSpec, secrets: &Secrets) -> Result<(), Vec<(usize, String)>> {
    let mut faults = Vec::new();
    for (index, wanted) in spec.secrets.iter_mut().enumerate() {
        let name = &wanted.name;
        match (secrets.get(name), &wanted.place) {
            (None, _) => faults.push((
                index,
                format!("there is no secret {name}: make it with `limpet secret set {name}`"),
            )),
            (Some(Secret { is_text: false, .. }), SecretPlace::Env(_)) => faults.push((
                index,
                format!("the secret {name} is no text, as a variable must be: give it as a file"),
            )),
            (Some(secret), _) => wanted.version = secret.version,
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

/// Whether a template names a secret.
pub fn names(spec: &WorkloadSpec, name: &SecretName) -> bool {
    spec.secrets.iter().any(|wanted| wanted.name == *name)
}

#[cfg(test)]
mod tests {
    use limpet_protocol::SecretUse;

    use super::*;

    #[test]
    fn the_latest_version_is_part_of_the_revision() {
        let name: SecretName = "db".parse().unwrap();
        let place = SecretPlace::Env("DB".to_owned());
        let mut spec = WorkloadSpec::of("box");
        spec.secrets = vec![SecretUse { name: name.clone(), version: SecretUse::LATEST, place }];
        let unresolved = spec.clone();
        let faults = resolve(&mut spec, &Secrets::new()).unwrap_err();
        let says = |(index, why): &(usize, String)| *index == 0 && why.contains("no secret db");
        assert!(faults.iter().all(says), "{faults:?}");
        let with = |version, is_text| {
            Secrets::from([(name.clone(), Secret { version, bytes: 1, is_text })])
        };
        assert!(resolve(&mut spec, &with(1, false)).is_err());
        assert_eq!(spec, unresolved);
        resolve(&mut spec, &with(1, true)).unwrap();
        let first = spec.digest();
        resolve(&mut spec, &with(2, true)).unwrap();
        assert!(spec.secrets.iter().all(|wanted| wanted.version == 2));
        assert_ne!(spec.digest(), first);
    }
}
