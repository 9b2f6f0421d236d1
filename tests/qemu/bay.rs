//! What emulated boards are joined to: a fleet on this machine, and the cards that are made for it.

use std::path::{Path, PathBuf};

use limpet_tests::{Board, Controller, Fleet, Harbour, Image, Proxy, Value, run};

/// A card of this size is put in: the image is smaller, so that the data partition has room to grow.
const CARD: &str = "1G";

/// A fleet without devices, at an address that a board reaches.
pub(crate) struct Bay {
    pub(crate) fleet: Fleet,
    /// The key that boards let in over ssh.
    pub(crate) key: PathBuf,
    /// What boards know as `docker.io`.
    registry: String,
    _ferries: [Proxy; 2],
    _harbour: Harbour,
}

impl Bay {
    pub(crate) fn open() -> Self {
        let harbour = std::cell::OnceCell::new();
        let fleet = Fleet::of(0, |lab| {
            let Harbour { address } = harbour.get_or_init(|| Harbour::make(lab));
            Controller::advertised(lab, address)
        });
        let harbour = harbour.into_inner().unwrap();
        let ferries = [&fleet.controller.mqtt, &fleet.registry.host]
            .map(|to| Proxy::in_front(&harbour.address, to));
        let (_, port) = fleet.registry.host.split_once(':').unwrap();
        let registry = format!("{}:{port}", harbour.address);
        let key = fleet.lab.path("key");
        run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", &key.display().to_string()]);
        Self { fleet, key, registry, _ferries: ferries, _harbour: harbour }
    }

    /// Makes an image for a board with `limpet flash build`, and pushes `box` for its architecture.
    pub(crate) fn image(&self, board: Board) -> PathBuf {
        let lab = &self.fleet.lab;
        let image = lab.path(&format!("{}.img", board.name()));
        let config = lab.file(
            &format!("{}.toml", board.name()),
            format!(
                "keep_alive_s = 6\n[registries]\ninsecure = [\"{0}\"]\n\
                 [registries.mirrors]\n\"docker.io\" = [\"{0}\"]\n\
                 [owner]\nhost_paths = [\"/dev\"]\nhost_devices = [\"/dev/null\", \"/dev/kmsg\"]\n",
                self.registry
            ),
        );
        let public = self.key.with_extension("pub");
        let [key, config, out] = [&public, &config, &image].map(|path| path.display().to_string());
        self.fleet.controller.ok(&[
            "flash",
            "build",
            "--board",
            board.name(),
            "--join",
            self.fleet.controller.invitation(),
            "--hostname-prefix",
            "vm",
            "--label",
            &format!("board={}", board.name()),
            "--ssh-key",
            &key,
            "--config",
            &config,
            "-o",
            &out,
        ]);
        let program = self.busybox(&image);
        let image_of_board = Image::busybox_for(board.arch(), program);
        self.fleet.registry.push(&format!("library/{}", board.arch()), "latest", &image_of_board);
        image
    }

    /// The image, on a card of its own that is larger.
    pub(crate) fn card(&self, image: &Path, name: &str) -> PathBuf {
        let card = self.fleet.lab.path(&format!("{name}.card"));
        run("cp", &["--sparse=always", &image.display().to_string(), &card.display().to_string()]);
        run("truncate", &["-s", CARD, &card.display().to_string()]);
        card
    }

    /// The only device of a board, as the controller has it, once it is online.
    pub(crate) fn online(&self, board: Board) -> Option<Value> {
        let devices = self.fleet.controller.list("/api/v1/devices");
        devices.into_iter().find(|device| {
            device["presence"] == "online" && device["labels"]["board"] == board.name()
        })
    }

    /// Whether a deployment's workload runs, as the controller has it.
    pub(crate) fn runs(&self, deployment: &str) -> Option<()> {
        (self.fleet.workloads(deployment).first()?["phase"] == "running").then_some(())
    }

    /// `limpet run NAME` of the box for a board, on every device.
    pub(crate) fn run(&self, board: Board, name: &str, more: &[&str]) {
        let image = format!("--image={}", board.arch());
        self.fleet.controller.ok(&[&["run", name, &image, "--everywhere"], more].concat());
    }

    /// Orders another revision of the deployment `change`.
    pub(crate) fn change(&self, board: Board, number: usize) {
        self.run(board, "change", &["--env", &format!("N={number}"), "--detach"]);
    }

    /// The busybox of the image's own system, for containers of its architecture.
    fn busybox(&self, image: &Path) -> Vec<u8> {
        let shown = image.display().to_string();
        let table: Value = serde_json::from_str(&run("sfdisk", &["-J", &shown])).unwrap();
        let sectors = table["partitiontable"]["partitions"][1]["start"].as_u64().unwrap();
        let to = self.fleet.lab.path("system");
        let offset = (sectors * 512).to_string();
        let out = to.display().to_string();
        let system = ["-q", "-n", "-f", "-o", &offset, "-d", &out, &shown];
        run("unsquashfs", &[&system[..], &["bin/busybox", "usr/bin/busybox"]].concat());
        let found = ["usr/bin/busybox", "bin/busybox"].map(|place| to.join(place));
        let program = found.iter().find_map(|place| std::fs::read(place).ok());
        std::fs::remove_dir_all(&to).unwrap();
        program.unwrap()
    }
}
