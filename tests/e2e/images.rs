//! Images, good and bad, from a real registry.

use std::path::Path;

use limpet_tests::{Agent, Fleet, Image, Layer, Proxy, image, json, registry, run};
use tar::EntryType;

/// Runs a script in an image to its end; gives what it wrote.
fn says(fleet: &Fleet, name: &str, image: &str, script: &str) -> String {
    let image = format!("--image={image}");
    fleet.controller.ok(&["run", name, &image, "--restart=never", "--", "sh", "-c", script]);
    fleet.until_ended(name);
    fleet.controller.ok(&["logs", name, "--tail=1000"])
}

#[test]
fn every_form_of_an_image_runs() {
    let fleet = Fleet::start(1);
    let host = fleet.registry.host.clone();
    // As `node:alpine` is for everybody: docker.io/library, here from the mirror.
    fleet.registry.push("library/node", "alpine", &Image::busybox());
    assert_eq!(says(&fleet, "node", "node:alpine", "echo $FROM"), "image\n");

    let zstd = Image::of(vec![Image::busybox_layer().zstd()]);
    fleet.registry.push("forms/zstd", "1", &zstd);
    assert_eq!(says(&fleet, "zstd", &format!("{host}/forms/zstd:1"), "echo zstd"), "zstd\n");

    let plain = Image::of(vec![Image::busybox_layer().plain()]);
    let digest = fleet.registry.push("forms/plain", "1", &plain);
    assert_eq!(
        says(&fleet, "plain", &format!("{host}/forms/plain@{digest}"), "echo plain"),
        "plain\n"
    );

    // Docker's own media types, written by skopeo.
    let (from, to) =
        (format!("docker://{host}/library/box:latest"), format!("docker://{host}/forms/docker:1"));
    run(
        "skopeo",
        &[
            "copy",
            "-q",
            "--src-tls-verify=false",
            "--dest-tls-verify=false",
            "--format=v2s2",
            &from,
            &to,
        ],
    );
    let raw = run("skopeo", &["inspect", "--raw", "--tls-verify=false", &to]);
    assert!(raw.contains("application/vnd.docker.distribution.manifest.v2+json"), "{raw}");
    assert_eq!(
        says(&fleet, "docker", &format!("{host}/forms/docker:1"), "echo docker"),
        "docker\n"
    );

    // An index: ours is neither the first nor the last.
    let (mut other, ours) = (Image::busybox(), Image::busybox());
    other.run = json!({"Entrypoint": ["/wrong"]});
    for image in [&other, &ours] {
        fleet.registry.push("forms/index", "part", image);
    }
    let (wrong, right) = (other.manifest(), ours.manifest());
    let index = registry::index(&[("s390x", &wrong), (image::arch(), &right), ("arm/v6", &wrong)]);
    fleet.registry.push_manifest("forms/index", "1", &index);
    assert_eq!(says(&fleet, "index", &format!("{host}/forms/index:1"), "echo index"), "index\n");
    let foreign = registry::index(&[("s390x", &wrong), ("arm/v6", &wrong)]);
    fleet.registry.push_manifest("forms/index", "2", &foreign);
    let name = format!("--image={host}/forms/index:2");
    let why = fleet.controller.fails(&["run", "foreign", &name]);
    assert!(why.contains("s390x") && why.contains("arm/v6"), "it lists what there is: {why}");
}

