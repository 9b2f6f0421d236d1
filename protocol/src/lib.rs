//! The nouns and the wire of Limpet: what a workload is, what a device is told, what it reports,
//! and how every message is named, encoded, bounded and signed.
//!
//! Shared by agent and controller, which never import each other. No IO, no clock, no threads.
#![forbid(unsafe_code)]

pub mod cbor;
pub mod command;
pub mod desired;
pub mod envelope;
pub mod event;
pub mod hello;
pub mod host;
mod hpke;
pub mod id;
pub mod image;
pub mod invitation;
pub mod join;
pub mod key;
pub mod manifest;
pub mod policy;
pub mod reported;
pub mod sealed;
pub mod spec;
pub mod topic;
pub mod upgrade;

pub use command::{
    Ack, Action, Command, CommandResult, LogLine, LogStream, Returned, SealedChunk, StreamChunk,
};
pub use desired::{DesiredState, Held, Workload};
pub use envelope::{Envelope, EnvelopeError, Expected, Header, Kind};
pub use event::{Event, EventBatch, EventKind};
pub use hello::{BootId, Facts, Feature, Hello, Labels, Nonce, Presence, PresenceState};
pub use host::{DeviceAccess, HostAccess, HostDevice, HostMount};
pub use hpke::{OpeningKey, SealError, SealingKey};
pub use id::{
    AgentVersion, ContainerId, DeploymentName, DeviceId, Digest, IdError, OutboxId, SecretName,
    StreamId, WorkloadId,
};
pub use image::{ImageName, NameError};
pub use invitation::{Invitation, InvitationError, Purpose, Token, TokenId};
pub use join::{Join, Membership, Renew};
pub use key::{KeyError, PublicKey, SigningKey};
pub use manifest::SignedManifest;
pub use policy::{DigestRule, ImageKey, ImagePolicies, ImagePolicy};
pub use reported::{Exit, Phase, Record, Reported, WorkloadStatus};
pub use sealed::{ChunkError, Plaintext, SealedSecret, StreamOpener, StreamSealer};
pub use spec::{Resources, Restart, SecretPlace, SecretUse, Signal, Stop, WorkloadSpec};
pub use topic::{Leaf, Prefix, Topic, TopicError};
pub use upgrade::{Upgrade, UpgradePhase, UpgradeStatus};
