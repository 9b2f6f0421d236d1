//! What fuzzing feeds the agent's decoders with: the documents and layers of images, the files that
//! an agent finds when it starts, and certificates.

use std::path::Path;

pub use crate::image::fuzz::{images, layers};

/// Reads `data` as what a proxy or a WebSocket server says.
pub fn answers(data: &[u8]) {
    crate::proxy::fuzz::answers(data);
}

/// Reads `data` as one of the files that an agent finds, as its first byte says, below `folder`.
pub fn state(folder: &Path, data: &[u8]) {
    let Some((what, data)) = data.split_first() else {
        return;
    };
    match what % 12 {
        what @ 0..6 => crate::state::fuzz::document(folder, what, data),
        what @ 6..10 => crate::runtime::fuzz::record(folder, what, data),
        _ => crate::logs::fuzz::ring(folder, data),
    }
}

/// Reads `data` as certificates that somebody gives, and makes TLS of them.
pub fn certificates(data: &[u8]) {
    crate::tls::fuzz::certificates(data);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What fuzzing begins with, and what it has found.
    fn replay(target: &str, decode: impl Fn(&Path, &[u8])) {
        let folder = tempfile::tempdir().unwrap();
        for inputs in ["seeds", "regressions"] {
            let inputs = Path::new("../fuzz").join(inputs).join(target);
            for input in std::fs::read_dir(inputs).unwrap() {
                decode(folder.path(), &std::fs::read(input.unwrap().path()).unwrap());
            }
        }
    }

    #[test]
    fn documents_of_images() {
        replay("images", |_, data| images(data));
    }

    #[test]
    fn layers_of_images() {
        replay("layers", layers);
    }

    #[test]
    fn certificates_of_anybody() {
        replay("certificates", |_, data| certificates(data));
    }

    #[test]
    fn answers_of_proxies_and_servers() {
        replay("answers", |_, data| answers(data));
    }

    #[test]
    fn files_of_the_agent() {
        replay("state", state);
    }
}
