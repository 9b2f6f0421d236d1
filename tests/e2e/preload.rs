//! Images from files, for places with no registry.

use std::path::{Path, PathBuf};

use limpet_tests::process::Output;
use limpet_tests::{Agent, Disk, Fleet, Image, Layer, Process, eventually, output, program, run};

const MIB: usize = 1 << 20;

fn preload(data: &Path, args: &[&str]) -> Output {
    let data = data.display().to_string();
    output(program("limpet-agent"), &[&["preload", "--data-dir", &data], args].concat())
}

/// Has skopeo write an image of the registry to a file or folder: `docker-archive:PATH:NAME`.
fn save(fleet: &Fleet, image: &str, to: &str) {
    let from = format!("docker://{}/{image}", fleet.registry.host);
    run("skopeo", &["copy", "-q", "--src-tls-verify=false", &from, to]);
}

fn count(data: &Path, kind: &str) -> usize {
    std::fs::read_dir(data.join("images").join(kind)).unwrap().count()
}

/// What is in the store and is neither whole nor named as if it were.
fn halves(data: &Path) -> Vec<PathBuf> {
    let kinds = ["names", "blobs", "layers"].iter();
    let entries = kinds.flat_map(|k| std::fs::read_dir(data.join("images").join(k)).unwrap());
    entries.flatten().map(|e| e.path()).filter(|path| path.extension().is_some()).collect()
}

#[test]
fn an_image_from_a_file_runs_where_there_is_no_registry() {
    let mut fleet = Fleet::start(0);
    let own = |name: &str| Layer::new().file(name, 0o644, name).gzip();
    for name in ["one", "two", "three", "four"] {
        let image = Image::of(vec![Image::busybox_layer().gzip(), own(name)]);
        fleet.registry.push(&format!("site/{name}"), "1", &image);
    }
    let path = |name: &str| fleet.lab.path(name).display().to_string();
    let [docker, oci, folder, packed] = ["docker.tar", "oci.tar", "layout", "packed.tar"].map(path);
    save(&fleet, "site/one:1", &format!("docker-archive:{docker}:registry.example/site/one:1"));
    save(&fleet, "site/two:1", &format!("oci-archive:{oci}:registry.example/site/two:1"));
    save(&fleet, "site/three:1", &format!("oci:{folder}:1"));
    save(&fleet, "site/four:1", &format!("docker-archive:{packed}:registry.example/site/four:1"));
    run("gzip", &[&packed]);

    // At flash time: no agent has ever run here.
    let data = fleet.lab.path("dev-0.data");
    let packed = format!("{packed}.gz");
    let name = "registry.example/site/three:1";
    for args in [&[&docker[..]][..], &[&oci], &[&folder, "--name", name], &[&packed]] {
        let done = preload(&data, args);
        assert_eq!((done.status, done.err.as_str()), (0, ""), "{done:?}");
        assert!(done.out.starts_with("preloaded registry.example/site/"), "{done:?}");
    }
    let listed = preload(&data, &["--list"]).out;
    let names: Vec<&str> = listed.lines().filter_map(|line| line.split(' ').next()).collect();
    let expected = ["four", "one", "three", "two"].map(|n| format!("registry.example/site/{n}:1"));
    assert_eq!(names, expected);
    let manifest = run("skopeo", &["inspect", "--raw", &format!("oci-archive:{oci}")]);
    let digest = limpet_protocol::Digest::of(manifest.as_bytes());
    assert!(listed.contains(&format!("two:1 sha256:{digest}")), "{listed}");
    assert_eq!(count(&data, "layers"), 5, "what they share is there once");

    fleet.registry.process.kill();
    fleet.agents.push(Agent::with_config(&fleet.lab, "dev-0", &fleet.controller, ""));
    fleet.until_online(1);
    for name in ["one", "two", "three", "four"] {
        let image = format!("--image=registry.example/site/{name}:1");
        fleet.controller.ok(&["run", name, &image]);
        let story = fleet.story(name);
        assert!(story.iter().all(|line| !line.starts_with("pull")), "{story:?}");
    }
    // The agent that runs does it itself.
    let shown = data.display().to_string();
    let by_agent = |args: &[&str]| {
        let args: Vec<&str> = args.iter().copied().chain(["--data-dir", &shown]).collect();
        fleet.agents[0].ask(&[&["preload"], args.as_slice()].concat())
    };
    let again = by_agent(&[&docker]);
    assert!(
        again.status == 0 && again.out.contains("preloaded registry.example/site/"),
        "{again:?}"
    );
    let missing = by_agent(&["/nonexistent"]);
    assert!(missing.status == 1 && missing.err.contains("/nonexistent"), "{missing:?}");
    let unpinned = by_agent(&["--unpin", "nobody"]);
    assert!(unpinned.status == 1 && unpinned.err.contains("is not preloaded"), "{unpinned:?}");
    // Dark: no registry, no controller, and the power was gone.
    fleet.controller.kill();
    fleet.agents[0].power_cut();
    fleet.agents[0].restart();
    fleet.eventually("all to run", || (fleet.agents[0].shims().len() == 4).then_some(()));
}

