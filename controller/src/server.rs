//! `limpet up`: broker, store and API in one process.
//!
//! One thread, the `fleet`, owns the store and everything that is known; broker and API hand it
//! work and are answered when it is on disk.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use limpet_controller_core::certificate;
use limpet_service::{Supervisor, beat_every};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::UnboundedReceiver;

mod api;
#[cfg(any(test, fuzzing))]
pub use api::fuzz;
mod authority;
mod broker;
mod clock;
mod external;
mod fleet;
mod login;
mod logs;
mod proof;
mod store;
mod tls;
mod websocket;

use api::Access;
use authority::Authority;
pub(crate) use authority::{CONTROLLER, PUBLISHER};
use external::Link;
pub(crate) use external::{Address as BrokerAddress, Broker};
use fleet::{CallError, Fleet, Handle, Outgoing, Terms};
pub(crate) use login::Login;
use proof::Proof;
pub(crate) use store::{Existing, restore};
use store::{Keys, Store};
use tls::{Shown, TlsListener};

/// How long requests under way may take to end.
const END_TIMEOUT: Duration = Duration::from_millis(1500);

/// What `limpet up` was told.
#[derive(Debug, Clone)]
pub struct Options {
    /// Store and keys.
    pub data_dir: PathBuf,
    /// Where the API listens.
    pub listen: SocketAddr,
    /// Where the broker listens.
    pub mqtt_listen: SocketAddr,
    /// A broker of somebody else, in place of the embedded one.
    pub(crate) broker: Option<Broker>,
    /// Where MQTT over WebSocket is served, and the API with it: where it is the API's own address,
    /// there alone.
    pub wss_listen: Option<SocketAddr>,
    /// Plain HTTP and MQTT, on loopback only, and no tokens.
    pub insecure: bool,
    /// When a string for an admin is written into the data folder.
    pub(crate) login: Login,
    /// Hosts that devices and people reach this controller by; the first is what they are told.
    pub advertise: Vec<String>,
    /// How long a device's certificate is good.
    pub certificate_ttl: Duration,
    /// How long after its end a device may still renew it.
    pub renew_expired: Duration,
    /// How long the controller's own certificate is good.
    pub server_certificate_ttl: Duration,
    /// A device that is offline for this long is lost.
    pub lost_after: Duration,
}

/// Serves a fleet until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot begin: an address or the data folder is in use, or must not be used.
pub fn up(options: &Options) -> anyhow::Result<()> {
    check(options)?;
    allow_connections();
    let store = Store::open(&options.data_dir)?;
    let keys = store.keys()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(serve(options, store, keys))?;
    runtime.shutdown_timeout(Duration::from_millis(200));
    Ok(())
}

fn check(options: &Options) -> anyhow::Result<()> {
    let mqtt = options.broker.is_none().then_some(("--mqtt-listen", options.mqtt_listen));
    let wss = second(options).map(|address| ("--wss-listen", address));
    for (flag, address) in [("--listen", options.listen)].into_iter().chain(mqtt).chain(wss) {
        if options.insecure && !address.ip().is_loopback() {
            bail!("{flag} {address}: --insecure serves loopback only; use 127.0.0.1 or [::1]");
        }
        // Said here, because the broker would only log it.
        TcpListener::bind(address).with_context(|| {
            format!("{flag} {address} cannot be used: is another controller running there?")
        })?;
    }
    Ok(())
}

/// Each connection is an open file: as many as this process may have, not only the 1,024 that shells
/// begin with.
fn allow_connections() {
    let limit = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    if let Err(error) = raised {
        log::warn!("open files stay limited: {error}");
    }
}

