//! `limpet token create --publisher`: a certificate for a key, which is made here where there is none.

use std::fs::{DirBuilder, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use limpet_protocol::{PublicKey, SigningKey};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};

use super::super::client::Client;
use super::super::print;
use crate::pem::pem;
use crate::view::{PublisherMade, PublisherRequest};

const KEY: &str = "key.pem";
const CERTIFICATE: &str = "cert.pem";
const AUTHORITY: &str = "ca.pem";

/// Writes `ca.pem`, `cert.pem` and, where no public key is given, `key.pem` into a folder, and says how
/// they are used.
pub(super) fn create(
    client: &Client,
    name: &str,
    public: Option<&Path>,
    ttl_s: Option<u64>,
    out: &Path,
) -> anyhow::Result<()> {
    let own = if public.is_none() { Some(SigningKey::generate()?) } else { None };
    let key = match (public, &own) {
        (Some(path), _) => public_key(path)?.to_string(),
        (None, own) => own.iter().map(|own| own.public().to_string()).collect(),
    };
    let request = PublisherRequest { name: name.to_owned(), key, ttl_s };
    // A certificate that nobody could use would stay in the list of tokens.
    let names = own.as_ref().map(|_| KEY).into_iter().chain([CERTIFICATE, AUTHORITY]);
    let mut files = Files::make(out, names)?;
    if let Some(own) = own {
        let key = PrivatePkcs8KeyDer::from(own.pkcs8());
        write(&out.join(KEY), &pem("PRIVATE KEY", key.secret_pkcs8_der()))?;
    }
    let made: PublisherMade = client.ask("/api/v1/publishers", &request)?;
    write(&out.join(CERTIFICATE), &made.certificate)
        .and_then(|()| write(&out.join(AUTHORITY), &made.authorities))
        .with_context(|| format!("revoke the token {}, and try again", made.token.id))?;
    files.keep = true;
    let (host, port) = made
        .broker
        .trim_start_matches("mqtts://")
        .rsplit_once(':')
        .unwrap_or((made.broker.as_str(), "8883"));
    let folder = out.display();
    let (made_here, key) = match public {
        Some(_) => ("ca.pem and cert.pem", "KEY".to_owned()),
        None => ("ca.pem, cert.pem and key.pem", format!("{folder}/key.pem")),
    };
    print(&format!(
        "token/{} {name} (publisher): {made_here} are in {folder}\n\
         mosquitto_pub -h {host} -p {port} --cafile {folder}/ca.pem --cert {folder}/cert.pem \
         --key {key} -q 1 -t limpet/v1/deploy/NAME -f FILE\n",
        made.token.id
    ))
}

/// Files that only their owner reads, from their first byte on. They go again unless they are kept.
struct Files {
    made: Vec<PathBuf>,
    /// Where it was made too.
    folder: Option<PathBuf>,
    keep: bool,
}

impl Files {
    /// Makes the folder where it is missing, and in it the files, which must not be there.
    fn make<'a>(folder: &Path, names: impl Iterator<Item = &'a str>) -> anyhow::Result<Self> {
        let missing = (!folder.exists()).then(|| folder.to_owned());
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
        let mut files = Self { made: Vec::new(), folder: missing, keep: false };
        for name in names {
            let path = folder.join(name);
            let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
            made.with_context(|| format!("cannot make {}", path.display()))?;
            files.made.push(path);
        }
        Ok(files)
    }
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

impl Drop for Files {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        let files = self.made.iter().map(|path| (path, std::fs::remove_file(path)));
        let folder = self.folder.iter().map(|path| (path, std::fs::remove_dir(path)));
        for (path, removed) in files.chain(folder) {
            if let Err(error) = removed {
                log::warn!("{} is left behind: {error}", path.display());
            }
        }
    }
}

/// An Ed25519 public key as `openssl pkey -pubout` writes it (RFC 8410 section 4).
fn public_key(path: &Path) -> anyhow::Result<PublicKey> {
    const HEAD: &[u8] = b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00";
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let der = SubjectPublicKeyInfoDer::from_pem_slice(&text).ok();
    let key = der.as_ref().and_then(|der| der.strip_prefix(HEAD)?.try_into().ok());
    key.map(PublicKey).with_context(|| {
        let path = path.display();
        format!("{path} is no Ed25519 public key in PEM: make it with `openssl pkey -pubout`")
    })
}
