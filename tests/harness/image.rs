//! Images made byte by byte, so that a test decides what is in them, good and bad.

use std::io::Write;
use std::process::{Command, Stdio};

use flate2::Compression;
use flate2::write::GzEncoder;
use limpet_protocol::Digest;
use serde_json::{Value, json};
use tar::{EntryType, Header};

/// The programs of busybox that tests use.
const PROGRAMS: [&str; 20] = [
    "sh", "cat", "echo", "env", "hostname", "httpd", "id", "kill", "ls", "mount", "nc", "sleep",
    "stat", "touch", "true", "wget", "yes", "mknod", "dd", "chroot",
];

/// An archive on its way to being a layer.
pub struct Layer(tar::Builder<Vec<u8>>);

/// A layer as a registry holds it.
pub struct Packed {
    /// Compressed, or not.
    pub packed: Vec<u8>,
    diff_id: String,
    media_type: String,
}

/// An image: layers, and how to run it.
pub struct Image {
    /// From the lowest.
    pub layers: Vec<Packed>,
    /// `config` of the image's configuration (OCI image-spec, config.md).
    pub run: Value,
    /// The architecture that it is for, as OCI names it.
    pub arch: &'static str,
}

impl Layer {
    /// An empty archive.
    #[expect(clippy::new_without_default, reason = "a step of making one, not a value")]
    pub fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    /// Adds a folder.
    pub fn folder(self, path: &str, mode: u32) -> Self {
        self.entry(path, EntryType::Directory, mode, b"", "")
    }

    /// Adds a file.
    pub fn file(self, path: &str, mode: u32, content: impl AsRef<[u8]>) -> Self {
        self.entry(path, EntryType::Regular, mode, content.as_ref(), "")
    }

    /// Adds a symbolic link.
    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(path, EntryType::Symlink, 0o777, b"", target)
    }

    /// Adds an entry of any kind, with any path, checked by nobody.
    #[expect(clippy::too_many_arguments, reason = "the fields of a header")]
    pub fn entry(self, path: &str, kind: EntryType, mode: u32, content: &[u8], link: &str) -> Self {
        let mut header = header(path, kind, mode, link);
        header.set_size(content.len() as u64);
        self.raw(header, content)
    }

    /// Adds an entry whose header says whatever it says.
    pub fn raw(mut self, mut header: Header, content: &[u8]) -> Self {
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    /// Adds what the next entry is described by beyond its header: `SCHILY.xattr.user.a=b`.
    pub fn pax(mut self, key: &str, value: &[u8]) -> Self {
        self.0.append_pax_extensions([(key, value)]).unwrap();
        self
    }

    /// Compressed with gzip.
    pub fn gzip(self) -> Packed {
        self.pack("+gzip", |tar| {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(tar).unwrap();
            encoder.finish().unwrap()
        })
    }

    /// Compressed by the `zstd` program.
    pub fn zstd(self) -> Packed {
        self.pack("+zstd", |tar| {
            let mut child = Command::new("zstd")
                .args(["-q", "-c"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut stdin = child.stdin.take().unwrap();
            let tar = tar.to_vec();
            let writer = std::thread::spawn(move || stdin.write_all(&tar).unwrap());
            let done = child.wait_with_output().unwrap();
            writer.join().unwrap();
            done.stdout
        })
    }

    /// Not compressed.
    pub fn plain(self) -> Packed {
        self.pack("", <[u8]>::to_vec)
    }

    /// The archive itself.
    pub fn tar(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }

    fn pack(self, suffix: &str, compress: impl FnOnce(&[u8]) -> Vec<u8>) -> Packed {
        let tar = self.tar();
        Packed {
            packed: compress(&tar),
            diff_id: format!("sha256:{}", Digest::of(&tar)),
            media_type: format!("application/vnd.oci.image.layer.v1.tar{suffix}"),
        }
    }
}

/// A header with root's ownership and no content.
pub fn header(path: &str, kind: EntryType, mode: u32, link: &str) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_000_000_000);
    header.set_size(0);
    let fields = header.as_gnu_mut().unwrap();
    fields.name[..path.len()].copy_from_slice(path.as_bytes());
    fields.linkname[..link.len()].copy_from_slice(link.as_bytes());
    header
}

impl Image {
    /// Debian's busybox-static, with a shell, `sleep` and the like.
    pub fn busybox() -> Self {
        Self::busybox_for(arch(), std::fs::read("/bin/busybox").unwrap())
    }

    /// The same for another architecture, out of its `busybox`.
    pub fn busybox_for(arch: &'static str, program: Vec<u8>) -> Self {
        Self {
            layers: vec![Self::layer_around(program).gzip()],
            run: json!({"Cmd": ["sleep", "1000000"], "Env": ["PATH=/bin", "FROM=image"]}),
            arch,
        }
    }

    /// Busybox, whose main process ends at once where it should: not every program of busybox heeds
    /// what it is asked.
    pub fn quick() -> Self {
        let mut image = Self::busybox();
        image.run["StopSignal"] = json!("SIGKILL");
        image
    }

    /// The layer of [`Image::busybox`].
    pub fn busybox_layer() -> Layer {
        Self::layer_around(std::fs::read("/bin/busybox").unwrap())
    }

    fn layer_around(program: Vec<u8>) -> Layer {
        let mut layer = Layer::new()
            .folder("bin/", 0o755)
            .folder("etc/", 0o755)
            .folder("tmp/", 0o1777)
            .folder("root/", 0o700)
            .file("bin/busybox", 0o755, program)
            .file(
                "etc/passwd",
                0o644,
                "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/tmp:/bin/sh\n",
            )
            .file("etc/group", 0o644, "root:x:0:\napp:x:1001:\nextra:x:44:app\n");
        for program in PROGRAMS {
            layer = layer.symlink(&format!("bin/{program}"), "busybox");
        }
        layer
    }

    /// An image of these layers that runs what busybox does.
    pub fn of(layers: Vec<Packed>) -> Self {
        Self { layers, ..Self::busybox() }
    }

    /// Its configuration, as a registry holds it.
    pub fn config(&self) -> Vec<u8> {
        let diff_ids: Vec<&str> = self.layers.iter().map(|l| l.diff_id.as_str()).collect();
        json!({
            "architecture": self.arch, "os": "linux", "config": self.run,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        })
        .to_string()
        .into_bytes()
    }

    /// Its manifest.
    pub fn manifest(&self) -> Value {
        let describe = |media_type: &str, bytes: &[u8]| {
            json!({
                "mediaType": media_type, "size": bytes.len(),
                "digest": format!("sha256:{}", Digest::of(bytes)),
            })
        };
        let layers = self.layers.iter().map(|l| describe(&l.media_type, &l.packed));
        json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": describe("application/vnd.oci.image.config.v1+json", &self.config()),
            "layers": layers.collect::<Vec<_>>(),
        })
    }
}

/// This machine's architecture, as OCI names it.
pub fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