#[test]
fn layers_are_put_together_as_they_should_be() {
    let fleet = Fleet::start(1);
    let lower = Image::busybox_layer()
        .folder("d/", 0o755)
        .file("d/hidden", 0o644, "lower")
        .file("d/kept", 0o644, "lower")
        .folder("o/", 0o755)
        .file("o/a", 0o644, "lower")
        .file("o/b", 0o644, "lower")
        .folder("was-folder/", 0o755)
        .file("was-folder/x", 0o644, "x")
        .symlink("abs", "/d")
        .file("plain", 0o644, "one");
    let mut owned = image::header("owned", EntryType::Regular, 0o4750, "");
    owned.set_uid(12_345);
    owned.set_gid(23_456);
    let upper = Layer::new()
        .file("d/.wh.hidden", 0o644, "")
        .folder("o/", 0o711)
        .file("o/.wh..wh..opq", 0o644, "")
        .file("o/c", 0o640, "upper")
        .file("was-folder", 0o600, "now a file")
        .file("plain", 0o644, "two")
        .entry("hard", EntryType::Link, 0o644, b"", "plain")
        .raw(owned, b"")
        .pax("SCHILY.xattr.user.colour", b"blue\n\0=")
        .file("described", 0o444, "")
        .file(&format!("{}/{}", "long".repeat(12), "n"), 0o644, "long name")
        .entry("fifo", EntryType::Fifo, 0o644, b"", "")
        .file("deep/down/here", 0o644, "made");
    let image = Image::of(vec![lower.gzip(), upper.zstd()]);
    fleet.registry.push("library/put", "latest", &image);
    let script = "ls d o; cat was-folder plain hard abs/kept; echo; stat -c '%h' plain; \
                  stat -c '%a %u %g' owned o; stat -c '%Y %F' plain fifo; cat deep/down/here long*/n";
    let said = says(&fleet, "put", "put", &format!("cd /; {script}"));
    assert_eq!(
        said,
        "d:\nkept\n\no:\nc\nnow a filetwotwolower\n2\n4750 12345 23456\n711 0 0\n\
         1000000000 regular file\n1000000000 fifo\nmadelong name\n"
    );
    let layers = fleet.agents[0].data.join("images/layers");
    let described = folders(&layers).find_map(|layer| {
        let mut value = [0; 64];
        let size =
            rustix::fs::getxattr(layer.join("described"), "user.colour", &mut value[..]).ok()?;
        Some(value[..size].to_vec())
    });
    assert_eq!(described, Some(b"blue\n\0=".to_vec()));

    // The same layer twice, as builders leave it behind steps that change nothing.
    let twice = || Layer::new().file("twice", 0o644, "twice\n").gzip();
    let stuttering = Image::of(vec![Image::busybox_layer().gzip(), twice(), twice()]);
    fleet.registry.push("library/stutter", "latest", &stuttering);
    assert_eq!(says(&fleet, "stutter", "stutter", "cat /twice"), "twice\n");

    // An image that shares its layers adds none.
    let before = folders(&layers).count();
    let shared =
        Image { run: json!({"Cmd": ["sh", "-c", "echo shared"], "Env": ["PATH=/bin"]}), ..image };
    fleet.registry.push("library/shared", "latest", &shared);
    fleet.controller.ok(&["run", "shared", "--image=shared", "--restart=never"]);
    assert_eq!(folders(&layers).count(), before);
}

fn folders(path: &Path) -> impl Iterator<Item = std::path::PathBuf> + use<> {
    std::fs::read_dir(path)
        .unwrap()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
}

