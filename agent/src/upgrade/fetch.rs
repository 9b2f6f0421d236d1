//! A program comes from the controller, over HTTPS as joining does, and goes on where it was cut off.

use std::fmt;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use limpet_protocol::Upgrade;
use limpet_protocol::upgrade::PROGRAM_BYTES_MAX;
use ureq::http::StatusCode;
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};

use super::{Programs, UpgradeError, digest_of, io};
use crate::image::{ImageError, Part};
use crate::join::Server;
use crate::proxy::Proxies;
use crate::state::Identity;

/// Nothing that comes for this long is a cut.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// What says which version it is has this long to do so.
const CHECK_TIMEOUT: Duration = Duration::from_secs(20);
const CHECK_EVERY: Duration = Duration::from_millis(20);
/// Progress is told each time that so much more is here.
const TOLD_PARTS: u64 = 10;

/// Why a program is not had.
#[derive(Debug)]
pub struct Fault {
    /// For a person.
    pub reason: String,
    /// It may help to try again.
    pub may_pass: bool,
}

impl Fault {
    fn passing(reason: impl fmt::Display) -> Self {
        Self { reason: reason.to_string(), may_pass: true }
    }

    fn lasting(reason: impl fmt::Display) -> Self {
        Self { reason: reason.to_string(), may_pass: false }
    }
}

impl From<UpgradeError> for Fault {
    fn from(error: UpgradeError) -> Self {
        Self::lasting(error)
    }
}

impl From<ImageError> for Fault {
    fn from(error: ImageError) -> Self {
        Self::lasting(error)
    }
}

/// Who asks, and by which way.
pub struct Source<'a> {
    /// This device.
    pub identity: &'a Identity,
    /// What leads out of its network.
    pub proxies: &'a Proxies,
}

impl Programs {
    /// Has a program on the disk that is what was ordered, and starts; true where it is the one that
    /// runs. `progress` is told how many bytes are here. Blocks.
    ///
    /// # Errors
    /// Why it is not had, and whether that may pass.
    pub fn obtain(
        &self,
        upgrade: &Upgrade,
        source: &Source<'_>,
        progress: &dyn Fn(u64),
    ) -> Result<bool, Fault> {
        let is_it = |path: &Path| {
            let size = path.metadata().map_or(0, |file| file.len());
            size == upgrade.size && digest_of(path).is_ok_and(|digest| digest == upgrade.digest)
        };
        if is_it(Path::new("/proc/self/exe")) {
            return Ok(true);
        }
        let _turn = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.make_folder()?.join(upgrade.digest.to_string());
        self.collect(self.record().as_ref(), Some(upgrade.digest));
        if is_it(&self.launched.base) {
            check(&self.launched.base, upgrade)?;
        } else {
            if !is_it(&path) {
                self.fetch(upgrade, source, &path, progress)?;
            }
            check(&path, upgrade)?;
        }
        Ok(false)
    }

    fn fetch(
        &self,
        upgrade: &Upgrade,
        source: &Source<'_>,
        path: &Path,
        progress: &dyn Fn(u64),
    ) -> Result<(), Fault> {
        if upgrade.size > PROGRAM_BYTES_MAX {
            let size = upgrade.size;
            let most = PROGRAM_BYTES_MAX;
            return Err(Fault::lasting(format!("it has {size} bytes, at most {most} are taken")));
        }
        let part_path = path.with_extension("part");
        let mut part = Part::open(part_path.clone(), upgrade.size)?;
        part.room()?;
        let is_resumed = part.received() > 0;
        let step = (upgrade.size / TOLD_PARTS).max(1);
        let told = std::cell::Cell::new(part.received() / step);
        let progress = |received: u64| {
            if received / step > told.replace(received / step) {
                progress(received);
            }
        };
        while part.received() < upgrade.size {
            let before = part.received();
            if let Err(fault) = receive(&mut part, upgrade, source, &progress)
                && (part.received() == before || !fault.may_pass)
            {
                return Err(fault);
            }
        }
        let (wanted, actual) = (format!("sha256:{}", upgrade.digest), part.finish()?);
        if actual != wanted {
            // Another try begins anew.
            let _ = std::fs::remove_file(&part_path);
            let reason = format!("what came is not what was ordered: it is {actual}, not {wanted}");
            // What was here before may be what a power cut has left of it.
            return Err(Fault { reason, may_pass: is_resumed });
        }
        let placed = std::fs::File::open(&part_path).and_then(|file| {
            file.set_permissions(std::fs::Permissions::from_mode(0o500))?;
            file.sync_all()?;
            std::fs::rename(&part_path, path)?;
            path.parent().map_or(Ok(()), |folder| std::fs::File::open(folder)?.sync_all())
        });
        Ok(placed.map_err(io("keep", path))?)
    }
}

