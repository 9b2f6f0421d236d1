//! zstd as layers hold it (RFC 8878): frames one after the other, and some to be skipped.

use std::io::{BufRead, Error, ErrorKind, Read, Result};

use ruzstd::decoding::{FrameDecoder, StreamingDecoder};

/// The window that a frame may ask for: the memory it costs while it is unpacked.
const WINDOW_BYTES_MAX: u64 = 8 << 20;
/// Magic numbers of skippable frames, but for their last four bits (RFC 8878 section 3.1.2).
const SKIPPABLE: u32 = 0x184d_2a50;

/// Reads what a row of frames unpacks to.
pub(super) struct Frames<R: BufRead>(State<R>);

enum State<R: BufRead> {
    Between(R),
    Within(Box<StreamingDecoder<R, FrameDecoder>>),
    /// Left behind by an error, or while a state is exchanged.
    Over,
}

impl<R: BufRead> Frames<R> {
    pub(super) fn new(reader: R) -> Self {
        Self(State::Between(reader))
    }
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        loop {
            match std::mem::replace(&mut self.0, State::Over) {
                State::Over => return Ok(0),
                State::Between(reader) => match begin(reader)? {
                    Some(decoder) => self.0 = State::Within(Box::new(decoder)),
                    None => return Ok(0),
                },
                State::Within(mut decoder) => {
                    let read = decoder.read(buffer)?;
                    if read > 0 || buffer.is_empty() {
                        self.0 = State::Within(decoder);
                        return Ok(read);
                    }
                    self.0 = State::Between(decoder.into_inner());
                }
            }
        }
    }
}

/// The next frame that holds something; None at the end.
fn begin<R: BufRead>(mut reader: R) -> Result<Option<StreamingDecoder<R, FrameDecoder>>> {
    loop {
        let ahead = reader.fill_buf()?;
        if ahead.is_empty() {
            return Ok(None);
        }
        // A buffer that ends within the magic number: the decoder says what is wrong with it.
        let magic = ahead.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
        if magic.is_none_or(|magic| magic & !0xf != SKIPPABLE) {
            let decoder = StreamingDecoder::new_with_max_window_size(reader, WINDOW_BYTES_MAX);
            let fault = |e: ruzstd::decoding::errors::FrameDecoderError| {
                Error::new(ErrorKind::InvalidData, format!("zstd: {e}"))
            };
            return decoder.map(Some).map_err(fault);
        }
        let mut head = [0; 8];
        reader.read_exact(&mut head)?;
        let [.., a, b, c, d] = head;
        let length = u64::from(u32::from_le_bytes([a, b, c, d]));
        std::io::copy(&mut reader.by_ref().take(length), &mut std::io::sink())?;
    }
}

#[cfg(test)]
mod tests {
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;

    #[test]
    fn frames_follow_one_another() {
        let frame = |text: &str| compress_to_vec(text.as_bytes(), CompressionLevel::Fastest);
        let skipped = [&[0x53, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
        let whole =
            [frame("one "), skipped.clone(), frame("two "), frame("three"), skipped].concat();
        let mut text = String::new();
        Frames::new(whole.as_slice()).read_to_string(&mut text).unwrap();
        assert_eq!(text, "one two three");
        for length in 1..whole.len() {
            // Cut off anywhere, it is shorter, or an error; never more.
            let mut part = Vec::new();
            let _ = Frames::new(&whole[..length]).read_to_end(&mut part);
            assert!(text.as_bytes().starts_with(&part), "{length}");
        }
        assert!(Frames::new(&b"nonsense"[..]).read_to_end(&mut Vec::new()).is_err());
    }
}
