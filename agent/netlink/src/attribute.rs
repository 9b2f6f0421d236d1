//! Attributes: `struct rtattr` of rtnetlink(7), each padded to four bytes.

use netlink_packet_core::DecodeError;

const HEAD_BYTES: usize = 4;

/// Puts an attribute behind what is there.
pub(crate) fn write(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(HEAD_BYTES + value.len()).unwrap_or(u16::MAX);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// The attributes in `bytes`: the kind and the value of each.
pub(crate) fn read(mut bytes: &[u8]) -> Result<Vec<(u16, &[u8])>, DecodeError> {
    let mut attributes = Vec::new();
    while let Some((&[l0, l1, k0, k1], _)) = bytes.split_first_chunk() {
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = bytes.get(HEAD_BYTES..length);
        let value = value.ok_or_else(|| DecodeError::from("an attribute is cut off"))?;
        // The two highest bits are flags.
        attributes.push((u16::from_ne_bytes([k0, k1]) & 0x3fff, value));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(attributes)
}
