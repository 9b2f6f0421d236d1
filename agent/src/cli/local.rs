//! Verbs that talk to the agent of this machine.

use std::io::Write;

use anyhow::Context;
use lexopt::prelude::*;
use limpet_protocol::WorkloadId;

use super::time::{duration_ms, moment_ms};
use crate::clock;
use crate::config::{self, Flags};
use crate::local::{self, Answer, Line, Lines, Request, Status, Stream};

/// Lines that `logs` begins with.
const TAIL: u32 = 100;
/// A device that is to sleep for longer has been switched off.
const SLEEP_MS_MAX: u64 = 366 * 86_400_000;

/// What is asked, and of which agent.
pub(super) struct Asked {
    request: Request,
    flags: Flags,
    json: bool,
}

/// Reads what follows the verb; None where it asks for help.
pub(super) fn parse(
    verb: &str,
    mut parser: lexopt::Parser,
) -> Result<Option<Asked>, lexopt::Error> {
    let (mut workload, mut tail, mut follow) = (None, TAIL, false);
    let (mut for_ms, mut json, mut flags) = (None, false, Flags::default());
    while let Some(argument) = parser.next()? {
        match argument {
            Long("run-dir") => flags.run_dir = Some(parser.value()?.into()),
            Long("config") => flags.config = Some(parser.value()?.into()),
            Short('h') | Long("help") => return Ok(None),
            Short('o') | Long("output") if verb == "status" => json = output(&mut parser)?,
            Short('f') | Long("follow") if verb == "logs" => follow = true,
            Long("tail") if verb == "logs" => tail = parser.value()?.parse()?,
            Long("for") if verb == "sleep" => for_ms = Some(parser.value()?.parse_with(duration)?),
            Long("until") if verb == "sleep" => for_ms = Some(parser.value()?.parse_with(until)?),
            Value(id) if workload.is_none() && !["status", "sleep", "wake"].contains(&verb) => {
                let id = id.string()?;
                let parsed = id.parse::<WorkloadId>();
                workload = Some(parsed.map_err(|error| format!("workload {id:?}: {error}"))?);
            }
            Short(_) | Long(_) | Value(_) => return Err(argument.unexpected()),
        }
    }
    let workload = workload.ok_or_else(|| {
        lexopt::Error::from(format!("which workload? `limpet-agent {verb} WORKLOAD`; see status"))
    });
    let request = match verb {
        "status" => Request::Status,
        "wake" => Request::Wake,
        "sleep" => Request::Sleep {
            for_ms: for_ms.ok_or("for how long? `--until TIME` or `--for DURATION`")?,
        },
        "logs" => Request::Logs { workload: workload?, tail, follow },
        "stop" => Request::Stop { workload: workload? },
        "start" => Request::Start { workload: workload? },
        _ => Request::Restart { workload: workload? },
    };
    Ok(Some(Asked { request, flags, json }))
}

fn output(parser: &mut lexopt::Parser) -> Result<bool, lexopt::Error> {
    match parser.value()?.string()?.as_str() {
        "json" => Ok(true),
        "table" => Ok(false),
        other => Err(format!("output {other:?}: use table or json").into()),
    }
}

fn duration(text: &str) -> Result<u64, String> {
    let ms = duration_ms(text).filter(|ms| (1..=SLEEP_MS_MAX).contains(ms));
    ms.ok_or_else(|| "use a number with s, m, h or d, up to 366d, such as 8h".to_owned())
}

fn until(text: &str) -> Result<u64, String> {
    let at_ms = moment_ms(text).ok_or("use RFC 3339, such as 2026-11-26T06:00:00Z")?;
    let for_ms = at_ms.saturating_sub(clock::wall_ms());
    match for_ms {
        0 => Err("that is over by this machine's clock".to_owned()),
        1..=SLEEP_MS_MAX => Ok(for_ms),
        _ => Err("that is more than 366 days away by this machine's clock".to_owned()),
    }
}

/// Asks, and shows what is answered.
pub(super) fn ask(asked: &Asked) -> anyhow::Result<()> {
    let run_dir = config::run_dir(&asked.flags)?;
    let (answer, lines) = local::ask(&run_dir, &asked.request)?;
    let shown = match (&answer, &asked.request) {
        (Answer::Status(status), _) if asked.json => {
            writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(status)?)
        }
        (Answer::Status(status), _) => show(status),
        (Answer::Done | Answer::Refused(_), Request::Logs { .. }) => return follow(lines),
        (Answer::Done | Answer::Refused(_), _) => Ok(()),
    };
    shown.context("cannot write to standard output")
}

fn show(status: &Status) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    let link = if status.connected { "connected to" } else { "not connected to" };
    let held = status.held.as_deref().unwrap_or("none yet");
    writeln!(out, "device         {}", status.device)?;
    writeln!(out, "agent          {}", status.version)?;
    writeln!(out, "controller     {link} {}", status.broker)?;
    writeln!(out, "desired state  {held}")?;
    writeln!(out, "events         {} to be told", status.events_waiting)?;
    if status.workloads.is_empty() {
        return writeln!(out, "no workloads");
    }
    let width = status.workloads.iter().map(|line| line.workload.len()).max().unwrap_or(0).max(8);
    writeln!(
        out,
        "\n{:width$}  {:8}  {:>8}  {:>8}  IMAGE",
        "WORKLOAD", "PHASE", "PID", "RESTARTS"
    )?;
    for line in &status.workloads {
        let pid = line.pid.map_or("-".to_owned(), |pid| pid.to_string());
        let message = match line.message.as_str() {
            "" => String::new(),
            message => format!("  {message}"),
        };
        writeln!(
            out,
            "{:width$}  {:8}  {pid:>8}  {:>8}  {}{message}",
            line.workload, line.phase, line.restarts, line.image
        )?;
    }
    Ok(())
}

fn follow(mut lines: Lines) -> anyhow::Result<()> {
    while let Some(Line { stream, text, .. }) = lines.read()? {
        let written = match stream {
            Stream::Stdout => writeln!(std::io::stdout(), "{text}"),
            Stream::Stderr => writeln!(std::io::stderr(), "{text}"),
        };
        match written {
            // A pager that has seen enough.
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
            written => written.context("cannot write the log")?,
        }
    }
    Ok(())
}
