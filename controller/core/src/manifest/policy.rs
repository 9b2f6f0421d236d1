//! What images must be, as operators write it: `image_policy` of a manifest, and the fleet's policy,
//! which has the same fields.
//!
//! ```yaml
//! digest: required           # a tag is refused
//! registries: [ghcr.io/acme] # registries, or parts of them
//! keys:                      # public keys: a cosign signature by any one of them is required
//! - |
//!   -----BEGIN PUBLIC KEY-----
//!   ...
//! ```

use std::fmt::Write;

use limpet_protocol::policy::{KEYS_MAX, REGISTRIES_MAX};
use limpet_protocol::{DigestRule, ImageKey, ImageName, ImagePolicy};

use super::render::quote;
use super::{FAULTS_MAX, Fault, Format, Reader, node};

/// Reads the fleet's policy; one that says nothing permits everything.
///
/// # Errors
/// What is wrong with it: the first faults, where there are many.
pub fn parse_policy(bytes: &[u8], format: Format) -> Result<ImagePolicy, Vec<Fault>> {
    // What is written when everything is permitted.
    if bytes.trim_ascii().is_empty() {
        return Ok(ImagePolicy::default());
    }
    let root = node::load(bytes, format).map_err(|fault| vec![fault])?;
    let mut reader = Reader::new(&root);
    let policy = policy(&mut reader);
    reader.finish("a policy");
    let mut faults = reader.faults;
    if faults.is_empty() {
        return Ok(policy);
    }
    faults.sort_by_key(|fault| fault.line);
    faults.truncate(FAULTS_MAX);
    Err(faults)
}

/// The fields of a policy, each line behind `indent`, that [`parse_policy`] reads.
pub fn render_policy(policy: &ImagePolicy, indent: &str) -> String {
    let ImagePolicy { digest, registries, keys } = policy;
    let mut out = String::new();
    if *digest == DigestRule::Required {
        let _ = writeln!(out, "{indent}digest: required");
    }
    if !registries.is_empty() {
        let all: Vec<String> = registries.iter().map(|text| quote(text.as_str())).collect();
        let _ = writeln!(out, "{indent}registries: [{}]", all.join(", "));
    }
    if !keys.is_empty() {
        let _ = writeln!(out, "{indent}keys:");
    }
    for key in keys {
        let _ = writeln!(out, "{indent}- |");
        for line in key.to_pem().lines() {
            let _ = writeln!(out, "{indent}  {line}");
        }
    }
    out
}

/// How an image breaks a policy, as faults of the manifest's `image`; `whose` is what the policy is
/// called.
pub fn image_faults(image: &str, policy: &ImagePolicy, whose: &str) -> Vec<Fault> {
    let fault = |message: String| Fault { path: "image".to_owned(), line: None, message };
    match image.parse::<ImageName>() {
        // Nobody can say whether it is what the policy asks for.
        Err(error) if !policy.is_empty() => vec![fault(error.to_string())],
        Err(_) => Vec::new(),
        Ok(name) => {
            let broken = policy.violations(&name).into_iter();
            broken.map(|broken| fault(format!("{whose} ({}): {broken}", broken.rule()))).collect()
        }
    }
}

pub(super) fn policy(reader: &mut Reader<'_>) -> ImagePolicy {
    let rules = [("required", DigestRule::Required), ("optional", DigestRule::Optional)];
    ImagePolicy {
        digest: reader.one_of("digest", &rules).unwrap_or_default(),
        registries: reader.items("registries", REGISTRIES_MAX, |text| {
            text.parse().map_err(|e: limpet_protocol::policy::RegistryPathError| e.to_string())
        }),
        keys: reader
            .items("keys", KEYS_MAX, |text| ImageKey::from_pem(text).map_err(|e| e.to_string())),
    }
}
