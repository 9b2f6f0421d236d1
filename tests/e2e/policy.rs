//! Images that policies permit run, with a registry or without; all others do not, whoever says so.

use std::path::Path;

use limpet_protocol::Digest;
use limpet_tests::signer::{Signed, sign};
use limpet_tests::{Fleet, Image, Signer, Value, image, json, output, program, registry};

/// A manifest of one workload of this image; `keys` must have signed it.
fn manifest(fleet: &Fleet, name: &str, image: &str, keys: &[&Signer]) -> String {
    let keys: Vec<String> = keys.iter().map(|key| key.public()).collect();
    let manifest = json!({ "name": name, "image": image, "image_policy": { "keys": keys } });
    fleet.lab.file(&format!("{name}.json"), manifest.to_string()).display().to_string()
}

/// An image that shares nothing with others.
fn own(name: &str) -> Image {
    Image::of(vec![Image::busybox_layer().file("own", 0o644, name).gzip()])
}

fn layers(fleet: &Fleet) -> usize {
    std::fs::read_dir(fleet.agents[0].data.join("images/layers")).unwrap().count()
}

/// Waits until a deployment's workload says this of itself.
fn until_says(fleet: &Fleet, deployment: &str, words: &[&str]) {
    fleet.eventually(&format!("{deployment} to say {words:?}"), || {
        let all = fleet.workloads(deployment);
        let message = all.first()?["message"].as_str()?.to_owned();
        words.iter().all(|word| message.contains(word)).then_some(())
    });
}

fn pid(fleet: &Fleet, deployment: &str) -> Value {
    fleet.until_phases(deployment, &["running"])[0]["pid"].clone()
}

#[test]
fn what_is_signed_runs_also_without_a_registry_and_what_is_not_never_does() {
    let mut fleet = Fleet::start(1);
    let (good, other) = (Signer::new(), Signer::new());
    let digest = fleet.registry.push("site/app", "1", &own("app"));
    let image = format!("{}/site/app:1", fleet.registry.host);
    let file = manifest(&fleet, "app", &image, &[&good]);
    let why = fleet.controller.fails(&["apply", "-f", &file]);
    assert!(why.contains("its deployment's image_policy (keys)") && why.contains("it has none"));
    assert!(why.contains("--new-bundle-format=false"), "{why}");
    let story = fleet.story("app");
    assert!(story.iter().any(|line| line.starts_with("pull-failed")), "{story:?}");
    assert!(!story.iter().any(|line| line.starts_with("start")), "{story:?}");
    assert_eq!(layers(&fleet), 0, "nothing of it was unpacked");

    // Now, and not after the next back-off, which doubles.
    let again = || fleet.agents[0].ask_ok(&["start", "app.0"]);
    fleet.registry.sign("site/app", &digest, &[&other]);
    again();
    until_says(&fleet, "app", &["by another key"]);
    // A signature for another name, and one for another image.
    let elsewhere = sign(&[&good], "registry.example/site/app", &digest);
    put(&fleet, &digest, &elsewhere);
    again();
    until_says(&fleet, "app", &["for the name \"registry.example/site/app\""]);
    let own_name = format!("{}/site/app", fleet.registry.host);
    let another = sign(&[&good], &own_name, &format!("sha256:{}", "0a".repeat(32)));
    put(&fleet, &digest, &another);
    again();
    until_says(&fleet, "app", &["a signature is for \"sha256:0a0a"]);
    assert_eq!(layers(&fleet), 0, "nothing of it was unpacked");
    fleet.registry.sign("site/app", &digest, &[&other, &good]);
    again();
    let running = pid(&fleet, "app");

    // Another policy makes no other container, and ends none.
    let file = manifest(&fleet, "app", &image, &[&other]);
    fleet.controller.ok(&["apply", "-f", &file]);
    assert_eq!(pid(&fleet, "app"), running);

    // With no registry, what was kept of the signatures is good for either key.
    fleet.registry.process.kill();
    fleet.agents[0].power_cut();
    fleet.agents[0].restart();
    fleet.eventually("another container", || (pid(&fleet, "app") != running).then_some(()));
    let stranger = Signer::new();
    let file = manifest(&fleet, "app", &image, &[&stranger]);
    fleet.controller.ok(&["apply", "-f", &file]);
    fleet.agents[0].power_cut();
    fleet.agents[0].restart();
    until_says(&fleet, "app", &["it is here, without a signature"]);
    assert!(fleet.agents[0].containers().is_empty());
    let file = manifest(&fleet, "app", &image, &[&good]);
    fleet.controller.ok(&["apply", "-f", &file]);
    pid(&fleet, "app");
}

