//! `limpet broker-config`

use std::fmt::Write;

use clap::{Args, ValueEnum};
use limpet_protocol::{DeploymentName, Prefix};

use super::print;
use crate::server::{CONTROLLER, PUBLISHER};

/// Print what a broker of your own must be told, for `limpet up --broker`
///
/// Clients are let in with certificates of the fleet's authority, which is authority.pem in the
/// controller's data folder, and each reaches its own topics only. The broker's own certificate comes
/// from an authority of your choice: `limpet up --broker-ca` names that.
///
/// Examples:
///   limpet broker-config mosquitto > /etc/mosquitto/conf.d/limpet.conf
///   limpet broker-config mosquitto --acl --publisher ci > /etc/mosquitto/limpet.acl
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(super) struct BrokerConfig {
    /// Which broker it is
    broker: Broker,
    /// Print the rules of access, instead of the listener
    #[arg(long)]
    acl: bool,
    /// One of `limpet token create --publisher NAME`, who may publish manifests; can be repeated
    #[arg(long, value_name = "NAME", requires = "acl")]
    publisher: Vec<DeploymentName>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Broker {
    /// Eclipse Mosquitto 2
    Mosquitto,
}

impl BrokerConfig {
    pub(super) fn run(self) -> anyhow::Result<()> {
        match (self.broker, self.acl) {
            (Broker::Mosquitto, false) => print(MOSQUITTO),
            (Broker::Mosquitto, true) => print(&mosquitto_acl(&self.publisher)),
        }
    }
}

const MOSQUITTO: &str = "\
# Limpet's devices, publishers and controller: limpet broker-config mosquitto
listener 8883
# This broker's own.
certfile /etc/mosquitto/certs/broker.pem
keyfile /etc/mosquitto/certs/broker.key
# The fleet's authority: authority.pem of the controller's data folder.
cafile /etc/mosquitto/certs/limpet-authority.pem
require_certificate true
use_identity_as_username true
# Nobody takes another's session.
use_username_as_clientid true
allow_anonymous false
# limpet broker-config mosquitto --acl
acl_file /etc/mosquitto/limpet.acl

# For the whole broker.
set_tcp_nodelay true
max_packet_size 262144
max_inflight_messages 256
# The controller's queue, when all devices speak at once.
max_queued_messages 100000
";

fn mosquitto_acl(publishers: &[DeploymentName]) -> String {
    let p = Prefix::default();
    let mut acl = format!("# The controller.\nuser {CONTROLLER}\n");
    for filter in p.controller_filters() {
        let _ = writeln!(acl, "topic read {filter}");
    }
    for leaf in ["d/+/desired", "d/+/command", "d/+/down/#", "deploy/+/result"] {
        let _ = writeln!(acl, "topic write {p}/{leaf}");
    }
    for name in publishers {
        let _ = write!(
            acl,
            "\n# A publisher: what it publishes counts for its signature.\n\
             user {PUBLISHER}{name}\n\
             topic write {p}/deploy/+\n\
             topic read {p}/deploy/+/result\n"
        );
    }
    let _ = write!(
        acl,
        "\n# Each device: its id is the name (CN) in its certificate.\n\
         pattern write {p}/d/%u/up/#\n\
         pattern read {p}/d/%u/desired\n\
         pattern read {p}/d/%u/command\n\
         pattern read {p}/d/%u/down/#\n"
    );
    acl
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_own_topics() {
        let acl = mosquitto_acl(&["ci".parse().unwrap()]);
        expect_test::expect![[r#"
            # The controller.
            user limpet/controller
            topic read limpet/v1/d/+/up/#
            topic read limpet/v1/deploy/+
            topic write limpet/v1/d/+/desired
            topic write limpet/v1/d/+/command
            topic write limpet/v1/d/+/down/#
            topic write limpet/v1/deploy/+/result

            # A publisher: what it publishes counts for its signature.
            user publisher/ci
            topic write limpet/v1/deploy/+
            topic read limpet/v1/deploy/+/result

            # Each device: its id is the name (CN) in its certificate.
            pattern write limpet/v1/d/%u/up/#
            pattern read limpet/v1/d/%u/desired
            pattern read limpet/v1/d/%u/command
            pattern read limpet/v1/d/%u/down/#
        "#]]
        .assert_eq(&acl);
    }
}