#[test]
fn what_an_image_must_not_do_is_refused_and_disturbs_nobody() {
    let fleet = Fleet::start(1);
    fleet.controller.ok(&["run", "good", "--image=box"]);
    let good = fleet.until_phases("good", &["running"]);
    let outside = fleet.lab.path("outside");
    std::fs::create_dir(&outside).unwrap();
    let outside_text = outside.display().to_string();
    let far = |path: &str| format!("{}{path}", "../".repeat(12));
    let mut sparse = image::header("huge", EntryType::Regular, 0o644, "");
    sparse.set_size(10 << 30);
    let cases: Vec<(&str, Layer, &[&str])> = vec![
        (
            "climb",
            Layer::new().file("../../etc/x", 0o644, "x"),
            &["../../etc/x", "leads out of the image"],
        ),
        (
            "climb-far",
            Layer::new().file(&far("tmp/limpet-escaped"), 0o644, "x"),
            &["leads out of the image"],
        ),
        (
            "device",
            Layer::new().entry("dev/sda", EntryType::Block, 0o666, b"", ""),
            &["dev/sda", "device node"],
        ),
        (
            "char",
            Layer::new().entry("dev/mem", EntryType::Char, 0o666, b"", ""),
            &["dev/mem", "device node"],
        ),
        ("huge", Layer::new().raw(sparse, b""), &["huge", "does not fit"]),
        (
            "hard-out",
            Layer::new().entry("passwd", EntryType::Link, 0o644, b"", "../../etc/passwd"),
            &["links out of the image"],
        ),
        (
            "sparse",
            Layer::new().pax("GNU.sparse.major", b"1").file("s", 0o644, "x"),
            &["is sparse"],
        ),
        (
            "nul",
            Layer::new().pax("path", b"a\0b").file("p", 0o644, "x"),
            &["a path that no file can have"],
        ),
    ];
    for (name, layer, texts) in cases {
        let image = Image::of(vec![Image::busybox_layer().gzip(), layer.gzip()]);
        fleet.registry.push(&format!("library/{name}"), "latest", &image);
        let why = fleet.controller.fails(&["run", name, &format!("--image={name}")]);
        for text in texts {
            assert!(why.contains(text), "{name}: no {text:?} in {why}");
        }
    }
    // A link to an absolute path, and then a write through it, stay in the image.
    let through = Layer::new()
        .symlink("exit", &outside_text)
        .file("exit/pwned", 0o644, "x")
        .symlink("up", "../../..")
        .file("up/up-file", 0o644, "x");
    let image = Image::of(vec![Image::busybox_layer().gzip(), through.gzip()]);
    fleet.registry.push("library/through", "latest", &image);
    let done = fleet.controller.limpet(&["run", "through", "--image=through"]);
    assert!(
        std::fs::read_dir(&outside).unwrap().next().is_none(),
        "nothing is written outside: {done:?}"
    );
    assert!(
        !Path::new("/tmp/limpet-escaped").exists()
            && !Path::new("/up-file").exists()
            && !Path::new("/etc/x").exists()
    );
    let now = fleet.until_phases("good", &["running"]);
    assert_eq!((&now[0]["pid"], &now[0]["restarts"]), (&good[0]["pid"], &json!(0)));
    let left = folders(&fleet.agents[0].data.join("images/layers"))
        .filter(|path| path.extension().is_some());
    assert_eq!(left.count(), 0, "no half of a layer is left");
}

#[test]
fn documents_and_layers_that_lie_are_refused() {
    let fleet = Fleet::start(1);
    let lying = Image::of(vec![Image::busybox_layer().file("lie", 0o644, "lie").gzip()]);
    fleet.registry.push("library/lying", "latest", &lying);
    fleet.registry.corrupt(&lying.layers[0].packed);
    let why = fleet.controller.fails(&["run", "lying", "--image=lying"]);
    let digest = limpet_protocol::Digest::of(&lying.layers[0].packed).to_string();
    assert!(
        why.contains("layer sha256:")
            && why.contains(&digest)
            && why.contains("has bytes of sha256:"),
        "{why}"
    );

    // The archive is not the one that the config names.
    let mut mixed =
        Image::of(vec![Image::busybox_layer().gzip(), Layer::new().file("a", 0o644, "a").gzip()]);
    let other = Layer::new().file("b", 0o644, "b").gzip();
    mixed.layers[1].packed = other.packed;
    fleet.registry.push("library/mixed", "latest", &mixed);
    let why = fleet.controller.fails(&["run", "mixed", "--image=mixed"]);
    assert!(why.contains("unpacked layer sha256:"), "{why}");

    // Not a compressed archive at all.
    let mut noise =
        Image::of(vec![Image::busybox_layer().gzip(), Layer::new().file("c", 0o644, "c").gzip()]);
    noise.layers[1].packed = b"this is no gzip".to_vec();
    fleet.registry.push("library/noise", "latest", &noise);
    let why = fleet.controller.fails(&["run", "noise", "--image=noise"]);
    assert!(why.contains("cannot decompress it") || why.contains("cannot read it"), "{why}");
}

/// Bytes that no compression makes smaller.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 1u64;
    let next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(bytes).collect()
}

