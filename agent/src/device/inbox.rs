//! From bytes on a topic to an input that the core may believe.

use std::rc::Rc;
use std::sync::Arc;

use limpet_agent_core::Input;
use limpet_protocol::envelope::{self, EnvelopeError, Expected};
use limpet_protocol::{
    Ack, Command, DesiredState, Envelope, Header, Held, Kind, Leaf, Nonce, Prefix, PublicKey, Topic,
};

use super::effects::Shell;
use crate::link::FromLink;
use crate::state::Identity;

/// Why a message is refused.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("topic {topic}: {source}")]
    Envelope { topic: String, source: EnvelopeError },
    #[error("topic {topic}: {source}")]
    Body { topic: String, source: limpet_protocol::cbor::CborError },
    #[error(transparent)]
    Topic(#[from] limpet_protocol::TopicError),
    #[error("topic {0} is not for devices")]
    Misplaced(String),
    #[error("desired state: the document is {inside}, its envelope says {outside}")]
    Renumbered { inside: Held, outside: Held },
    #[error("no random bytes for a connection")]
    NoRandomness,
}

/// Reads what the link brings.
#[derive(Default)]
pub(super) struct Inbox {
    connection: Option<u64>,
}

impl Inbox {
    pub(super) fn read(&mut self, shell: &Rc<Shell>, event: FromLink) -> Option<Input> {
        let read = match event {
            FromLink::Up { connection, keep_alive_s } => {
                self.connection = Some(connection);
                shell.connected(Some(connection));
                let nonce = super::random().map(Nonce).map_err(|_| Refusal::NoRandomness);
                nonce.map(|nonce| Input::LinkUp { connection, nonce, keep_alive_s })
            }
            FromLink::Expired => {
                shell.renew();
                return None;
            }
            FromLink::Down => {
                shell.connected(None);
                return self.connection.take().map(|_| Input::LinkDown);
            }
            FromLink::Message { topic, payload } => read(shell, topic, &payload),
        };
        let refused = |error: Refusal| {
            // The core tells of them, seldom enough for a log on flash.
            log::debug!("refused: {error}");
            Input::Refused { reason: error.to_string() }
        };
        Some(read.unwrap_or_else(refused))
    }
}

fn read(shell: &Shell, topic: String, payload: &[u8]) -> Result<Input, Refusal> {
    let Topic::Device(_, leaf) = Topic::parse(&Prefix::default(), &topic)? else {
        return Err(Refusal::Misplaced(topic));
    };
    let identity = shell.identity();
    let opened = || {
        verify(&identity, leaf.kind(), payload)
            .map_err(|source| Refusal::Envelope { topic: topic.clone(), source })
    };
    let body = |source| Refusal::Body { topic: topic.clone(), source };
    let (input, signer) = match leaf {
        Leaf::Desired => {
            let envelope = opened()?;
            let state: DesiredState = envelope.read().map_err(body)?;
            let Header { epoch, number: generation, .. } = envelope.header;
            let outside = Held { epoch, generation };
            if state.held != outside {
                return Err(Refusal::Renumbered { inside: state.held, outside });
            }
            (Input::Desired { state: Box::new(state), signed: payload.to_vec() }, envelope.signer)
        }
        Leaf::Command => {
            let envelope = opened()?;
            let Command { nonce, action } = envelope.read().map_err(body)?;
            let number = envelope.header.number;
            (Input::Commanded { number, nonce, action }, envelope.signer)
        }
        Leaf::Ack => {
            let envelope = opened()?;
            let ack = envelope.read::<Ack>().map_err(body)?;
            (Input::Acked { connection: envelope.header.number, ack }, envelope.signer)
        }
        Leaf::Presence
        | Leaf::Hello
        | Leaf::Reported
        | Leaf::Event
        | Leaf::Result
        | Leaf::Returned
        | Leaf::Stream(_) => return Err(Refusal::Misplaced(topic)),
    };
    trust(shell, &identity, signer);
    Ok(input)
}

/// Opens a message of the controller; the first one ever decides whose messages are believed.
pub(super) fn verify(
    identity: &Identity,
    kind: Kind,
    payload: &[u8],
) -> Result<Envelope, EnvelopeError> {
    let prefix = Prefix::default();
    let signer = identity.controller.as_ref();
    envelope::open(payload, Expected { prefix: &prefix, device: &identity.device, kind, signer })
}

/// Opens the stored desired state, which the controller's key before the present one may have signed.
pub(super) fn verify_stored(identity: &Identity, signed: &[u8]) -> Result<Envelope, EnvelopeError> {
    let prefix = Prefix::default();
    let by = |signer| {
        let (device, kind) = (&identity.device, Kind::Desired);
        envelope::open(signed, Expected { prefix: &prefix, device, kind, signer })
    };
    let opened = by(identity.controller.as_ref());
    match &identity.controller_before {
        Some(before) if opened.is_err() => by(Some(before)).or(opened),
        Some(_) | None => opened,
    }
}

fn trust(shell: &Shell, identity: &Arc<Identity>, signer: PublicKey) {
    if identity.controller.is_none() {
        log::info!("trusting the controller's key {} from here on", signer.fingerprint());
        shell.pin(signer);
    }
}
