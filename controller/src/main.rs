//! `limpet`: see the library of the same package.

fn main() -> std::process::ExitCode {
    limpet_controller::cli::main()
}