#[test]
fn a_pull_that_is_cut_again_and_again_goes_on_where_it_was() {
    const SIZE: usize = 3 << 20;
    let mut fleet = Fleet::start(0);
    let big = Image::of(vec![
        Image::busybox_layer().gzip(),
        Layer::new().file("noise", 0o644, noise(SIZE)).gzip(),
    ]);
    fleet.registry.push("library/big", "latest", &big);
    let proxy = Proxy::start(&fleet.registry.host);
    proxy.cut_after(400_000);
    proxy.pace(2000);
    let config = format!("[registries.mirrors]\n\"docker.io\" = [\"{}\"]\n", proxy.address);
    let agent = Agent::with_config(&fleet.lab, "dev-0", &fleet.controller, &config);
    fleet.agents.push(agent);
    fleet.until_online(1);
    let run = fleet.controller.limpet(&["run", "big", "--image=big"]);
    assert_eq!(run.status, 0, "{run:?}");
    assert!(run.err.contains("dev-0 pulls its image: ") && run.err.contains(" of 5 MB"), "{run:?}");
    let whole: u64 = big.layers.iter().map(|layer| layer.packed.len() as u64).sum();
    assert!(
        proxy.carried() < whole + whole / 4,
        "{} bytes for an image of {whole}",
        proxy.carried()
    );

    // A registry that stops for good in the middle says so, and is asked again later.
    let more = Image::of(vec![Layer::new().file("more", 0o644, noise(SIZE + 1)).gzip()]);
    fleet.registry.push("library/more", "latest", &more);
    proxy.cut_after(100_000);
    fleet.controller.ok(&["run", "more", "--image=more", "--detach"]);
    fleet.eventually("a part of it", || {
        let blobs = std::fs::read_dir(fleet.agents[0].data.join("images/blobs")).unwrap().flatten();
        blobs
            .filter(|b| b.path().extension().is_some_and(|e| e == "part"))
            .find(|b| b.metadata().is_ok_and(|m| m.len() > 100_000))
            .map(drop)
    });
    fleet.registry.process.kill();
    proxy.cut();
    let why = fleet.eventually("the reason", || {
        let reason = fleet.workloads("more").first()?["message"].as_str()?.to_owned();
        reason.contains("cut off at").then_some(reason)
    });
    assert!(why.contains("layer sha256:"), "{why}");
    fleet.registry.restart();
    proxy.cut_after(u64::MAX);
    // It has no program: that it gets so far as to say so means that the layer is complete.
    fleet.eventually("the layer", || {
        let reason = fleet.workloads("more").first()?["message"].as_str()?.to_owned();
        reason.contains("no program \"sleep\"").then_some(())
    });
}

#[test]
fn what_nothing_needs_goes_when_room_is_short_and_nothing_else() {
    let mut fleet = Fleet::start(0);
    let data = fleet.lab.path("dev-0.data");
    let _disk = limpet_tests::Disk::mount(&data, "40m");
    fleet.agents.push(Agent::start(&fleet.lab, "dev-0", &fleet.controller, &fleet.registry));
    fleet.until_online(1);
    let own = |name: &str| Layer::new().file(name, 0o644, name).gzip();
    for name in ["one", "two", "three"] {
        let mut image = Image::of(vec![Image::busybox_layer().gzip(), own(name)]);
        image.run["StopSignal"] = json!("SIGKILL");
        fleet.registry.push(&format!("library/{name}"), "latest", &image);
    }
    let images = data.join("images");
    let count = |fleet: &Fleet, what: &str, expected: [usize; 3]| {
        fleet.eventually(what, || {
            let found = ["names", "blobs", "layers"]
                .map(|kind| std::fs::read_dir(images.join(kind)).unwrap().count());
            (found == expected).then_some(())
        });
    };
    let layer_of =
        |name: &str| folders(&images.join("layers")).any(|layer| layer.join(name).exists());
    fleet.controller.ok(&["run", "web", "--image=one"]);
    fleet.controller.ok(&["run", "web", "--image=two"]);
    count(&fleet, "both to stay while there is room", [2, 4, 3]);
    // Three quarters of the disk are taken.
    std::fs::write(data.join("filler"), vec![0; 31 << 20]).unwrap();
    let part = images.join("blobs/sha256-of-a-pull-that-was-cut.part");
    std::fs::write(&part, "half").unwrap();
    let why = fleet.controller.fails(&["run", "web", "--image=absent"]);
    assert!(why.contains("not found"), "{why}");
    count(&fleet, "what runs, and what was received, to stay", [1, 3, 2]);
    assert!(part.exists());
    fleet.controller.ok(&["run", "web", "--image=three"]);
    count(&fleet, "the revision before it to stay too", [2, 4, 3]);
    assert!(layer_of("two") && layer_of("three"));
    // That is not forgotten when the agent begins again.
    fleet.agents[0].kill();
    fleet.agents[0].restart();
    fleet.until_online(1);
    fleet.controller.ok(&["run", "web", "--image=one"]);
    count(&fleet, "of three revisions the oldest to go", [2, 4, 3]);
    assert!(layer_of("three") && layer_of("one") && !layer_of("two"));
    // What is left is whole: either runs with no registry.
    fleet.registry.process.kill();
    fleet.agents[0].power_cut();
    fleet.agents[0].restart();
    fleet.until_online(1);
    fleet.eventually("it to run again", || {
        let web = fleet.workloads("web").remove(0);
        (web["phase"] == "running" && web["restarts"] == 1).then_some(())
    });
    fleet.controller.ok(&["run", "web", "--image=three"]);
    fleet.controller.ok(&["delete", "web"]);
    count(&fleet, "nothing", [0, 0, 0]);
    fleet.agents.clear();
}

