//! `rsnet man`: the manual pages, one a command, from the same words as `--help`. For whoever makes a package (`scripts/release`).

use std::path::PathBuf;

use clap::{Args, CommandFactory};

use super::{Cli, Failure};

#[derive(Args)]
pub struct Arguments {
    /// Where they go: rsnet.1, rsnet-serve.1, …
    directory: PathBuf,
}

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let directory = &arguments.directory;
    let written = std::fs::create_dir_all(directory).and_then(|()| clap_mangen::generate_to(Cli::command(), directory));
    written.map_err(|error| format!("write the manual pages to {}: {error}", directory.display()).into())
}
