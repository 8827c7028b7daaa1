//! The command line: one file per subcommand.

mod addresses;
mod cleanup;
mod client;
mod hosts;
mod macvlan;
mod manual;
mod ports;
mod serve;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Docker networks that behave like built-in ones: bridge, overlay, macvlan and none.
#[derive(Parser)]
#[command(name = "rsnet", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the daemon
    Serve(crate::config::Given),
    /// Show the ports that rsnet publishes on this host
    Ports(client::Asking),
    /// Show or change what of a macvlan network can change while containers are on it
    Macvlan(macvlan::Arguments),
    /// Show which host has which addresses of a network, and which of this host's containers
    Addresses(addresses::Arguments),
    /// Show the hosts that share networks with this one
    Hosts(client::Asking),
    /// What can be done about one of them
    Host(hosts::HostArguments),
    /// Remove from this host all that rsnet made: links, routes, firewall. Only while the daemon is stopped
    Cleanup(cleanup::Arguments),
    /// Write the manual pages
    #[command(hide = true)]
    Man(manual::Arguments),
}

/// Runs what the command line asks for; 0: done, 1: could not, 2: not understood.
pub fn run() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Serve(given) => serve::run(&given),
        Command::Ports(arguments) => ports::run(&arguments),
        Command::Macvlan(arguments) => macvlan::run(&arguments),
        Command::Addresses(arguments) => addresses::run(&arguments),
        Command::Hosts(arguments) => hosts::run(&arguments),
        Command::Host(arguments) => hosts::run_host(&arguments),
        Command::Cleanup(arguments) => cleanup::run(&arguments),
        Command::Man(arguments) => manual::run(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rsnet: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What a subcommand could not do, in words for its user.
type Failure = Box<dyn std::error::Error>;

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}
