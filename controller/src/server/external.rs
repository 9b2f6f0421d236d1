//! A broker of somebody else: the one place of the controller that knows rumqttc.
//!
//! The controller is a client like any other. A message is acknowledged when the fleet's transaction
//! is on disk, so that the broker keeps what is not; it is believed for what is signed in it alone.
//! Every connection is a fresh client with a clean session; when one has begun, all devices are asked
//! to say hello, since what they said before went by unheard.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesOrdered;
use limpet_protocol::{DeviceId, Prefix};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Filter, Publish, RetainForwardRule, SubAck, SubscribeReasonCode};
use rumqttc::v5::{AsyncClient, Event, EventLoop, Incoming, MqttOptions};
use rumqttc::{TlsConfiguration, Transport};
use rustls::ClientConfig;
use tokio::sync::mpsc::{self, Receiver, Sender, UnboundedReceiver};
use tokio::time::{sleep, timeout};

use super::fleet::{CallError, Handle, Outgoing};

mod options;
mod pace;

pub(in crate::server) use options::link;
pub(crate) use options::{Address, Broker};
use pace::Pace;

/// MQTT packets at most: the largest message of Limpet, and its topic.
const PACKET_BYTES_MAX: u32 = 256 * 1024;
/// Messages that were not acknowledged yet, either way: with the largest packets 64 MiB.
const IN_FLIGHT_MAX: u16 = 256;
/// Messages handed to the client ahead of the network.
const CLIENT_QUEUE: usize = 1024;
const KEEP_ALIVE: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// A broker that takes no message for this long is as good as gone.
const STALLED: Duration = Duration::from_secs(20);
/// Devices that are asked for a hello in one second.
const ASKED_PER_S: usize = 500;

/// How the broker is reached.
pub(in crate::server) struct Link {
    host: String,
    port: u16,
    tls: Arc<ClientConfig>,
    login: Option<(String, String)>,
}

/// Connects, again and again, hands the fleet what comes, and publishes what it sends.
pub(in crate::server) fn start(
    link: Link,
    fleet: Handle,
    mut outgoing: UnboundedReceiver<Outgoing>,
) {
    tokio::spawn(async move {
        let mut pace = Pace::new();
        let address = format!("{}:{}", link.host, link.port);
        loop {
            let ended = match connect(&link).await {
                Ok(connected) => {
                    log::info!("the broker {address} is reached");
                    pace.reached();
                    serve(connected, &fleet, &mut outgoing, &address).await
                }
                Err(why) => why,
            };
            let wait = pace.wait();
            log::warn!("broker {address}: {ended}; next try in {:.1} s", wait.as_secs_f32());
            let told = format!("{address}: {ended}");
            let lost = fleet.call(move |fleet| fleet.broker_lost(&told)).await;
            if matches!(lost, Err(CallError::Ending)) {
                return;
            }
            let idle = timeout(wait, discard(&mut outgoing)).await;
            if idle.is_ok() {
                return;
            }
        }
    });
}

/// Whom it was meant for is not there; all is told anew when they are. Ends with the fleet.
async fn discard(outgoing: &mut UnboundedReceiver<Outgoing>) {
    while outgoing.recv().await.is_some() {}
}

/// A connection that is up and subscribed.
struct Connected {
    client: AsyncClient,
    events: EventLoop,
}

async fn connect(link: &Link) -> Result<Connected, String> {
    let mut options = MqttOptions::new("limpet-controller", &link.host, link.port);
    options
        .set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(link.tls.clone())))
        .set_keep_alive(KEEP_ALIVE)
        .set_clean_start(true)
        .set_manual_acks(true)
        .set_receive_maximum(Some(IN_FLIGHT_MAX))
        .set_max_packet_size(Some(PACKET_BYTES_MAX))
        .set_outgoing_inflight_upper_limit(IN_FLIGHT_MAX)
        .set_connection_timeout(CONNECT_TIMEOUT.as_secs());
    if let Some((user, password)) = &link.login {
        options.set_credentials(user, password);
    }
    let mut network = options.network_options();
    network.set_tcp_nodelay(true);
    options.set_network_options(network);
    let (client, mut events) = AsyncClient::new(options, CLIENT_QUEUE);
    let subscribed = timeout(CONNECT_TIMEOUT, subscribe(&client, &mut events)).await;
    subscribed.map_err(|_| "it takes connections and does not answer".to_owned())??;
    Ok(Connected { client, events })
}

async fn subscribe(client: &AsyncClient, events: &mut EventLoop) -> Result<(), String> {
    loop {
        match events.poll().await.map_err(|e| e.to_string())? {
            Event::Incoming(Incoming::ConnAck(_)) => {
                let filters = Prefix::default().controller_filters().map(|filter| {
                    let mut filter = Filter::new(filter, QoS::AtLeastOnce);
                    filter.retain_forward_rule = RetainForwardRule::OnEverySubscribe;
                    filter
                });
                client.subscribe_many(filters).await.map_err(|e| e.to_string())?;
            }
            Event::Incoming(Incoming::SubAck(ack)) => return granted(&ack),
            Event::Incoming(_) | Event::Outgoing(_) => {}
        }
    }
}

