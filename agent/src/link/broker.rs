//! A broker's address, as a membership names it.

use std::fmt;

use crate::config::address;
use crate::proxy::authority;

/// Where a broker is, and what it is spoken to over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broker {
    /// A name or an address, without brackets.
    pub host: String,
    /// Where it listens.
    pub port: u16,
    /// What MQTT is carried in.
    pub over: Over,
}

/// What MQTT is carried in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Over {
    /// TCP alone: `mqtt://`, on networks that somebody trusts.
    Tcp,
    /// TLS: `mqtts://`.
    Tls,
    /// WebSocket over TLS, at this path: `wss://`.
    WebSocket(String),
}

impl Broker {
    /// A broker that is spoken to with plain MQTT.
    pub fn plain((host, port): (String, u16)) -> Self {
        Self { host, port, over: Over::Tcp }
    }

    /// Reads `mqtts://HOST:PORT` and `wss://HOST:PORT/PATH`; None for what this version does not know.
    pub fn parse(url: &str) -> Option<Self> {
        if let Some((host, port)) = address(url, "mqtts://") {
            return Some(Self { host, port, over: Over::Tls });
        }
        let (at, path) = url.strip_prefix("wss://")?.split_once('/')?;
        let (host, port) = address(&format!("wss://{at}"), "wss://")?;
        let clean = path.bytes().all(|byte| byte.is_ascii_graphic());
        clean.then(|| Self { host, port, over: Over::WebSocket(format!("/{path}")) })
    }

    /// `HOST:PORT`
    pub fn authority(&self) -> String {
        authority(&self.host, self.port)
    }
}

impl fmt::Display for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, path) = match &self.over {
            Over::Tcp => ("mqtt", ""),
            Over::Tls => ("mqtts", ""),
            Over::WebSocket(path) => ("wss", path.as_str()),
        };
        write!(f, "{scheme}://{}{path}", self.authority())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_back() {
        for url in ["mqtts://h:8883", "wss://h:443/mqtt", "wss://[::1]:443/a/b"] {
            assert_eq!(Broker::parse(url).unwrap().to_string(), url);
        }
        for url in ["mqtt://h:1883", "wss://h:443", "wss://h/mqtt", "wss://h:443/a b", "quic://h:1"]
        {
            assert_eq!(Broker::parse(url), None, "{url}");
        }
    }
}
