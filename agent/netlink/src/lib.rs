//! The messages of rtnetlink(7) that libcontainer speaks, under the names that it knows them by: it
//! moves network devices into a container, with their addresses.
//!
//! `netlink-packet-route` knows every message, attribute and statistic of the kernel; as each is within
//! reach of the one function that reads messages, all of them were 0.4 MB of the device's binary.

use netlink_packet_core::{
    DecodeError, NetlinkDeserializable, NetlinkHeader, NetlinkPayload, NetlinkSerializable,
};

pub mod address;
mod attribute;
pub mod link;

use address::AddressMessage;
use link::LinkMessage;

/// An address family: `AF_*` of socket(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AddressFamily {
    /// None.
    #[default]
    Unspec,
    /// IPv4.
    Inet,
    /// IPv6.
    Inet6,
    /// Any other.
    Other(u8),
}

impl From<u8> for AddressFamily {
    fn from(number: u8) -> Self {
        match number {
            0 => Self::Unspec,
            2 => Self::Inet,
            10 => Self::Inet6,
            other => Self::Other(other),
        }
    }
}

impl From<AddressFamily> for u8 {
    fn from(family: AddressFamily) -> Self {
        match family {
            AddressFamily::Unspec => 0,
            AddressFamily::Inet => 2,
            AddressFamily::Inet6 => 10,
            AddressFamily::Other(other) => other,
        }
    }
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RouteNetlinkMessage {
    /// There is this link: `RTM_NEWLINK`.
    NewLink(LinkMessage),
    /// Which link is this? `RTM_GETLINK`.
    GetLink(LinkMessage),
    /// Change this link: `RTM_SETLINK`.
    SetLink(LinkMessage),
    /// There is, or shall be, this address: `RTM_NEWADDR`.
    NewAddress(AddressMessage),
    /// Which addresses are there? `RTM_GETADDR`.
    GetAddress(AddressMessage),
}

impl RouteNetlinkMessage {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::NewLink(link) | Self::GetLink(link) | Self::SetLink(link) => link.bytes(),
            Self::NewAddress(address) | Self::GetAddress(address) => address.bytes(),
        }
    }
}

impl NetlinkSerializable for RouteNetlinkMessage {
    fn message_type(&self) -> u16 {
        match self {
            Self::NewLink(_) => 16,
            Self::GetLink(_) => 18,
            Self::SetLink(_) => 19,
            Self::NewAddress(_) => 20,
            Self::GetAddress(_) => 22,
        }
    }

    fn buffer_len(&self) -> usize {
        self.bytes().len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        let bytes = self.bytes();
        buffer[..bytes.len()].copy_from_slice(&bytes);
    }
}

impl NetlinkDeserializable for RouteNetlinkMessage {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        Ok(match header.message_type {
            16 => Self::NewLink(LinkMessage::read(payload)?),
            20 => Self::NewAddress(AddressMessage::read(payload)?),
            other => return Err(format!("messages of type {other} are not asked for").into()),
        })
    }
}

impl From<RouteNetlinkMessage> for NetlinkPayload<RouteNetlinkMessage> {
    fn from(message: RouteNetlinkMessage) -> Self {
        Self::InnerMessage(message)
    }
}

#[cfg(test)]
mod tests;
