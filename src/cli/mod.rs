//! The command line: one file per subcommand.

mod addresses;
mod cleanup;
mod client;
mod completions;
mod doctor;
mod endpoints;
mod explain;
mod hosts;
mod macvlan;
mod manual;
mod names;
mod networks;
mod ports;
mod print;
mod serve;
mod status;
mod version;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// What scripts can go by.
const CODES: &str = "Exit codes: 0 all is well, 1 could not, 2 not understood, 3 something is wrong with this host";

/// Docker networks that behave like built-in ones: bridge, overlay, macvlan and none.
#[derive(Parser)]
#[command(name = "rsnet", version, about, after_help = CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the daemon
    Serve(crate::config::Given),
    /// Show in ten lines whether all is well on this host
    Status(client::Asking),
    /// Say what is wrong with this host, what it means and what to do
    Doctor(doctor::Arguments),
    /// Show the networks of this host
    Networks(client::Asking),
    /// Show which container of this host has which place on a network
    Endpoints(client::Asking),
    /// Show the ports that rsnet publishes on this host
    Ports(client::Asking),
    /// Show or change what of a macvlan network can change while containers are on it
    Macvlan(macvlan::Arguments),
    /// Show which host has which addresses of a network, and which of this host's containers
    Addresses(client::AskingOf),
    /// Show what containers of a network are called, on all hosts
    Names(client::AskingOf),
    /// Show the hosts that share networks with this one
    Hosts(client::Asking),
    /// What can be done about one of them
    Host(hosts::HostArguments),
    /// Tell why a container reaches another, or the host, or an address outside; or where its packets stop
    Explain(explain::Arguments),
    /// Remove from this host all that rsnet made: links, routes, firewall. Only while the daemon is stopped
    Cleanup(cleanup::Arguments),
    /// Show the version of this program and of the daemon
    Version(client::Asking),
    /// Print what a shell needs to complete these commands
    Completions(completions::Arguments),
    /// Write the manual pages
    #[command(hide = true)]
    Man(manual::Arguments),
}

/// What a subcommand that looks for faults found.
pub(crate) enum Outcome {
    Well,
    Wrong,
}

/// Of `Outcome::Wrong`.
const FOUND: u8 = 3;

/// Runs what the command line asks for; 0: done, all is well; 1: could not; 2: not understood; 3: what was asked about is not well.
pub fn run() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Serve(given) => serve::run(&given),
        Command::Status(arguments) => return exit(status::run(&arguments)),
        Command::Doctor(arguments) => return exit(doctor::run(&arguments)),
        Command::Explain(arguments) => return exit(explain::run(&arguments)),
        Command::Networks(arguments) => networks::run(&arguments),
        Command::Endpoints(arguments) => endpoints::run(&arguments),
        Command::Ports(arguments) => ports::run(&arguments),
        Command::Macvlan(arguments) => macvlan::run(&arguments),
        Command::Addresses(arguments) => addresses::run(&arguments),
        Command::Names(arguments) => names::run(&arguments),
        Command::Hosts(arguments) => hosts::run(&arguments),
        Command::Host(arguments) => hosts::run_host(&arguments),
        Command::Cleanup(arguments) => cleanup::run(&arguments),
        Command::Version(arguments) => version::run(&arguments),
        Command::Completions(arguments) => completions::run(&arguments),
        Command::Man(arguments) => manual::run(&arguments),
    };
    exit(done.map(|()| Outcome::Well))
}

fn exit(done: Result<Outcome, Failure>) -> ExitCode {
    match done {
        Ok(Outcome::Well) => ExitCode::SUCCESS,
        Ok(Outcome::Wrong) => FOUND.into(),
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
