//! Whom an image is asked for, and what is taken from whoever answers.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;

use super::*;
use crate::image::blob::Blobs;
use crate::image::manifest::Descriptor;

#[test]
fn mirrors_come_first_and_loopback_is_plain() {
    let registries = Registries {
        mirrors: [("docker.io".to_owned(), vec!["127.0.0.1:5000".to_owned(), "m.example".into()])]
            .into(),
        insecure: vec!["10.0.0.1:5000".into()],
        ..Registries::default()
    };
    let registry = Registry::new(registries).unwrap();
    let bases = |name: &str| -> Vec<String> {
        let name = name.parse().unwrap();
        registry.endpoints(&name).iter().map(ToString::to_string).collect()
    };
    assert_eq!(
        bases("node:alpine"),
        ["http://127.0.0.1:5000", "https://m.example", "https://registry-1.docker.io"]
    );
    assert_eq!(bases("10.0.0.1:5000/a"), ["http://10.0.0.1:5000"]);
    assert_eq!(bases("[::1]:5000/a"), ["http://[::1]:5000"]);
    assert_eq!(bases("10.0.0.2:5000/a"), ["https://10.0.0.2:5000"]);
}

/// A registry that says to every question that `length` bytes come, sends these, and hangs up; gives
/// its `HOST:PORT`.
fn sending(body: &'static [u8], length: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for mut asker in listener.incoming().flatten() {
            let lines = BufReader::new(&asker).lines().map_while(Result::ok);
            let asked: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
            let goes_on = asked.iter().any(|line| line.starts_with("range:"));
            let status = if goes_on { "206 Partial Content" } else { "200 OK" };
            let head = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n");
            asker.write_all(&[head.as_bytes(), body].concat()).unwrap();
        }
    });
    host
}

/// Asks a registry on this `HOST:PORT`.
fn asking<T>(host: &str, ask: impl FnOnce(Source<'_>) -> T) -> T {
    let registry = Registry::new(Registries::default()).unwrap();
    let name: ImageName = format!("{host}/app").parse().unwrap();
    let endpoint = &registry.endpoints(&name)[0];
    let agent = registry.agent().unwrap();
    ask(Source { registry: &registry, agent: &agent, endpoint, name: &name })
}

#[test]
fn a_document_is_what_its_digest_says_and_within_its_bound() {
    let digest = format!("sha256:{}", Digest::of(b"config"));
    let had = |body: &'static [u8], bytes_max| {
        let host = sending(body, body.len());
        let had = asking(&host, |source| source.document("config", &digest, bytes_max));
        had.map_err(|e| e.to_string())
    };
    assert_eq!(had(b"config", 6).unwrap(), b"config");
    let why = had(b"config", 5).unwrap_err();
    assert!(why.ends_with("more than the 5 bytes that are read of it"), "{why}");
    let why = had(b"of another", 1024).unwrap_err();
    assert!(why.starts_with(&format!("config {digest} has bytes of sha256:")), "{why}");
}

#[test]
fn a_registry_that_hangs_up_after_every_byte_is_given_up() {
    let host = sending(b"x", 100);
    let folder = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(folder.path().join("blobs")).unwrap();
    let digest = format!("sha256:{}", Digest::of(b"layer"));
    let layer = serde_json::json!({ "digest": digest, "size": 100 });
    let layer: Descriptor = serde_json::from_value(layer).unwrap();
    let had = asking(&host, |source| blobs.download(source, &layer, &|_| ()));
    let why = had.unwrap_err().to_string();
    assert!(why.contains("cut off at 4 of 100 bytes"), "{why}");
}
