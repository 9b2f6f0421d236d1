//! The connection to the broker: the one place that knows rumqttc.
//!
//! A thread of its own runs a small tokio; bounded channels join it to the rest. Every connection
//! is a fresh client with a clean session, so that nothing of one reaches into the next: what has
//! to survive is in the core's outbox.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use limpet_agent_core::{KeepAlive, Reconnect, Turn};
use limpet_protocol::{BootId, DeviceId, Prefix, SigningKey};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Publish, SubscribeReasonCode};
use rumqttc::v5::{AsyncClient, ConnectionError, Event, EventLoop, Incoming, StateError};
use rustls::ClientConfig;
use smol::channel::{Receiver, Sender};

use crate::alive::Beaten;
use crate::clock;
use crate::proxy::Proxy;

mod broker;
mod dial;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod head;
mod mqtt;
mod route;
mod tunnel;
mod websocket;

pub use broker::{Broker, Over};
use mqtt::{UNANSWERED, explain};
use route::shown;
pub use route::{Route, RouteError, Way};
use tunnel::Tunnel;

/// Messages that wait for the network, either way.
const QUEUE: usize = 64;
/// Pieces of logs that wait: few, so that what the device reports never waits long behind them.
const STREAM_QUEUE: usize = 2;
/// Messages handed to the client ahead of the network.
const CLIENT_QUEUE: usize = 4;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
const ENDING: &str = "the agent is ending";
/// How often a device that sleeps looks whether it is time: timers stand still in a machine that is
/// suspended, and the clock since boot does not.
const ASLEEP_LOOK: Duration = Duration::from_secs(10);

/// Where to connect, and as whom.
pub struct Options {
    /// Where to, and how.
    pub way: Arc<Way>,
    /// The device.
    pub device: DeviceId,
    /// Signs the will.
    pub key: Arc<SigningKey>,
    /// This boot.
    pub boot: BootId,
    /// Time between signs of life, at most.
    pub keep_alive: Duration,
    /// Spreads waits; any number.
    pub seed: u64,
    /// What changes meanwhile.
    pub pace: Arc<Pace>,
}

/// When the link may connect, as the rest of the agent has it.
#[derive(Debug, Default)]
pub struct Pace {
    /// The window over which a fleet spreads its reconnects, in milliseconds.
    pub spread_ms: AtomicU32,
    /// No connection before this, in milliseconds since boot.
    pub quiet_until_ms: AtomicU64,
}

/// What comes from the broker.
#[derive(Debug)]
pub enum FromLink {
    /// Connected and subscribed.
    Up {
        /// Orders the connections of a boot.
        connection: u64,
        /// The keep-alive of this one, in seconds.
        keep_alive_s: u16,
    },
    /// Not connected any more.
    Down,
    /// The broker does not take the device's certificate any more: there may be another.
    Outdated,
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
    /// What to do there.
    pub order: Order,
}