#[test]
fn preloaded_images_stay_when_room_is_short_until_somebody_lets_them_go() {
    let mut fleet = Fleet::start(0);
    let data = fleet.lab.path("dev-0.data");
    let _disk = Disk::ext4(&data, "48m");
    for name in ["pinned", "pulled", "other"] {
        let layer = Layer::new().file(name, 0o644, name).gzip();
        let mut image = Image::of(vec![Image::busybox_layer().gzip(), layer]);
        image.run["StopSignal"] = "SIGKILL".into();
        fleet.registry.push(&format!("library/{name}"), "latest", &image);
    }
    let file = fleet.lab.path("pinned.tar").display().to_string();
    save(&fleet, "library/pinned:latest", &format!("docker-archive:{file}:pinned:latest"));
    assert_eq!(preload(&data, &[&file]).status, 0);
    fleet.agents.push(Agent::start(&fleet.lab, "dev-0", &fleet.controller, &fleet.registry));
    fleet.until_online(1);
    // Short of room: whatever nothing needs goes.
    std::fs::write(data.join("filler"), vec![0; 32 * MIB]).unwrap();
    fleet.controller.ok(&["run", "web", "--image=pulled"]);
    fleet.controller.ok(&["delete", "web"]);
    fleet.eventually("the other image to go", || (count(&data, "names") == 1).then_some(()));
    assert!(preload(&data, &["--list"]).out.starts_with("docker.io/library/pinned:latest "));
    fleet.registry.process.kill();
    fleet.controller.ok(&["run", "web", "--image=pinned"]);
    fleet.controller.ok(&["delete", "web"]);
    fleet.until_phases("web", &[]);
    assert_eq!(count(&data, "names"), 1, "used once, and still there");

    fleet.agents[0].kill();
    let done = preload(&data, &["--unpin", "pinned"]);
    assert_eq!((done.status, preload(&data, &["--list"]).out.as_str()), (0, ""), "{done:?}");
    let why = preload(&data, &["--unpin", "pinned"]);
    assert!(why.status == 1 && why.err.contains("is not preloaded"), "{why:?}");
    fleet.registry.restart();
    fleet.agents[0].restart();
    fleet.until_online(1);
    fleet.controller.ok(&["run", "web", "--image=other"]);
    fleet.controller.ok(&["delete", "web"]);
    fleet.eventually("all to go", || (count(&data, "names") == 0).then_some(()));
    fleet.agents.clear();
}

#[test]
fn of_a_preload_that_fails_or_is_killed_nothing_half_is_left() {
    let fleet = Fleet::start(0);
    let zeros = |count: usize| {
        let file = |layer: Layer, n| layer.file(&format!("zero-{n}"), 0o644, vec![0; MIB]);
        Image::of(vec![
            Layer::new().file("small", 0o644, "small").plain(),
            (0..count).fold(Layer::new(), file).gzip(),
        ])
    };
    fleet.registry.push("library/big", "latest", &zeros(200));
    let path = |name: &str| fleet.lab.path(name).display().to_string();
    let (plain, packed) = (path("plain.tar"), path("packed.tar"));
    save(&fleet, "library/big:latest", &format!("docker-archive:{plain}:big:latest"));
    save(&fleet, "library/big:latest", &format!("oci-archive:{packed}:big:latest"));

    // A disk that is too small: known before anything is written, or as soon as it is.
    let small = fleet.lab.path("small.data");
    let _disk = Disk::ext4(&small, "48m");
    for (file, says) in [(&plain, "big:latest needs 2098"), (&packed, "does not fit")] {
        let done = preload(&small, &[file]);
        assert!(done.status == 1 && done.err.contains(says), "{done:?}");
        assert!(count(&small, "layers") == 0 && halves(&small).is_empty());
    }

    // Killed in the middle: the next one finds its way.
    let data = fleet.lab.path("data");
    let arguments = ["preload", "--data-dir", &data.display().to_string(), &plain];
    let mut killed =
        Process::start(&fleet.lab.path("killed.log"), &program("limpet-agent"), &arguments);
    let layers = data.join("images/layers");
    let begun = |path: PathBuf| path.extension().is_some() && path.join("zero-3").exists();
    eventually("a layer to be begun", || {
        let mut entries = std::fs::read_dir(&layers).ok()?.flatten();
        entries.any(|entry| begun(entry.path())).then_some(())
    });
    killed.kill();
    assert_eq!(preload(&data, &["--list"]).out, "", "what is not whole has no name");
    let done = preload(&data, &[&plain]);
    assert_eq!((done.status, done.err.as_str()), (0, ""), "{done:?}");
    assert!(halves(&data).is_empty() && count(&data, "layers") == 2);

    for (args, says) in [
        (&["/etc/passwd"][..], "no archive that can be read"),
        (&["/nonexistent"], "cannot read it"),
        (&["/dev/null"], "neither a file nor a folder"),
        (&[&plain, "--platform", "linux/s390x"], "this device is linux/s390x"),
    ] {
        let done = preload(&data, args);
        assert!(done.status == 1 && done.err.contains(says), "{args:?}: {done:?}");
    }
    for args in [&[][..], &["--list", &plain], &[&plain, "--name", "NO"], &["a", "b"]] {
        let done = preload(&data, args);
        assert!(done.status == 2 && done.err.contains("limpet-agent --help"), "{done:?}");
    }
}
