//! From bytes on a topic to an input that the core may believe.

use std::rc::Rc;
use std::sync::Arc;

use limpet_agent_core::Input;
use limpet_protocol::envelope::{self, EnvelopeError, Expected};
use limpet_protocol::{
    Ack, Command, DesiredState, Envelope, Held, Kind, Leaf, Nonce, Prefix, PublicKey, Topic,
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
            FromLink::Outdated => {
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
    let leaf = match Topic::parse(&Prefix::default(), &topic)? {
        Topic::Device(_, leaf @ (Leaf::Desired | Leaf::Command | Leaf::Ack)) => leaf,
        Topic::Device(..) | Topic::Deploy(_) | Topic::DeployResult(_) => {
            return Err(Refusal::Misplaced(topic));
        }
    };
    let (identity, kind) = (shell.identity(), leaf.kind());
    let envelope = verify(&identity, kind, payload)
        .or_else(|refused| verify_waning(shell, &identity, kind, payload).ok_or(refused))
        .map_err(|source| Refusal::Envelope { topic: topic.clone(), source })?;
    if identity.controller == Some(envelope.signer) {
        shell.waned();
    }
    let body = |source| Refusal::Body { topic: topic.clone(), source };
    let number = envelope.header.number;
    let input = match leaf {
        Leaf::Desired => {
            let state: DesiredState = envelope.read().map_err(body)?;
            let outside = Held { epoch: envelope.header.epoch, generation: number };
            if state.held != outside {
                return Err(Refusal::Renumbered { inside: state.held, outside });
            }
            Input::Desired { state: Box::new(state), signed: payload.to_vec() }
        }
        Leaf::Command => {
            let Command { nonce, action } = envelope.read().map_err(body)?;
            Input::Commanded { number, nonce, action }
        }
        Leaf::Ack => {
            Input::Acked { connection: number, ack: envelope.read::<Ack>().map_err(body)? }
        }
        Leaf::Presence
        | Leaf::Hello
        | Leaf::Reported
        | Leaf::Event
        | Leaf::Result
        | Leaf::Returned
        | Leaf::Stream(_) => return Err(Refusal::Misplaced(topic)),
    };
    trust(shell, &identity, envelope.signer);
    Ok(input)
}

/// Opens a message of the controller; the first one ever decides whose messages are believed.
pub(super) fn verify(
    identity: &Identity,
    kind: Kind,
    payload: &[u8],
) -> Result<Envelope, EnvelopeError> {
    verify_by(identity, kind, identity.controller.as_ref(), payload)
}

/// Opens a message that was on its way when the controller's key became another.
fn verify_waning(
    shell: &Shell,
    identity: &Identity,
    kind: Kind,
    payload: &[u8],
) -> Option<Envelope> {
    verify_by(identity, kind, Some(&shell.waning()?), payload).ok()
}

fn verify_by(
    identity: &Identity,
    kind: Kind,
    signer: Option<&PublicKey>,
    payload: &[u8],
) -> Result<Envelope, EnvelopeError> {
    let prefix = Prefix::default();
    envelope::open(payload, Expected { prefix: &prefix, device: &identity.device, kind, signer })
}

/// Opens the stored desired state, which the controller's key before the present one may have signed.
pub(super) fn verify_stored(identity: &Identity, signed: &[u8]) -> Result<Envelope, EnvelopeError> {
    let opened = verify(identity, Kind::Desired, signed);
    match &identity.controller_before {
        Some(before) if opened.is_err() => {
            verify_by(identity, Kind::Desired, Some(before), signed).or(opened)
        }
        Some(_) | None => opened,
    }
}

/// Whether a stored desired state is proved by the key before the present one, and by it alone.
pub(super) fn rests_on_before(identity: &Identity, signed: &[u8]) -> bool {
    verify(identity, Kind::Desired, signed).is_err() && verify_stored(identity, signed).is_ok()
}

fn trust(shell: &Shell, identity: &Arc<Identity>, signer: PublicKey) {
    if identity.controller.is_none() {
        log::info!("trusting the controller's key {} from here on", signer.fingerprint());
        shell.pin(signer);
    }
}

#[cfg(test)]
mod tests {
    use limpet_protocol::{Header, SigningKey};

    use super::*;

    fn key(byte: u8) -> SigningKey {
        SigningKey::from_seed(&[byte; 32]).unwrap()
    }

    /// A device that believes these two.
    fn believing(controller: Option<u8>, before: Option<u8>) -> Identity {
        Identity {
            device: "pi-1".parse().unwrap(),
            key: Arc::new(key(9)),
            controller: controller.map(|byte| key(byte).public()),
            controller_before: before.map(|byte| key(byte).public()),
            membership: None,
        }
    }

    fn signed(kind: Kind, by: u8) -> Vec<u8> {
        let header = Header {
            prefix: Prefix::default().to_string(),
            device: "pi-1".parse().unwrap(),
            kind,
            epoch: 1,
            number: 1,
        };
        envelope::seal(&key(by), &header, &"body")
    }

    #[test]
    fn what_is_stored_may_be_of_the_key_before_and_what_comes_may_not() {
        for (present, before, by, comes, stored, rests) in [
            (Some(1), None, 1, true, true, false),
            (Some(1), None, 2, false, false, false),
            (Some(2), Some(1), 2, true, true, false),
            (Some(2), Some(1), 1, false, true, true),
            (Some(3), Some(2), 1, false, false, false),
            // Nobody is believed yet: the first is.
            (None, None, 1, true, true, false),
        ] {
            let identity = believing(present, before);
            let desired = signed(Kind::Desired, by);
            let what = format!("{present:?} {before:?} {by}");
            assert_eq!(verify(&identity, Kind::Desired, &desired).is_ok(), comes, "{what}");
            assert_eq!(verify_stored(&identity, &desired).is_ok(), stored, "{what}");
            assert_eq!(rests_on_before(&identity, &desired), rests, "{what}");
            // Nothing else that is stored, and no command, passes for a desired state.
            assert!(verify_stored(&identity, &signed(Kind::Command, by)).is_err(), "{what}");
            let command = signed(Kind::Command, by);
            assert_eq!(verify(&identity, Kind::Command, &command).is_ok(), comes, "{what}");
        }
    }
}
