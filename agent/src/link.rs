//! The connection to the broker: the one place that knows rumqttc.
//!
//! A thread of its own runs a small tokio; bounded channels join it to the rest. Every connection
//! is a fresh client with a clean session, so that nothing of one reaches into the next: what has
//! to survive is in the core's outbox.

use std::time::Duration;

use limpet_protocol::{
    BootId, DeviceId, Header, Kind, Prefix, Presence, PresenceState, SigningKey, Topic, envelope,
};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{DisconnectReasonCode, LastWill, SubscribeReasonCode};
use rumqttc::v5::{
    AsyncClient, ConnectionError, Event, EventLoop, Incoming, MqttOptions, StateError,
};
use smol::channel::{Receiver, Sender};

use crate::clock;

/// MQTT packets at most: the largest message, and its topic.
const PACKET_BYTES_MAX: u32 = 256 * 1024;
/// Publishes under way; rumqttc allocates a slot for each.
const IN_FLIGHT_MAX: u16 = 16;
/// Messages that wait for the network, either way.
const QUEUE: usize = 64;
/// Pieces of logs that wait: few, so that what the device reports never waits long behind them.
const STREAM_QUEUE: usize = 2;
/// Messages handed to the client ahead of the network.
const CLIENT_QUEUE: usize = 4;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Waits between tries: the first, and the longest.
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_LONGEST: Duration = Duration::from_secs(30);

/// Where to connect, and as whom.
pub struct Options {
    /// Host and port.
    pub broker: (String, u16),
    /// What topics begin with.
    pub prefix: Prefix,
    /// The device.
    pub device: DeviceId,
    /// Signs the will.
    pub key: SigningKey,
    /// This boot.
    pub boot: BootId,
    /// Time between signs of life.
    pub keep_alive: Duration,
}

/// What comes from the broker.
#[derive(Debug)]
pub enum FromLink {
    /// Connected and subscribed; the number orders the connections of a boot.
    Up(u64),
    /// Not connected any more.
    Down,
    /// A message.
    Message {
        /// Its topic.
        topic: String,
        /// Its bytes.
        payload: Vec<u8>,
    },
}

/// What goes to the broker.
#[derive(Debug)]
pub struct ToLink {
    /// The connection it was made for: it is dropped on any other.
    pub connection: u64,
    /// Its topic.
    pub topic: String,
    /// Its bytes.
    pub payload: Vec<u8>,
}

/// The link's ends on this side.
pub struct Ends {
    /// What the core says.
    pub to_link: Sender<ToLink>,
    /// Pieces of logs: sent when nothing else waits.
    pub streams: Sender<ToLink>,
    /// What comes.
    pub from_link: Receiver<FromLink>,
}

/// Starts the thread; it ends when its channels do.
///
/// # Errors
/// When the system gives no thread.
pub fn start(options: Options) -> std::io::Result<Ends> {
    let (to_link, reports) = smol::channel::bounded(QUEUE);
    let (streams, pieces) = smol::channel::bounded(STREAM_QUEUE);
    let outgoing = Outgoing { reports, pieces };
    let (incoming, from_link) = smol::channel::bounded(QUEUE);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    std::thread::Builder::new()
        .name("mqtt".to_owned())
        .stack_size(256 * 1024)
        .spawn(move || runtime.block_on(run(options, outgoing, incoming)))?;
    Ok(Ends { to_link, streams, from_link })
}

/// What waits to be sent.
#[derive(Clone)]
struct Outgoing {
    reports: Receiver<ToLink>,
    pieces: Receiver<ToLink>,
}

impl Outgoing {
    /// The next message, reports first; None where nobody sends any more.
    async fn next(&self) -> Option<ToLink> {
        tokio::select! {
            biased;
            report = self.reports.recv() => report.ok(),
            piece = self.pieces.recv() => piece.ok(),
        }
    }
}