async fn serve(options: &Options, store: Store, keys: Keys) -> anyhow::Result<()> {
    let (outgoing, to_publish) = tokio::sync::mpsc::unbounded_channel();
    let (fleet, thread) = Fleet::start(store, keys, options.lost_after, outgoing)?;
    let certified = match options.insecure {
        true => {
            let url = format!("http://{}", options.listen);
            fleet.call(move |fleet| fleet.set_plain_api(url)).await?;
            None
        }
        false => Some(certify(options, &fleet).await?),
    };
    let (door, tls) = certified.unzip();
    if tls.is_some() {
        tokio::spawn(renew_own(fleet.clone(), millis(options.server_certificate_ttl)));
    }
    let websocket = options.wss_listen.is_some();
    let embedded = async |proof, outgoing| {
        broker::start(options.mqtt_listen, proof, websocket, fleet.clone(), outgoing).await
    };
    let door = match door {
        None => embedded(None, to_publish).await?,
        Some(Door::Embedded(proof)) => embedded(Some(proof), to_publish).await?,
        Some(Door::External(link, proof)) => {
            let to_publish = serving(proof, fleet.clone(), to_publish);
            external::start(link, fleet.clone(), to_publish);
            None
        }
    };
    let listener = bind("--listen", options.listen).await?;
    let access = if options.insecure { Access::Open } else { Access::Tokens };
    let login = match access {
        Access::Open => None,
        Access::Tokens => login::offer(&fleet, &options.data_dir, options.login).await?,
    };
    announce(options, login.as_deref())?;
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let asked = async move {
        tokio::select! { _ = term.recv() => (), _ = interrupt.recv() => () }
    };
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let service = api::service(fleet.clone(), access, door);
    let ended = async move { drop(ended.await) };
    let server = match tls {
        None => {
            tokio::spawn(axum::serve(listener, service).with_graceful_shutdown(ended).into_future())
        }
        Some(shown) => {
            if let Some(address) = second(options) {
                let listener = bind("--wss-listen", address).await?;
                let listener = TlsListener::new(listener, shown.clone())?;
                tokio::spawn(axum::serve(listener, service.clone()).into_future());
            }
            let listener = TlsListener::new(listener, shown)?;
            tokio::spawn(axum::serve(listener, service).with_graceful_shutdown(ended).into_future())
        }
    };
    let supervisor = Supervisor::of_process();
    supervisor.tell("READY=1");
    tokio::select! { () = asked => (), () = show_life(&supervisor, &fleet) => () }
    supervisor.tell("STOPPING=1");
    drop(end);
    // Logs that are followed do not end by themselves.
    let _ = tokio::time::timeout(END_TIMEOUT, server).await;
    fleet.end();
    thread.join().map_err(|_| anyhow::anyhow!("the fleet's thread failed while ending"))
}

/// Has the supervisor know that the fleet's thread answers, whether or not the store does; ends when
/// that thread has.
async fn show_life(supervisor: &Supervisor, fleet: &Handle) {
    let Some(every) = beat_every() else {
        return std::future::pending().await;
    };
    while !matches!(fleet.call(|_| ()).await, Err(CallError::Ending)) {
        supervisor.tell("WATCHDOG=1");
        tokio::time::sleep(every).await;
    }
}

/// How devices come in.
enum Door {
    Embedded(Proof),
    External(Link, Proof),
}

/// The address that the API is served on besides its own.
fn second(options: &Options) -> Option<SocketAddr> {
    options.wss_listen.filter(|address| *address != options.listen)
}

async fn bind(flag: &str, address: SocketAddr) -> anyhow::Result<tokio::net::TcpListener> {
    let bound = tokio::net::TcpListener::bind(address).await;
    bound.with_context(|| format!("{flag} {address} cannot be used"))
}

/// Makes what this controller is known by: what the broker and the API serve with.
async fn certify(options: &Options, fleet: &Handle) -> anyhow::Result<(Door, Shown)> {
    let now_ms = fleet.call(|fleet| fleet.latest_ms()).await?.max(clock::now_ms());
    let host = host(options)?;
    let names = authority::names(options.listen.ip(), &options.advertise);
    let names = [names, vec![host.clone()]].concat();
    let authority = Authority::open(&options.data_dir, &names, now_ms)?;
    let server_ms = millis(options.server_certificate_ttl);
    let served = authority.serve(now_ms, server_ms)?;
    let (proof, shown) = Proof::new(&options.data_dir, &served)?;
    let port = |address: SocketAddr| at(&host, address.port());
    let (door, brokers, broker_roots) = match &options.broker {
        Some(broker) => {
            let (link, roots) = external::link(broker, authority.certify_controller(now_ms)?)?;
            fleet.call(Fleet::set_foreign).await?;
            (Door::External(link, proof), vec![broker.url()], roots)
        }
        None => {
            let mqtts = format!("mqtts://{}", port(options.mqtt_listen));
            let wss =
                options.wss_listen.map(|wss| format!("wss://{}{}", port(wss), websocket::PATH));
            (Door::Embedded(proof), [mqtts].into_iter().chain(wss).collect(), Vec::new())
        }
    };
    // The second is for those to whom walls leave nothing else.
    let servers: Vec<_> = [options.listen].into_iter().chain(second(options)).map(port).collect();
    let terms = Terms {
        authority,
        brokers,
        broker_roots,
        servers,
        certificate_ms: millis(options.certificate_ttl),
        renew_expired_ms: millis(options.renew_expired),
        server_ms,
        served_until_ms: served.until_ms,
    };
    fleet.call(move |fleet| fleet.set_terms(terms)).await?;
    Ok((door, shown))
}

