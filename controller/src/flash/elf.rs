//! What a program for another machine needs: the machine itself, its loader, its libraries.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use elf::ElfBytes;
use elf::abi::{DT_NEEDED, PT_INTERP};
use elf::endian::AnyEndian;

/// A program or a library.
pub(crate) struct Program {
    /// `e_machine`.
    pub(crate) machine: u16,
    /// The path of what loads it; None where it is static, or a library.
    pub(crate) loader: Option<String>,
    /// Names of the libraries that it needs.
    pub(crate) libraries: Vec<String>,
}

/// Reads a program.
///
/// # Errors
/// When the bytes are none.
pub(crate) fn read(bytes: &[u8]) -> anyhow::Result<Program> {
    let file = ElfBytes::<AnyEndian>::minimal_parse(bytes).context("it is no program (ELF)")?;
    let segments = file.segments();
    let loader = segments.and_then(|all| all.iter().find(|segment| segment.p_type == PT_INTERP));
    let loader = loader.map(|segment| file.segment_data(&segment)).transpose()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned();
    let parts = file.find_common_data()?;
    let mut libraries = Vec::new();
    if let (Some(dynamic), Some(names)) = (parts.dynamic, parts.dynsyms_strs) {
        for entry in dynamic.iter().filter(|entry| entry.d_tag == DT_NEEDED) {
            libraries.push(names.get(usize::try_from(entry.d_val())?)?.to_owned());
        }
    }
    Ok(Program { machine: file.ehdr.e_machine, loader: loader.map(text), libraries })
}

/// Puts programs of unpacked packages into a system, with their loader and all libraries.
///
/// # Errors
/// When one is missing among the packages.
pub(crate) fn install(packages: &Path, programs: &[&str], system: &Path) -> anyhow::Result<()> {
    let mut waiting: Vec<(PathBuf, PathBuf)> = Vec::new();
    for program in programs {
        let found = ["usr/sbin", "usr/bin", "sbin", "bin"]
            .map(|folder| packages.join(folder).join(program))
            .into_iter()
            .find(|path| path.is_file());
        let found = found.with_context(|| format!("the packages have no program {program}"))?;
        waiting.push((found, system.join("usr/bin").join(program)));
    }
    let mut done = BTreeSet::new();
    while let Some((from, to)) = waiting.pop() {
        if !done.insert(to.clone()) {
            continue;
        }
        let bytes = fs::read(&from).with_context(|| format!("cannot read {}", from.display()))?;
        let program = read(&bytes).with_context(|| from.display().to_string())?;
        let folder = to.parent().context("a program has no folder")?;
        fs::create_dir_all(folder)?;
        fs::write(&to, bytes).with_context(|| format!("cannot write {}", to.display()))?;
        fs::set_permissions(&to, fs::metadata(&from)?.permissions())?;
        for library in program.libraries {
            let place = system.join("usr/lib").join(&library);
            waiting.push((library_in(packages, &library)?, place));
        }
        if let Some(loader) = program.loader {
            let name = loader.rsplit('/').next().unwrap_or_default();
            // Links of the system's root lead where it belongs.
            let place = system.join(loader.trim_start_matches('/'));
            waiting.push((library_in(packages, name)?, place));
        }
    }
    Ok(())
}

fn library_in(packages: &Path, name: &str) -> anyhow::Result<PathBuf> {
    for folder in ["lib", "usr/lib"].map(|folder| packages.join(folder)) {
        let Ok(inside) = fs::read_dir(&folder) else { continue };
        let triplets = inside.flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
        let mut places = triplets.map(|place| place.join(name));
        if let Some(found) = places.find(|place| place.is_file()) {
            return Ok(found);
        }
    }
    anyhow::bail!("the packages have no library {name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_test_names_its_machine_and_its_libraries() {
        let program = read(&fs::read("/proc/self/exe").unwrap()).unwrap();
        let here = if cfg!(target_arch = "x86_64") { 62 } else { 183 };
        assert_eq!(program.machine, here);
        assert!(program.loader.unwrap().contains("ld-"));
        assert!(program.libraries.iter().any(|name| name.starts_with("libc.so")));
        assert!(read(b"#!/bin/sh").is_err());
    }
}