/// What is done on a connection.
#[derive(Debug)]
pub enum Order {
    /// Send a message.
    Publish {
        /// Its topic.
        topic: String,
        /// Its bytes.
        payload: Vec<u8>,
        /// The broker keeps it for those who ask later.
        retain: bool,
    },
    /// End it.
    Disconnect,
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

/// Starts the thread; it ends when its channels do. Whatever it waits for, it waits for a bounded time.
///
/// # Errors
/// When the system gives no thread.
pub(crate) fn start(options: Options, beaten: Beaten) -> std::io::Result<Ends> {
    let (to_link, reports) = smol::channel::bounded(QUEUE);
    let (streams, pieces) = smol::channel::bounded(STREAM_QUEUE);
    let outgoing = Outgoing { reports, pieces };
    let (incoming, from_link) = smol::channel::bounded(QUEUE);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    std::thread::Builder::new().name("mqtt".to_owned()).stack_size(256 * 1024).spawn(
        move || {
            runtime.block_on(async {
                tokio::spawn(beaten.follow());
                run(options, outgoing, incoming).await;
            });
        },
    )?;
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
    let mut reconnect = Reconnect::new(options.seed);
    let longest = u16::try_from(options.keep_alive.as_secs()).unwrap_or(u16::MAX);
    let mut keep_alive = KeepAlive::new(longest);
    let spread_ms = || options.pace.spread_ms.load(Ordering::Relaxed);
    let mut wait_ms = reconnect.first_ms(spread_ms());
    let mut turn = Turn::default();
    while !incoming.is_closed() {
        wait(wait_ms, &options.pace).await;
        let route = options.way.get();
        let count = route.brokers.len();
        let Some(broker) = route.brokers.get(turn.of(count)) else {
            log::error!("there is no broker to connect to");
            return;
        };
        let proxy = route.proxy(broker);
        let to = shown(broker, proxy);
        let connection = clock::boot_ms();
        let seconds = keep_alive.seconds();
        let tls = route.tls.as_ref();
        let attempt = Attempt { broker, tls, proxy, connection, keep_alive_s: seconds };
        options.way.taken.store(turn.of(count), Ordering::Relaxed);
        let ended = match connect(&options, attempt, &incoming).await {
            Ok(connected) => {
                keep_alive.connected(clock::boot_ms());
                log::info!("link to {to} is up");
                serve(connected, &outgoing, &incoming).await
            }
            Err(why) => {
                keep_alive.failed();
                turn.failed(count);
                Ended::Never(why)
            }
        };
        if ended.is_outdated() && incoming.send(FromLink::Outdated).await.is_err() {
            return;
        }
        let up = matches!(ended, Ended::Silent | Ended::Lost(_));
        let up_ms = up.then(|| clock::boot_ms().saturating_sub(connection));
        turn.ended(up_ms.unwrap_or_default());
        if matches!(ended, Ended::Silent) {
            keep_alive.fell_silent();
        }
        if incoming.send(FromLink::Down).await.is_err() {
            return;
        }
        wait_ms = reconnect.wait_ms(up_ms, spread_ms());
        let seconds = Duration::from_millis(wait_ms).as_secs_f32();
        log::warn!("link to {to}: {ended}; next try in {seconds:.1} s");
    }
}

/// Waits this long, and until the device no longer sleeps.
async fn wait(wait_ms: u64, pace: &Pace) {
    tokio::time::sleep(Duration::from_millis(wait_ms)).await;
    loop {
        let until_ms = pace.quiet_until_ms.load(Ordering::Relaxed);
        let left = Duration::from_millis(until_ms.saturating_sub(clock::boot_ms()));
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(ASLEEP_LOOK)).await;
    }
}

/// A connection that is to be made.
struct Attempt<'a> {
    broker: &'a Broker,
    tls: Option<&'a Arc<ClientConfig>>,
    proxy: Option<&'a Proxy>,
    connection: u64,
    keep_alive_s: u16,
}

/// A connection that is up and subscribed.
struct Connected {
    connection: u64,
    client: AsyncClient,
    events: EventLoop,
    keep_alive: Duration,
    /// What carries it, where rumqttc does not reach the broker by itself.
    tunnel: Option<Tunnel>,
}

/// Why there is no connection any more.
enum Ended {
    /// Its peer has fallen silent.
    Silent,
    /// It was up, and broke.
    Lost(String),
    /// It did not come about.
    Never(String),
}

impl Ended {
    /// Whether the certificate is not good any more, as TLS tells it (RFC 8446 section 6.2).
    fn is_outdated(&self) -> bool {
        let is_outdated = |why: &String| [mqtt::EXPIRED, mqtt::REPLACED].contains(&why.as_str());
        matches!(self, Self::Lost(why) | Self::Never(why) if is_outdated(why))
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Silent => f.write_str("the broker has fallen silent"),
            Self::Lost(why) | Self::Never(why) => f.write_str(why),
        }
    }
}

async fn connect(
    options: &Options,
    attempt: Attempt<'_>,
    incoming: &Sender<FromLink>,
) -> Result<Connected, String> {
    let Attempt { connection, keep_alive_s, .. } = attempt;
    let first = tokio::time::timeout(CONNECT_TIMEOUT, begin(options, &attempt));
    let connected = first.await.map_err(|_| UNANSWERED.to_owned())??;
    let up = FromLink::Up { connection, keep_alive_s };
    incoming.send(up).await.map_err(|_| ENDING.to_owned())?;
    Ok(connected)
}

