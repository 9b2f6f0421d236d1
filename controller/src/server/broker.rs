//! The embedded broker: the one place that knows rmqtt.
//!
//! Who a client is follows from its id: `limpet/DEVICE/FINGERPRINT` is a device, which its
//! certificate must name too; with `--insecure` any other is an operator on this machine. What it may publish and subscribe follows from that. A message is
//! stored before it is acknowledged: the work is done where the broker asks whether a publish is
//! allowed, which is the only place where it can still be refused.

use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use anyhow::anyhow;
use async_trait::async_trait;
use limpet_protocol::{DeviceId, IdError, Leaf, Prefix, TokenId, Topic};
use rmqtt::codec::cert::CertInfo;
use rmqtt::context::ServerContext;
use rmqtt::hook::{Handler, HookResult, Parameter, ReturnType, Type};
use rmqtt::net::{Builder, Listener};
use rmqtt::server::MqttServer;
use rmqtt::session::{Session, SessionState};
use rmqtt::types::{
    AuthResult, CodecPublish, ConnectInfo, From, FromType, Id, LastWill, Publish, PublishAclResult,
    QoS, SubscribeAclResult,
};
use tokio::sync::mpsc::UnboundedReceiver;

use super::authority::{PUBLISHER, Served};
use super::fleet::{Caller, Fleet, Handle, Outgoing, Who};
use super::proof::Proof;
use super::websocket::{self, Guests};

mod listeners;

use listeners::{Listeners, Socket};

/// MQTT packets at most: the largest message of Limpet, and its topic.
pub(super) const PACKET_BYTES_MAX: u32 = 256 * 1024;
/// Messages that wait for one client.
const QUEUE: usize = 10_000;
/// The number of the listener for connections over WebSocket; others count from 1.
const GUESTS: u16 = 0;
/// How long a connection on loopback may take to say whose it is: others wait meanwhile.
const GREETING_TIMEOUT: Duration = Duration::from_millis(500);
/// Retained messages are answers to manifests, and presence: they live as long as the broker.
const EXPIRY: Duration = Duration::from_secs(365 * 24 * 3600);

/// How often, and after which time, it is tried again to cut a connection: for a minute, while to end
/// one takes the broker 5 s at most.
const CUT_TRIES: u32 = 300;
const CUT_AGAIN_AFTER: Duration = Duration::from_millis(200);

/// Whom a connection belongs to.
enum Client {
    Device {
        id: DeviceId,
        fingerprint: String,
    },
    Publisher {
        name: String,
        token: TokenId,
    },
    /// On this machine, where nobody is asked for a certificate.
    Operator,
}

impl FromStr for Client {
    type Err = String;

    fn from_str(client_id: &str) -> Result<Self, String> {
        let Some(rest) = client_id.strip_prefix("limpet/") else {
            return Ok(Self::Operator);
        };
        let (device, fingerprint) = rest.split_once('/').ok_or("no key in the client id")?;
        let id = device.parse().map_err(|e: IdError| e.to_string())?;
        Ok(Self::Device { id, fingerprint: fingerprint.to_owned() })
    }
}

