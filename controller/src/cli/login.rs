//! `limpet login`, `limpet logout`

use std::io::Read;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Args;
use limpet_protocol::{Invitation, Purpose};

use super::client::Client;
use super::contexts::{self, Context, ContextError, Contexts};
use super::{Usage, pin, print};
use crate::view::WhoView;

/// An invitation has 2 KB at most.
const TEXT_BYTES_MAX: u64 = 8 * 1024;

/// Log in to a controller, with the string of `limpet token create`
///
/// The controller and the token are kept as a context, in contexts.json of the folder limpet in
/// $XDG_CONFIG_HOME or ~/.config, which nobody else can read. --context names it; the server's
/// address is its name where nothing is said.
///
/// A string that is typed as an argument can be seen by other users while the command runs, and
/// stays in the shell's history: a file, or standard input, tells nobody.
///
/// Examples:
///   limpet login --file /var/lib/limpet-controller/login
///   ssh controller limpet token create --role viewer --name me | limpet login -
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Login {
    /// The string; `-` is standard input
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    string: Option<String>,
    /// Read it from a file
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

impl Login {
    pub(super) fn run(self, name: Option<&str>) -> anyhow::Result<()> {
        let invitation = Invitation::parse(&self.text()?, Purpose::Login)?;
        let path = contexts::path()?;
        // First: where it cannot be kept, nobody is asked.
        let mut contexts = Contexts::load(&path)?;
        let context = reach(&invitation)?;
        let who: WhoView = Client::of(&context)?.get("/api/v1/whoami")?;
        let name = name.unwrap_or(&context.server).to_owned();
        let said = format!(
            "logged in to {} as {} ({}); context {name}\n",
            context.server, who.who, who.role
        );
        contexts.current = Some(name.clone());
        contexts.contexts.insert(name, context);
        contexts.save(&path)?;
        print(&said)
    }

    fn text(&self) -> anyhow::Result<String> {
        let mut text = String::new();
        match (&self.string, &self.file) {
            (_, Some(file)) => {
                let opened = std::fs::File::open(file);
                let read = opened.and_then(|f| f.take(TEXT_BYTES_MAX).read_to_string(&mut text));
                read.with_context(|| format!("cannot read {}", file.display()))?;
            }
            (Some(dash), None) if dash == "-" => {
                let read = std::io::stdin().take(TEXT_BYTES_MAX).read_to_string(&mut text);
                read.context("cannot read standard input")?;
            }
            (Some(string), None) => text.clone_from(string),
            (None, None) => return Err(Usage("say the string, or --file").into()),
        }
        Ok(text)
    }
}

/// The first of the invitation's servers that answers, and is who it should be.
fn reach(invitation: &Invitation) -> anyhow::Result<Context> {
    let Invitation { servers, pin, token, .. } = invitation;
    let mut failed = Vec::new();
    for server in servers {
        match pin::authorities(server, pin) {
            Ok(roots) => {
                let (server, pin) = (server.clone(), pin.to_string());
                return Ok(Context { server, pin, roots, token: token.to_string() });
            }
            Err(why) => failed.push(why.to_string()),
        }
    }
    bail!(failed.join("\n"))
}

/// Forget a controller and its token on this machine
///
/// The token itself stays good: `limpet token revoke` takes it back.
#[derive(Args)]
pub(super) struct Logout {}

impl Logout {
    pub(super) fn run(self, name: Option<&str>) -> anyhow::Result<()> {
        let path = contexts::path()?;
        let mut contexts = Contexts::load(&path)?;
        let Some((name, context)) = contexts.chosen(name)? else {
            bail!("nobody is logged in: see `limpet context list`");
        };
        let (name, server) = (name.to_owned(), context.server.clone());
        contexts.remove(&name)?;
        contexts.save(&path)?;
        print(&format!("context {name} of {server} is forgotten\n"))
    }
}

/// Show, choose or forget the controllers that you are logged in to
#[derive(Args)]
pub(super) struct Choose {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// List them; the current one has a star
    List,
    /// Make one the current one
    Use {
        /// Its name
        name: String,
    },
    /// Forget one
    Remove {
        /// Its name
        name: String,
    },
}

impl Choose {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let path = contexts::path()?;
        let mut contexts = Contexts::load(&path)?;
        match self.verb {
            Verb::List if contexts.contexts.is_empty() => {
                print("no contexts: see `limpet login`\n")
            }
            Verb::List => {
                let row = |(name, context): (&String, &Context)| {
                    let is_current = contexts.current.as_ref() == Some(name);
                    let star = if is_current { "*" } else { "" };
                    vec![star.to_owned(), name.clone(), context.server.clone()]
                };
                let rows: Vec<Vec<String>> = contexts.contexts.iter().map(row).collect();
                print(&super::table::table(&["", "NAME", "SERVER"], &rows))
            }
            Verb::Use { name } => {
                contexts.chosen(Some(&name))?;
                contexts.current = Some(name.clone());
                saved(&contexts, &path, format!("context {name} is the current one\n"))
            }
            Verb::Remove { name } => {
                contexts.remove(&name)?;
                saved(&contexts, &path, format!("context {name} is forgotten\n"))
            }
        }
    }
}

fn saved(contexts: &Contexts, path: &std::path::Path, said: String) -> anyhow::Result<()> {
    contexts.save(path).map_err(|error: ContextError| error)?;
    print(&said)
}
