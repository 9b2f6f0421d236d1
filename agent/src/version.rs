//! Which version this program is, as it says it and as its file does.

use limpet_protocol::upgrade::VERSION_MARK;

const VERSION: &[u8] = env!("CARGO_PKG_VERSION").as_bytes();
/// The mark, a version of 32 bytes, and the zero that ends it.
const MARKED_BYTES: usize = VERSION_MARK.len() + 33;

/// What whoever has the file finds in it; what the program says is read from here as well, so that the
/// two never differ.
#[used]
static MARKED: [u8; MARKED_BYTES] = {
    let mut marked = [0; MARKED_BYTES];
    let (mark, rest) = marked.split_at_mut(VERSION_MARK.len());
    mark.copy_from_slice(VERSION_MARK);
    rest.split_at_mut(VERSION.len()).0.copy_from_slice(VERSION);
    marked
};

/// The version.
pub fn version() -> &'static str {
    let marked = std::hint::black_box(&MARKED);
    let text = marked.get(VERSION_MARK.len()..).unwrap_or_default();
    let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
    std::str::from_utf8(text).unwrap_or_default()
}

/// What servers are told of who asks.
pub fn user_agent() -> String {
    format!("limpet-agent/{}", version())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_version_is_the_packages() {
        assert_eq!(super::version(), env!("CARGO_PKG_VERSION"));
    }
}
