//! Commands, their outcome, acknowledgements, and the streams that commands lease.

use serde::{Deserialize, Serialize};

use crate::hello::Nonce;
use crate::hpke::SealingKey;
use crate::id::{OutboxId, StreamId, WorkloadId};
use crate::join::Membership;

/// Log bytes in one chunk at most.
pub const CHUNK_BYTES_MAX: usize = 32 * 1024;

/// Tells a device what the controller's store has committed of its outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// The outbox it speaks of.
    #[serde(rename = "o")]
    pub outbox: OutboxId,
    /// Every event up to this number is stored.
    #[serde(rename = "e")]
    pub events: u64,
    /// Reports up to this sequence are stored.
    #[serde(rename = "r")]
    pub sequence: u64,
    /// The controller's view differs from the device's: send a complete report.
    #[serde(rename = "w", default)]
    pub send_whole: bool,
}

impl Ack {
    /// The connection that an acknowledgement answers where the controller knows of none: the device is
    /// to say hello again.
    pub const NO_CONNECTION: u64 = 0;
}

/// An order for one connection of one device. Its number is in the envelope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// Of the hello that it answers; any other connection ignores it.
    #[serde(rename = "n")]
    pub nonce: Nonce,
    /// What to do.
    #[serde(rename = "a")]
    pub action: Action,
}

/// What a device can be told to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Send a workload's log while the lease lasts. Sent again, it renews the lease.
    #[serde(rename = "log")]
    Logs {
        /// Where the chunks go.
        #[serde(rename = "s")]
        stream: StreamId,
        /// Whose log.
        #[serde(rename = "w")]
        workload: WorkloadId,
        /// Begin with this many of the latest lines.
        #[serde(rename = "t")]
        tail: u32,
        /// Go on with what is written from then on.
        #[serde(rename = "f")]
        follow: bool,
        /// Nothing is sent after this long without a renewal, in milliseconds.
        #[serde(rename = "l")]
        lease_ms: u32,
        /// What its chunks are sealed to. A controller that names none is too old: nothing is sent.
        #[serde(rename = "k", default, skip_serializing_if = "Option::is_none")]
        key: Option<SealingKey>,
    },
    /// Send the signed desired state that is in force, as it is stored: [`Returned`].
    #[serde(rename = "ret")]
    ReturnDesired,
    /// From here on the device is a member on these terms.
    #[serde(rename = "mem")]
    Membership(Box<Membership>),
    /// End a stream.
    #[serde(rename = "end")]
    EndStream {
        /// The stream.
        #[serde(rename = "s")]
        stream: StreamId,
    },
}

/// The desired state that a device holds. Its number, in the envelope, is that of the command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Returned {
    /// The message of [`crate::Kind::Desired`] as the controller signed it.
    #[serde(rename = "d", with = "serde_bytes")]
    pub signed: Vec<u8>,
}

/// What became of a command. Its number is in the envelope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandResult {
    /// Absent where it was done; otherwise why not.
    #[serde(rename = "e")]
    pub error: Option<String>,
}

/// A [`StreamChunk`], sealed to the key that its command named; see [`crate::StreamSealer`]. Its
/// number, from 0, is in the envelope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedChunk {
    /// The sender's key: the same throughout a stream.
    #[serde(rename = "k")]
    pub sender: SealingKey,
    /// The chunk, sealed.
    #[serde(rename = "b", with = "serde_bytes")]
    pub body: Vec<u8>,
}

/// A piece of a leased log; on the wire within a [`SealedChunk`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamChunk {
    /// Lines, or parts of long ones, in order; at most [`CHUNK_BYTES_MAX`] bytes.
    #[serde(rename = "l")]
    pub lines: Vec<LogLine>,
    /// Bytes that were overwritten before they could be sent.
    #[serde(rename = "g", default)]
    pub gap_bytes: u64,
    /// Nothing follows.
    #[serde(rename = "e", default)]
    pub end: bool,
}

/// What a container wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// Which of its streams.
    #[serde(rename = "s")]
    pub stream: LogStream,
    /// Wall clock of the device, in milliseconds since 1970.
    #[serde(rename = "t")]
    pub at_ms: u64,
    /// The bytes, without the newline.
    #[serde(rename = "b", with = "serde_bytes")]
    pub bytes: Vec<u8>,
}

/// The streams of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogStream {
    /// Standard output.
    #[serde(rename = "o")]
    Stdout,
    /// Standard error.
    #[serde(rename = "e")]
    Stderr,
}
