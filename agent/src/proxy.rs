//! The HTTP proxy that a site asks everything to go through: what the device's owner says of it, whom
//! it is for, and what its answers mean.
//!
//! Everything goes through it with CONNECT (RFC 9110 section 9.3.6), plain HTTP too: it sees where to,
//! and nothing else. Its password is in no message: [`Proxy`] is shown as its address alone.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

mod error;
mod exempt;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;

pub use error::ProxyError;
use exempt::Exempt;

/// The port of a proxy whose URL names none.
const PORT: u16 = 80;

/// The table `[proxy]` of `agent.toml`, as it is written.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Table {
    /// `http://[USER:PASSWORD@]HOST[:PORT]`; an empty one is none, whatever the environment says.
    pub url: Option<String>,
    /// Hosts that are reached without it.
    pub no_proxy: Option<Vec<String>>,
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").field("no_proxy", &self.no_proxy).finish_non_exhaustive()
    }
}

/// A proxy.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    /// A name or an address, without brackets.
    pub host: String,
    /// Where it listens.
    pub port: u16,
    /// User and password.
    credentials: Option<(String, String)>,
}

/// Which proxy is for whom.
#[derive(Debug, Clone, Default)]
pub struct Proxies {
    proxy: Option<Proxy>,
    exempt: Vec<Exempt>,
}

/// A setting that cannot be. It does not show the URL, which may hold a password.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    /// Not a URL of a proxy.
    #[error(
        "the proxy of {from} is no URL of one: write http://HOST:PORT or \
         http://USER:PASSWORD@HOST:PORT, with % and two digits for what is special in a password"
    )]
    Url {
        /// Where it was said.
        from: &'static str,
    },
    /// Not a host.
    #[error(
        "no_proxy has {0:?}: write a name, .NAME for what is below it, an address, or 10.0.0.0/8"
    )]
    Exempt(String),
}

impl Proxies {
    /// What flag, file and environment say: the flag wins over the file, and the file over
    /// `HTTPS_PROXY` and `NO_PROXY`.
    ///
    /// # Errors
    /// When one of them says what cannot be.
    pub fn new(
        flag: Option<&str>,
        table: &Table,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, SettingError> {
        let variable = |upper: &str| {
            let found = environment(upper).or_else(|| environment(&upper.to_ascii_lowercase()));
            found.filter(|value| !value.is_empty())
        };
        let from_environment = variable("HTTPS_PROXY");
        let (url, from) = match (flag, &table.url) {
            (Some(url), _) => (url, "--proxy"),
            (None, Some(url)) => (url.as_str(), "[proxy]"),
            (None, None) => (from_environment.as_deref().unwrap_or_default(), "HTTPS_PROXY"),
        };
        let proxy = match url {
            "" => None,
            url => Some(Proxy::parse(url).ok_or(SettingError::Url { from })?),
        };
        let listed = match &table.no_proxy {
            Some(listed) => listed.clone(),
            None => variable("NO_PROXY")
                .iter()
                .flat_map(|list| list.split(','))
                .map(str::to_owned)
                .collect(),
        };
        let named = listed.iter().map(|entry| entry.trim()).filter(|entry| !entry.is_empty());
        let read = |entry: &str| {
            Exempt::parse(entry).ok_or_else(|| SettingError::Exempt(entry.to_owned()))
        };
        let exempt = named.map(read).collect::<Result<_, _>>()?;
        Ok(Self { proxy, exempt })
    }

    /// The proxy that leads to a host; None where it is reached without one, as this machine always is.
    pub fn to(&self, host: &str, port: u16) -> Option<&Proxy> {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let direct =
            exempt::is_loopback(host) || self.exempt.iter().any(|exempt| exempt.has(host, port));
        self.proxy.as_ref().filter(|_| !direct)
    }

    /// The same for a request to `HOST[:PORT]`, which may be redirected to elsewhere.
    pub fn for_request(&self, scheme: &str, authority: &str) -> Option<ureq::Proxy> {
        // Names are compared with where a redirect leads as well; networks only here.
        let (host, port) = host_and_port(scheme, authority);
        let proxy = self.to(host, port)?;
        let mut builder =
            ureq::Proxy::builder(ureq::ProxyProtocol::Http).host(&proxy.host).port(proxy.port);
        if let Some((user, password)) = &proxy.credentials {
            builder = builder.username(user).password(password);
        }
        let names = self.exempt.iter().flat_map(Exempt::names);
        names.fold(builder, |builder, name| builder.no_proxy(&name)).build().ok()
    }

    /// What an error of such a request means: the proxy's, or what it says itself.
    pub fn explain(&self, scheme: &str, authority: &str, error: &ureq::Error) -> String {
        let (host, port) = host_and_port(scheme, authority);
        let explained = self.to(host, port).and_then(|proxy| proxy.explain(error, authority));
        explained.map_or_else(|| error.to_string(), |explained| explained.to_string())
    }

    /// Whether a password is in it.
    pub fn has_password(&self) -> bool {
        self.proxy.as_ref().is_some_and(|proxy| proxy.credentials.is_some())
    }
}

impl Proxy {
    fn parse(url: &str) -> Option<Self> {
        let rest = url.strip_prefix("http://").or((!url.contains("://")).then_some(url))?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (credentials, address) = match rest.rsplit_once('@') {
            Some((credentials, address)) => {
                let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
                (Some((decoded(user)?, decoded(password)?)), address)
            }
            None => (None, rest),
        };
        let (host, port) = match address.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port.parse().ok()?),
            _ => (address, PORT),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let clean = |c: char| c.is_ascii_alphanumeric() || ".-_:".contains(c);
        (!host.is_empty() && port > 0 && host.chars().all(clean)).then(|| Self {
            host: host.to_owned(),
            port,
            credentials,
        })
    }

