//! What the programs of `make dist` weigh, and which crates make them heavy.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::row;

/// How many crates are named.
const NAMED: usize = 12;

/// One row for each program in `dist/`, and one more for each whose symbols were kept.
pub(crate) fn measure() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut programs: Vec<PathBuf> = fs::read_dir(root.join("dist"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_none() && name(path).starts_with("limpet"))
        .collect();
    programs.sort_unstable();
    if programs.is_empty() {
        println!("`make dist` makes the programs whose sizes are missing here.");
    }
    for path in programs {
        let name = name(&path);
        let goal = if name.starts_with("limpet-agent") { "5 MB (P2)" } else { "" };
        let bytes = fs::metadata(&path).unwrap().len();
        let sizes = format!("{} ({} as xz)", mb(bytes), mb(xz(&path)));
        row(&format!("`{name}`, static, stripped"), &sizes, goal);
        let symbols = root.join("target/cross/symbols").join(name);
        if symbols.exists() {
            row(&format!("`{name}`: of which"), &largest(&symbols), "");
        }
    }
}

fn name(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

fn mb(bytes: u64) -> String {
    format!("{:.2} MB", bytes as f64 / 1e6)
}

fn xz(path: &Path) -> u64 {
    let mut xz = Command::new("xz");
    let output = xz.args(["-9e", "--stdout"]).arg(path).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "xz of {}", path.display());
    output.stdout.len() as u64
}

/// The crates with the most code and data, as `nm` finds them in a program that has its symbols.
/// Instances of generic functions count for the crate that wrote them.
fn largest(path: &Path) -> String {
    let mut nm = Command::new("nm");
    let output = nm.args(["--demangle", "--print-size"]).arg(path).output().unwrap();
    assert!(output.status.success(), "nm of {}", path.display());
    let mut crates: HashMap<&str, u64> = HashMap::new();
    let text = String::from_utf8_lossy(&output.stdout);
    for line in text.lines() {
        // ADDRESS SIZE KIND NAME; what has no size is a label.
        let [_, size, kind, symbol] = line.splitn(4, ' ').collect::<Vec<_>>()[..] else { continue };
        // What is zero at the start takes no room in the file.
        if let Ok(size) = u64::from_str_radix(size, 16)
            && !matches!(kind, "b" | "B")
        {
            *crates.entry(of(symbol)).or_default() += size;
        }
    }
    let mut crates: Vec<_> = crates.into_iter().collect();
    crates.sort_unstable_by_key(|&(name, size)| (std::cmp::Reverse(size), name));
    let named = crates.iter().take(NAMED);
    let named = named.map(|(name, size)| format!("{name} {} KB", size / 1000));
    named.collect::<Vec<_>>().join(", ")
}

/// The crate of a symbol: what stands before its first `::`. Constants have lost the name of theirs.
fn of(symbol: &str) -> &str {
    match symbol.split_once("::") {
        Some((before, _)) => {
            let of_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
            before.rsplit(|c| !of_name(c)).next().unwrap_or(before)
        }
        None if symbol.starts_with(".Lanon") => "constants",
        None => "C and assembler",
    }
}
