//! Parses the command line, starts, exits.

use std::process::ExitCode;

fn main() -> ExitCode {
    rsnet::cli::run()
}
