//! The command `hypatia-opt`: see `hypatia::cli`.

fn main() -> std::process::ExitCode {
    hypatia::cli::main()
}
