//! What the machine is.

use limpet_protocol::Facts;

/// Gathers the facts that a device reports in its hello.
pub fn gather() -> Facts {
    let (arch, variant) = match std::env::consts::ARCH {
        "x86_64" => ("amd64", ""),
        "aarch64" => ("arm64", "v8"),
        "arm" => ("arm", "v7"),
        other => (other, ""),
    };
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    Facts {
        arch: clip(arch),
        variant: clip(variant),
        memory_bytes: memory_bytes(),
        cpus: u16::try_from(cpus).unwrap_or(u16::MAX),
        kernel: clip(&rustix::system::uname().release().to_string_lossy()),
    }
}

fn memory_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// As much of a text as fits.
pub(crate) fn clip<const N: usize>(text: &str) -> heapless::String<N> {
    let mut out = heapless::String::new();
    for c in text.chars() {
        if out.push(c).is_err() {
            break;
        }
    }
    out
}
