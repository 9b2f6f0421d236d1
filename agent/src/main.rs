//! `limpet-agent`: see the library of the same package.

fn main() -> std::process::ExitCode {
    limpet_agent::cli::main()
}
