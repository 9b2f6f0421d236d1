//! How a connection is made, and what its errors mean to a person.

use std::time::Duration;

use limpet_protocol::{Header, Kind, Presence, PresenceState, Topic, envelope};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{DisconnectReasonCode, LastWill};
use rumqttc::v5::{ConnectionError, MqttOptions, StateError};

use super::{CONNECT_TIMEOUT, Options};

/// MQTT packets at most: the largest message, and its topic.
const PACKET_BYTES_MAX: u32 = 256 * 1024;
/// Publishes under way; rumqttc allocates a slot for each.
const IN_FLIGHT_MAX: u16 = 16;
/// A peer that is none of ours, or has stalled.
pub(super) const UNANSWERED: &str = "it takes connections and does not answer: is it a broker?";

#[expect(clippy::wildcard_enum_match_arm, reason = "rumqttc's errors and reasons say themselves")]
pub(super) fn explain(error: ConnectionError) -> String {
    match &error {
        ConnectionError::ConnectionRefused(code) => format!(
            "the controller refused this device ({code:?}): if another device has this id, choose \
             another with --device-id"
        ),
        ConnectionError::MqttState(StateError::ServerDisconnect { reason_code, .. }) => {
            match reason_code {
                DisconnectReasonCode::SessionTakenOver => "another agent connected with this id \
                     and key: was the data folder copied? Each device needs its own"
                    .to_owned(),
                code => format!("the broker ended it ({code:?})"),
            }
        }
        ConnectionError::Timeout(_) => UNANSWERED.to_owned(),
        error => error.to_string(),
    }
}

pub(super) fn options(options: &Options, connection: u64, keep_alive: Duration) -> MqttOptions {
    let (host, port) = &options.broker;
    let fingerprint = options.key.public().fingerprint();
    let client_id = format!("limpet/{}/{fingerprint}", options.device);
    let mut mqtt = MqttOptions::new(client_id, host, *port);
    mqtt.set_keep_alive(keep_alive)
        .set_clean_start(true)
        .set_max_packet_size(Some(PACKET_BYTES_MAX))
        .set_outgoing_inflight_upper_limit(IN_FLIGHT_MAX)
        .set_connection_timeout(CONNECT_TIMEOUT.as_secs())
        .set_last_will(will(options, connection));
    let mut network = mqtt.network_options();
    network.set_tcp_nodelay(true);
    mqtt.set_network_options(network);
    mqtt
}

/// What the broker says for us when the connection is gone.
fn will(options: &Options, connection: u64) -> LastWill {
    let header = Header {
        prefix: options.prefix.to_string(),
        device: options.device.clone(),
        kind: Kind::Presence,
        epoch: 0,
        number: connection,
    };
    let presence = Presence { state: PresenceState::Offline, boot: options.boot, connection };
    let payload = envelope::seal(&options.key, &header, &presence);
    let topic = Topic::Device(options.device.clone(), Kind::Presence).under(&options.prefix);
    LastWill::new(topic, payload, QoS::AtLeastOnce, true, None)
}