/// Starts the broker, and publishes what the fleet sends. Without proof it speaks plain MQTT. With
/// `websocket` it gives where those get in that come over WebSocket.
pub(super) async fn start(
    listen: SocketAddr,
    proof: Option<Proof>,
    websocket: bool,
    fleet: Handle,
    outgoing: UnboundedReceiver<Outgoing>,
) -> anyhow::Result<Option<websocket::Door>> {
    let context = ServerContext::new()
        // Else a machine with other things to do turns devices away.
        .busy_check_enable(false)
        .plugins_config_map_add("rmqtt-retainer", "storage.type = \"ram\"")
        .build()
        .await;
    rmqtt_retainer::register(&context, true, false).await.map_err(|e| anyhow!("retainer: {e}"))?;
    let hooks = context.extends.hook_mgr().register();
    let guests = Guests::default();
    for kind in [
        Type::ClientAuthenticate,
        Type::ClientConnected,
        Type::ClientDisconnected,
        Type::ClientKeepalive,
        Type::ClientSubscribeCheckAcl,
        Type::MessagePublish,
        Type::MessagePublishCheckAcl,
    ] {
        let door = if proof.is_some() { Door::Certificates } else { Door::Open };
        let (fleet, guests) = (fleet.clone(), guests.clone());
        let hook = Hook { fleet, prefix: Prefix::default(), door, guests };
        hooks.add_priority(kind, 1000, Box::new(hook)).await;
    }
    hooks.start().await;
    let builder = Builder::new()
        .name("mqtt")
        .laddr(listen)
        .nodelay(true)
        // Started again, it does not wait for the connections of its last life to be forgotten.
        .reuseaddr(Some(true))
        .allow_anonymous(false)
        .max_packet_size(PACKET_BYTES_MAX)
        .max_mqueue_len(QUEUE)
        .max_connections(1_000_000)
        .max_handshaking_limit(10_000)
        .max_keepalive(65_535)
        .message_expiry_interval(EXPIRY);
    let inner = websocket.then(|| for_guests(&context, builder.clone())).transpose();
    let inner = inner.map_err(|e| anyhow!("the broker cannot listen on loopback: {e}"))?;
    let door = inner.map(|broker| websocket::Door { guests, broker });
    let socket = match &proof {
        None => Socket { builder, finish: Listener::tcp },
        Some(proof) => Socket { builder: secured(builder, proof), finish: Listener::tls },
    };
    let mut listeners = Listeners::new(context.clone(), vec![socket]);
    listeners.open().map_err(|e| anyhow!("--mqtt-listen {listen} cannot be used: {e}"))?;
    let doors = Doors { proof, listeners, fleet };
    tokio::spawn(publish(context, doors, outgoing));
    Ok(door)
}

/// Takes connections over WebSocket in; gives where. See [`websocket`].
fn for_guests(context: &ServerContext, builder: Builder) -> anyhow::Result<SocketAddr> {
    let here = (Ipv4Addr::LOCALHOST, 0).into();
    let builder = builder.laddr(here).proxy_protocol(true).proxy_protocol_timeout(GREETING_TIMEOUT);
    let listener = builder.bind()?.tcp()?;
    let address = listener.local_addr()?;
    listeners::accept(MqttServer::new(context.clone()).listener_by_id(listener, GUESTS).build());
    Ok(address)
}

/// TLS, and clients that have certificates.
fn secured(builder: Builder, proof: &Proof) -> Builder {
    let [certificate, key, authorities] = proof.files().map(|path| path.display().to_string());
    builder
        .tls_cert(Some(certificate))
        .tls_key(Some(key))
        .tls_client_ca_certs(Some(authorities))
        .tls_cross_certificate(true)
        .collect_cert_info(true)
        // What opens in its place listens before it has closed.
        .reuseport(Some(true))
}

/// Where clients come in, and what they are shown there.
struct Doors {
    proof: Option<Proof>,
    listeners: Listeners,
    fleet: Handle,
}

impl Doors {
    /// Whoever comes from here on is shown this; connections that stand go on.
    fn serve(&mut self, served: &Served) {
        let Some(proof) = &self.proof else { return };
        match proof.show(served).and_then(|()| self.listeners.open()) {
            Ok(()) => log::info!("clients are shown a new certificate from here on"),
            Err(why) => {
                log::error!("the controller's new certificate is not in use yet: {why:#}");
                self.fleet.tell(Fleet::not_served);
            }
        }
    }
}

async fn publish(
    context: ServerContext,
    mut doors: Doors,
    mut outgoing: UnboundedReceiver<Outgoing>,
) {
    let id = Id::new(context.node.id(), 0, None, None, "limpet-controller".into(), None);
    while let Some(order) = outgoing.recv().await {
        let (topic, payload, retain) = match order {
            Outgoing::Publish { topic, payload, retain } => (topic, payload, retain),
            Outgoing::Drop { client } => {
                tokio::spawn(cut(context.clone(), client));
                continue;
            }
            Outgoing::Serve(served) => {
                doors.serve(&served);
                continue;
            }
        };
        let publish = CodecPublish {
            dup: false,
            retain,
            qos: QoS::AtLeastOnce,
            topic: topic.into(),
            packet_id: None,
            payload: payload.into(),
            properties: None,
        };
        let from = From::from_system(id.clone());
        let sent =
            SessionState::forwards(&context, from, publish.into(), false, Some(EXPIRY)).await;
        if let Err(error) = sent {
            log::error!("cannot publish: {error}");
        }
    }
}

