//! Programs that devices can be told to run as their agent: real ones of another version, and such as
//! prove nothing.

use std::path::PathBuf;

use crate::{Lab, program, run};

/// The agent as a file of its own that says it is this version, of five characters as its own has: its
/// digest is another, and all else is the same.
pub fn agent_of_version(lab: &Lab, version: &str) -> PathBuf {
    let path = lab.path(&format!("limpet-agent-{version}"));
    let [from, to] = [program("limpet-agent"), path.clone()].map(|p| p.display().to_string());
    run("strip", &["-o", &to, &from]);
    let mut bytes = std::fs::read(&path).unwrap();
    let mark = format!("limpet-agent-version: {}\0", env!("CARGO_PKG_VERSION"));
    let other = format!("limpet-agent-version: {version}\0");
    assert_eq!(mark.len(), other.len(), "{version}");
    let found = bytes.windows(mark.len()).position(|window| window == mark.as_bytes());
    let at = found.unwrap();
    bytes[at..at + other.len()].copy_from_slice(other.as_bytes());
    std::fs::write(&path, bytes).unwrap();
    path
}

/// A small static program whose file is marked as an agent of version `version`, and which does this
/// (statements of C, with `argv`) when it is to run.
pub fn impostor(lab: &Lab, version: &str, does: &str) -> PathBuf {
    let path = lab.path(&format!("limpet-agent-{version}"));
    let source = format!(
        "#define _GNU_SOURCE\n#include <sched.h>\n#include <stdio.h>\n#include <string.h>\n\
         #include <unistd.h>\n\
         const char mark[] = \"limpet-agent-version: {version}\";\n\
         int main(int argc, char **argv) {{\n\
             if (argc > 1 && !strcmp(argv[1], \"version\"))\n\
                 return printf(\"limpet-agent %s\\n\", strchr(mark, ' ') + 1) < 0;\n\
             {does}\n\
             return 1;\n\
         }}\n"
    );
    let source = lab.file(&format!("{version}.c"), source).display().to_string();
    run("cc", &["-static", "-o", &path.display().to_string(), &source]);
    path
}
