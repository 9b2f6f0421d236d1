//! Which broker, who it must be, and who this controller is there.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context, bail};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use serde_bytes::ByteBuf;

use super::super::authority::Served;
use super::Link;

/// A broker of somebody else, as `limpet up` was told of it.
#[derive(Debug, Clone)]
pub(crate) struct Broker {
    pub(crate) address: Address,
    /// Certificates (PEM) of the authorities that its own must come from.
    pub(crate) authorities: PathBuf,
    /// Certificate and key (PEM) of this controller; None for those of the fleet's authority.
    pub(crate) own: Option<(PathBuf, PathBuf)>,
    pub(crate) password: Option<PathBuf>,
}

/// `mqtts://[USER@]HOST:PORT`
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    user: Option<String>,
    host: String,
    port: u16,
}

impl FromStr for Address {
    type Err = String;

    fn from_str(url: &str) -> Result<Self, String> {
        let form = || "write mqtts://HOST:PORT, or mqtts://USER@HOST:PORT".to_owned();
        let rest = url.strip_prefix("mqtts://").ok_or_else(form)?.trim_end_matches('/');
        let (user, place) = match rest.rsplit_once('@') {
            Some((user, _)) if user.contains(':') => {
                return Err(
                    "a password on the command line is everybody's: put it into a file, for \
                            --broker-password-file"
                        .to_owned(),
                );
            }
            Some((user, place)) => (Some(user.to_owned()), place),
            None => (None, rest),
        };
        let (host, port) = place.rsplit_once(':').ok_or_else(form)?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() || host.contains(['/', '@']) || user.as_deref() == Some("") {
            return Err(form());
        }
        Ok(Self { user, host: host.to_owned(), port: port.parse().map_err(|_| form())? })
    }
}

impl Broker {
    /// What devices are told: `mqtts://HOST:PORT`.
    pub(in crate::server) fn url(&self) -> String {
        let Address { host, port, .. } = &self.address;
        match host.contains(':') {
            true => format!("mqtts://[{host}]:{port}"),
            false => format!("mqtts://{host}:{port}"),
        }
    }
}

/// How the broker is reached by who has this certificate of the fleet's authority, and the
/// certificates (DER) of the authorities that devices must know it by.
pub(in crate::server) fn link(
    broker: &Broker,
    own: Served,
) -> anyhow::Result<(Link, Vec<ByteBuf>)> {
    let Broker { address: Address { user, host, port }, authorities, own: files, password } =
        broker;
    let authorities = certificates(authorities)?;
    let (chain, key) = match files {
        Some((certificate, key)) => (certificates(certificate)?, self::key(key)?),
        None => {
            let chain = CertificateDer::pem_slice_iter(own.chain.as_bytes());
            let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes());
            (chain.collect::<Result<_, _>>()?, key.context("the controller's key")?)
        }
    };
    let mut roots = RootCertStore::empty();
    for authority in &authorities {
        roots.add(authority.clone()).context("--broker-ca")?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .context("--broker-cert and --broker-key")?;
    let password = match password {
        Some(path) => Some(read(path)?.trim_end_matches(['\r', '\n']).to_owned()),
        None => None,
    };
    let login = user.clone().map(|user| (user, password.unwrap_or_default()));
    let roots = authorities.iter().map(|authority| ByteBuf::from(authority.to_vec())).collect();
    Ok((Link { host: host.clone(), port: *port, tls: Arc::new(tls), login }, roots))
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let text = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) | Err(_) => bail!("{} holds no certificates in PEM", path.display()),
    }
}

fn key(path: &Path) -> anyhow::Result<PrivateKeyDer<'static>> {
    let key = PrivateKeyDer::from_pem_slice(read(path)?.as_bytes());
    key.with_context(|| format!("{} holds no private key in PEM", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_passwords_are_not() {
        let address = |user: Option<&str>, host: &str, port| Address {
            user: user.map(str::to_owned),
            host: host.to_owned(),
            port,
        };
        assert_eq!("mqtts://b.example:8883".parse(), Ok(address(None, "b.example", 8883)));
        assert_eq!("mqtts://me@[::1]:8883/".parse(), Ok(address(Some("me"), "::1", 8883)));
        for (url, why) in [
            ("mqtt://b:1", "write mqtts://HOST:PORT"),
            ("mqtts://b", "write mqtts://HOST:PORT"),
            ("mqtts://b:x", "write mqtts://HOST:PORT"),
            ("mqtts://@b:1", "write mqtts://HOST:PORT"),
            ("mqtts://b/c:1", "write mqtts://HOST:PORT"),
            ("mqtts://me:secret@b:1", "--broker-password-file"),
        ] {
            let error = url.parse::<Address>().unwrap_err();
            assert!(error.contains(why) && !error.contains("secret"), "{url}: {error}");
        }
    }
}