/// Ends a client's connection, if it has one. Whoever connects as this client holds the entry, for as
/// long as it takes to end the connection before.
async fn cut(context: ServerContext, client: String) {
    let id = Id::new(context.node.id(), 0, None, None, client.as_str().into(), None);
    let mut why = String::new();
    for _ in 0..CUT_TRIES {
        let entry = context.extends.shared().await.entry(id.clone());
        let cut = match entry.try_lock().await {
            Ok(mut entry) => entry.kick(true, true, true).await.map(drop),
            Err(error) => Err(error),
        };
        match cut {
            Ok(()) => return,
            Err(error) => why = error.to_string(),
        }
        tokio::time::sleep(CUT_AGAIN_AFTER).await;
    }
    log::error!("the connection of {client} cannot be cut: {why}");
}

/// Who is asked for a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    /// Nobody: clients are whom their ids say.
    Open,
    /// Everybody: TLS has checked that the fleet's authority made it.
    Certificates,
}

struct Hook {
    fleet: Handle,
    prefix: Prefix,
    door: Door,
    guests: Guests,
}

#[async_trait]
impl Handler for Hook {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "rmqtt's hooks are many; it calls those that were registered"
    )]
    async fn hook(&self, parameter: &Parameter, before: Option<HookResult>) -> ReturnType {
        match parameter {
            Parameter::ClientAuthenticate(info) => {
                let result = match self.let_in(info).await {
                    Ok(()) => AuthResult::Allow(false, None),
                    Err(why) => {
                        let client: String = info.client_id().chars().take(200).collect();
                        log::warn!("refused: client {client}: {why:.512}");
                        AuthResult::NotAuthorized
                    }
                };
                (false, Some(HookResult::AuthResult(result)))
            }
            Parameter::ClientConnected(session) => {
                if let Ok(Client::Device { id, fingerprint }) = session.id.client_id.parse() {
                    let since = session.id.create_time;
                    self.fleet.tell(move |fleet| fleet.connected(&id, &fingerprint, since));
                }
                (true, before)
            }
            Parameter::ClientDisconnected(session, _) => {
                if let Ok(Client::Device { id, .. }) = session.id.client_id.parse() {
                    let since = session.id.create_time;
                    self.fleet.tell(move |fleet| fleet.disconnected(&id, since));
                }
                (true, before)
            }
            Parameter::ClientKeepalive(session, is_ping) => {
                if let (true, Ok(Client::Device { id, .. })) =
                    (*is_ping, session.id.client_id.parse())
                {
                    self.fleet.tell(move |fleet| fleet.alive(&id));
                }
                (true, before)
            }
            Parameter::ClientSubscribeCheckAcl(session, subscribe) => {
                let client = self.client_of(session).await;
                let allowed = client.is_ok_and(|c| self.may_subscribe(&c, &subscribe.topic_filter));
                let result = match allowed {
                    true => SubscribeAclResult::new_success(subscribe.opts.qos(), None),
                    false => SubscribeAclResult::new_failure(
                        rmqtt::codec::v5::SubscribeAckReason::NotAuthorized,
                    ),
                };
                (false, Some(HookResult::SubscribeAclResult(result)))
            }
            Parameter::MessagePublish(_, from, publish) => {
                // Wills meet no other hook.
                if matches!(from.typ(), FromType::LastWill) {
                    // Only devices have one.
                    if let Ok(client) = from.id.client_id.parse() {
                        let _ = self.take(client, &from.id, publish).await;
                    }
                }
                // An order is a live publish: a copy that stays would be one without a sender.
                if publish.retain && !matches!(from.typ(), FromType::System) {
                    let mut live = (*publish).clone();
                    live.retain = false;
                    return (true, Some(HookResult::Publish(live)));
                }
                (true, before)
            }
            Parameter::MessagePublishCheckAcl(session, publish) => {
                let result = match self.publish(session, publish).await {
                    Ok(()) => PublishAclResult::allow(),
                    Err(why) => PublishAclResult::rejected(false, Some(why.into())),
                };
                (false, Some(HookResult::PublishAclResult(result)))
            }
            _ => (true, before),
        }
    }
}

