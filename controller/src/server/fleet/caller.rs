//! Who asks for something, and from where.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use limpet_controller_core::{Role, Scope};
use limpet_protocol::{DeviceId, TokenId};

static ALL: Scope = Scope(BTreeMap::new());

/// Who asks for something, and from where.
#[derive(Debug, Clone)]
pub(in crate::server) struct Caller {
    pub(in crate::server) who: Who,
    pub(in crate::server) from: Option<SocketAddr>,
}

/// Whom the audit log names.
#[derive(Debug, Clone)]
pub(in crate::server) enum Who {
    /// Somebody on this machine, where no token is asked for.
    Local,
    /// Somebody with a token of the API.
    Token { id: TokenId, name: String, role: Role, scope: Scope },
    /// A client of the broker, by its id: nobody has asked who it is.
    Mqtt(String),
    /// Somebody with a publisher's certificate.
    Publisher { name: String, token: TokenId },
    /// Somebody who would be this device.
    Device(DeviceId),
    /// Somebody whose token opens nothing.
    Stranger,
}

impl Caller {
    /// What the caller may do over the API.
    pub(in crate::server) fn role(&self) -> Option<Role> {
        match &self.who {
            Who::Local => Some(Role::Admin),
            Who::Token { role, .. } => Some(*role),
            Who::Mqtt(_) | Who::Publisher { .. } | Who::Device(_) | Who::Stranger => None,
        }
    }

    /// What the caller is restricted to.
    pub(in crate::server) fn scope(&self) -> &Scope {
        match &self.who {
            Who::Token { scope, .. } => scope,
            Who::Local | Who::Mqtt(_) | Who::Publisher { .. } | Who::Device(_) | Who::Stranger => {
                &ALL
            }
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("local"),
            Self::Token { id, name, .. } => write!(f, "token {id} {name}"),
            Self::Mqtt(client) => write!(f, "mqtt {client:.100}"),
            Self::Publisher { name, token } => write!(f, "publisher {token} {name}"),
            Self::Device(id) => write!(f, "device {id}"),
            Self::Stranger => f.write_str("stranger"),
        }
    }
}

/// What counts as one source of failures: an address; of IPv6 the network of 64 bits, which is
/// what one customer has at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Source(IpAddr);

impl From<SocketAddr> for Source {
    fn from(from: SocketAddr) -> Self {
        Self(match from.ip().to_canonical() {
            IpAddr::V4(ip) => ip.into(),
            IpAddr::V6(ip) => (ip.to_bits() >> 64 << 64).to_be_bytes().into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_customer_is_one_source() {
        let source = |text: &str| Source::from(text.parse::<SocketAddr>().unwrap());
        assert_eq!(source("[2001:db8::1]:5"), source("[2001:db8::2:0:0:1]:6"));
        assert_ne!(source("[2001:db8::1]:5"), source("[2001:db8:0:1::1]:5"));
        assert_eq!(source("[::ffff:192.0.2.1]:5"), source("192.0.2.1:7"));
        assert_ne!(source("192.0.2.1:7"), source("192.0.2.2:7"));
    }
}
