//! `limpet up`

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::progress::duration;
use crate::server::{self, Login, Options};

/// Start a controller: broker, store and API in one process
///
/// Example: limpet up --insecure --data-dir ./limpet
#[derive(Args)]
pub(super) struct Up {
    /// Where the store and the keys are
    #[arg(long, value_name = "DIR", default_value = "/var/lib/limpet-controller")]
    data_dir: PathBuf,
    /// Where the API listens
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8420")]
    listen: SocketAddr,
    /// Where the broker listens
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:1883")]
    mqtt_listen: SocketAddr,
    /// Serve plain HTTP and MQTT, on loopback only
    #[arg(long)]
    insecure: bool,
    /// Write another admin's login string to DIR/login: all others are lost
    #[arg(long, conflicts_with = "insecure")]
    new_login: bool,
    /// A device that is offline for this long is lost: 30m, 24h
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = duration)]
    lost_after: Duration,
}

impl Up {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let Self { data_dir, listen, mqtt_listen, insecure, new_login, lost_after } = self;
        let login = if new_login { Login::Another } else { Login::First };
        server::begin_logging()?;
        server::up(&Options { data_dir, listen, mqtt_listen, insecure, login, lost_after })
    }
}
