//! A leased log stream: chunks of a container's log, for as long as somebody looks.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use limpet_protocol::command::CHUNK_BYTES_MAX;
use limpet_protocol::{
    Kind, Leaf, LogLine, Prefix, StreamChunk, StreamId, StreamSealer, Topic, envelope,
};

use super::ring::{News, Reader};
use crate::clock;
use crate::device::header;
use crate::link::{Order, ToLink};
use crate::state::Identity;

/// How often a log that is followed is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Lines that a stream may begin with, whatever is asked for.
const TAIL_MAX: u32 = 10_000;

/// Where chunks go.
pub struct Sender {
    /// Signs them.
    pub identity: Arc<Identity>,
    /// The link.
    pub to_link: smol::channel::Sender<ToLink>,
    /// The connection that the stream belongs to.
    pub connection: u64,
    /// The stream.
    pub stream: StreamId,
    /// Seals them to whoever looks.
    pub sealer: StreamSealer,
}

/// Sends the latest `tail` lines of several containers, in order, and, where asked, what the last
/// of them writes from then on, until it ends or the lease does.
pub async fn run(
    mut sender: Sender,
    readers: Vec<Reader>,
    tail: u32,
    follow: bool,
    until_ms: Rc<Cell<u64>>,
) {
    let tail = usize::try_from(tail.min(TAIL_MAX)).unwrap_or(0);
    let (lines, latest) = latest(readers, tail);
    let followed = latest.filter(|_| follow);
    sender.send(News { lines, gap_bytes: 0 }, followed.is_none()).await;
    let Some(mut reader) = followed else {
        return;
    };
    let mut ended = false;
    while !ended && clock::boot_ms() < until_ms.get() {
        let news;
        (news, ended) = next(&mut reader).await;
        if ended || !news.lines.is_empty() || news.gap_bytes > 0 {
            sender.send(news, ended).await;
        }
    }
}

/// The latest `tail` lines of several rings, in order, and the last of them, to go on with.
pub(crate) fn latest(readers: Vec<Reader>, tail: usize) -> (Vec<LogLine>, Option<Reader>) {
    let (mut lines, mut latest) = (Vec::new(), None);
    for mut reader in readers {
        lines.extend(reader.tail(tail));
        latest = Some(reader);
    }
    (lines.split_off(lines.len().saturating_sub(tail)), latest)
}

/// What is written next, after a little while, and whether that is the end.
pub(crate) async fn next(reader: &mut Reader) -> (News, bool) {
    smol::Timer::after(LOOK_EVERY).await;
    // Asked first: what is written last is read after it.
    let ended = reader.is_over();
    (reader.more(), ended)
}

impl Sender {
    async fn send(&mut self, news: News, end: bool) {
        let mut chunks = parts(news.lines);
        if chunks.is_empty() {
            chunks.push(Vec::new());
        }
        let last = chunks.len() - 1;
        for (index, lines) in chunks.into_iter().enumerate() {
            let gap_bytes = if index == 0 { news.gap_bytes } else { 0 };
            let chunk = StreamChunk { lines, gap_bytes, end: end && index == last };
            let (number, chunk) = match self.sealer.seal(&chunk) {
                Ok(sealed) => sealed,
                Err(error) => return log::error!("a piece of a log is not sent: {error}"),
            };
            let head = header(&self.identity, Kind::Stream, 0, number);
            let payload = envelope::seal(&self.identity.key, &head, &chunk);
            let topic = Topic::Device(self.identity.device.clone(), Leaf::Stream(self.stream));
            let topic = topic.under(&Prefix::default());
            let order = Order::Publish { topic, payload, retain: false };
            let message = ToLink { connection: self.connection, order };
            if self.to_link.send(message).await.is_err() {
                return;
            }
        }
    }
}

/// Lines in portions that fit into a chunk.
fn parts(lines: Vec<LogLine>) -> Vec<Vec<LogLine>> {
    let mut parts: Vec<Vec<LogLine>> = Vec::new();
    let mut room = 0;
    for line in lines {
        let cost = line.bytes.len() + 24;
        match parts.last_mut().filter(|_| cost <= room) {
            Some(part) => part.push(line),
            None => {
                parts.push(vec![line]);
                room = CHUNK_BYTES_MAX;
            }
        }
        room = room.saturating_sub(cost);
    }
    parts
}
