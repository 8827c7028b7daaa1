//! The documents: every command in a block marked ```sh runs, in order, each page on a host of its own. What is marked ```console is for the
//! eye: it needs a registry, or systemd.

use crate::lab::{Engine, Host, HostSpec, Lab};
use crate::plugin::dist;
use std::path::Path;
use std::time::Duration;

/// The pages that have commands.
const PAGES: [&str; 3] = ["README.md", "docs/install.md", "docs/bridge.md"];

/// The commands of a page, joined.
fn commands(page: &Path) -> String {
    let text = std::fs::read_to_string(page).unwrap_or_else(|e| panic!("read {}: {e}", page.display()));
    let blocks = text.split("\n```sh\n").skip(1);
    let commands: Vec<&str> = blocks.map(|block| block.split("\n```").next().unwrap_or_default()).collect();
    commands.join("\n")
}

/// Types the commands of a page. The host is a Debian 12 with Docker running, the image `busybox`, and `make plugin` has been done.
#[track_caller]
fn runs(page: &str, prepare: impl FnOnce(&Host)) {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let commands = commands(&project.join(page));
    assert!(!commands.is_empty(), "{page} has no commands");
    let built = dist();
    let lab = Lab::new();
    let host = lab.make(&HostSpec::new("h1").engine(Engine::V20_10).showing(project));
    host.docker("tag box busybox").ok();
    prepare(&host);
    let script = format!("set -ex\ncd {}\nexport RSNET_PLUGIN_DIST={}\n{commands}\n", project.display(), built.display());
    std::fs::write(host.path("/tmp/page.sh"), script).expect("write the commands of the page");
    let _ = std::fs::remove_file(host.log("page"));
    let mut process = host.spawn("page", "bash /tmp/page.sh");
    let status = process.wait(Duration::from_secs(120));
    assert!(status.success(), "{page}: {status}\n{}", process.printed());
}

#[test]
fn no_page_with_commands_is_left_out() {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = std::fs::read_dir(project.join("docs")).expect("read docs/");
    let names = docs.map(|entry| format!("docs/{}", entry.expect("read docs/").file_name().display()));
    for page in names.chain(["README.md".to_owned()]).filter(|name| name.ends_with(".md")) {
        let listed = PAGES.contains(&page.as_str());
        assert_eq!(listed, !commands(&project.join(&page)).is_empty(), "{page} has commands, or is listed here to have them");
    }
}

#[test]
fn the_readme_runs() {
    runs(PAGES[0], |_| ());
}

#[test]
fn the_page_on_installing_runs() {
    runs(PAGES[1], |_| ());
}

#[test]
fn the_page_on_bridge_networks_runs() {
    runs(PAGES[2], Host::start_rsnet);
}
