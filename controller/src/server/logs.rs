//! Logs that somebody looks at: a lease on the device, renewed while they do.

use std::time::Duration;

use limpet_protocol::{
    Action, ChunkError, DeviceId, LogLine, LogStream, SealedChunk, SealingKey, StreamId,
    StreamOpener, WorkloadId,
};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::clock::rfc3339;
use super::fleet::{Caller, Fleet, Handle};
use crate::view::LogLineView;

/// How long a device goes on without a renewal.
const LEASE: Duration = Duration::from_secs(30);
const RENEW_EVERY: Duration = Duration::from_secs(10);
/// Chunks that wait for whoever looks; more are dropped, and the gap is shown.
const QUEUE: usize = 256;

/// A piece of what a device sends.
#[derive(Debug)]
pub(super) enum Part {
    Lines(Vec<LogLineView>),
    End,
    Failed(String),
}

/// One look at a log.
pub(super) struct Stream {
    pub(super) device: DeviceId,
    pub(super) command: u64,
    opener: StreamOpener,
    /// Parts that whoever looks has missed and was not told of.
    lost: u64,
    parts: Sender<Part>,
}

/// What is looked at.
#[derive(Debug, Clone)]
pub(super) struct Look {
    pub(super) caller: Caller,
    pub(super) device: DeviceId,
    pub(super) workload: WorkloadId,
    pub(super) tail: u32,
    pub(super) follow: bool,
}

/// Why a log cannot be looked at.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum LogError {
    #[error("device {0} is offline: its log can be read when it is back")]
    Offline(DeviceId),
    #[error("there is no device {0}")]
    NoDevice(DeviceId),
    #[error("the system gave no random bytes")]
    NoRandomness,
}

impl Stream {
    /// Takes a chunk in; the error says why it is refused.
    pub(super) fn take(&mut self, number: u64, chunk: &SealedChunk) -> Result<(), String> {
        let (missing, chunk) = match self.opener.open(number, chunk) {
            Ok(opened) => opened,
            // The broker may do that: whoever looks goes on with what comes next.
            Err(error @ ChunkError::Late { .. }) => return Err(error.to_string()),
            Err(error) => {
                self.fail(error.to_string());
                return Err(error.to_string());
            }
        };
        self.lost += missing;
        let mut lines = Vec::new();
        if self.lost > 0 || chunk.gap_bytes > 0 {
            let line = match chunk.gap_bytes {
                0 => format!("{} parts of the log are lost", self.lost),
                bytes => format!("{bytes} bytes were overwritten before they could be sent"),
            };
            lines.push(LogLineView { stream: "gap".to_owned(), at: None, line });
        }
        lines.extend(chunk.lines.into_iter().map(line_view));
        // Who looks is slower than what is written: the next chunk that fits shows the gap.
        match self.parts.try_send(Part::Lines(lines)) {
            Ok(()) => self.lost = 0,
            Err(_) => self.lost += 1,
        }
        if chunk.end {
            let _ = self.parts.try_send(Part::End);
        }
        Ok(())
    }

    pub(super) fn fail(&mut self, error: String) {
        let _ = self.parts.try_send(Part::Failed(error));
    }
}

fn line_view(line: LogLine) -> LogLineView {
    let stream = match line.stream {
        LogStream::Stdout => "stdout",
        LogStream::Stderr => "stderr",
    };
    LogLineView {
        stream: stream.to_owned(),
        at: rfc3339(line.at_ms),
        line: String::from_utf8_lossy(&line.bytes).into_owned(),
    }
}

/// A look that goes on until it is dropped.
pub(super) struct Open {
    pub(super) parts: Receiver<Part>,
    stream: StreamId,
    device: DeviceId,
    fleet: Handle,
    renewal: tokio::task::JoinHandle<()>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.renewal.abort();
        let (stream, device) = (self.stream, self.device.clone());
        self.fleet.tell(move |fleet| {
            if fleet.streams.remove(&stream).is_some() {
                fleet.command(&device, Action::EndStream { stream });
            }
        });
    }
}

/// Asks a device for a log.
pub(super) async fn open(fleet: &Handle, look: Look) -> Result<Open, String> {
    let mut id = [0; 8];
    let drawn = SystemRandom::new().fill(&mut id);
    drawn.map_err(|_| LogError::NoRandomness.to_string())?;
    let stream = StreamId(id);
    let opener = StreamOpener::new(look.device.clone(), stream);
    let opener = opener.map_err(|_| LogError::NoRandomness.to_string())?;
    let key = opener.sealing_key();
    let (sender, parts) = channel(QUEUE);
    let asked = look.clone();
    let ordered = fleet.call(move |fleet| fleet.open_log(&asked, opener, sender)).await;
    ordered.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
    let (renewing, device) = (fleet.clone(), look.device.clone());
    let renewal = tokio::spawn(async move {
        loop {
            tokio::time::sleep(RENEW_EVERY).await;
            let look = look.clone();
            renewing.tell(move |fleet| fleet.renew_log(stream, &look, key));
        }
    });
    Ok(Open { parts, stream, device, fleet: fleet.clone(), renewal })
}

fn action(stream: StreamId, look: &Look, key: SealingKey) -> Action {
    let lease_ms = u32::try_from(LEASE.as_millis()).unwrap_or(u32::MAX);
    let Look { workload, tail, follow, .. } = look.clone();
    Action::Logs { stream, workload, tail, follow, lease_ms, key: Some(key) }
}

impl Fleet {
    fn open_log(
        &mut self,
        look: &Look,
        opener: StreamOpener,
        parts: Sender<Part>,
    ) -> Result<(), LogError> {
        let device = look.device.clone();
        if !self.knows(&device) || !self.sees(look.caller.scope(), &device) {
            return Err(LogError::NoDevice(device));
        }
        let (stream, key) = (opener.stream(), opener.sealing_key());
        let command = self.command(&device, action(stream, look, key));
        let command = command.ok_or_else(|| LogError::Offline(device.clone()))?;
        self.streams.insert(stream, Stream { device, command, opener, lost: 0, parts });
        Ok(())
    }

    fn renew_log(&mut self, stream: StreamId, look: &Look, key: SealingKey) {
        if self.is_still_good(&look.caller) && self.sees(look.caller.scope(), &look.device) {
            self.command(&look.device, action(stream, look, key));
        } else if let Some(stream) = self.streams.get_mut(&stream) {
            stream
                .fail("the token that it is read with does not let it be read any more".to_owned());
        }
    }
}