async fn begin(options: &Options, attempt: &Attempt<'_>) -> Result<Connected, String> {
    let Attempt { broker, tls, proxy, connection, keep_alive_s } = *attempt;
    let mut tunnel = match (&broker.over, proxy) {
        (Over::Tcp | Over::Tls, None) => None,
        (Over::WebSocket(_), _) | (_, Some(_)) => {
            let stream =
                dial::dial(broker, tls, proxy).await.map_err(|e| mqtt::explain_error(&e))?;
            Some(Tunnel::open(stream).map_err(|e| e.to_string())?)
        }
    };
    let mqtt = mqtt::options(options, attempt, tunnel.as_ref());
    let (client, mut events) = AsyncClient::new(mqtt, CLIENT_QUEUE);
    if let Err(why) = until_subscribed(options, &client, &mut events).await {
        return Err(told(tunnel.as_mut(), why).await);
    }
    let keep_alive = Duration::from_secs(keep_alive_s.into());
    Ok(Connected { connection, client, events, keep_alive, tunnel })
}

/// Why a connection ended, where its tunnel knows it better.
async fn told(tunnel: Option<&mut Tunnel>, why: String) -> String {
    let failure = match tunnel {
        Some(tunnel) => tunnel.failure().await,
        None => None,
    };
    failure.map_or(why, |error| mqtt::explain_error(&error))
}

/// One connection, until it is none.
async fn serve(
    mut connected: Connected,
    outgoing: &Outgoing,
    incoming: &Sender<FromLink>,
) -> Ended {
    let Connected { connection, client, .. } = &connected;
    let publisher = tokio::spawn(publish(client.clone(), *connection, outgoing.clone()));
    let ended = receive(connected.keep_alive, &mut connected.events, incoming).await;
    publisher.abort();
    match ended {
        Ended::Lost(why) => Ended::Lost(told(connected.tunnel.as_mut(), why).await),
        Ended::Silent | Ended::Never(_) => ended,
    }
}

async fn until_subscribed(
    options: &Options,
    client: &AsyncClient,
    events: &mut EventLoop,
) -> Result<(), String> {
    let filters = Prefix::default().device_filters(&options.device);
    let (mut missing, mut greeted) = (filters.len(), false);
    loop {
        match events.poll().await.map_err(explain)? {
            Event::Incoming(Incoming::ConnAck(_)) if !greeted => {
                greeted = true;
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
            Event::Incoming(packet) => mqtt::allow(&packet)?,
            Event::Outgoing(_) => {}
        }
    }
}

async fn publish(client: AsyncClient, connection: u64, outgoing: Outgoing) {
    while let Some(ToLink { connection: meant_for, order }) = outgoing.next().await {
        if meant_for != connection {
            continue;
        }
        let done = match order {
            Order::Publish { topic, payload, retain } => {
                client.publish(topic, QoS::AtLeastOnce, retain, payload).await
            }
            Order::Disconnect => client.disconnect().await,
        };
        if done.is_err() {
            return;
        }
    }
}

async fn receive(
    keep_alive: Duration,
    events: &mut EventLoop,
    incoming: &Sender<FromLink>,
) -> Ended {
    // poll() never ends on a peer that has stalled: no packet for two keep-alives is the end.
    let silence = keep_alive * 2;
    loop {
        let event = match tokio::time::timeout(silence, events.poll()).await {
            Ok(Ok(event)) => event,
            Ok(Err(ConnectionError::MqttState(StateError::AwaitPingResp))) | Err(_) => {
                return Ended::Silent;
            }
            Ok(Err(error)) => return Ended::Lost(explain(error)),
        };
        if let Event::Incoming(packet) = &event
            && let Err(why) = mqtt::allow(packet)
        {
            return Ended::Lost(why);
        }
        match event {
            // It keeps the topic of each, and was told that there may be none.
            Event::Incoming(Incoming::Publish(publish)) if has_alias(&publish) => {
                return Ended::Lost(
                    "the broker uses topic aliases, which are not asked for".into(),
                );
            }
            Event::Incoming(Incoming::Publish(publish)) => {
                let topic = String::from_utf8_lossy(&publish.topic).into_owned();
                let payload = publish.payload.to_vec();
                if incoming.send(FromLink::Message { topic, payload }).await.is_err() {
                    return Ended::Lost(ENDING.to_owned());
                }
            }
            Event::Outgoing(rumqttc::Outgoing::Disconnect) => {
                return Ended::Lost("this device sleeps".to_owned());
            }
            Event::Incoming(_) | Event::Outgoing(_) => {}
        }
    }
}

/// Whether a message has a number for its topic (MQTT 5.0 section 3.3.2.3.4).
fn has_alias(publish: &Publish) -> bool {
    publish.properties.as_ref().is_some_and(|properties| properties.topic_alias.is_some())
}
