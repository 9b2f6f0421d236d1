//! What a registry sends, for as long as it comes at a least rate: who sends a byte now and then would
//! otherwise hold for ever whatever waits for it.

use std::io::{Error, ErrorKind, Read};
use std::time::{Duration, Instant};

/// Bytes that come within each stall timeout at least. With its usual 30 s that is some 140 in a second,
/// below any link that an image would come over.
pub(in crate::image) const BYTES_MIN: u64 = 4096;

/// A body that is given up where it comes too slowly.
pub(in crate::image) struct Steady<R> {
    body: R,
    timeout: Duration,
    began: Instant,
    /// Since then.
    received: u64,
}

impl<R: Read> Steady<R> {
    /// At least [`BYTES_MIN`] in each `timeout`. That `body` brings nothing at all for as long is its own
    /// to tell.
    pub(super) fn new(body: R, timeout: Duration) -> Self {
        Self { body, timeout, began: Instant::now(), received: 0 }
    }
}

impl<R: Read> Read for Steady<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.body.read(buffer)?;
        self.received = self.received.saturating_add(read as u64);
        if self.received >= BYTES_MIN {
            (self.began, self.received) = (Instant::now(), 0);
        } else if read > 0 && self.began.elapsed() > self.timeout {
            let (bytes, seconds) = (self.received, self.timeout.as_secs_f32());
            let why = format!("only {bytes} bytes came in {seconds:.0} s");
            return Err(Error::new(ErrorKind::TimedOut, why));
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends `piece` bytes after each wait, for ever.
    struct Paced {
        piece: usize,
        wait: Duration,
    }

    impl Read for Paced {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            std::thread::sleep(self.wait);
            let piece = self.piece.min(buffer.len());
            buffer[..piece].fill(0);
            Ok(piece)
        }
    }

    #[test]
    fn what_trickles_is_given_up_and_what_is_only_slow_is_not() {
        let wait = Duration::from_millis(2);
        let mut trickle = Steady::new(Paced { piece: 1, wait }, 4 * wait);
        let error = std::io::copy(&mut trickle, &mut std::io::sink()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
        // Each piece takes as long as is allowed for it, and all of it far longer.
        let piece = usize::try_from(BYTES_MIN).unwrap();
        let slow = Steady::new(Paced { piece, wait }, wait);
        let had = std::io::copy(&mut slow.take(50 * BYTES_MIN), &mut std::io::sink());
        assert_eq!(had.unwrap(), 50 * BYTES_MIN);
    }
}
