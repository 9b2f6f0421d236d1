//! The agent's end of the socket.

use std::fs::Permissions;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use smol::LocalExecutor;
use smol::channel::{Receiver, Sender};
use smol::future::FutureExt;
use smol::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use smol::net::unix::{UnixListener, UnixStream};

use super::{Answer, LINE_BYTES_MAX, Line, PreloadNews, Request, socket};
use crate::logs::ring::Reader;
use crate::logs::stream;

/// The group that may talk to an agent.
const GROUP: &str = "limpet";
/// Who says nothing for this long is not listened to any more.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Conversations at once.
const CONVERSATIONS_MAX: usize = 16;

/// A request, and where its answer goes.
pub struct Asked {
    /// What is asked for.
    pub request: Request,
    /// To be answered once.
    pub answer: Sender<(Answer, Follows)>,
}

/// What follows an answer.
pub enum Follows {
    /// Nothing.
    Nothing,
    /// The log that these read, in order.
    Log(Vec<Reader>),
    /// News of a preload.
    Preload(Receiver<PreloadNews>),
}

/// Listens in a run folder, for as long as the executor runs.
///
/// # Errors
/// When the socket cannot be made.
pub fn start(
    executor: &Rc<LocalExecutor<'static>>,
    run_dir: &Path,
    asked: Sender<Asked>,
) -> std::io::Result<()> {
    let path = socket(run_dir);
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(&path)?;
    if let Some(group) = group() {
        std::os::unix::fs::chown(&path, None, Some(group))?;
        std::fs::set_permissions(run_dir, Permissions::from_mode(0o711))?;
    }
    std::fs::set_permissions(&path, Permissions::from_mode(0o660))?;
    let places = Arc::new(smol::lock::Semaphore::new(CONVERSATIONS_MAX));
    let conversations = Rc::clone(executor);
    let listen = async move {
        loop {
            let place = places.acquire_arc().await;
            match listener.accept().await {
                Ok((stream, _)) => {
                    let asked = asked.clone();
                    let talk = async move {
                        // Whoever has gone needs no answer.
                        let _ = talk(stream, asked).await;
                        drop(place);
                    };
                    conversations.spawn(talk).detach();
                }
                Err(error) => {
                    log::error!("the local socket: {error}");
                    smol::Timer::after(REQUEST_TIMEOUT).await;
                }
            }
        }
    };
    executor.spawn(listen).detach();
    Ok(())
}

async fn talk(stream: UnixStream, asked: Sender<Asked>) -> std::io::Result<()> {
    let mut out = stream.clone();
    let mut line = Vec::new();
    let mut bounded = BufReader::new(stream.take(LINE_BYTES_MAX));
    let read = async { bounded.read_until(b'\n', &mut line).await };
    let late = async {
        smol::Timer::after(REQUEST_TIMEOUT).await;
        Err(ErrorKind::TimedOut.into())
    };
    read.or(late).await?;
    let request: Request = match serde_json::from_slice(&line) {
        Ok(request) => request,
        Err(error) => {
            let why = format!("the request cannot be read: {error} (is it of another version?)");
            return send(&mut out, &Answer::Refused(why)).await;
        }
    };
    if request.is_for_root() && !is_root(&out) {
        let why = "the agent reads that file as root: ask as root".to_owned();
        return send(&mut out, &Answer::Refused(why)).await;
    }
    let (tail, follow) = if let Request::Logs { tail, follow, .. } = request {
        (usize::try_from(tail).unwrap_or(usize::MAX), follow)
    } else {
        (0, false)
    };
    let (answer, answered) = smol::channel::bounded(1);
    asked.send(Asked { request, answer }).await.map_err(|_| ErrorKind::BrokenPipe)?;
    let (answer, follows) = answered.recv().await.map_err(|_| ErrorKind::BrokenPipe)?;
    send(&mut out, &answer).await?;
    let gone = async {
        // Whoever asked says no more: bytes are as good as the end.
        bounded.read(&mut [0]).await.map(drop)
    };
    match follows {
        Follows::Nothing => Ok(()),
        Follows::Log(readers) => log(&mut out, readers, tail, follow).or(gone).await,
        // Whoever asked may go: it goes on without them.
        Follows::Preload(news) => {
            while let Ok(news) = news.recv().await {
                send(&mut out, &news).await?;
            }
            Ok(())
        }
    }
}

fn is_root(peer: &UnixStream) -> bool {
    let peer = rustix::net::sockopt::socket_peercred(peer);
    peer.is_ok_and(|peer| peer.uid.is_root())
}

async fn log(
    out: &mut UnixStream,
    readers: Vec<Reader>,
    tail: usize,
    follow: bool,
) -> std::io::Result<()> {
    let (mut lines, mut latest) = stream::latest(readers, tail);
    let mut ended = !follow;
    loop {
        for line in lines {
            let text = String::from_utf8_lossy(&line.bytes).into_owned();
            send(out, &Line { stream: line.stream.into(), at_ms: line.at_ms, text }).await?;
        }
        let Some(reader) = latest.as_mut().filter(|_| !ended) else {
            return Ok(());
        };
        let news;
        (news, ended) = stream::next(reader).await;
        lines = news.lines;
    }
}

async fn send<T: serde::Serialize>(out: &mut UnixStream, value: &T) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    out.write_all(&line).await
}

/// The number of the group, where the machine has one (group(5)).
fn group() -> Option<u32> {
    let text = std::fs::read_to_string("/etc/group").ok()?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(GROUP)?.strip_prefix(':'));
    lines.next()?.split(':').nth(1)?.parse().ok()
}
