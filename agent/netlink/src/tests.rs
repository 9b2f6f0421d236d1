//! Bytes that netlink-packet-route 0.31.0 makes of the same messages.

use std::net::IpAddr;

use netlink_packet_core::NetlinkMessage;

use super::*;
use address::{AddressAttribute, AddressHeader};
use link::{LinkAttribute, LinkFlags, LinkHeader};

fn link() -> LinkMessage {
    let up = LinkFlags::Up;
    LinkMessage {
        header: LinkHeader { index: 7, flags: up, change_mask: up, ..LinkHeader::default() },
        attributes: vec![LinkAttribute::IfName("eth0".into()), LinkAttribute::NetNsFd(9)],
    }
}

fn address(family: AddressFamily, prefix_len: u8, said: &[AddressAttribute]) -> AddressMessage {
    let header = AddressHeader { family, prefix_len, index: 7, ..AddressHeader::default() };
    AddressMessage { header, attributes: said.to_vec() }
}

fn messages() -> [RouteNetlinkMessage; 4] {
    let v4: IpAddr = "10.0.0.1".parse().unwrap();
    let v4 = [
        AddressAttribute::Address(v4),
        AddressAttribute::Local(v4),
        AddressAttribute::Broadcast("10.0.0.255".parse().unwrap()),
    ];
    let v6 = [
        AddressAttribute::Address("fd00::1".parse().unwrap()),
        AddressAttribute::Multicast("ff02::1".parse().unwrap()),
    ];
    [
        RouteNetlinkMessage::GetLink(link()),
        RouteNetlinkMessage::SetLink(link()),
        RouteNetlinkMessage::NewAddress(address(AddressFamily::Inet, 24, &v4)),
        RouteNetlinkMessage::GetAddress(address(AddressFamily::Inet6, 64, &v6)),
    ]
}

fn bytes(message: RouteNetlinkMessage) -> Vec<u8> {
    let mut message = NetlinkMessage::from(message);
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

#[test]
#[cfg(target_endian = "little")]
fn golden_bytes() {
    let hex = |bytes: Vec<u8>| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let lines = messages().map(|message| hex(bytes(message)));
    assert_eq!(
        lines,
        [
            "3400000012000000000000000000000000000000070000000100000001000000\
             09000300657468300000000008001c0009000000",
            "3400000013000000000000000000000000000000070000000100000001000000\
             09000300657468300000000008001c0009000000",
            "300000001400000000000000000000000218000007000000\
             080001000a000001080002000a000001080004000a0000ff",
            "400000001600000000000000000000000a4000000700000014000100\
             fd00000000000000000000000000000114000700ff020000000000000000000000000001",
        ]
    );
}

#[test]
fn what_the_kernel_tells_is_read() {
    let read = |message| {
        NetlinkMessage::<RouteNetlinkMessage>::deserialize(&bytes(message))
            .map(|read| read.payload)
            .map_err(|e| e.to_string())
    };
    let [_, _, new_address, get_address] = messages();
    assert_eq!(read(new_address.clone()), Ok(new_address.into()));
    // A descriptor is told to the kernel alone.
    let mut told = link();
    told.attributes.truncate(1);
    let told = RouteNetlinkMessage::NewLink(told);
    assert_eq!(read(RouteNetlinkMessage::NewLink(link())), Ok(told.into()));
    assert!(read(get_address).unwrap_err().contains("type 22"));
}

#[test]
fn what_is_cut_off_is_refused() {
    let all =
        |bytes: &[u8]| (LinkMessage::read(bytes).is_ok(), AddressMessage::read(bytes).is_ok());
    assert_eq!(all(&[0; 7]), (false, false));
    assert_eq!(all(&[0; 16]), (true, false));
    // An attribute of no length, and one that is longer than what is there.
    for attribute in [[0, 0, 3, 0], [9, 0, 3, 0]] {
        assert_eq!(all(&[&[0; 16][..], &attribute].concat()), (false, false));
        assert_eq!(all(&[&[0; 8][..], &attribute].concat()), (false, false));
    }
}
