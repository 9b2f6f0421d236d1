//! What fuzzing feeds the decoder of manifests with.

use limpet_protocol::cbor;

use super::{Format, parse, render};

/// Reads `data`, in the language that its first byte says. What is accepted must read back as the
/// same deployment, whatever it is called; what is refused must say why, in few words.
pub fn manifests(data: &[u8]) {
    let Some((format, data)) = data.split_first() else {
        return;
    };
    let format = match format % 4 {
        0 => Format::Detect,
        1 => Format::Yaml,
        2 => Format::Json,
        _ => Format::Cbor,
    };
    match parse(None, data, format) {
        Ok(deployment) => {
            let manifest = render(&deployment);
            let again = parse(Some(&deployment.name), manifest.as_bytes(), Format::Detect);
            assert!(again.as_ref() == Ok(&deployment), "{manifest:.4000}");
            let stored = cbor::decode(&cbor::encode(&deployment), usize::MAX);
            assert_eq!(stored.ok(), Some(deployment));
        }
        Err(faults) => {
            assert!(!faults.is_empty());
            for fault in faults {
                let shown = fault.to_string();
                assert!(shown.len() < 1024, "{shown}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a core has no IO, its test has")]
    fn what_fuzzing_begins_with_and_what_it_has_found() {
        for folder in ["seeds", "regressions"] {
            let inputs = Path::new("../../fuzz").join(folder).join("manifests");
            for input in std::fs::read_dir(inputs).unwrap() {
                super::manifests(&std::fs::read(input.unwrap().path()).unwrap());
            }
        }
    }
}
