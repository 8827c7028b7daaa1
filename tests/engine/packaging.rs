//! packaging/: the systemd units, as far as they can be tried on a machine that systemd does not run, and the Debian package.

use crate::lab::{Engine, Host, HostSpec, Lab, Output, PATIENCE, Process, asks_for, wait_until};
use crate::plugin::lost;
use nix::sys::signal::Signal;
use std::path::Path;
use std::process::Command;

const SOCKET: &str = "/run/docker/plugins/rsnet.sock";

/// A Docker host that shows the project.
fn host(lab: &Lab, engine: Engine) -> Host {
    lab.make(&HostSpec::new("h1").engine(engine).showing(Path::new(env!("CARGO_MANIFEST_DIR"))))
}

fn answers(host: &Host) -> Result<(), String> {
    let answer = host.plugin("/Plugin.Activate", "").map_err(|e| e.to_string())?;
    if answer.status == 200 { Ok(()) } else { Err(answer.body) }
}

/// Two containers on a network of rsnet reach each other, and the host reaches one by its published port.
#[track_caller]
fn carries_a_network(host: &Host) {
    host.docker("network create -d rsnet --ipam-driver rsnet blue").ok();
    host.docker("run -d --name web --network blue -p 8080:80 box httpd -f -p 80").ok();
    host.docker("run --rm --network blue box ping -c 3 -W 5 web").ok();
    let ask = asks_for("/", "127.0.0.1:8080");
    wait_until("an answer from the published port", PATIENCE, || {
        let seen = host.sh(&ask);
        if seen.stdout.starts_with("HTTP/1.") { Ok(()) } else { Err(seen.to_string()) }
    });
    host.docker("rm -f web").ok();
    host.docker("network rm blue").ok();
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units() {
    let lab = Lab::new();
    let host = lab.boot(&HostSpec::new("h1").engine(Engine::V20_10).showing(Path::new(env!("CARGO_MANIFEST_DIR"))));
    let units = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging");
    host.sh(&format!("ln -s /usr/local/sbin/rsnet /usr/bin/rsnet; cp {units}/rsnet.* /etc/systemd/system/")).ok();
    host.sh("systemd-analyze verify rsnet.socket rsnet.service").ok();
}

#[test]
fn a_socket_that_systemd_holds_outlives_rsnet() {
    let lab = Lab::new();
    let host = host(&lab, Engine::V20_10);
    host.sh("mkdir -p /run/docker/plugins").ok();
    let serve = format!("systemd-socket-activate -l {SOCKET} -E RSNET_DATA_DIR=/var/lib/rsnet -E RSNET_DOCKER=none rsnet serve");
    let rsnet = host.spawn("rsnet", &serve);
    wait_until("rsnet to answer", PATIENCE, || answers(&host));
    carries_a_network(&host);
    assert!(rsnet.stop(PATIENCE).success());
    host.sh(&format!("test -S {SOCKET}")).ok();
}

pub fn two_capabilities_are_enough(engine: Engine) {
    let lab = Lab::new();
    let host = host(&lab, engine);
    let few = "setpriv --no-new-privs --bounding-set=-all,+net_admin,+sys_admin --inh-caps=-all --ambient-caps=-all";
    let settings = "RSNET_DATA_DIR=/var/lib/rsnet RSNET_DOCKER=none RSNET_ATTACH=direct";
    let rsnet = host.spawn("rsnet", &format!("env {settings} {few} rsnet serve"));
    wait_until("rsnet to answer", PATIENCE, || answers(&host));
    let effective = std::fs::read_to_string(format!("/proc/{}/status", rsnet.pid)).expect("rsnet runs");
    let two = 1 << 12 | 1 << 21; // CAP_NET_ADMIN, CAP_SYS_ADMIN
    assert!(effective.contains(&format!("CapEff:\t{two:016x}")), "{effective}");
    carries_a_network(&host);
    assert!(rsnet.end_by(Signal::SIGTERM).success());
    host.sh(&format!("test -e {SOCKET}")).fails();
}

/// Runs `script` in the project, to make a version of 2026-01-01.
fn make(version: &str, script: &str) -> Output {
    let mut command = Command::new("sh");
    command.args(["-ec", script]).env("VERSION", version).env("SOURCE_DATE_EPOCH", "1767225600");
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    Output::of("this machine", script, command)
}

/// `make release`; what it leaves in `dist/release` is kept at `at`.
fn release(version: &str, at: &Path) -> Output {
    make(version, &format!("scripts/release; cp -r dist/release/. {}", at.display()))
}

/// Packs the program of the last release again, from a copy of the project that is readable by its owner only, and newer.
fn packs_the_same_bytes_elsewhere(version: &str, released: &Path) {
    let (elsewhere, released) = (tempfile::tempdir().expect("a directory"), released.display());
    let copy = elsewhere.path().display();
    let pack = format!("scripts/package $OLDPWD/dist/plugin/rootfs/rsnet {released} {copy}");
    make(version, &format!("umask 077; cp -r scripts packaging README.md CHANGELOG.md {copy}; cd {copy}; {pack}")).ok();
    make(version, &format!("for package in {copy}/*.deb; do cmp $package {released}/$(basename $package); done")).ok();
}

/// The program of the package, as its unit starts it.
fn serve(host: &Host) -> Process {
    let process = host.spawn("rsnet", "env RSNET_DATA_DIR=/var/lib/rsnet /usr/bin/rsnet serve");
    wait_until("rsnet to answer", PATIENCE, || answers(host));
    process
}

/// There and back again, as `apt` does it, with the restart that systemd would do.
#[test]
fn the_debian_package_is_upgraded_and_put_back_without_a_packet_lost() {
    let (lab, packages) = (Lab::new(), tempfile::tempdir().expect("a directory"));
    release("0.1.0", packages.path()).ok();
    release("0.2.0", packages.path()).says("rsnet_0.2.0_");
    packs_the_same_bytes_elsewhere("0.2.0", packages.path());
    let host = lab.make(&HostSpec::new("h1").engine(Engine::V20_10).showing(packages.path()));
    let install = |version: &str| host.sh(&format!("dpkg -i {}/rsnet_{version}_*.deb", packages.path().display()));
    install("0.1.0").ok();
    for file in [
        "/lib/systemd/system/rsnet.service",
        "/lib/systemd/network/05-rsnet.network",
        "/usr/share/man/man1/rsnet-serve.1.gz",
        "/usr/share/doc/rsnet/copyright",
        "/usr/share/doc/rsnet/licences.txt.gz",
        "/usr/share/rsnet/rsnet.json",
        "/usr/share/rsnet/alerts.yml",
        "/usr/share/zsh/vendor-completions/_rsnet",
        "/usr/share/fish/vendor_completions.d/rsnet.fish",
    ] {
        host.sh(&format!("test -s {file}")).ok();
    }
    host.sh("bash -c '. /usr/share/bash-completion/completions/rsnet; complete -p rsnet'").ok();
    // as in an image that is being built: systemd does not run, and is to start rsnet when it will
    host.sh("cd /etc/systemd/system && test -h sockets.target.wants/rsnet.socket && test -h multi-user.target.wants/rsnet.service").ok();
    let mut rsnet = serve(&host);
    carries_a_network(&host);
    host.docker("network create -d rsnet --ipam-driver rsnet --subnet 10.20.0.0/24 blue").ok();
    host.docker("run -d --name web --network blue --ip 10.20.0.7 box sleep 1000").ok();
    host.docker("run -d --name shell --network blue box sleep 1000").ok();
    let ping = host.spawn_in_container("shell", "ping", "ping -q -i 0.01 10.20.0.7");
    for version in ["0.2.0", "0.1.0"] {
        install(version).ok();
        assert!(rsnet.end_by(Signal::SIGTERM).success());
        rsnet = serve(&host);
        host.docker("run --rm --network blue box ping -c 1 -W 5 web").ok();
    }
    ping.signal(Signal::SIGINT);
    let printed = wait_until("ping to sum up", PATIENCE, || lost(&ping.printed()).map(str::to_owned).ok_or_else(|| ping.printed()));
    assert_eq!(printed, "0% packet loss", "{}", ping.printed());
    host.docker("rm -f web shell").ok();
    host.docker("network rm blue").ok();
    assert!(rsnet.end_by(Signal::SIGTERM).success());
    host.sh("dpkg -r rsnet && test -e /var/lib/rsnet/state.redb && test ! -e /usr/bin/rsnet").ok();
    host.sh("dpkg -P rsnet && test ! -e /var/lib/rsnet && test ! -e /etc/default/rsnet").ok();
    host.sh("test -z \"$(find /etc/systemd/system -name 'rsnet.*')\"").ok();
}
