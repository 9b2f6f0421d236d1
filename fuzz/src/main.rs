//! libFuzzer around the decoders that a stranger reaches. What is fed to each, and what must hold
//! of it, is beside the decoder, in its `fuzz` module; here is what must hold of all: no panic, and
//! no more memory than a small device has to spare. libFuzzer bounds the time (`-timeout`).
//!
//! `TARGET` says which one; `scripts/fuzz.sh` runs them all.
#![no_main]

use std::alloc::System;
use std::path::PathBuf;
use std::sync::LazyLock;

use cap::Cap;
use libfuzzer_sys::fuzz_target;
use limpet_agent::fuzz::{answers, certificates, images, layers, state};
use limpet_controller::server::fuzz::requests;
use limpet_controller_core::manifest::fuzz::manifests;
use limpet_protocol::envelope::fuzz::messages;

/// What one input may allocate at most: the window of a layer in zstd is half of it.
const INPUT_BYTES_MAX: usize = 16 << 20;

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

enum Target {
    Messages,
    Manifests,
    Images,
    Layers,
    State,
    Certificates,
    Requests,
    Answers,
}

static TARGET: LazyLock<Target> = LazyLock::new(|| match std::env::var("TARGET").as_deref() {
    Ok("messages") => Target::Messages,
    Ok("manifests") => Target::Manifests,
    Ok("images") => Target::Images,
    Ok("layers") => Target::Layers,
    Ok("state") => Target::State,
    Ok("certificates") => Target::Certificates,
    Ok("answers") => Target::Answers,
    Ok("requests") => Target::Requests,
    other => panic!("TARGET={other:?}: scripts/fuzz.sh names them"),
});

/// The folder that the process is started in: whoever follows a link to `/proc/self/cwd`, or a
/// relative path, lands in it.
static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| std::env::current_dir().unwrap());

fuzz_target!(init: LazyLock::force(&TARGET), |data: &[u8]| {
    // Set before the input, so that what was kept of earlier ones does not count.
    ALLOCATOR.set_limit(ALLOCATOR.allocated() + INPUT_BYTES_MAX).unwrap();
    match *TARGET {
        Target::Messages => messages(data),
        Target::Manifests => manifests(data),
        Target::Images => images(data),
        Target::Layers => layers(&FOLDER, data),
        Target::State => state(&FOLDER, data),
        Target::Certificates => certificates(data),
        Target::Requests => requests(&FOLDER, data),
        Target::Answers => answers(data),
    }
    ALLOCATOR.set_limit(usize::MAX).unwrap();
});