/// Puts signatures where those of an image of `site/app` are looked for.
fn put(fleet: &Fleet, digest: &str, signed: &Signed) {
    signed.blobs.iter().for_each(|blob| fleet.registry.push_blob("site/app", blob));
    let tag = format!("{}.sig", digest.replace(':', "-"));
    fleet.registry.push_manifest("site/app", &tag, &signed.manifest);
}

#[test]
fn a_registry_cannot_damage_one_image_with_what_it_has_for_the_signatures_of_another() {
    let mut fleet = Fleet::start(1);
    let signer = Signer::new();
    let victim = own("victim");
    fleet.registry.push("site/victim", "1", &victim);
    let host = fleet.registry.host.clone();
    fleet.controller.ok(&["run", "victim", &format!("--image={host}/site/victim:1")]);
    let before = pid(&fleet, "victim");

    // Beside a good signature is one that claims to be for the victim's config, which the registry
    // has other bytes for by now.
    let digest = fleet.registry.push("site/app", "1", &own("app"));
    let mut signed = sign(&[&signer, &signer], &format!("{host}/site/app"), &digest);
    let config = victim.config();
    signed.manifest["layers"][1]["digest"] = json!(format!("sha256:{}", Digest::of(&config)));
    signed.blobs.push(config.clone());
    put(&fleet, &digest, &signed);
    fleet.registry.corrupt(&config);
    let file = manifest(&fleet, "app", &format!("{host}/site/app:1"), &[&signer]);
    let why = fleet.controller.fails(&["apply", "-f", &file]);
    assert!(why.contains("what was signed, sha256:") && why.contains("has bytes of"), "{why}");

    fleet.registry.process.kill();
    fleet.agents[0].power_cut();
    fleet.agents[0].restart();
    fleet.eventually("the victim again", || (pid(&fleet, "victim") != before).then_some(()));
}

#[test]
fn the_policies_of_fleet_and_deployment_both_hold() {
    let mut fleet = Fleet::start(1);
    let host = fleet.registry.host.clone();
    let digest = fleet.registry.push("site/app", "1", &own("app"));
    let (fleets, owners) = (Signer::new(), Signer::new());
    let key = fleet.lab.file("cosign.pub", fleets.public()).display().to_string();
    fleet.controller.ok(&["run", "old", "--image=box"]);
    let before = pid(&fleet, "old");
    let registry = format!("{host}/site");
    let set =
        ["policy", "set", "--require-digest", "--registry", &registry, "--key", &key, "--force"];
    let why = fleet.controller.fails(&set[..set.len() - 1]);
    assert!(why.contains("deployment/old: the fleet's policy (digest): "), "{why}");
    assert!(why.contains("deployment/old: the fleet's policy (registries): "), "{why}");
    assert_eq!(fleet.controller.ok(&["policy", "get"]), "");
    fleet.controller.ok(&set);
    let text = fleet.controller.ok(&["policy", "get"]);
    assert!(text.starts_with("digest: required\nregistries: [") && text.contains("BEGIN PUBLIC"));
    let file = fleet.lab.file("policy.yaml", &text).display().to_string();
    fleet.controller.ok(&["policy", "set", "-f", &file, "--force"]);
    assert_eq!(fleet.controller.ok(&["policy", "get"]), text);
    let events = fleet.controller.ok(&["get", "events"]);
    assert!(events.contains("policy-changed"), "{events}");
    let bad = fleet.lab.file("bad.yaml", "digest: no\nregistry: [a]\n").display().to_string();
    let why = fleet.controller.fails(&["policy", "set", "-f", &bad]);
    assert!(why.contains("bad.yaml:1: digest: must be required or optional"), "{why}");
    assert!(why.contains("bad.yaml:2: registry: there is no such field"), "{why}");

    // The controller refuses what it can see.
    let why = fleet.controller.fails(&["run", "new", "--image=box"]);
    assert!(why.contains("(digest)") && why.contains("(registries)"), "{why}");
    let by_digest = format!("{host}/site/app@{digest}");
    let why = fleet.controller.fails(&["run", "app", &format!("--image={by_digest}")]);
    assert!(why.contains("the fleet's policy (keys)"), "{why}");
    fleet.controller.ok(&["delete", "app"]);

    // The device holds to it by itself: what runs goes on, and is not started again.
    assert_eq!(pid(&fleet, "old"), before);
    fleet.agents[0].power_cut();
    fleet.agents[0].restart();
    until_says(&fleet, "old", &["the fleet's policy (digest)", "must be named by digest"]);

    // Each policy asks for a key of its own.
    fleet.registry.sign("site/app", &digest, &[&fleets]);
    let file = manifest(&fleet, "app", &by_digest, &[&owners]);
    let why = fleet.controller.fails(&["apply", "-f", &file]);
    assert!(why.contains("its deployment's image_policy (keys)"), "{why}");
    fleet.registry.sign("site/app", &digest, &[&fleets, &owners]);
    pid(&fleet, "app");

    // It survives the controller.
    fleet.controller.kill();
    fleet.controller.restart();
    assert_eq!(fleet.controller.ok(&["policy", "get"]), text);
    fleet.until_online(1);
    fleet.controller.ok(&["policy", "set", "--none"]);
    pid(&fleet, "old");
    assert_eq!(fleet.controller.ok(&["policy", "get"]), "");
}

