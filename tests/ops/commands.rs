//! The manners of the command line.

use std::process::Stdio;

use super::daemon::{Daemon, ENDPOINT, NETWORK, command, text};
use super::engine::Engine;
use super::namespace::run;
use super::server::wait_until;

/// What only asks.
const QUESTIONS: [&str; 7] = ["status", "doctor", "networks", "endpoints", "ports", "hosts", "version"];

/// A daemon with a bridge network and a container on it, of which its engine knows.
fn healthy() -> Daemon {
    Daemon::start(&[]).with_a_bridge().beside(Engine::start(&[(NETWORK, "blue")], &[(ENDPOINT, "web", NETWORK)]))
}

#[test]
fn without_a_daemon_every_question_says_what_to_do_and_ends_with_1() {
    for question in QUESTIONS.into_iter().chain(["addresses x", "host forget x", "macvlan sources x"]) {
        let output = command(question).args(["--socket", "/nowhere/rsnet.sock"]).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{question}: {error}");
        assert!(error.contains("rsnet does not run here") && error.contains("docker plugin enable rsnet/driver"), "{question}: {error}");
    }
}

#[test]
fn what_is_not_understood_ends_with_2() {
    for wrong in ["", "statsu", "status --nosuch", "completions nosuchshell"] {
        assert_eq!(command(wrong).output().unwrap().status.code(), Some(2), "{wrong}");
    }
}

#[test]
fn every_question_fits_a_screen_has_json_and_no_colours_beside_a_terminal() {
    let daemon = healthy();
    for question in QUESTIONS {
        let output = daemon.rsnet(question);
        assert!(output.status.success(), "{question}: {output:?}");
        let printed = text(&output);
        assert!(!printed.contains('\u{1b}') && printed.lines().count() <= 24, "{question}: {printed}");
        daemon.json(question);
    }
    assert_eq!(daemon.json("networks")[0]["subnets"][0], "10.9.0.0/24");
    assert_eq!(daemon.json("endpoints")[0]["addresses"][0], "10.9.0.2");
    assert_eq!(daemon.json("version")["daemon"]["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn status_tells_in_ten_lines_that_all_is_well_and_what_was_mended() {
    let daemon = healthy();
    let output = daemon.rsnet("status");
    let printed = text(&output);
    assert_eq!(output.status.code(), Some(0), "{printed}");
    assert!(printed.starts_with("All is well.\n") && printed.lines().count() <= 10, "{printed}");
    for line in [
        "networks   1: 1 bridge",
        "endpoints  1: 1 bridge",
        "store      embedded",
        "hosts      this one alone",
        "drift      none",
        "findings   none",
    ] {
        assert!(printed.contains(line), "{line:?} is not in\n{printed}");
    }
    run("ip address del 10.9.0.1/24 dev rsb-0123456789");
    wait_until("the address to be back and told", || {
        let printed = text(&daemon.rsnet("status"));
        let told = printed.starts_with("All is well.\n") && printed.contains("address 10.9.0.1/24 on rsb-0123456789");
        if told && run("ip address show rsb-0123456789").contains("10.9.0.1/24") { Ok(()) } else { Err(printed) }
    });
}

#[test]
fn status_ends_with_3_while_the_store_cannot_be_reached() {
    let daemon = Daemon::start(&[("RSNET_STORE", "consul://127.0.0.1:8500/rsnet")]);
    let wrong = || {
        let output = daemon.rsnet("status");
        let told = text(&output).contains("consul://127.0.0.1:8500/rsnet cannot be used");
        if told && output.status.code() == Some(3) { Ok(text(&output)) } else { Err(format!("{output:?}")) }
    };
    let printed = wait_until("status to tell", wrong);
    assert!(printed.starts_with("Something is wrong.\n"), "{printed}");
}

#[test]
fn a_reader_that_has_enough_is_no_failure() {
    let daemon = Daemon::start(&[]).with_a_bridge();
    let mut child = command("networks --json").arg("--socket").arg(daemon.socket()).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
}

#[test]
fn nothing_is_cleaned_up_beside_a_daemon_that_has_its_state_elsewhere() {
    let (daemon, elsewhere) = (Daemon::start(&[]).with_a_bridge(), tempfile::tempdir().unwrap());
    let mut cleanup = command("cleanup --json");
    cleanup.arg("--data-dir").arg(elsewhere.path()).arg("--sockets").arg(daemon.socket());
    let output = cleanup.output().unwrap();
    assert!(output.status.code() == Some(1) && String::from_utf8_lossy(&output.stderr).contains("Stop it first"), "{output:?}");
    assert!(run("ip address show rsb-0123456789").contains("10.9.0.1/24"));
    drop(daemon);
    let output = cleanup.output().unwrap();
    assert!(output.status.success() && text(&output).contains("\"removed\""), "{output:?}");
    assert!(!run("ip -br link").contains("rsb-"));
}

#[test]
fn completions_of_each_shell_know_every_subcommand() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = text(&command(&format!("completions {shell}")).output().unwrap());
        for subcommand in QUESTIONS.into_iter().chain(["addresses", "cleanup", "completions", "serve"]) {
            assert!(script.contains(subcommand), "{shell}: {subcommand}");
        }
    }
}
