//! `limpet token`

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Subcommand};

mod publisher;

use super::client::Client;
use super::table::table;
use super::{Usage, pair, print};
use crate::view::{TokenMade, TokenRequest, TokenView};

/// Let devices join, and people log in
#[derive(Args)]
pub(super) struct Token {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Create(Create),
    /// List all tokens, without their secrets
    List,
    /// Take a token back: it opens nothing from then on
    Revoke {
        /// Its id, as `limpet token list` shows it
        id: String,
    },
}

/// Make a token, and print the string that carries it, this once
///
/// With --join, the string is for `limpet-agent join`; otherwise for `limpet login`.
///
/// A viewer reads; an operator changes deployments and devices too; an admin does everything. With
/// --select, a viewer or operator sees only devices that carry all these labels, and what runs on
/// them, and changes only deployments that select by all of them.
///
/// Examples:
///   limpet token create --join --ttl 1h --uses 20 --label site=berlin
///   limpet token create --publisher ci --out ./ci
///   limpet token create --publisher ci --public-key ci.pub --out ./ci
///   limpet token create --role operator --name ci --select site=berlin --ttl 90d
#[derive(Args)]
#[command(verbatim_doc_comment)]
struct Create {
    /// For devices that join
    #[arg(long, conflicts_with_all = ["role", "select"])]
    join: bool,
    /// For a client that publishes manifests over MQTT: a key and a certificate, in --out
    ///
    /// The key signs manifests, too: see `limpet sign`.
    #[arg(long, value_name = "NAME", requires = "out", conflicts_with_all = ["join", "role", "select", "name"])]
    publisher: Option<String>,
    /// The folder for ca.pem, cert.pem and key.pem
    #[arg(long, value_name = "DIR", requires = "publisher")]
    out: Option<PathBuf>,
    /// Its public key, Ed25519 in PEM, where it has one: of `openssl pkey -pubout`
    #[arg(long, value_name = "FILE", requires = "publisher")]
    public_key: Option<PathBuf>,
    /// For a person or a program: viewer, operator or admin
    #[arg(long, required_unless_present_any = ["join", "publisher"])]
    role: Option<String>,
    /// What it is called, in lists and in the audit log
    #[arg(long, required_unless_present_any = ["join", "publisher"])]
    name: Option<String>,
    /// How long it lives: 30m, 1h, 90d, never [1h for --join, 365d for --publisher, else 90d]
    #[arg(long, value_name = "TIME", value_parser = ttl)]
    ttl: Option<Ttl>,
    /// Only devices with this label; can be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    select: Vec<(String, String)>,
    /// How many devices may join with it [1]
    #[arg(long, value_name = "N", requires = "join")]
    uses: Option<u32>,
    /// A label that they get; can be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair, requires = "join")]
    label: Vec<(String, String)>,
    /// They are told nothing until `limpet device approve`
    #[arg(long, requires = "join")]
    require_approval: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ttl {
    Seconds(u64),
    Never,
}

fn ttl(text: &str) -> Result<Ttl, String> {
    let bad = || "write a number and s, m, h or d: 90d; or never".to_owned();
    if text == "never" {
        return Ok(Ttl::Never);
    }
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let number: u64 = digits.parse().map_err(|_| bad())?;
    let unit_s = match &text[digits.len()..] {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return Err(bad()),
    };
    number.checked_mul(unit_s).map(Ttl::Seconds).ok_or_else(bad)
}

impl Token {
    pub(super) fn run(self, client: &Client) -> anyhow::Result<()> {
        match self.verb {
            Verb::Create(create) => create.run(client),
            Verb::List => {
                let tokens: Vec<TokenView> = client.get("/api/v1/tokens")?;
                if tokens.is_empty() {
                    return print("no tokens\n");
                }
                let rows: Vec<Vec<String>> = tokens.iter().map(row).collect();
                print(&table(HEADS, &rows))
            }
            Verb::Revoke { id } => {
                if id.len() != 16 || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                    let why = "a token's id is 16 hexadecimal digits: see `limpet token list`";
                    return Err(Usage(why).into());
                }
                let token: TokenView = client.remove(&format!("/api/v1/tokens/{id}"))?;
                print(&format!("token/{} {} revoked\n", token.id, token.name))
            }
        }
    }
}

impl Create {
    fn run(self, client: &Client) -> anyhow::Result<()> {
        let ttl_s = match self.ttl {
            Some(Ttl::Seconds(seconds)) => Some(seconds),
            Some(Ttl::Never) | None => None,
        };
        if let (Some(name), Some(out)) = (&self.publisher, &self.out) {
            if self.ttl == Some(Ttl::Never) {
                return Err(Usage("a publisher's certificate ends: say --ttl 365d").into());
            }
            let key = self.public_key.as_deref();
            return publisher::create(client, name, key, ttl_s, out);
        }
        let name = self.name.clone().unwrap_or_else(|| "join".to_owned());
        let map = |pairs: &[(String, String)]| -> BTreeMap<String, String> {
            pairs.iter().cloned().collect()
        };
        let request = TokenRequest {
            name,
            role: self.role.clone().unwrap_or_else(|| "join".to_owned()),
            ttl_s,
            never_expires: self.ttl == Some(Ttl::Never),
            select: map(&self.select),
            uses: self.uses,
            labels: map(&self.label),
            require_approval: self.require_approval,
        };
        let TokenMade { token, text } = client.ask("/api/v1/tokens", &request)?;
        // The string alone is what programs want.
        print(&format!("{text}\n"))?;
        let use_with = if self.join { "limpet-agent join" } else { "limpet login" };
        let until = match &token.expires_at {
            Some(at) => format!("good until {at}"),
            None => "good until it is revoked".to_owned(),
        };
        let uses = match token.uses_left {
            Some(1) => ", for one device".to_owned(),
            Some(count) => format!(", for {count} devices"),
            None => String::new(),
        };
        writeln!(
            std::io::stderr(),
            "token/{} {} ({}), {until}{uses}. The string above is for `{use_with}`, and is shown this \
             once: who has it has what it opens.",
            token.id,
            token.name,
            token.role
        )?;
        Ok(())
    }
}

const HEADS: &[&str] = &["ID", "NAME", "ROLE", "STATUS", "EXPIRES", "USES", "LABELS", "USED"];

fn row(token: &TokenView) -> Vec<String> {
    let labels = if token.role == "join" { &token.labels } else { &token.select };
    let labels: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let dash = || "-".to_owned();
    vec![
        token.id.clone(),
        token.name.clone(),
        token.role.clone(),
        token.status.clone(),
        token.expires_at.clone().unwrap_or_else(|| "never".to_owned()),
        token.uses_left.map_or_else(dash, |uses| uses.to_string()),
        if labels.is_empty() { dash() } else { labels.join(",") },
        token.used_at.clone().unwrap_or_else(dash),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_to_live_are_read() {
        let day = 24 * 3600;
        for (text, seconds) in [("90d", 90 * day), ("1h", 3600), ("30m", 1800), ("5s", 5)] {
            assert_eq!(ttl(text), Ok(Ttl::Seconds(seconds)), "{text}");
        }
        assert_eq!(ttl("never"), Ok(Ttl::Never));
        for bad in ["", "d", "90", "1.5h", "-1d", "1w", "9999999999999999999d", "1ä"] {
            assert!(ttl(bad).is_err(), "{bad}");
        }
    }
}
