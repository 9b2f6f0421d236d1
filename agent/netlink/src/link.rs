//! Network devices.

use bitflags::bitflags;
use netlink_packet_core::DecodeError;

use crate::{AddressFamily, attribute};

const IFLA_IFNAME: u16 = 3;
const IFLA_NET_NS_FD: u16 = 28;

bitflags! {
    /// `IFF_*` of netdevice(7).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct LinkFlags: u32 {
        /// It is on.
        const Up = 1;
        const _ = !0;
    }
}

/// What an attribute says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkAttribute {
    /// Its name.
    IfName(String),
    /// The descriptor of the network namespace that it goes to.
    NetNsFd(i32),
}

/// `struct ifinfomsg` of rtnetlink(7).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LinkHeader {
    /// Of no meaning here.
    pub interface_family: AddressFamily,
    /// `ARPHRD_*`.
    pub link_layer_type: u16,
    /// Its number.
    pub index: u32,
    /// Its flags.
    pub flags: LinkFlags,
    /// The flags that change.
    pub change_mask: LinkFlags,
}

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LinkMessage {
    /// What is said of each.
    pub header: LinkHeader,
    /// What else is said.
    pub attributes: Vec<LinkAttribute>,
}

impl LinkMessage {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let LinkHeader { interface_family, link_layer_type, index, flags, change_mask } =
            &self.header;
        let mut bytes = vec![u8::from(*interface_family), 0];
        bytes.extend(link_layer_type.to_ne_bytes());
        for number in [*index, flags.bits(), change_mask.bits()] {
            bytes.extend(number.to_ne_bytes());
        }
        for said in &self.attributes {
            match said {
                LinkAttribute::IfName(name) => {
                    attribute::write(&mut bytes, IFLA_IFNAME, &[name.as_bytes(), b"\0"].concat());
                }
                LinkAttribute::NetNsFd(fd) => {
                    attribute::write(&mut bytes, IFLA_NET_NS_FD, &fd.to_ne_bytes());
                }
            }
        }
        bytes
    }

    pub(crate) fn read(bytes: &[u8]) -> Result<Self, DecodeError> {
        let Some((&[family, _, l0, l1, ref numbers @ ..], rest)) = bytes.split_first_chunk::<16>()
        else {
            return Err("a link is cut off".into());
        };
        let [index, flags, change_mask] = [0, 4, 8].map(|at| {
            u32::from_ne_bytes([numbers[at], numbers[at + 1], numbers[at + 2], numbers[at + 3]])
        });
        let header = LinkHeader {
            interface_family: family.into(),
            link_layer_type: u16::from_ne_bytes([l0, l1]),
            index,
            flags: LinkFlags::from_bits_retain(flags),
            change_mask: LinkFlags::from_bits_retain(change_mask),
        };
        let named = attribute::read(rest)?.into_iter().filter_map(|(kind, value)| match kind {
            IFLA_IFNAME => {
                let name = String::from_utf8_lossy(value);
                Some(LinkAttribute::IfName(name.trim_end_matches('\0').to_owned()))
            }
            _ => None,
        });
        Ok(Self { header, attributes: named.collect() })
    }
}
