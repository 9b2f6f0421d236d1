//! `limpet up`

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::progress::duration;
use crate::server::{self, Broker, BrokerAddress, Login, Options};

/// Start a controller: broker, store and API in one process
///
/// Example: limpet up --advertise limpet.example.com
#[derive(Args)]
pub(super) struct Up {
    /// Where the store and the keys are
    #[arg(long, value_name = "DIR", default_value = "/var/lib/limpet-controller")]
    data_dir: PathBuf,
    /// Where the API listens
    ///
    /// [default: 0.0.0.0:8420; with --insecure 127.0.0.1:8420]
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Where the broker listens
    ///
    /// [default: 0.0.0.0:8883; with --insecure 127.0.0.1:1883]
    #[arg(long, value_name = "ADDR")]
    mqtt_listen: Option<SocketAddr>,
    /// A broker of somebody else, in place of the embedded one: mqtts://[USER@]HOST:PORT
    ///
    /// Devices connect to it with their certificates of this fleet's authority, whose certificate is
    /// DIR/authority.pem; `limpet broker-config` prints what the broker must be told. Of its owner
    /// nothing is believed but what devices and publishers have signed: manifests over MQTT are those
    /// of `limpet sign`. A device that is revoked is not listened to and told nothing any more; its
    /// connection is the broker's to cut.
    #[arg(long, value_name = "URL", env = "LIMPET_BROKER", requires = "broker_ca",
          conflicts_with_all = ["insecure", "mqtt_listen"])]
    broker: Option<BrokerAddress>,
    /// Certificates (PEM) of the authorities that the broker's own comes from
    #[arg(long, value_name = "FILE", requires = "broker")]
    broker_ca: Option<PathBuf>,
    /// A certificate (PEM) to connect to the broker with [one of the fleet's authority]
    #[arg(long, value_name = "FILE", requires = "broker_key")]
    broker_cert: Option<PathBuf>,
    /// Its key (PEM)
    #[arg(long, value_name = "FILE", requires = "broker_cert")]
    broker_key: Option<PathBuf>,
    /// A file with the password of the broker's USER
    #[arg(long, value_name = "FILE", requires = "broker")]
    broker_password_file: Option<PathBuf>,
    /// Where the broker takes MQTT over WebSocket too, for sites that let only HTTPS out: 0.0.0.0:443
    ///
    /// The API is served there as well, so that devices can join; it may be the address of --listen.
    /// Devices learn it when they join, and take it where the broker's own port is not reached.
    #[arg(long, value_name = "ADDR", conflicts_with_all = ["insecure", "broker"])]
    wss_listen: Option<SocketAddr>,
    /// A host name or address that devices and people reach this controller by; can be repeated
    ///
    /// The first is what they are told; certificates name all that were ever given. [default: the
    /// address of --listen, or this machine's name]
    #[arg(long, value_name = "HOST", conflicts_with = "insecure")]
    advertise: Vec<String>,
    /// How long a device's certificate is good; it is renewed at half of that: 90d, 365d
    #[arg(long, value_name = "TIME", default_value = "365d", value_parser = days)]
    certificate_ttl: Duration,
    /// How long after its certificate's end a device may still ask for another: 0s, 3650d
    #[arg(long, value_name = "TIME", default_value = "3650d", value_parser = days)]
    renew_expired: Duration,
    /// How long the controller's own certificate is good; it is renewed at half of that: 30d, 90d
    #[arg(long, value_name = "TIME", default_value = "90d", value_parser = days)]
    server_certificate_ttl: Duration,
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
        let login = if self.new_login { Login::Another } else { Login::First };
        let (anywhere, here) = (Ipv4Addr::UNSPECIFIED, Ipv4Addr::LOCALHOST);
        let (host, mqtt_port) = if self.insecure { (here, 1883) } else { (anywhere, 8883) };
        let broker = self.broker.zip(self.broker_ca).map(|(address, authorities)| Broker {
            address,
            authorities,
            own: self.broker_cert.zip(self.broker_key),
            password: self.broker_password_file,
        });
        server::begin_logging()?;
        server::up(&Options {
            data_dir: self.data_dir,
            listen: self.listen.unwrap_or((host, 8420).into()),
            mqtt_listen: self.mqtt_listen.unwrap_or((host, mqtt_port).into()),
            broker,
            wss_listen: self.wss_listen,
            insecure: self.insecure,
            advertise: self.advertise,
            certificate_ttl: self.certificate_ttl,
            renew_expired: self.renew_expired,
            server_certificate_ttl: self.server_certificate_ttl,
            login,
            lost_after: self.lost_after,
        })
    }
}

/// A number of days, or a shorter time.
pub(super) fn days(text: &str) -> Result<Duration, String> {
    match text.strip_suffix('d').map(str::parse::<u32>) {
        Some(Ok(days)) => Ok(Duration::from_secs(u64::from(days) * 24 * 3600)),
        Some(Err(_)) => Err("write a number of days, as 365d, or a time, as 12h".to_owned()),
        None => duration(text),
    }
}