async fn run(options: Options, outgoing: Outgoing, incoming: Sender<FromLink>) {
    let mut wait = RETRY_FIRST;
    while !incoming.is_closed() {
        let connection = clock::boot_ms();
        let ended = connect(&options, connection, &outgoing, &incoming).await;
        if incoming.send(FromLink::Down).await.is_err() {
            return;
        }
        let lasted = Duration::from_millis(clock::boot_ms().saturating_sub(connection));
        wait = if lasted > RETRY_LONGEST { RETRY_FIRST } else { (wait * 2).min(RETRY_LONGEST) };
        let (host, port) = &options.broker;
        log::warn!("link to {host}:{port}: {ended}; next try in {:.1} s", wait.as_secs_f32());
        // A quarter more or less by chance, so that devices do not return in step.
        let chance = u32::from(connection as u8);
        tokio::time::sleep(wait * (384 + chance) / 512).await;
    }
}

/// One connection, from its first byte to its last; says why it ended.
async fn connect(
    options: &Options,
    connection: u64,
    outgoing: &Outgoing,
    incoming: &Sender<FromLink>,
) -> String {
    let (client, mut events) = AsyncClient::new(mqtt_options(options, connection), CLIENT_QUEUE);
    let first =
        tokio::time::timeout(CONNECT_TIMEOUT, until_subscribed(options, &client, &mut events));
    match first.await {
        Ok(Ok(())) => {}
        Ok(Err(why)) => return why,
        Err(_) => return "no answer".to_owned(),
    }
    if incoming.send(FromLink::Up(connection)).await.is_err() {
        return "the agent is ending".to_owned();
    }
    log::info!("link to {}:{} is up", options.broker.0, options.broker.1);
    let publisher = tokio::spawn(publish(client, connection, outgoing.clone()));
    let ended = receive(options.keep_alive, &mut events, incoming).await;
    publisher.abort();
    ended
}

async fn until_subscribed(
    options: &Options,
    client: &AsyncClient,
    events: &mut EventLoop,
) -> Result<(), String> {
    let filters = options.prefix.device_filters(&options.device);
    let mut missing = filters.len();
    loop {
        match events.poll().await.map_err(explain)? {
            Event::Incoming(Incoming::ConnAck(_)) => {
                for filter in &filters {
                    client.subscribe(filter, QoS::AtLeastOnce).await.map_err(|e| e.to_string())?;
                }
            }
            Event::Incoming(Incoming::SubAck(ack)) => {
                let refused =
                    |code: &SubscribeReasonCode| !matches!(code, SubscribeReasonCode::Success(_));
                if let Some(code) = ack.return_codes.iter().find(|code| refused(code)) {
                    return Err(format!(
                        "the broker does not let {} read its own topics ({code:?}): check its \
                         access rules",
                        options.device
                    ));
                }
                missing -= 1;
                if missing == 0 {
                    return Ok(());
                }
            }
            Event::Incoming(_) | Event::Outgoing(_) => {}
        }
    }
}

async fn publish(client: AsyncClient, connection: u64, outgoing: Outgoing) {
    while let Some(message) = outgoing.next().await {
        if message.connection == connection {
            let ToLink { topic, payload, .. } = message;
            if client.publish(topic, QoS::AtLeastOnce, false, payload).await.is_err() {
                return;
            }
        }
    }
}

async fn receive(
    keep_alive: Duration,
    events: &mut EventLoop,
    incoming: &Sender<FromLink>,
) -> String {
    // poll() never ends on a peer that has stalled: no packet for two keep-alives is the end.
    let silence = keep_alive * 2;
    loop {
        let event = match tokio::time::timeout(silence, events.poll()).await {
            Ok(Ok(event)) => event,
            Ok(Err(error)) => return explain(error),
            Err(_) => return "the broker has fallen silent".to_owned(),
        };
        if let Event::Incoming(Incoming::Publish(publish)) = event {
            let topic = String::from_utf8_lossy(&publish.topic).into_owned();
            let payload = publish.payload.to_vec();
            if incoming.send(FromLink::Message { topic, payload }).await.is_err() {
                return "the agent is ending".to_owned();
            }
        }
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "rumqttc's errors and reasons say themselves")]
fn explain(error: ConnectionError) -> String {
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
        error => error.to_string(),
    }
}

fn mqtt_options(options: &Options, connection: u64) -> MqttOptions {
    let (host, port) = &options.broker;
    let fingerprint = options.key.public().fingerprint();
    let client_id = format!("limpet/{}/{fingerprint}", options.device);
    let mut mqtt = MqttOptions::new(client_id, host, *port);
    mqtt.set_keep_alive(options.keep_alive)
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
