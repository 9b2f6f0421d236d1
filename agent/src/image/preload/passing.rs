//! Layers on their way out of an archive.

use std::io::{Error, ErrorKind, Read};

use ring::digest::{Context, SHA256};

use crate::image::ImageError;
use crate::image::archive::{Content, Files};
use crate::image::layer::oci_digest;
use crate::image::manifest::Descriptor;

/// A packed layer on its way to being unpacked: told of, and compared with its digest at its end.
pub(super) struct Passing<'a> {
    reader: Box<dyn Read + 'a>,
    read: u64,
    hash: Option<Context>,
    digest: &'a str,
    tell: &'a dyn Fn(u64),
}

impl<'a> Passing<'a> {
    pub(super) fn new(
        files: &'a Files,
        file: &str,
        layer: &'a Descriptor,
        tell: &'a dyn Fn(u64),
    ) -> Result<Self, ImageError> {
        let Content { reader, size, .. } = files.content(file)?;
        if size != layer.size {
            let reason = format!("has {size} bytes, its manifest says {}", layer.size);
            return Err(files.fault(file, &reason));
        }
        let (reader, hash) = (Box::new(reader.take(size)), Some(Context::new(&SHA256)));
        Ok(Self { reader, read: 0, hash, digest: &layer.digest, tell })
    }

    /// It is not compressed: whoever unpacks it compares the same bytes with the same digest.
    pub(super) fn is_verified_unpacked(&mut self) {
        self.hash = None;
    }
}

impl Read for Passing<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.read += read as u64;
        (self.tell)(self.read);
        if let Some(hash) = &mut self.hash {
            hash.update(&buffer[..read]);
        }
        if read == 0
            && !buffer.is_empty()
            && let Some(hash) = self.hash.take()
        {
            let actual = oci_digest(hash);
            if actual != self.digest {
                let message = format!("it has bytes of {actual}: the archive is damaged");
                return Err(Error::new(ErrorKind::InvalidData, message));
            }
        }
        Ok(read)
    }
}
