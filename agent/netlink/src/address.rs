//! Addresses of network devices.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bitflags::bitflags;
use netlink_packet_core::DecodeError;

use crate::{AddressFamily, attribute};

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_MULTICAST: u16 = 7;

bitflags! {
    /// `IFA_F_*` of rtnetlink(7), as far as the header holds them.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct AddressHeaderFlags: u8 {
        /// Somebody has set it; others come and go.
        const Permanent = 0x80;
        const _ = !0;
    }
}

/// How far an address means the same: `RT_SCOPE_*` of rtnetlink(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AddressScope {
    /// Everywhere.
    #[default]
    Universe,
    /// Any other.
    Other(u8),
}

impl From<u8> for AddressScope {
    fn from(number: u8) -> Self {
        if number == 0 { Self::Universe } else { Self::Other(number) }
    }
}

impl From<AddressScope> for u8 {
    fn from(scope: AddressScope) -> Self {
        match scope {
            AddressScope::Universe => 0,
            AddressScope::Other(other) => other,
        }
    }
}

/// What an attribute says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressAttribute {
    /// The address; of the other end, where there are but two.
    Address(IpAddr),
    /// The address of this end.
    Local(IpAddr),
    /// Where to reach all.
    Broadcast(Ipv4Addr),
    /// A group.
    Multicast(Ipv6Addr),
}

/// `struct ifaddrmsg` of rtnetlink(7).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AddressHeader {
    /// What kind of address it is.
    pub family: AddressFamily,
    /// Bits that name the network.
    pub prefix_len: u8,
    /// Its flags.
    pub flags: AddressHeaderFlags,
    /// How far it means the same.
    pub scope: AddressScope,
    /// The number of its device.
    pub index: u32,
}

/// An address of a network device.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AddressMessage {
    /// What is said of each.
    pub header: AddressHeader,
    /// What else is said.
    pub attributes: Vec<AddressAttribute>,
}

impl AddressMessage {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let AddressHeader { family, prefix_len, flags, scope, index } = &self.header;
        let mut bytes = vec![u8::from(*family), *prefix_len, flags.bits(), u8::from(*scope)];
        bytes.extend(index.to_ne_bytes());
        for said in &self.attributes {
            let (kind, address) = match *said {
                AddressAttribute::Address(address) => (IFA_ADDRESS, address),
                AddressAttribute::Local(address) => (IFA_LOCAL, address),
                AddressAttribute::Broadcast(address) => (IFA_BROADCAST, address.into()),
                AddressAttribute::Multicast(address) => (IFA_MULTICAST, address.into()),
            };
            match address {
                IpAddr::V4(v4) => attribute::write(&mut bytes, kind, &v4.octets()),
                IpAddr::V6(v6) => attribute::write(&mut bytes, kind, &v6.octets()),
            }
        }
        bytes
    }

    pub(crate) fn read(bytes: &[u8]) -> Result<Self, DecodeError> {
        let Some((&[family, prefix_len, flags, scope, i0, i1, i2, i3], rest)) =
            bytes.split_first_chunk()
        else {
            return Err("an address is cut off".into());
        };
        let header = AddressHeader {
            family: family.into(),
            prefix_len,
            flags: AddressHeaderFlags::from_bits_retain(flags),
            scope: scope.into(),
            index: u32::from_ne_bytes([i0, i1, i2, i3]),
        };
        let said = attribute::read(rest)?.into_iter().filter_map(|(kind, value)| {
            let address = match <[u8; 4]>::try_from(value) {
                Ok(v4) => IpAddr::from(v4),
                Err(_) => IpAddr::from(<[u8; 16]>::try_from(value).ok()?),
            };
            match (kind, address) {
                (IFA_ADDRESS, address) => Some(AddressAttribute::Address(address)),
                (IFA_LOCAL, address) => Some(AddressAttribute::Local(address)),
                (IFA_BROADCAST, IpAddr::V4(v4)) => Some(AddressAttribute::Broadcast(v4)),
                (IFA_MULTICAST, IpAddr::V6(v6)) => Some(AddressAttribute::Multicast(v6)),
                _ => None,
            }
        });
        Ok(Self { header, attributes: said.collect() })
    }
}
