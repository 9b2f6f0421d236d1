//! Image names, read as Docker reads them (distribution/reference).

use std::fmt;
use std::str::FromStr;

/// The longest name, as Docker bounds it.
const NAME_BYTES_MAX: usize = 255;
const TAG_BYTES_MAX: usize = 128;

/// `REGISTRY/REPOSITORY:TAG` or `REGISTRY/REPOSITORY@DIGEST`, with the defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ImageName {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<String>,
}

/// Why a text is not an image name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("image name {name:?}: {reason}")]
pub struct NameError {
    name: String,
    reason: &'static str,
}

impl ImageName {
    /// Host and port of the registry it belongs to.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Its path in the registry.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag it is named by.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest it is named by.
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }

    /// What to ask the registry for: the digest where there is one, otherwise the tag.
    pub fn reference(&self) -> &str {
        self.digest.as_deref().or(self.tag.as_deref()).unwrap_or("latest")
    }
}

impl FromStr for ImageName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let fault = |reason| NameError { name: text.chars().take(80).collect(), reason };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) if is_digest(digest) => (rest, Some(digest.to_owned())),
            Some(_) => return Err(fault("a digest is sha256: and 64 hexadecimal digits")),
            None => (text, None),
        };
        let (rest, tag) = match rest.rsplit_once(':') {
            Some((rest, tag)) if !tag.contains('/') => (rest, Some(tag)),
            _ => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(fault("a tag has 1 to 128 letters, digits, '_', '.' and '-'"));
        }
        let (registry, path) = match rest.split_once('/') {
            Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host, path),
            _ => ("docker.io", rest),
        };
        let registry = if registry == "index.docker.io" { "docker.io" } else { registry };
        if !is_host(registry) {
            return Err(fault("the registry is no host name with an optional port"));
        }
        let official = registry == "docker.io" && !path.contains('/');
        let repository = if official { format!("library/{path}") } else { path.to_owned() };
        if path.is_empty() || !repository.split('/').all(is_component) {
            return Err(fault(
                "use lower-case letters, digits, and single '.', '_', '-' between them",
            ));
        }
        if registry.len() + repository.len() > NAME_BYTES_MAX {
            return Err(fault("it is longer than 255 characters"));
        }
        let tag = tag.map(str::to_owned).or_else(|| digest.is_none().then(|| "latest".into()));
        Ok(Self { registry: registry.to_owned(), repository, tag, digest })
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        self.digest.as_ref().map_or(Ok(()), |digest| write!(f, "@{digest}"))
    }
}

/// Whether a text is a SHA-256 digest as OCI writes it (image-spec, descriptor.md).
pub fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= TAG_BYTES_MAX
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

pub(crate) fn is_host(host: &str) -> bool {
    let (name, port) = host.rsplit_once(':').unwrap_or((host, "0"));
    let bracketed = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    let name_fits = match bracketed {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => name.split('.').all(is_host_label),
    };
    name_fits && port.parse::<u16>().is_ok()
}

/// Letters, digits and '-', which stands at neither end (RFC 1123).
fn is_host_label(label: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    !label.is_empty() && label.bytes().all(inner) && label.trim_matches('-') == label
}

/// Letters and digits, joined by one '.', one or two '_', or any number of '-'.
pub(crate) fn is_component(part: &str) -> bool {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let edges = [part.bytes().next(), part.bytes().last()];
    edges.into_iter().all(|edge| edge.is_some_and(alnum))
        && part.bytes().all(|b| alnum(b) || b"._-".contains(&b))
        && part.split(|c: char| c.is_ascii_alphanumeric()).all(|separator| {
            matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_docker_reads_them() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        for (text, full) in [
            ("node:alpine", "docker.io/library/node:alpine"),
            ("node", "docker.io/library/node:latest"),
            ("a/b", "docker.io/a/b:latest"),
            ("index.docker.io/a", "docker.io/library/a:latest"),
            ("localhost/a", "localhost/a:latest"),
            ("localhost:5000/a/b:v1.2", "localhost:5000/a/b:v1.2"),
            ("ghcr.io/x/y_z/w__v/u--t:T_1", "ghcr.io/x/y_z/w__v/u--t:T_1"),
            ("[::1]:5000/a", "[::1]:5000/a:latest"),
            (&format!("a@{digest}"), &format!("docker.io/library/a@{digest}")),
            (&format!("r.io/a:t@{digest}"), &format!("r.io/a:t@{digest}")),
        ] {
            assert_eq!(text.parse::<ImageName>().map(|n| n.to_string()).as_deref(), Ok(full));
        }
        for text in [
            "",
            "A",
            "a:",
            "a:-t",
            "a/",
            "/a",
            "a//b",
            "a@sha256:0",
            "a@md5:00",
            "r.io/",
            "a b",
            "a___b",
            "-a",
            "a-",
            "a..b",
            "r.io:x/a",
            "../a",
            "r.io/../a",
            "ü",
        ] {
            assert!(text.parse::<ImageName>().is_err(), "{text}");
        }
        assert!("a".repeat(300).parse::<ImageName>().is_err());
    }
}