#[test]
fn a_60_mb_image_arrives_over_a_link_that_is_cut_every_400_kb() {
    const SIZE: usize = 30 << 20;
    let mut fleet = Fleet::start(0);
    // Not all of it in one layer, and none of it smaller when it is packed.
    let big = Image::of(vec![
        Image::busybox_layer().gzip(),
        Layer::new().file("one", 0o644, noise(SIZE)).plain(),
        Layer::new().file("two", 0o644, noise(SIZE + 1)).plain(),
    ]);
    fleet.registry.push("library/big", "latest", &big);
    let proxy = Proxy::start(&fleet.registry.host);
    proxy.cut_after(400_000);
    let config = format!("[registries.mirrors]\n\"docker.io\" = [\"{}\"]\n", proxy.address);
    let agent = Agent::with_config(&fleet.lab, "dev-0", &fleet.controller, &config);
    fleet.agents.push(agent);
    fleet.until_online(1);
    fleet.controller.ok(&["run", "big", "--image=big"]);
    let whole: u64 = big.layers.iter().map(|layer| layer.packed.len() as u64).sum();
    let (carried, cuts) = (proxy.carried(), proxy.connections());
    println!("{carried} bytes over {cuts} connections for an image of {whole}");
    assert!(whole > 60_000_000 && cuts > whole / 400_000, "{whole} {cuts}");
    assert!(carried <= whole + whole / 10, "{carried} bytes for an image of {whole}");
}

#[test]
fn a_transfer_that_stalls_is_resumed_and_one_that_is_slow_is_not() {
    let mut fleet = Fleet::start(0);
    let push = |name: &str, size: usize| {
        let layer = Layer::new().file(name, 0o644, noise(size)).plain();
        let bytes = layer.packed.len() as u64;
        let image = Image::of(vec![Image::busybox_layer().gzip(), layer]);
        fleet.registry.push(&format!("library/{name}"), "latest", &image);
        bytes
    };
    let (_, _, bytes) = (push("quick", 50_000), push("slow", 50_001), push("stalls", 1 << 20));
    let proxy = Proxy::start(&fleet.registry.host);
    let config = format!(
        "[registries]\nstall_timeout_s = 5\nmirrors = {{ \"docker.io\" = [\"{}\"] }}\n",
        proxy.address
    );
    let agent = Agent::with_config(&fleet.lab, "dev-0", &fleet.controller, &config);
    fleet.agents.push(agent);
    fleet.until_online(1);
    // What one run of an image takes of the link: bytes and connections.
    let costs = |name: &str| {
        let before = (proxy.carried(), proxy.connections());
        fleet.controller.ok(&["run", name, &format!("--image={name}")]);
        (proxy.carried() - before.0, proxy.connections() - before.1)
    };
    // All stand on its layer.
    costs("box");
    let (_, connections) = costs("quick");
    // 4 KiB each second: far longer than the bound in all, never silent for as long.
    proxy.pace(1_000_000);
    let slowly = costs("slow");
    assert_eq!(slowly.1, connections, "{slowly:?}");
    proxy.pace(0);
    proxy.stall_after(500_000);
    let stalled = costs("stalls");
    assert!(stalled.1 > connections, "it was silent, and asked again: {stalled:?}");
    assert!(stalled.0 <= bytes + bytes / 10, "{stalled:?} for {bytes}");
    assert!(fleet.story("stalls").iter().all(|line| !line.starts_with("pull-failed")));
}

