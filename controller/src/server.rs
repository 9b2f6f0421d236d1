//! `limpet up`: broker, store and API in one process.
//!
//! One thread, the `fleet`, owns the store and everything that is known; broker and API hand it
//! work and are answered when it is on disk.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::signal::unix::{SignalKind, signal};

mod api;
mod broker;
mod clock;
mod fleet;
mod login;
mod logs;
mod store;

use api::Access;
use fleet::Fleet;
pub(crate) use login::Login;
use store::Store;
pub(crate) use store::{Existing, restore};

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
    /// Plain HTTP and MQTT, on loopback only, and no tokens.
    pub insecure: bool,
    /// When a string for an admin is written into the data folder.
    pub(crate) login: Login,
    /// A device that is offline for this long is lost.
    pub lost_after: Duration,
}

/// Serves a fleet until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot begin: an address or the data folder is in use, or must not be used.
pub fn up(options: &Options) -> anyhow::Result<()> {
    check(options)?;
    let store = Store::open(&options.data_dir)?;
    let key = store.signing_key()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(serve(options, store, key))?;
    runtime.shutdown_timeout(Duration::from_millis(200));
    Ok(())
}

fn check(options: &Options) -> anyhow::Result<()> {
    if !options.insecure {
        bail!(
            "certificates are not part of this version: start with `limpet up --insecure`, which \
             serves plain HTTP and MQTT on loopback"
        );
    }
    for (flag, address) in [("--listen", options.listen), ("--mqtt-listen", options.mqtt_listen)] {
        if !address.ip().is_loopback() {
            bail!("{flag} {address}: --insecure serves loopback only; use 127.0.0.1 or [::1]");
        }
        // Said here, because the broker would only log it.
        TcpListener::bind(address).with_context(|| {
            format!("{flag} {address} cannot be used: is another controller running there?")
        })?;
    }
    Ok(())
}

async fn serve(
    options: &Options,
    store: Store,
    key: limpet_protocol::SigningKey,
) -> anyhow::Result<()> {
    let (outgoing, to_publish) = tokio::sync::mpsc::unbounded_channel();
    let (fleet, thread) = Fleet::start(store, key, options.lost_after, outgoing)?;
    broker::start(options.mqtt_listen, fleet.clone(), to_publish).await?;
    let listener = tokio::net::TcpListener::bind(options.listen)
        .await
        .with_context(|| format!("--listen {} cannot be used", options.listen))?;
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
    let server = axum::serve(listener, api::service(fleet.clone(), access))
        .with_graceful_shutdown(async move { drop(ended.await) });
    let server = tokio::spawn(server.into_future());
    asked.await;
    drop(end);
    // Logs that are followed do not end by themselves.
    let _ = tokio::time::timeout(END_TIMEOUT, server).await;
    fleet.end();
    thread.join().map_err(|_| anyhow::anyhow!("the fleet's thread failed while ending"))
}

fn announce(options: &Options, login: Option<&Path>) -> std::io::Result<()> {
    let Options { listen, mqtt_listen, data_dir, .. } = options;
    let server = match listen.port() {
        8420 => String::new(),
        _ => format!("export LIMPET_SERVER=http://{listen}\n  "),
    };
    let login = login.map(|path| format!("  limpet login --file {}\n", path.display()));
    let login = login.unwrap_or_default();
    writeln!(
        std::io::stdout(),
        "limpet {} serves\n\
         \x20 API   http://{listen}\n\
         \x20 MQTT  mqtt://{mqtt_listen}\n\
         \x20 data  {}\n\
         Next, on this machine:\n\
         {login}\x20 {server}limpet-agent run --insecure --broker mqtt://{mqtt_listen} --device-id here\n\
         \x20 limpet run web --image=IMAGE",
        env!("CARGO_PKG_VERSION"),
        data_dir.display(),
    )
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
