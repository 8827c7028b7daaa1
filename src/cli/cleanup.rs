//! `rsnet cleanup`: the same converge as ever, with nothing desired.

use clap::Args;

use super::{Failure, runtime};
use crate::app;
use crate::config::Given;

#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    given: Given,
    /// Also forget what was declared: networks, endpoints, addresses
    #[arg(long)]
    forget: bool,
}

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let settings = arguments.given.settle(std::env::vars())?;
    let mended = runtime()?.block_on(app::clean(&settings, arguments.forget))?;
    println!("Removed {mended} objects of rsnet from this host.");
    if !arguments.forget {
        println!("What was declared is kept: `rsnet serve` makes it again. Forget it with `rsnet cleanup --forget`.");
    }
    Ok(())
}
