//! What the released program does without: the profile `device`, which aborts where others unwind, is
//! the one of ours that is built for size.

fn main() {
    println!("cargo::rerun-if-changed=tables.ld");
    if std::env::var("OPT_LEVEL").is_ok_and(|level| level == "z") {
        println!(
            "cargo::rustc-link-arg-bins=-Wl,--no-eh-frame-hdr,-T,{}/tables.ld",
            env!("CARGO_MANIFEST_DIR")
        );
    }
}
