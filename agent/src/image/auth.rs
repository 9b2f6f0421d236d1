//! Who we are to a registry: Docker's credentials file, basic authentication and bearer tokens
//! (distribution-spec, and Docker's token authentication).

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

/// What a registry asks for in `WWW-Authenticate` (RFC 9110 section 11.6.1).
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

impl Challenge {
    pub(super) fn parse(header: &str) -> Option<Self> {
        let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let mut parameters = parameters(rest);
        Some(Self::Bearer {
            realm: parameters.remove("realm")?,
            service: parameters.remove("service"),
            scope: parameters.remove("scope"),
        })
    }
}

/// `key="value"` or `key=value`, separated by commas that are not quoted.
fn parameters(text: &str) -> BTreeMap<String, String> {
    let mut quoted = false;
    text.split(|c| {
        quoted ^= c == '"';
        c == ',' && !quoted
    })
    .filter_map(|pair| pair.split_once('='))
    .map(|(key, value)| (key.trim().to_ascii_lowercase(), value.trim().replace('"', "")))
    .collect()
}

#[derive(Deserialize)]
struct CredentialsFile {
    #[serde(default)]
    auths: BTreeMap<String, Credentials>,
}

#[derive(Deserialize)]
struct Credentials {
    #[serde(default)]
    auth: Option<String>,
}

/// The value of `Authorization` for a registry, from a file in the format of Docker's
/// `config.json`; None where the file has nothing for it.
pub(super) fn basic(file: &Path, registry: &str) -> Result<Option<String>, String> {
    let shown = file.display();
    let text = std::fs::read(file).map_err(|e| format!("cannot read credentials {shown}: {e}"))?;
    let file: CredentialsFile = serde_json::from_slice(&text).map_err(|e| {
        format!("credentials {shown} are not in the format of Docker's config.json: {e}")
    })?;
    let names: &[&str] = match registry {
        "docker.io" => &["docker.io", "index.docker.io", "https://index.docker.io/v1/"],
        _ => &[registry],
    };
    let https = format!("https://{registry}");
    let found = names.iter().copied().chain([https.as_str()]).find_map(|name| file.auths.get(name));
    Ok(found.and_then(|found| found.auth.as_ref()).map(|auth| format!("Basic {auth}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let bearer =
            r#"Bearer realm="https://a/token",service="r",scope="repository:a/b:pull,push""#;
        assert_eq!(
            Challenge::parse(bearer),
            Some(Challenge::Bearer {
                realm: "https://a/token".into(),
                service: Some("r".into()),
                scope: Some("repository:a/b:pull,push".into()),
            })
        );
        assert_eq!(Challenge::parse("basic realm=x"), Some(Challenge::Basic));
        assert_eq!(Challenge::parse("Basic"), Some(Challenge::Basic));
        assert_eq!(Challenge::parse("Bearer service=x"), None);
        assert_eq!(Challenge::parse("Negotiate"), None);
    }

    #[test]
    fn credentials_are_found_by_host() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text =
            r#"{"auths":{"r:5000":{"auth":"QQ=="},"https://index.docker.io/v1/":{"auth":"Qg=="}}}"#;
        std::fs::write(file.path(), text).unwrap();
        assert_eq!(basic(file.path(), "r:5000").unwrap().unwrap(), "Basic QQ==");
        assert_eq!(basic(file.path(), "docker.io").unwrap().unwrap(), "Basic Qg==");
        assert_eq!(basic(file.path(), "other").unwrap(), None);
    }
}
