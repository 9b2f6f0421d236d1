//! Why nothing is reached through a proxy: each of its answers has a message that names it.

/// Why nothing is reached through a proxy.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// It is not there.
    #[error("the proxy {proxy} is not reached: {why}")]
    Unreached {
        /// Its address.
        proxy: String,
        /// Why not.
        why: String,
    },
    /// Nothing comes.
    #[error("the proxy {proxy} takes connections and does not answer")]
    Silent {
        /// Its address.
        proxy: String,
    },
    /// 407.
    #[error(
        "the proxy {proxy} wants {wants} ({status}): write them into `url` of [proxy] in agent.toml, \
         http://USER:PASSWORD@HOST:PORT"
    )]
    Credentials {
        /// Its address.
        proxy: String,
        /// Which there should be.
        wants: &'static str,
        /// What it says.
        status: u16,
    },
    /// 403, or 405.
    #[error(
        "the proxy {proxy} does not let this device through to {target} ({status}): whoever runs it \
         has to allow CONNECT to there"
    )]
    Forbidden {
        /// Its address.
        proxy: String,
        /// Where to.
        target: String,
        /// What it says.
        status: u16,
    },
    /// 502, and its like.
    #[error("the proxy {proxy} does not reach {target} ({status})")]
    Beyond {
        /// Its address.
        proxy: String,
        /// Where to.
        target: String,
        /// What it says.
        status: u16,
    },
    /// Something else.
    #[error("the proxy {proxy} answers {status} when asked for {target}")]
    Status {
        /// Its address.
        proxy: String,
        /// Where to.
        target: String,
        /// What it says.
        status: u16,
    },
    /// Not HTTP.
    #[error("what answers at {proxy} is no HTTP proxy: check `url` of [proxy] in agent.toml")]
    Strange {
        /// Its address.
        proxy: String,
    },
}