#[test]
fn a_signed_index_vouches_for_what_it_lists_and_a_preloaded_layout_brings_its_signature() {
    let mut fleet = Fleet::start(1);
    let signer = Signer::new();
    let (app, host) = (own("app"), fleet.registry.host.clone());
    fleet.registry.push("site/app", "part", &app);
    let index = registry::index(&[(image::arch(), &app.manifest())]);
    let digest = fleet.registry.push_manifest("site/app", "2", &index);
    fleet.registry.sign("site/app", &digest, &[&signer]);
    let file = manifest(&fleet, "app", &format!("{host}/site/app:2"), &[&signer]);
    fleet.controller.ok(&["apply", "-f", &file]);
    let before = pid(&fleet, "app");
    fleet.registry.process.kill();
    fleet.agents[0].power_cut();
    fleet.agents[0].restart();
    fleet.eventually("another container", || (pid(&fleet, "app") != before).then_some(()));

    let data = fleet.agents[0].data.display().to_string();
    let run = fleet.agents[0].run.display().to_string();
    for (name, signers) in [("signed", vec![&signer]), ("bare", vec![])] {
        let image = format!("registry.example/site/{name}:1");
        let folder = layout(&fleet, &image, &own(name), &signers);
        let args = ["preload", "--data-dir", &data, "--run-dir", &run, &folder];
        let done = output(program("limpet-agent"), &args);
        assert_eq!(done.status, 0, "{done:?}");
        let file = manifest(&fleet, name, &image, &[&signer]);
        let applied = fleet.controller.limpet(&["apply", "-f", &file]);
        assert_eq!(applied.status == 0, name == "signed", "{applied:?}");
    }
    until_says(&fleet, "bare", &["it is here, without a signature"]);
    fleet.agents[0].power_cut();
    fleet.agents[0].restart();
    pid(&fleet, "signed");
    until_says(&fleet, "bare", &["it is here, without a signature"]);
}

/// A folder of OCI's layout as `cosign save` writes it, with the image and what is beside it.
fn layout(fleet: &Fleet, name: &str, image: &Image, signers: &[&Signer]) -> String {
    let folder = fleet.lab.path(&name.replace(['/', ':'], "-"));
    std::fs::create_dir_all(folder.join("blobs/sha256")).unwrap();
    let manifest = image.manifest().to_string().into_bytes();
    let digest = format!("sha256:{}", Digest::of(&manifest));
    let annotations = json!({ "org.opencontainers.image.ref.name": name });
    let mut entries = vec![blob(&folder, &manifest, &annotations)];
    for bytes in image.layers.iter().map(|layer| &layer.packed).chain([&image.config()]) {
        blob(&folder, bytes, &json!({}));
    }
    if !signers.is_empty() {
        let repository = name.split_once(":1").unwrap().0;
        let Signed { manifest, blobs } = sign(signers, repository, &digest);
        blobs.iter().for_each(|bytes| drop(blob(&folder, bytes, &json!({}))));
        let kind = json!({ "kind": "dev.cosignproject.cosign/sigs" });
        entries.push(blob(&folder, &manifest.to_string().into_bytes(), &kind));
    }
    let index = json!({ "schemaVersion": 2, "manifests": entries });
    std::fs::write(folder.join("index.json"), index.to_string()).unwrap();
    std::fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    folder.display().to_string()
}

/// Writes a blob; gives its entry in an index.
fn blob(folder: &Path, bytes: &[u8], annotations: &Value) -> Value {
    let digest = Digest::of(bytes);
    std::fs::write(folder.join("blobs/sha256").join(digest.to_string()), bytes).unwrap();
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    json!({
        "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len(),
        "annotations": annotations,
    })
}