impl Hook {
    /// Who a client is: whom its id says and its certificate names.
    fn client(&self, id: &str, certificate: Option<&CertInfo>) -> Result<Client, String> {
        if self.door == Door::Open {
            return id.parse();
        }
        let certificate = certificate.ok_or("it shows no certificate")?;
        let name = certificate.common_name.as_deref().unwrap_or_default();
        let organization = certificate.organization.as_deref().unwrap_or_default();
        if let Some(name) = name.strip_prefix(PUBLISHER) {
            // Devices' sessions are theirs.
            if id.starts_with("limpet/") {
                return Err("a publisher takes no device's id".to_owned());
            }
            let token = organization.parse().map_err(|e: IdError| e.to_string())?;
            return Ok(Client::Publisher { name: name.to_owned(), token });
        }
        match id.parse()? {
            Client::Device { id, fingerprint }
                if name == id.as_str() && organization == fingerprint =>
            {
                Ok(Client::Device { id, fingerprint })
            }
            Client::Device { .. } | Client::Publisher { .. } | Client::Operator => {
                Err(format!("its certificate names {name:.200} ({organization:.200})"))
            }
        }
    }

    async fn client_of(&self, session: &Session) -> Result<Client, String> {
        let info = session.connect_info().await.map_err(|e| e.to_string())?;
        self.client(&session.id.client_id, self.certificate(&info).as_ref())
    }

    /// What TLS has proved of a client.
    fn certificate(&self, info: &ConnectInfo) -> Option<CertInfo> {
        let guest = || Some(self.guests.find(info.id().remote_addr)?.certificate);
        info.cert().cloned().or_else(guest)
    }

    async fn publish(&self, session: &Session, publish: &Publish) -> Result<(), String> {
        let client = self.client_of(session).await?;
        self.take(client, &session.id, publish).await
    }

    async fn let_in(&self, info: &ConnectInfo) -> Result<(), String> {
        let client = self.client(info.client_id(), self.certificate(info).as_ref())?;
        self.may_leave(&client, info)?;
        let known = self.fleet.call(move |fleet| match client {
            Client::Device { id, fingerprint } => fleet.may_connect(&id, &fingerprint),
            Client::Publisher { token, .. } => fleet.may_publish(token),
            Client::Operator => true,
        });
        match known.await {
            Ok(true) => Ok(()),
            Ok(false) => Err("it is not let in".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Wills meet no other hook before they are delivered: a device's is its presence, and nobody
    /// else has one.
    fn may_leave(&self, client: &Client, info: &ConnectInfo) -> Result<(), String> {
        let topic = match info.last_will() {
            None => return Ok(()),
            Some(LastWill::V3(will)) => will.topic.to_string(),
            Some(LastWill::V5(will)) => will.topic.to_string(),
        };
        match client {
            Client::Device { id, .. }
                if topic == Topic::Device(id.clone(), Leaf::Presence).under(&self.prefix) =>
            {
                Ok(())
            }
            Client::Device { .. } | Client::Publisher { .. } | Client::Operator => {
                Err(format!("it may leave no will on {topic:.200}"))
            }
        }
    }

    fn may_subscribe(&self, client: &Client, filter: &str) -> bool {
        match client {
            Client::Device { id, .. } => self.prefix.device_filters(id).iter().any(|f| f == filter),
            Client::Publisher { .. } | Client::Operator => {
                filter.starts_with(&format!("{}/deploy/", self.prefix))
            }
        }
    }

    /// Hands a publish to the fleet, and waits until it is stored.
    async fn take(&self, client: Client, from: &Id, publish: &Publish) -> Result<(), String> {
        let (topic, payload) = (publish.topic.to_string(), publish.payload.to_vec());
        let (id, guest) = (from.client_id.to_string(), self.guests.find(from.remote_addr));
        let from = guest.map(|guest| guest.from).or(from.remote_addr);
        let taken = self.fleet.call(move |fleet| match client {
            Client::Device { id, .. } => fleet.device_message(&id, &topic, &payload),
            Client::Publisher { token, .. } if !fleet.may_publish(token) => {
                Err("this publisher's certificate was revoked, or has ended".to_owned())
            }
            Client::Publisher { name, token } => {
                let by = Caller { who: Who::Publisher { name, token }, from };
                fleet.manifest_published(&by, &topic, &payload)
            }
            Client::Operator => {
                fleet.manifest_published(&Caller { who: Who::Mqtt(id), from }, &topic, &payload)
            }
        });
        taken.await.map_err(|e| e.to_string())?
    }
}
