//! `limpet secret`

use std::io::{IsTerminal, Read};
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use limpet_protocol::SecretName;
use limpet_protocol::sealed::SECRET_BYTES_MAX;
use ureq::http::Method;

use super::client::Client;
use super::progress::{self, Waiting};
use super::{Usage, print};
use crate::view::SecretResult;

/// Set or delete secrets: what programs need and nobody else may see
///
/// A deployment names a secret and where its program finds it:
///
///   secrets:
///     - db-password                       # the file /run/secrets/db-password
///     - {name: token, env: TOKEN}         # the variable TOKEN
///
/// The controller keeps it encrypted and seals it to each device that needs it; there it is opened in
/// memory only. Nothing gives a value back.
///
/// Examples:
///   limpet secret set db-password --from-file ./password
///   head -c 32 /dev/urandom | base64 | limpet secret set session-key
///   limpet get secrets
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Secret {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Set(Set),
    Delete(Delete),
}

/// Set a secret, or its next version, from a file, a variable or standard input
///
/// Every byte counts, a newline at the end too. The value is never an argument: every user of this
/// machine could see it. Deployments that name the secret follow it: they get another revision, which
/// is rolled out as any change is.
#[derive(Args)]
#[command(verbatim_doc_comment)]
struct Set {
    /// What the secret is called
    name: SecretName,
    /// Read the value from this file
    #[arg(long, value_name = "FILE", conflicts_with = "from_env")]
    from_file: Option<PathBuf>,
    /// Read the value from this environment variable
    #[arg(long, value_name = "VARIABLE")]
    from_env: Option<String>,
    #[command(flatten)]
    waiting: Waiting,
}

/// Delete secrets that no deployment names
#[derive(Args)]
struct Delete {
    /// The secrets
    #[arg(required = true)]
    name: Vec<SecretName>,
}

impl Secret {
    pub(super) fn run(self, client: &Client) -> anyhow::Result<()> {
        match self.verb {
            Verb::Set(verb) => verb.run(client),
            Verb::Delete(verb) => verb.run(client),
        }
    }
}

impl Set {
    fn run(self, client: &Client) -> anyhow::Result<()> {
        let value = self.value()?;
        if value.len() > SECRET_BYTES_MAX {
            bail!("the value of {} is longer than {SECRET_BYTES_MAX} bytes", self.name);
        }
        let path = format!("/api/v1/secrets/{}", self.name);
        let result: SecretResult = client.set(&path, &value)?;
        print(&format!("secret/{} version {}\n", result.name, result.version))?;
        for deployment in &result.deployments {
            super::apply::accepted(deployment, "limpet secret set")?;
        }
        result.deployments.iter().try_for_each(|d| progress::settle(client, d, &self.waiting))
    }

    fn value(&self) -> anyhow::Result<Vec<u8>> {
        let read = |from: &mut dyn Read| {
            let mut value = Vec::new();
            from.take(SECRET_BYTES_MAX as u64 + 1).read_to_end(&mut value).map(|_| value)
        };
        match (&self.from_file, &self.from_env) {
            (Some(path), _) => {
                let file = std::fs::File::open(path);
                file.and_then(|mut file| read(&mut file))
                    .with_context(|| format!("cannot read {}", path.display()))
            }
            (None, Some(key)) => {
                let value = std::env::var_os(key);
                let value = value.with_context(|| format!("there is no variable {key}"))?;
                Ok(std::os::unix::ffi::OsStringExt::into_vec(value))
            }
            (None, None) if std::io::stdin().is_terminal() => {
                let why = "no value: say --from-file or --from-env, or pipe it in";
                Err(Usage(why).into())
            }
            (None, None) => read(&mut std::io::stdin()).context("cannot read standard input"),
        }
    }
}

impl Delete {
    fn run(self, client: &Client) -> anyhow::Result<()> {
        // One that cannot be deleted keeps none of the others.
        let mut done = Ok(());
        for name in &self.name {
            let deleted = client
                .order(Method::DELETE, &format!("/api/v1/secrets/{name}"))
                .and_then(|()| print(&format!("secret/{name} deleted\n")));
            done = done.and(deleted);
        }
        done
    }
}
