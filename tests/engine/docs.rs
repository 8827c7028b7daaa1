//! The documents: every command in a block marked ```sh runs, in order, each page on a host of its own. A block that cannot run here is
//! marked ```console, and says why behind that; ```text and ```yaml are no commands.

use crate::front::firewalld;
use crate::lab::{Engine, Host, HostSpec, Lab};
use crate::plugin::dist;
use std::path::Path;
use std::time::Duration;

/// The pages that have commands; each has a test below.
const PAGES: &[&str] = &[
    "README.md",
    "docs/install.md",
    "docs/bridge.md",
    "docs/firewall.md",
    "docs/recovery.md",
    "docs/none.md",
    "docs/macvlan.md",
    "docs/overlay.md",
    "docs/migrating.md",
    "docs/operations.md",
    "docs/troubleshooting.md",
];

fn text(page: &str) -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join(page);
    std::fs::read_to_string(&page).unwrap_or_else(|e| panic!("read {}: {e}", page.display()))
}

/// All pages.
fn pages() -> impl Iterator<Item = String> {
    let docs = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs")).expect("read docs/");
    let names = docs.map(|entry| format!("docs/{}", entry.expect("read docs/").file_name().display()));
    names.chain(["README.md".to_owned()]).filter(|name| name.ends_with(".md"))
}

/// The blocks of commands of a page, `"docs/install.md"`.
pub fn blocks(page: &str) -> Vec<String> {
    let text = text(page);
    let blocks = text.split("\n```sh\n").skip(1);
    blocks.map(|block| block.split("\n```").next().unwrap_or_default().to_string()).collect()
}

/// Types the commands of a page. The host is a Debian 12 with Docker running, the image `busybox`, and `make plugin` has been done; what
/// `prepare` starts runs on meanwhile.
#[track_caller]
fn runs<T>(page: &str, prepare: impl FnOnce(&Host) -> T) {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let commands = blocks(page).join("\n");
    assert!(!commands.is_empty(), "{page} has no commands");
    let built = dist();
    let lab = Lab::new();
    let host = lab.make(&HostSpec::new("h1").engine(Engine::V20_10).showing(project));
    host.docker("tag box busybox").ok();
    let _running = prepare(&host);
    let script = format!("set -ex\ncd {}\nexport RSNET_PLUGIN_DIST={}\n{commands}\n", project.display(), built.display());
    std::fs::write(host.path("/tmp/page.sh"), script).expect("write the commands of the page");
    let _ = std::fs::remove_file(host.log("page"));
    let mut process = host.spawn("page", "bash -o pipefail /tmp/page.sh");
    let status = process.wait(Duration::from_secs(120));
    assert!(status.success(), "{page}: {status}\n{}", process.printed());
}

/// A container with a published port.
fn with_a_web_server(host: &Host) {
    host.start_rsnet();
    host.docker("network create -d rsnet net").ok();
    host.docker("run -d --name web --network net -p 8080:80 busybox httpd -f -p 80").ok();
}

#[test]
fn no_page_with_commands_is_left_out() {
    for page in pages() {
        let listed = PAGES.contains(&page.as_str());
        assert_eq!(listed, !blocks(&page).is_empty(), "{page} has commands, or is listed here to have them");
    }
}

#[test]
fn every_block_says_what_it_is_and_if_it_cannot_run_why() {
    let mut unrun = 0;
    for page in pages() {
        let text = text(&page);
        for head in text.lines().filter_map(|line| line.strip_prefix("```")).step_by(2) {
            match head.split_once(' ') {
                None => assert!(["sh", "text", "yaml"].contains(&head), "{page}: a block marked {head:?}"),
                Some((mark, why)) => {
                    assert!(mark == "console" && why.starts_with("needs "), "{page}: a block marked {head:?}");
                    unrun += 1;
                }
            }
        }
    }
    assert!(unrun <= 8, "{unrun} blocks of commands are not run");
}

#[test]
fn the_readme_runs() {
    runs("README.md", |_| ());
}

#[test]
fn the_page_on_installing_runs() {
    runs("docs/install.md", |_| ());
}

#[test]
fn the_page_on_bridge_networks_runs() {
    runs("docs/bridge.md", Host::start_rsnet);
}

/// Its commands are those for a host with firewalld, and for looking.
#[test]
fn the_page_on_the_firewall_runs() {
    runs("docs/firewall.md", |host| {
        with_a_web_server(host);
        firewalld(host)
    });
}

#[test]
fn the_page_on_recovery_runs() {
    runs("docs/recovery.md", with_a_web_server);
}

#[test]
fn the_page_on_troubleshooting_runs() {
    runs("docs/troubleshooting.md", Host::start_rsnet);
}

#[test]
fn the_page_on_none_runs() {
    runs("docs/none.md", Host::start_rsnet);
}

#[test]
fn the_page_on_macvlan_networks_runs() {
    runs("docs/macvlan.md", |host| {
        host.sh("ip link add eth0 type veth peer name lan0 && ip link set eth0 up && ip link set lan0 up").ok();
        host.start_rsnet();
    });
}

#[test]
fn the_page_on_overlay_networks_runs() {
    runs("docs/overlay.md", Host::start_rsnet);
}

#[test]
fn the_page_on_migrating_runs() {
    runs("docs/migrating.md", Host::start_rsnet);
}

#[test]
fn the_page_on_operations_runs() {
    runs("docs/operations.md", with_a_web_server);
}
