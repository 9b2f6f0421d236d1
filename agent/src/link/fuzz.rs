//! What fuzzing feeds the readers of heads and frames with.

use super::head::{HEAD_BYTES_MAX, Head};
use super::websocket::{Frame, Kind};

/// A head as it comes, byte by byte.
pub(crate) fn head(data: &[u8]) {
    for end in 1..=data.len() {
        let came = data.get(..end).unwrap_or_default();
        match Head::parse(came) {
            Ok(None) => assert!(end <= HEAD_BYTES_MAX),
            Ok(Some(head)) => {
                let _ = (head.status(), head.header("upgrade"));
                return;
            }
            Err(_) => return,
        }
    }
}

/// Frames, each behind the payload of the one before.
pub(crate) fn frames(mut data: &[u8]) {
    for _ in 0..64 {
        let read = |end: usize| match Frame::parse(data.get(..end)?) {
            Ok(frame) => frame.map(|frame| (end, frame)),
            Err(_) => None,
        };
        let Some((head, frame)) = (1..=10).find_map(read) else {
            return;
        };
        assert!(frame.kind == Kind::Data || frame.length <= 125);
        let length = usize::try_from(frame.length).unwrap_or(usize::MAX);
        let skipped = length.saturating_add(head);
        data = data.get(skipped..).unwrap_or_default();
    }
}
