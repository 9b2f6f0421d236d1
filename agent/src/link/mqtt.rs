//! How a connection is made, and what its errors mean to a person.

use std::time::Duration;

use limpet_protocol::{Header, Kind, Leaf, Prefix, Presence, PresenceState, Topic, envelope};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{DisconnectReasonCode, LastWill, Publish};
use rumqttc::v5::{ConnectionError, Incoming, MqttOptions, StateError};
use rumqttc::{TlsConfiguration, Transport};
use rustls::{AlertDescription, CertificateError, Error as RustlsError};

use super::{Attempt, CONNECT_TIMEOUT, Options, Tunnel};

/// MQTT packets at most: the largest message, and its topic.
const PACKET_BYTES_MAX: u32 = 256 * 1024;
/// Publishes under way; rumqttc allocates a slot for each.
const IN_FLIGHT_MAX: u16 = 16;
/// A peer that is none of ours, or has stalled.
pub(super) const UNANSWERED: &str = "it takes connections and does not answer: is it a broker?";

/// The broker does not take this device's certificate any more.
pub(super) const EXPIRED: &str = "this device's certificate has expired";
/// It is of an authority that is no more.
pub(super) const REPLACED: &str =
    "the authority of this device's certificate is not in force any more";

#[expect(clippy::wildcard_enum_match_arm, reason = "rumqttc's errors and reasons say themselves")]
pub(super) fn explain(error: ConnectionError) -> String {
    match &error {
        error if rustls_error(error).is_some() => explain_error(error),
        ConnectionError::ConnectionRefused(code) => format!(
            "the controller refused this device ({code:?}): it waits for approval, was revoked, or \
             another device has its id. `limpet get events` says which"
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

/// What any error on the way to a broker means.
pub(super) fn explain_error(error: &(dyn std::error::Error + 'static)) -> String {
    rustls_error(error).map_or_else(|| error.to_string(), explain_tls)
}

/// The error of TLS in an error of the connection, which has it by itself or inside errors of IO.
fn rustls_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a RustlsError> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref::<RustlsError>() {
            return Some(found);
        }
        let io = error.downcast_ref::<std::io::Error>();
        // Neither of the two says that it has a cause.
        cause = match (io, error.downcast_ref::<StateError>()) {
            (Some(io), _) => io.get_ref().map(|inner| inner as &(dyn std::error::Error + 'static)),
            (None, Some(StateError::Deserialization(inner))) => Some(inner),
            (None, _) => error.source(),
        };
    }
    None
}

#[expect(clippy::wildcard_enum_match_arm, reason = "rustls' errors and alerts say themselves")]
fn explain_tls(error: &RustlsError) -> String {
    match error {
        RustlsError::AlertReceived(AlertDescription::CertificateExpired) => EXPIRED.to_owned(),
        // Authorities of one fleet have one name: a signature tells them apart, and says so.
        RustlsError::AlertReceived(AlertDescription::UnknownCA | AlertDescription::DecryptError) => {
            REPLACED.to_owned()
        }
        RustlsError::AlertReceived(alert) => {
            format!("the broker does not accept this device's certificate ({alert:?})")
        }
        // Fleets' authorities bear one name: of another fleet's, only the signature is wrong.
        RustlsError::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => {
            "the broker's certificate is not from this fleet's authority: it is another fleet's, or \
             somebody stands in between"
                .to_owned()
        }
        error => format!("TLS: {error}"),
    }
}

/// Whether a broker may send this to a client that it has greeted. rumqttc lets it send more, and
/// keeps the topic of every alias.
///
/// # Errors
/// Why it may not: the client has announced no topic alias (MQTT 5, 3.3.2.3.4), and is greeted once
/// (3.2).
pub(super) fn allow(packet: &Incoming) -> Result<(), String> {
    let aliased = |publish: &Publish| {
        publish.properties.as_ref().is_some_and(|properties| properties.topic_alias.is_some())
    };
    let rule = if matches!(packet, Incoming::Publish(publish) if aliased(publish)) {
        "uses topic aliases, and was told of none"
    } else if matches!(packet, Incoming::ConnAck(_)) {
        "greets a second time"
    } else {
        return Ok(());
    };
    Err(format!("the broker breaks the rules of MQTT: it {rule}"))
}

pub(super) fn options(
    options: &Options,
    attempt: &Attempt<'_>,
    tunnel: Option<&Tunnel>,
) -> MqttOptions {
    let broker = attempt.broker;
    let fingerprint = options.key.public().fingerprint();
    let client_id = format!("limpet/{}/{fingerprint}", options.device);
    let host = tunnel.map_or(&broker.host, |tunnel| &tunnel.address);
    let mut mqtt = MqttOptions::new(client_id, host, broker.port);
    match (tunnel, attempt.tls) {
        (Some(_), _) => drop(mqtt.set_transport(Transport::unix())),
        (None, Some(config)) => {
            let config = TlsConfiguration::Rustls(std::sync::Arc::clone(config));
            mqtt.set_transport(Transport::tls_with_config(config));
        }
        (None, None) => {}
    }
    mqtt.set_keep_alive(Duration::from_secs(attempt.keep_alive_s.into()))
        .set_clean_start(true)
        .set_max_packet_size(Some(PACKET_BYTES_MAX))
        .set_outgoing_inflight_upper_limit(IN_FLIGHT_MAX)
        .set_connection_timeout(CONNECT_TIMEOUT.as_secs())
        .set_last_will(will(options, attempt.connection));
    let mut network = mqtt.network_options();
    network.set_tcp_nodelay(true);
    mqtt.set_network_options(network);
    mqtt
}

/// What the broker says for us when the connection is gone.
fn will(options: &Options, connection: u64) -> LastWill {
    let prefix = Prefix::default();
    let header = Header {
        prefix: prefix.to_string(),
        device: options.device.clone(),
        kind: Kind::Presence,
        epoch: 0,
        number: connection,
    };
    let presence = Presence { state: PresenceState::Offline, boot: options.boot, connection };
    let payload = envelope::seal(&options.key, &header, &presence);
    let topic = Topic::Device(options.device.clone(), Leaf::Presence).under(&prefix);
    LastWill::new(topic, payload, QoS::AtLeastOnce, true, None)
}