#[test]
fn a_full_disk_fails_that_workload_alone() {
    const MIB: usize = 1 << 20;
    let mut fleet = Fleet::start(0);
    let data = fleet.lab.path("dev-0.data");
    let _disk = limpet_tests::Disk::ext4(&data, "48m");
    let proxy = Proxy::start(&fleet.registry.host);
    let config = format!("[registries.mirrors]\n\"docker.io\" = [\"{}\"]\n", proxy.address);
    fleet.agents.push(Agent::with_config(&fleet.lab, "dev-0", &fleet.controller, &config));
    fleet.until_online(1);
    let push = |name: &str, layers: Vec<image::Packed>| {
        let mut all = vec![Image::busybox_layer().gzip()];
        all.extend(layers);
        fleet.registry.push(&format!("library/{name}"), "latest", &Image::of(all));
    };
    // Too much to be received; little to be received, and too much when it is unpacked.
    push("large", vec![Layer::new().file("noise", 0o644, noise(40 * MIB)).plain()]);
    let zeros =
        (0..60).fold(Layer::new(), |l, n| l.file(&format!("zero-{n}"), 0o644, vec![0; MIB]));
    push("grows", vec![Layer::new().file("first", 0o644, noise(4 * MIB)).gzip(), zeros.gzip()]);
    push("modest", vec![Layer::new().file("modest", 0o644, "modest").gzip()]);
    fleet.controller.ok(&["run", "before", "--image=box"]);
    let before = fleet.until_phases("before", &["running"]);

    let carried = proxy.carried();
    let why = fleet.controller.fails(&["run", "large", "--image=large"]);
    assert!(
        why.contains("large:latest needs ") && why.contains(" free beside its reserve"),
        "{why}"
    );
    assert!(proxy.carried() - carried < 100_000, "nothing is fetched that cannot fit");

    let why = fleet.controller.fails(&["run", "grows", "--image=grows"]);
    assert!(why.contains("does not fit") || why.contains("grows:latest needs "), "{why}");
    // From then on it is known what it takes: it is not fetched again to find that out.
    let message = |name: &str| fleet.workloads(name)[0]["message"].as_str().unwrap().to_owned();
    fleet.eventually("what it needs", || {
        message("grows").contains("grows:latest needs ").then_some(())
    });
    let (failures, carried) = (fleet.story("grows").len(), proxy.carried());
    fleet.eventually("more tries", || (fleet.story("grows").len() > failures + 2).then_some(()));
    assert!(proxy.carried() - carried < 100_000, "{} bytes", proxy.carried() - carried);

    fleet.controller.ok(&["run", "modest", "--image=modest"]);
    let now = fleet.until_phases("before", &["running"]);
    assert_eq!((&now[0]["pid"], &now[0]["restarts"]), (&before[0]["pid"], &json!(0)));
    let left = |kind: &str| std::fs::read_dir(data.join("images").join(kind)).unwrap().flatten();
    let halves = left("layers").chain(left("blobs")).filter(|e| e.path().extension().is_some());
    assert_eq!(halves.count(), 0, "no half of anything is left");
    let layers: Vec<_> = folders(&data.join("images/layers")).collect();
    assert_eq!(layers.len(), 2, "what was had of an image that does not fit is given back");
    fleet.controller.ok(&["delete", "grows"]);
    fleet.controller.ok(&["delete", "large"]);
    fleet.agents.clear();
}