fn granted(ack: &SubAck) -> Result<(), String> {
    let least = |code: &SubscribeReasonCode| {
        matches!(code, SubscribeReasonCode::Success(QoS::AtLeastOnce | QoS::ExactlyOnce))
    };
    match ack.return_codes.iter().find(|code| !least(code)) {
        None => Ok(()),
        Some(code) => Err(format!(
            "it does not let this controller read what devices publish ({code:?}): see `limpet \
             broker-config`"
        )),
    }
}

/// One connection, until it is none: why it ended.
async fn serve(
    connected: Connected,
    fleet: &Handle,
    outgoing: &mut UnboundedReceiver<Outgoing>,
    address: &str,
) -> String {
    let Connected { client, events } = connected;
    let address = address.to_owned();
    let asked = match fleet.call(move |fleet| fleet.broker_found(&address)).await {
        Ok(asked) => asked,
        Err(error) => return error.to_string(),
    };
    // Twice as many as the broker may have under way: the rest is for those that need no answer.
    let (sender, came) = mpsc::channel(2 * usize::from(IN_FLIGHT_MAX));
    tokio::select! {
        why = receive(events, sender) => why,
        why = take(came, fleet, &client) => why,
        why = publish(outgoing, &client) => why,
        why = ask(asked, fleet) => why,
    }
}

/// Reads what comes. It never waits for anybody else: what does not fit is the broker's fault, or was
/// sent with QoS 0, and nothing of Limpet is.
async fn receive(mut events: EventLoop, came: Sender<Publish>) -> String {
    loop {
        // poll() never ends on a peer that has stalled.
        let event = match timeout(2 * KEEP_ALIVE, events.poll()).await {
            Ok(Ok(event)) => event,
            Ok(Err(error)) => return error.to_string(),
            Err(_) => return "it has fallen silent".to_owned(),
        };
        let Event::Incoming(Incoming::Publish(publish)) = event else {
            continue;
        };
        let alias = publish.properties.as_ref().and_then(|properties| properties.topic_alias);
        if alias.is_some() {
            return "it uses topic aliases, which are not asked for".to_owned();
        }
        let has_place = match publish.qos {
            QoS::AtMostOnce => came.capacity() > usize::from(IN_FLIGHT_MAX),
            QoS::AtLeastOnce => true,
            // Not subscribed like that.
            QoS::ExactlyOnce => false,
        };
        if has_place && came.try_send(publish).is_err() {
            return format!("it sends more than {IN_FLIGHT_MAX} messages at once");
        }
    }
}

/// Hands what came to the fleet, in order, and acknowledges what is on disk.
async fn take(mut came: Receiver<Publish>, fleet: &Handle, client: &AsyncClient) -> String {
    let mut under_way = FuturesOrdered::new();
    loop {
        tokio::select! {
            publish = came.recv(), if under_way.len() < usize::from(IN_FLIGHT_MAX) => {
                let Some(publish) = publish else { return "the connection is gone".to_owned() };
                under_way.push_back(carry(publish, fleet));
            }
            Some((publish, stored)) = under_way.next() => match stored {
                Ok(()) if client.ack(&publish).await.is_ok() => {}
                Ok(()) => return "the connection is gone".to_owned(),
                // Not acknowledged: its sender has heard nothing from the fleet either, and says it again.
                Err(error) => return error.to_string(),
            },
        }
    }
}

async fn carry(publish: Publish, fleet: &Handle) -> (Publish, Result<(), CallError>) {
    let topic = String::from_utf8_lossy(&publish.topic).into_owned();
    let (payload, is_retained) = (publish.payload.clone(), publish.retain);
    let carried = fleet.call(move |fleet| fleet.carried(&topic, &payload, is_retained)).await;
    (publish, carried)
}

/// Publishes what the fleet sends.
async fn publish(outgoing: &mut UnboundedReceiver<Outgoing>, client: &AsyncClient) -> String {
    while let Some(order) = outgoing.recv().await {
        let (topic, payload, retain) = match order {
            Outgoing::Publish { topic, payload, retain } => (topic, payload, retain),
            // Who is not let in any more is not listened to; the connection is the broker's.
            Outgoing::Drop { .. } | Outgoing::Serve(_) => continue,
        };
        let sent = client.publish(topic, QoS::AtLeastOnce, retain, payload);
        match timeout(STALLED, sent).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return error.to_string(),
            Err(_) => return "it takes no messages any more".to_owned(),
        }
    }
    "the controller is ending".to_owned()
}

/// Asks devices to say hello, so many at a time.
async fn ask(devices: Vec<DeviceId>, fleet: &Handle) -> String {
    for some in devices.chunks(ASKED_PER_S) {
        let some = some.to_vec();
        let asked = fleet.call(move |fleet| some.iter().for_each(|id| fleet.ask_for_hello(id)));
        if let Err(error) = asked.await {
            return error.to_string();
        }
        sleep(Duration::from_secs(1)).await;
    }
    std::future::pending().await
}
