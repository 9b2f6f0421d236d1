//! What fuzzing feeds the reading of signatures with: whoever writes to a registry decides it all.

use limpet_protocol::{ImageKey, ImagePolicies, ImagePolicy};

use super::{Subject, listed, subject};

/// A public key in PEM, a manifest of signatures, and what was signed, each behind a zero byte; the
/// manifest names whatever it names. Nothing is good of what nobody has signed.
pub(in crate::image) fn signatures(data: &[u8]) {
    let mut parts = data.splitn(3, |byte| *byte == 0);
    let [key, manifest, payload] = [(); 3].map(|()| parts.next().unwrap_or_default());
    let key = std::str::from_utf8(key).ok().and_then(|pem| ImageKey::from_pem(pem).ok());
    if let Some(key) = &key {
        assert_eq!(ImageKey::from_pem(&key.to_pem()).as_ref(), Ok(key));
    }
    let named = subject(payload).unwrap_or_default();
    let Ok(listed) = listed(manifest) else {
        return;
    };
    let Ok(name) = "registry.example/app".parse() else {
        return;
    };
    let deployment = ImagePolicy { keys: key.into_iter().collect(), ..ImagePolicy::default() };
    let asks = !deployment.keys.is_empty();
    let policies = ImagePolicies { fleet: None, deployment: Some(deployment) };
    let seen: Vec<_> = listed.into_iter().map(|listed| (listed, payload.to_vec())).collect();
    let told = Subject { name: &name, digests: &[&named] }.satisfies(&policies, &seen);
    if let Err(why) = told {
        assert!(asks && why.len() < 16 * 1024, "{why}");
    }
}