/// Has the controller's own certificate renewed, for as long as it serves.
async fn renew_own(fleet: Handle, lives_ms: u64) {
    let every = Duration::from_millis(certificate::look_every_ms(lives_ms));
    loop {
        tokio::time::sleep(every).await;
        fleet.tell(Fleet::renew_own);
    }
}

/// Serves what is to be served, and hands on what else is ordered.
fn serving(
    proof: Proof,
    fleet: Handle,
    mut orders: UnboundedReceiver<Outgoing>,
) -> UnboundedReceiver<Outgoing> {
    let (others, to_publish) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(order) = orders.recv().await {
            match order {
                Outgoing::Serve(served) => {
                    if let Err(why) = proof.show(&served) {
                        log::error!("the controller's new certificate is not in use yet: {why:#}");
                        fleet.tell(Fleet::not_served);
                    }
                }
                order @ (Outgoing::Publish { .. } | Outgoing::Drop { .. }) => {
                    if others.send(order).is_err() {
                        return;
                    }
                }
            }
        }
    });
    to_publish
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The host that others reach this controller by.
fn host(options: &Options) -> anyhow::Result<String> {
    if let Some(first) = options.advertise.first() {
        return Ok(first.clone());
    }
    if !options.listen.ip().is_unspecified() {
        return Ok(options.listen.ip().to_string());
    }
    // Not from /proc/sys, which the unit does not see.
    let system = rustix::system::uname();
    match system.nodename().to_string_lossy().as_ref() {
        "" | "(none)" => {
            bail!("this machine has no name: say --advertise HOST, as others reach it")
        }
        name => Ok(name.to_owned()),
    }
}

/// `HOST:PORT`
fn at(host: &str, port: u16) -> String {
    match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
}

fn announce(options: &Options, login: Option<&Path>) -> std::io::Result<()> {
    let Options { listen, mqtt_listen, data_dir, .. } = options;
    let mut out = std::io::stdout();
    let http = if options.insecure { "http" } else { "https" };
    let broker = match &options.broker {
        Some(broker) => broker.url(),
        None if options.insecure => format!("mqtt://{mqtt_listen}"),
        None => format!("mqtts://{mqtt_listen}"),
    };
    let wss = options.wss_listen.map(|wss| format!("  MQTT  wss://{wss}{}\n", websocket::PATH));
    writeln!(
        out,
        "limpet {} serves\n\
         \x20 API   {http}://{listen}\n\
         \x20 MQTT  {broker}\n\
         {}\
         \x20 data  {}\n\
         Next, on this machine:",
        env!("CARGO_PKG_VERSION"),
        wss.unwrap_or_default(),
        data_dir.display(),
    )?;
    if let Some(login) = login {
        writeln!(out, "  limpet login --file {}", login.display())?;
    }
    if options.insecure {
        if listen.port() != 8420 {
            writeln!(out, "  export LIMPET_SERVER=http://{listen}")?;
        }
        writeln!(out, "  limpet-agent run --insecure --broker {broker} --device-id here")?;
    } else {
        writeln!(out, "  limpet-agent join $(limpet token create --join) && limpet-agent run")?;
    }
    writeln!(out, "  limpet run web --image=IMAGE")
}

/// Lines on standard error; `LIMPET_LOG=debug` says more, `LIMPET_LOG=warn` less.
///
/// # Errors
/// When it was begun before.
pub(crate) fn begin_logging() -> anyhow::Result<()> {
    struct Lines;
    impl log::Log for Lines {
        fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
            metadata.target().starts_with("limpet") || metadata.level() <= log::Level::Error
        }
        fn log(&self, record: &log::Record<'_>) {
            if self.enabled(record.metadata()) {
                let _ = writeln!(std::io::stderr(), "{:5} {}", record.level(), record.args());
            }
        }
        fn flush(&self) {}
    }
    let level = std::env::var("LIMPET_LOG").ok().and_then(|level| level.parse().ok());
    log::set_max_level(level.unwrap_or(log::LevelFilter::Info));
    Ok(log::set_logger(&Lines)?)
}
