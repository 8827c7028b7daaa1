//! `rsnet cleanup`: the same converge as ever, with nothing desired.

use clap::Args;
use serde::Serialize;

use super::{Failure, print, runtime};
use crate::app;
use crate::config::Given;

#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    given: Given,
    /// Also forget what was declared: networks, endpoints, addresses
    #[arg(long)]
    forget: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Cleaned {
    /// Objects.
    removed: usize,
    forgotten: bool,
}

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let settings = arguments.given.settle(std::env::vars())?;
    let removed = runtime()?.block_on(app::clean(&settings, arguments.forget))?;
    if arguments.json {
        return print::json(&Cleaned { removed, forgotten: arguments.forget });
    }
    print::say(format!("Removed {removed} objects of rsnet from this host."))?;
    if arguments.forget {
        return Ok(());
    }
    print::say("What was declared is kept: `rsnet serve` makes it again. Forget it with `rsnet cleanup --forget`.")
}
