//! The command line: one file per verb.
//!
//! Exit status: 0 done, 1 it failed, 2 the command line was wrong.

use std::io::Write;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};

mod apply;
mod backup;
mod broker_config;
mod client;
mod contexts;
mod delete;
mod describe;
mod device;
mod flash;
mod get;
mod install;
mod login;
mod logs;
mod pin;
mod policy;
mod progress;
mod recover;
mod restore;
mod rotate;
mod run;
mod scale;
mod secret;
mod sign;
mod table;
mod token;
mod up;

use client::Client;

/// Orchestrates containers on fleets of small, badly connected machines.
#[derive(Parser)]
#[command(name = "limpet", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    controller: Controller,
}

/// Which controller to speak to.
#[derive(Args)]
struct Controller {
    /// A controller that is --insecure [http://127.0.0.1:8420, where nobody is logged in]
    #[arg(long, global = true, env = "LIMPET_SERVER", value_name = "URL")]
    server: Option<String>,
    /// One that `limpet login` has named [the current one of `limpet context list`]
    #[arg(long, global = true, env = "LIMPET_CONTEXT", value_name = "NAME")]
    context: Option<String>,
    /// Replaces the context's token
    #[arg(skip = std::env::var("LIMPET_TOKEN").ok().filter(|token| !token.is_empty()))]
    token: Option<String>,
}

#[derive(Subcommand)]
enum Verb {
    Up(up::Up),
    Install(install::Install),
    Uninstall(install::Uninstall),
    Run(Box<run::Run>),
    Scale(scale::Scale),
    Apply(apply::Apply),
    Get(get::Get),
    Describe(describe::Describe),
    Logs(logs::Logs),
    Delete(delete::Delete),
    Secret(secret::Secret),
    Backup(backup::Backup),
    Restore(restore::Restore),
    Recover(recover::Recover),
    Policy(policy::Policy),
    Rotate(rotate::Rotate),
    Device(device::Device),
    Flash(flash::Flash),
    Token(token::Token),
    Sign(sign::Sign),
    BrokerConfig(broker_config::BrokerConfig),
    Login(login::Login),
    Logout(login::Logout),
    Context(login::Choose),
    /// Print the versions of this program and of the controller
    Version,
    /// Print a script that completes limpet's words in a shell
    ///
    /// Example: limpet completion bash > /etc/bash_completion.d/limpet
    Completion {
        /// bash, zsh, fish, elvish or powershell
        shell: clap_complete::Shell,
    },
}

/// Does what the arguments say.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read has read enough.
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "limpet: {error:#}");
            ExitCode::from(if error.is::<Usage>() { 2 } else { 1 })
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let Cli { verb, controller } = cli;
    let client = || Client::find(&controller);
    match verb {
        Verb::Up(verb) => verb.run(),
        Verb::Install(verb) => verb.run(),
        Verb::Uninstall(verb) => verb.run(),
        Verb::Run(verb) => verb.run(&client()?),
        Verb::Scale(verb) => verb.run(&client()?),
        Verb::Apply(verb) => verb.run(&client()?),
        Verb::Get(verb) => verb.run(&client()?),
        Verb::Describe(verb) => verb.run(&client()?),
        Verb::Logs(verb) => verb.run(&client()?),
        Verb::Delete(verb) => verb.run(&client()?),
        Verb::Backup(verb) => verb.run(&client()?),
        Verb::Restore(verb) => verb.run(),
        Verb::Recover(verb) => verb.run(&client()?),
        Verb::Policy(verb) => verb.run(&client()?),
        Verb::Rotate(verb) => verb.run(&client()?),
        Verb::Device(verb) => verb.run(&client()?),
        Verb::Flash(verb) => verb.run(),
        Verb::Secret(verb) => verb.run(&client()?),
        Verb::Token(verb) => verb.run(&client()?),
        Verb::Sign(verb) => verb.run(),
        Verb::BrokerConfig(verb) => verb.run(),
        Verb::Login(verb) => verb.run(controller.context.as_deref()),
        Verb::Logout(verb) => verb.run(controller.context.as_deref()),
        Verb::Context(verb) => verb.run(),
        Verb::Version => version(&client()?),
        Verb::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "limpet", &mut script);
            print(&String::from_utf8_lossy(&script))
        }
    }
}

/// The command line was wrong, in a way that its parser cannot see.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(&'static str);

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

fn print(text: &str) -> anyhow::Result<()> {
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

fn version(client: &Client) -> anyhow::Result<()> {
    print(concat!("limpet ", env!("CARGO_PKG_VERSION"), "\n"))?;
    let controller: crate::view::VersionView = client.get("/api/v1/version")?;
    print(&format!("controller {} at {}\n", controller.version, client.server()))
}

/// `KEY=VALUE`, as flags take it.
fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".to_owned()),
    }
}
