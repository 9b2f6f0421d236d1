//! Who is reached without the proxy: the entries of `no_proxy`, as Docker, curl and Go read them.

use std::net::IpAddr;

/// An entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Exempt {
    /// `*`
    All,
    /// `NAME[:PORT]`: the host, and all below it.
    Name(String, Option<u16>),
    /// `.NAME`: all below it.
    Below(String, Option<u16>),
    /// `10.0.0.0/8`, or one address.
    Network(IpAddr, u8),
}

impl Exempt {
    pub(super) fn parse(text: &str) -> Option<Self> {
        if text == "*" {
            return Some(Self::All);
        }
        let bare = text.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Some(Self::Network(address, bits(address)));
        }
        if let Some((network, length)) = text.split_once('/') {
            let address: IpAddr = network.parse().ok()?;
            let length = length.parse().ok().filter(|length| *length <= bits(address))?;
            return Some(Self::Network(address, length));
        }
        let (name, port) = match text.rsplit_once(':') {
            Some((name, port)) => (name, Some(port.parse().ok()?)),
            None => (text, None),
        };
        let name = name.to_ascii_lowercase();
        let below = name.strip_prefix("*.").or(name.strip_prefix('.'));
        let clean = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
        let plain = below.unwrap_or(&name);
        if plain.is_empty() || !plain.chars().all(clean) {
            return None;
        }
        Some(match below {
            Some(below) => Self::Below(format!(".{below}"), port),
            None => Self::Name(name, port),
        })
    }

    /// Whether a host, without brackets, is meant.
    pub(super) fn has(&self, host: &str, port: u16) -> bool {
        let host = host.to_ascii_lowercase();
        let at = |meant: &Option<u16>| meant.is_none_or(|meant| meant == port);
        match self {
            Self::All => true,
            Self::Name(name, meant) => {
                let below = host.strip_suffix(name).is_some_and(|rest| rest.ends_with('.'));
                at(meant) && (host == *name || below)
            }
            Self::Below(suffix, meant) => at(meant) && host.ends_with(suffix),
            Self::Network(network, length) => {
                host.parse().is_ok_and(|address| within(*network, *length, address))
            }
        }
    }

    /// The names that it means wherever their port is, in the form that ureq takes.
    pub(super) fn names(&self) -> Vec<String> {
        match self {
            Self::All => vec!["*".to_owned()],
            Self::Name(name, None) => vec![name.clone(), format!(".{name}")],
            Self::Below(suffix, None) => vec![suffix.clone()],
            Self::Name(_, Some(_)) | Self::Below(_, Some(_)) | Self::Network(..) => Vec::new(),
        }
    }
}

/// Whether a host, without brackets, is this machine.
pub(super) fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn within(network: IpAddr, length: u8, address: IpAddr) -> bool {
    let same = |own: u128, other: u128, width: u8| {
        let shift = u32::from(width.saturating_sub(length));
        own.checked_shr(shift).unwrap_or(0) == other.checked_shr(shift).unwrap_or(0)
    };
    match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            same(network.to_bits().into(), address.to_bits().into(), 32)
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => {
            same(network.to_bits(), address.to_bits(), 128)
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_mean_what_they_mean_elsewhere() {
        for (entry, host, port, meant) in [
            ("*", "any.example", 1, true),
            ("example.com", "example.com", 443, true),
            ("Example.com", "a.EXAMPLE.com", 443, true),
            ("example.com", "badexample.com", 443, false),
            ("example.com:443", "example.com", 8883, false),
            (".example.com", "example.com", 443, false),
            ("*.example.com", "a.b.example.com", 443, true),
            ("10.0.0.0/8", "10.255.0.1", 443, true),
            ("10.0.0.0/8", "11.0.0.1", 443, false),
            ("10.0.0.0/8", "ten.example", 443, false),
            ("0.0.0.0/0", "1.2.3.4", 443, true),
            ("::/0", "2001:db8::1", 443, true),
            ("2001:db8::/32", "2001:db9::1", 443, false),
            ("[2001:db8::1]", "2001:db8::1", 443, true),
            ("10.0.0.1", "10.0.0.1", 5000, true),
        ] {
            let read = Exempt::parse(entry).unwrap();
            assert_eq!(read.has(host, port), meant, "{entry} {host}:{port}");
        }
        for entry in ["", ".", "10.0.0.0/33", "a b", "h:port", "http://h"] {
            assert_eq!(Exempt::parse(entry), None, "{entry}");
        }
    }
}
