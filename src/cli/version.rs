//! `rsnet version`: of this program and of the daemon that runs.

use serde::Serialize;

use super::client::Asking;
use super::{Failure, client, print, runtime};
use crate::inspect::Version;

#[derive(Serialize)]
struct Versions {
    client: &'static str,
    daemon: Option<Version>,
}

pub fn run(arguments: &Asking) -> Result<(), Failure> {
    let daemon = runtime()?.block_on(client::get::<Version>(&arguments.socket, "/rsnet/version"));
    let versions = Versions { client: env!("CARGO_PKG_VERSION"), daemon: daemon.as_ref().ok().cloned() };
    if arguments.json {
        print::json(&versions)?;
    } else {
        let daemon = versions.daemon.as_ref().map(|daemon| format!("\ndaemon {}, up {}", daemon.version, print::ago(daemon.up)));
        print::say(format!("client {}{}", versions.client, daemon.unwrap_or_default()))?;
    }
    daemon.map(drop)
}
