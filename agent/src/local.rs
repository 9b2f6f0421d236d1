//! Local control: what a person on site asks of the agent on their machine, with no controller in
//! reach.
//!
//! A socket in the run folder, for root and the group `limpet`. A connection carries one request, a
//! line of JSON, and its answer: lines of JSON, of which the first says whether it was done.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use limpet_protocol::{LogStream, WorkloadId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub mod server;

/// The name of the socket in the run folder.
const SOCKET: &str = "agent.sock";
/// A line at most: a log line of 4 KiB in JSON, each byte escaped.
const LINE_BYTES_MAX: u64 = 64 * 1024;

/// What can be asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Where everything stands.
    Status,
    /// A workload's log.
    Logs {
        /// Whose.
        workload: WorkloadId,
        /// Begin with this many of the latest lines.
        tail: u32,
        /// Go on with what is written from then on.
        follow: bool,
    },
    /// End a workload until another desired state, or until it is started.
    Stop {
        /// Which.
        workload: WorkloadId,
    },
    /// Start a workload.
    Start {
        /// Which.
        workload: WorkloadId,
    },
    /// End a workload and start it anew.
    Restart {
        /// Which.
        workload: WorkloadId,
    },
    /// Tell the controller that the device sleeps, and keep away from the network.
    Sleep {
        /// For how long, in milliseconds.
        for_ms: u64,
    },
    /// Go back to the network.
    Wake,
    /// Take images from a file or folder and keep them; root alone may ask for it, because the
    /// agent reads the file.
    Preload {
        /// Its absolute path.
        file: PathBuf,
        /// The name of its one image.
        name: Option<String>,
    },
    /// Let go of an image that was preloaded; root alone.
    Unpin {
        /// Its name.
        name: String,
    },
}

impl Request {
    /// Whether only root may ask for it.
    fn is_for_root(&self) -> bool {
        match self {
            Self::Preload { .. } | Self::Unpin { .. } => true,
            Self::Status
            | Self::Logs { .. }
            | Self::Stop { .. }
            | Self::Start { .. }
            | Self::Restart { .. }
            | Self::Sleep { .. }
            | Self::Wake => false,
        }
    }
}

/// What is told of a preload, a line each.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PreloadNews {
    /// So many bytes of so many.
    Progress(u64, u64),
    /// An image is here and kept.
    Preloaded(String),
    /// None of it is, and why.
    Failed(String),
}

/// The first line of an answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// It is done, or begun: for logs and preloads lines follow.
    Done,
    /// It cannot be done, and why.
    Refused(String),
    /// Where everything stands.
    Status(Box<Status>),
}

/// Where a device stands.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// Its id.
    pub device: String,
    /// The agent's version.
    pub version: String,
    /// The broker.
    pub broker: String,
    /// Connected, and heard by the controller.
    pub connected: bool,
    /// Epoch and generation of the desired state in force; None before the first.
    pub held: Option<String>,
    /// Events that the controller has yet to be told.
    pub events_waiting: usize,
    /// The workloads.
    pub workloads: Vec<WorkloadLine>,
}

/// One workload of a device.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WorkloadLine {
    /// Its id.
    pub workload: String,
    /// Where it is in its life.
    pub phase: String,
    /// The number of its latest container.
    pub container: u32,
    /// Its main process, while it runs.
    pub pid: Option<u32>,
    /// Containers that replaced one which had ended.
    pub restarts: u32,
    /// Its image.
    pub image: String,
    /// For a person.
    pub message: String,
}

/// A line of a log.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Line {
    /// `stdout` or `stderr`.
    pub stream: Stream,
    /// Wall clock, in milliseconds since 1970.
    pub at_ms: u64,
    /// The line; what is not UTF-8 in it is replaced.
    pub text: String,
}

/// The streams of a container.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl From<LogStream> for Stream {
    fn from(stream: LogStream) -> Self {
        match stream {
            LogStream::Stdout => Self::Stdout,
            LogStream::Stderr => Self::Stderr,
        }
    }
}

/// Why an agent could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// Nobody listens.
    #[error("no agent answers at {path}: {source} (is it running? `--run-dir` names its folder)")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The connection broke.
    #[error("the agent ended the conversation: {0}")]
    Broken(#[from] std::io::Error),
    /// An answer of another version.
    #[error("the agent's answer cannot be read: {0} (is it of another version?)")]
    Answer(#[from] serde_json::Error),
    /// It said no.
    #[error("{0}")]
    Refused(String),
}

/// Where the socket of a run folder is.
pub fn socket(run_dir: &Path) -> PathBuf {
    run_dir.join(SOCKET)
}

/// Asks the agent of a run folder; the lines that follow its answer are to be read.
///
/// # Errors
/// When no agent answers, or it refuses.
pub fn ask(run_dir: &Path, request: &Request) -> Result<(Answer, Lines), LocalError> {
    let path = socket(run_dir);
    let mut stream =
        UnixStream::connect(&path).map_err(|source| LocalError::Connect { path, source })?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut lines = Lines(BufReader::new(stream));
    match lines.read()? {
        Some(Answer::Refused(why)) => Err(LocalError::Refused(why)),
        Some(answer) => Ok((answer, lines)),
        None => Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
    }
}

/// What follows an answer.
pub struct Lines(BufReader<UnixStream>);

impl Lines {
    /// The next one; None at the end.
    ///
    /// # Errors
    /// When the connection breaks, or a line cannot be read.
    pub fn read<T: DeserializeOwned>(&mut self) -> Result<Option<T>, LocalError> {
        let mut line = Vec::new();
        let mut bounded = std::io::Read::take(&mut self.0, LINE_BYTES_MAX);
        if bounded.read_until(b'\n', &mut line)? == 0 {
            return Ok(None);
        }
        Ok(Some(serde_json::from_slice(&line)?))
    }
}