/// Receives as much as one connection brings.
fn receive(
    part: &mut Part,
    upgrade: &Upgrade,
    source: &Source<'_>,
    progress: &dyn Fn(u64),
) -> Result<(), Fault> {
    let mut last = Fault::lasting("the order does not say where the program is to be had");
    for (scheme, server) in servers(upgrade, source.identity) {
        let server = Server { address: server, proxies: source.proxies };
        match ask(server, scheme, source.identity, part, upgrade) {
            Ok((body, resumed)) => {
                if !resumed {
                    part.restart()?;
                }
                return match part.receive(body, progress)? {
                    Some(why) if part.received() < upgrade.size => Err(Fault::passing(why)),
                    Some(_) | None => Ok(()),
                };
            }
            Err(fault) if fault.may_pass => last = fault,
            Err(fault) => return Err(fault),
        }
    }
    Err(last)
}

/// Whom to ask, one after the other. Who is a member of a fleet asks its controller and nobody else.
fn servers<'a>(upgrade: &'a Upgrade, identity: &'a Identity) -> Vec<(&'static str, &'a str)> {
    match &identity.membership {
        Some(member) => member.servers.iter().map(|server| ("https", server.as_str())).collect(),
        None => {
            let from = upgrade.from.as_deref().and_then(|from| from.strip_prefix("http://"));
            from.map(|server| ("http", server)).into_iter().collect()
        }
    }
}

/// Asks for what is missing; false where it comes from the beginning.
fn ask(
    server: Server<'_>,
    scheme: &str,
    identity: &Identity,
    part: &Part,
    upgrade: &Upgrade,
) -> Result<(impl Read + use<>, bool), Fault> {
    let (address, offset) = (server.address, part.received());
    let config = server
        .config(scheme, tls(identity))
        .timeout_recv_response(Some(STALL_TIMEOUT))
        .timeout_per_read(Some(STALL_TIMEOUT));
    let url = format!("{scheme}://{address}{}", upgrade.path());
    let mut request = config.build().new_agent().get(&url);
    if offset > 0 {
        request = request.header("range", format!("bytes={offset}-{}", upgrade.size - 1));
    }
    let answer = request.call().map_err(|error| {
        let why = server.proxies.explain(scheme, address, &error);
        Fault::passing(format!("the controller at {address} cannot be reached: {why}"))
    })?;
    match answer.status() {
        StatusCode::OK => Ok((answer.into_body().into_reader(), false)),
        StatusCode::PARTIAL_CONTENT if offset > 0 => Ok((answer.into_body().into_reader(), true)),
        status => {
            let why = server.refusal(answer);
            let may_pass = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
            Err(Fault { reason: why, may_pass })
        }
    }
}

/// Who answers must be the fleet's controller, and is shown that this is a member.
fn tls(identity: &Identity) -> ureq::tls::TlsConfigBuilder {
    let tls = TlsConfig::builder();
    let Some(member) = &identity.membership else { return tls };
    let certificate = |der: &serde_bytes::ByteBuf| Certificate::from_der(der).to_owned();
    let roots: Vec<_> = member.roots.iter().map(certificate).collect();
    let chain: Vec<_> = member.certificates.iter().map(certificate).collect();
    // In the one form that the library takes.
    let key = STANDARD.encode(identity.key.pkcs8());
    let key = format!("-----BEGIN PRIVATE KEY-----\n{key}\n-----END PRIVATE KEY-----\n");
    let key = PrivateKey::from_pem(key.as_bytes()).ok();
    tls.root_certs(RootCerts::Specific(roots.into()))
        .client_cert(key.map(|key| ClientCert::new_with_certs(&chain, key)))
}

/// Runs a program to have it say what it is: what cannot start here, or is another version than was
/// ordered, is not even tried.
fn check(path: &Path, upgrade: &Upgrade) -> Result<(), Fault> {
    let version = &upgrade.version;
    let cannot = |why: String| Fault::lasting(format!("{version} does not start here: {why}"));
    let mut child = Command::new(path)
        .arg("version")
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| cannot(error.to_string()))?;
    let status = ended(&mut child).map_err(|error| cannot(error.to_string()))?;
    let mut said = String::new();
    let stdout = child.stdout.take().into_iter();
    stdout.for_each(|out| drop(out.take(128).read_to_string(&mut said)));
    match status {
        None => {
            let seconds = CHECK_TIMEOUT.as_secs();
            Err(cannot(format!("asked for its version, it has not answered in {seconds} s")))
        }
        Some(status) if !status.success() => {
            Err(cannot(format!("asked for its version, it ended with {status}")))
        }
        Some(_) if said == format!("limpet-agent {version}\n") => Ok(()),
        Some(_) => {
            let said: String = said.trim_end().chars().take(64).collect();
            Err(Fault::lasting(format!("it is not {version}: it says that it is {said:?}")))
        }
    }
}

/// How a child ended; None where it did not, and was killed.
fn ended(child: &mut Child) -> std::io::Result<Option<std::process::ExitStatus>> {
    let deadline = Instant::now() + CHECK_TIMEOUT;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(CHECK_EVERY);
    }
}
