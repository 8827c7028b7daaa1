//! `rsnet completions`: what a shell needs to complete rsnet's commands.

use clap::{Args, CommandFactory};
use clap_complete::{Shell, generate};

use super::{Cli, Failure, print};

#[derive(Args)]
pub struct Arguments {
    /// For which shell
    shell: Shell,
}

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut script = Vec::new();
    generate(arguments.shell, &mut Cli::command(), "rsnet", &mut script);
    print::say(String::from_utf8(script)?)
}
