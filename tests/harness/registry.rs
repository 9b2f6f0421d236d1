//! A real registry (Debian's docker-registry) on loopback.

use std::path::PathBuf;

use limpet_protocol::Digest;
use serde_json::{Value, json};

use crate::{Image, Lab, Process, eventually, free_port};

/// A registry on a port of its own.
pub struct Registry {
    /// `HOST:PORT`.
    pub host: String,
    /// The program.
    pub process: Process,
    folder: PathBuf,
    config: PathBuf,
    log: PathBuf,
    authorization: Option<String>,
}

impl Registry {
    /// Starts one that asks nobody who they are.
    pub fn start(lab: &Lab) -> Self {
        Self::with_auth(lab, "registry", "", None)
    }

    /// Starts one with an `auth` section in its configuration; `authorization` is what the test
    /// itself sends.
    pub fn with_auth(lab: &Lab, name: &str, auth: &str, authorization: Option<&str>) -> Self {
        let host = format!("127.0.0.1:{}", free_port());
        let folder = lab.path(name);
        let config = lab.file(
            &format!("{name}.yml"),
            format!(
                "version: 0.1\nlog: {{level: warn}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\n\
                 http: {{addr: \"{host}\"}}\n{auth}",
                folder.display()
            ),
        );
        let log = lab.path(&format!("{name}.log"));
        let process = launch(&log, &config);
        let registry = Self {
            host,
            process,
            folder,
            config,
            log,
            authorization: authorization.map(str::to_owned),
        };
        registry.until_up();
        registry
    }

    fn until_up(&self) {
        eventually("the registry", || std::net::TcpStream::connect(&self.host).ok());
    }

    /// Starts it again.
    pub fn restart(&mut self) {
        self.process = launch(&self.log, &self.config);
        self.until_up();
    }

    /// Pushes an image in OCI form; gives its manifest's digest.
    pub fn push(&self, repository: &str, tag: &str, image: &Image) -> String {
        for layer in &image.layers {
            self.push_blob(repository, &layer.packed);
        }
        self.push_blob(repository, &image.config());
        self.push_manifest(repository, tag, &image.manifest())
    }

    /// Pushes a blob, under its digest.
    pub fn push_blob(&self, repository: &str, bytes: &[u8]) {
        let url = format!("http://{}/v2/{repository}/blobs/uploads/", self.host);
        let begun = self.send("POST", &url, "", &[]);
        let location = begun.headers().get("location").unwrap().to_str().unwrap().to_owned();
        let mark = if location.contains('?') { '&' } else { '?' };
        let url = format!("{location}{mark}digest=sha256:{}", Digest::of(bytes));
        self.send("PUT", &url, "application/octet-stream", bytes);
    }

    /// Pushes a manifest or an index; gives its digest.
    pub fn push_manifest(&self, repository: &str, reference: &str, manifest: &Value) -> String {
        let url = format!("http://{}/v2/{repository}/manifests/{reference}", self.host);
        let bytes = manifest.to_string().into_bytes();
        let kind = manifest["mediaType"].as_str().unwrap();
        self.send("PUT", &url, kind, &bytes);
        format!("sha256:{}", Digest::of(&bytes))
    }

    /// Changes one byte in the middle of a stored blob: a disk that fails, or worse.
    pub fn corrupt(&self, bytes: &[u8]) {
        let digest = Digest::of(bytes).to_string();
        let store = "docker/registry/v2/blobs/sha256";
        let path = self.folder.join(store).join(&digest[..2]).join(&digest).join("data");
        let mut changed = std::fs::read(&path).unwrap();
        let middle = changed.len() / 2;
        changed[middle] ^= 1;
        std::fs::write(path, changed).unwrap();
    }

    fn send(
        &self,
        method: &str,
        url: &str,
        kind: &str,
        body: &[u8],
    ) -> ureq::http::Response<ureq::Body> {
        let mut request = ureq::http::Request::builder().method(method).uri(url);
        if !kind.is_empty() {
            request = request.header("content-type", kind);
        }
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", authorization);
        }
        let answer = ureq::run(request.body(body).unwrap());
        answer.unwrap_or_else(|e| panic!("{method} {url}: {e}\n{}", self.process.tail()))
    }
}

fn launch(log: &std::path::Path, config: &std::path::Path) -> Process {
    let config = config.display().to_string();
    Process::start(log, "/usr/bin/docker-registry".as_ref(), &["serve", &config])
}

/// An index over manifests, each with its platform as `ARCH` or `ARCH/VARIANT`.
pub fn index(entries: &[(&str, &Value)]) -> Value {
    let manifests = entries.iter().map(|(platform, manifest)| {
        let bytes = manifest.to_string();
        let (arch, variant) = platform.split_once('/').unwrap_or((platform, ""));
        let mut platform = json!({"os": "linux", "architecture": arch});
        if !variant.is_empty() {
            platform["variant"] = json!(variant);
        }
        json!({
            "mediaType": manifest["mediaType"], "platform": platform,
            "digest": format!("sha256:{}", Digest::of(bytes.as_bytes())), "size": bytes.len(),
        })
    });
    json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": manifests.collect::<Vec<_>>(),
    })
}