    /// What a connection begins with that is to lead to `HOST:PORT`.
    pub fn request(&self, target: &str) -> String {
        let authorization = self.credentials.as_ref().map(|(user, password)| {
            let basic = STANDARD.encode(format!("{user}:{password}"));
            format!("Proxy-Authorization: Basic {basic}\r\n")
        });
        let authorization = authorization.unwrap_or_default();
        format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{authorization}\r\n")
    }

    /// Whether an answer lets a connection through.
    ///
    /// # Errors
    /// Otherwise what it means.
    pub fn answered(&self, status: Option<u16>, target: &str) -> Result<(), ProxyError> {
        let (proxy, target) = (self.to_string(), target.to_owned());
        match status {
            None => Err(ProxyError::Strange { proxy }),
            Some(200..=299) => Ok(()),
            // Some say 401 of what is wrong, and 407 of what is missing.
            Some(status @ (401 | 407)) => {
                let wants = match self.credentials {
                    Some(_) => "other credentials",
                    None => "credentials",
                };
                Err(ProxyError::Credentials { proxy, wants, status })
            }
            Some(status @ (403 | 405)) => Err(ProxyError::Forbidden { proxy, target, status }),
            Some(status @ 500..=599) => Err(ProxyError::Beyond { proxy, target, status }),
            Some(status) => Err(ProxyError::Status { proxy, target, status }),
        }
    }

    /// What an error of a request through this proxy means, where it is the proxy's.
    fn explain(&self, error: &ureq::Error, target: &str) -> Option<ProxyError> {
        let proxy = || self.to_string();
        let unreached =
            |why: &dyn fmt::Display| ProxyError::Unreached { proxy: proxy(), why: why.to_string() };
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "ureq's other errors are not of the proxy"
        )]
        match error {
            // As ureq words it: "proxy server responded 407/...".
            ureq::Error::ConnectProxyFailed(said) => {
                let digits = said.split(|c: char| !c.is_ascii_digit()).find(|part| part.len() == 3);
                match digits.and_then(|digits| digits.parse().ok()) {
                    Some(status) => self.answered(Some(status), target).err(),
                    None => Some(ProxyError::Silent { proxy: proxy() }),
                }
            }
            ureq::Error::Io(io) if io.kind() == std::io::ErrorKind::ConnectionRefused => {
                Some(unreached(io))
            }
            ureq::Error::HostNotFound => Some(unreached(&"its name is not found")),
            ureq::Error::Timeout(ureq::Timeout::Connect) => Some(unreached(&"it does not answer")),
            _ => None,
        }
    }
}

/// Its address, and nothing that is secret.
impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&authority(&self.host, self.port))
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({self})")
    }
}

/// The host and the port of a request to `HOST[:PORT]`.
fn host_and_port<'a>(scheme: &str, authority: &'a str) -> (&'a str, u16) {
    let default = if scheme == "http" { 80 } else { 443 };
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse().unwrap_or(default)),
        _ => (authority, default),
    }
}

/// `HOST:PORT`, as URLs and HTTP write it.
pub fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// A text without the user and password of the URLs in it.
pub fn redacted(text: &str) -> String {
    let mut pieces = text.split("://");
    let mut out = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let end = piece.find(|c: char| "\"'\n".contains(c)).unwrap_or(piece.len());
        let (url, rest) = piece.split_at(end);
        let shown = url.rsplit_once('@').map_or(url.to_owned(), |(_, host)| format!("***@{host}"));
        out = format!("{out}://{shown}{rest}");
    }
    out
}

/// A text with its `%XX` taken for bytes (RFC 3986 section 2.1).
fn decoded(text: &str) -> Option<String> {
    let mut pieces = text.split('%');
    let mut bytes = pieces.next()?.as_bytes().to_vec();
    for piece in pieces {
        let (digits, rest) = piece.split_at_checked(2)?;
        let hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        bytes.push(hex.then(|| u8::from_str_radix(digits, 16).ok())??);
        bytes.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests;
