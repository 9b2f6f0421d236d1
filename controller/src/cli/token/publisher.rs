//! `limpet token create --publisher`: a key that is made here, and a certificate for it.

use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use anyhow::Context;
use limpet_protocol::SigningKey;
use rustls::pki_types::PrivatePkcs8KeyDer;

use super::super::client::Client;
use super::super::print;
use crate::pem::pem;
use crate::view::{PublisherMade, PublisherRequest};

/// Writes `ca.pem`, `cert.pem` and `key.pem` into a folder, and says how they are used.
pub(super) fn create(
    client: &Client,
    name: &str,
    ttl_s: Option<u64>,
    out: &Path,
) -> anyhow::Result<()> {
    let key = SigningKey::generate()?;
    let request = PublisherRequest { name: name.to_owned(), key: key.public().to_string(), ttl_s };
    let made: PublisherMade = client.ask("/api/v1/publishers", &request)?;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(out)
        .with_context(|| format!("cannot make {}", out.display()))?;
    let key = PrivatePkcs8KeyDer::from(key.pkcs8());
    write(&out.join("key.pem"), &pem("PRIVATE KEY", key.secret_pkcs8_der()))?;
    write(&out.join("cert.pem"), &made.certificate)?;
    write(&out.join("ca.pem"), &made.authorities)?;
    let (host, port) = made
        .broker
        .trim_start_matches("mqtts://")
        .rsplit_once(':')
        .unwrap_or((made.broker.as_str(), "8883"));
    let folder = out.display();
    print(&format!(
        "token/{} {name} (publisher): ca.pem, cert.pem and key.pem are in {folder}\n\
         mosquitto_pub -h {host} -p {port} --cafile {folder}/ca.pem --cert {folder}/cert.pem \
         --key {folder}/key.pem -q 1 -t limpet/v1/deploy/NAME -f FILE\n",
        made.token.id
    ))
}

/// A file that only its owner reads, from its first byte on; it must not be there.
fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
    written.with_context(|| format!("cannot write {}", path.display()))
}
