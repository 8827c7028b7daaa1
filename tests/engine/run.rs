//! `make run`, on a machine where no engine runs yet and there is no systemd. What it builds was built before.

use crate::lab::{Engine, Host, HostSpec, Lab};
use crate::plugin::{dist, lost};
use std::path::Path;
use std::time::Duration;

/// How long one run may take.
const RUN: Duration = Duration::from_secs(120);

/// Types `make run`; what it printed.
#[track_caller]
fn run(host: &Host, plugin: &str) -> String {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/run");
    let _ = std::fs::remove_file(host.log("run"));
    let mut process = host.spawn("run", &format!("env RSNET_PLUGIN_DIST={plugin} {script}"));
    let status = process.wait(RUN);
    let printed = process.printed();
    assert!(status.success() && printed.contains("It works."), "make run on {}: {status}\n{printed}", host.name);
    printed
}

fn containers(host: &Host) -> String {
    host.docker("ps --no-trunc --format '{{.ID}} {{.Names}} {{.Status}}' | sed 's/ Up .*//' | sort").ok().to_owned()
}

#[test]
fn make_run_leads_from_nothing_to_two_containers_that_talk() {
    let lab = Lab::new();
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let host = lab.boot(&HostSpec::new("h1").engine(Engine::V20_10).showing(project));
    let built = dist().display().to_string();

    let printed = run(&host, &built);
    for expected in ["starting the Docker Engine", "installing the plugin", "0% packet loss", "hello from a container on an rsnet network"]
    {
        assert!(printed.contains(expected), "{expected:?} is not in what make run printed:\n{printed}");
    }
    host.sh("/usr/local/bin/rsnet status").says("All is well.");
    let first = containers(&host);

    let printed = run(&host, &built);
    assert!(!printed.contains("starting") && !printed.contains("installing"), "the second run changed something:\n{printed}");
    assert_eq!(containers(&host), first, "the second run left the containers alone");

    host.docker("rm -f rsnet-web").ok();
    run(&host, &built);
    host.docker("plugin disable -f rsnet/driver").ok();
    run(&host, &built);
    host.docker("rm -f rsnet-web rsnet-shell").ok();
    host.docker("network rm demo").ok();
    run(&host, &built);
}

#[test]
fn make_run_puts_a_new_build_under_running_containers() {
    let lab = Lab::new();
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let host = lab.boot(&HostSpec::new("h1").engine(Engine::V20_10).showing(project));
    run(&host, &dist().display().to_string());
    let before = containers(&host);
    host.docker("plugin disable -f rsnet/driver").ok();
    host.docker("plugin set rsnet/driver RSNET_LOG=debug").ok();

    host.sh(&format!(
        "cp -r {} /tmp/new && sed -i 's/\"description\": \"rsnet:/\"description\": \"newer:/' /tmp/new/config.json",
        dist().display()
    ))
    .ok();
    let printed = run(&host, "/tmp/new");
    assert!(printed.contains("installing the plugin"), "{printed}");
    host.docker("plugin inspect -f '{{.Config.Description}} {{.Settings.Env}}' rsnet/driver").says("newer:");
    host.docker("plugin inspect -f '{{.Settings.Env}}' rsnet/driver").says("RSNET_LOG=debug");
    assert_eq!(containers(&host), before, "the containers ran on");
    host.docker("run --rm --network demo rsnet-demo ping -c 3 rsnet-web").ok();
}

/// As on a machine that systemd does not run.
#[test]
fn make_run_lasts_where_mounts_are_private() {
    let lab = Lab::new();
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let host = lab.boot(&HostSpec::new("h1").engine(Engine::V20_10).showing(project));
    host.sh("mount --make-rprivate /").ok();
    run(&host, &dist().display().to_string());
    // rsnet looks every 10 s for containers that are gone, and gives a new one a minute to come
    let ping = host.docker("exec rsnet-shell ping -q -w 80 rsnet-web");
    assert_eq!(lost(ping.ok()), Some("0% packet loss"), "{ping}");
    assert_eq!(host.docker("run --rm --network demo rsnet-demo ping -c 3 rsnet-web").code, 0);
}
