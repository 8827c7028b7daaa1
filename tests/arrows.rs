//! The arrows of docs/architecture.md: which room may use which, and which library is named in one room only.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Room → the rooms it may use. What is not listed here may not be used.
const ARROWS: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("addresses", &["model"]),
    ("drivers", &["model"]),
    ("kernel", &["model"]),
    ("firewall", &["model"]),
    ("store", &[]),
    ("docker", &["model"]),
    ("doctor", &[]),
    ("cluster", &["model", "store"]),
    ("peers", &["cluster", "store"]),
    ("fencing", &["cluster", "peers"]),
    ("plugin", &[]),
    ("telemetry", &[]),
    ("config", &["model", "peers", "store"]),
    ("reconcile", &["model", "kernel", "firewall"]),
    ("explain", &["model"]),
    ("agent", &["model", "addresses", "cluster", "docker", "drivers", "explain", "firewall", "kernel", "reconcile", "store"]),
    ("names", &["model", "agent", "cluster", "docker", "peers"]),
    ("dns", &["model", "kernel", "firewall", "names"]),
    ("catalog", &["model", "cluster", "docker", "store"]),
    ("spread", &["model", "cluster", "docker", "drivers", "peers", "plugin", "store"]),
    ("driver", &["model", "agent", "drivers", "plugin"]),
    ("ipam", &["model", "agent", "plugin"]),
    ("inspect", &["agent", "dns", "doctor", "firewall", "kernel", "model", "names", "peers", "plugin", "reconcile", "store", "telemetry"]),
    ("cli", &["agent", "app", "config", "docker", "doctor", "explain", "inspect", "model", "names", "telemetry"]),
];

/// A library → the rooms that name it: one, unless it is a layer below several.
const ONE_ROOM: &[(&str, &[&str])] = &[
    ("rtnetlink", &["kernel"]),
    ("netlink_packet_route", &["kernel"]),
    ("netlink_proto", &["kernel"]),
    // Sockets and the header that all of netlink has.
    ("netlink_sys", &["kernel", "firewall"]),
    ("netlink_packet_core", &["kernel", "firewall"]),
    ("nix", &["app", "firewall", "kernel", "plugin", "store"]),
    ("redb", &["store"]),
    ("rustls", &["store"]),
    ("hyper_rustls", &["store"]),
    ("backon", &["store"]),
    ("bollard", &["docker"]),
    ("hickory_proto", &["dns"]),
    ("clap", &["cli", "config"]),
];

fn sources(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] })
        .filter(|path| path.extension().is_some_and(|e| e == "rs"))
        .collect()
}

fn room(file: &Path) -> String {
    let first = file.strip_prefix("src").unwrap().components().next().unwrap();
    Path::new(first.as_os_str()).file_stem().unwrap().to_str().unwrap().to_owned()
}

/// The words that follow `prefix` in code, comments left out.
fn named_after(prefix: &str, text: &str) -> BTreeSet<String> {
    let code = text.lines().map(|line| line.split("//").next().unwrap_or_default());
    let names = code.flat_map(|line| line.split(prefix).skip(1).map(str::to_owned).collect::<Vec<_>>());
    let name =
        |rest: String| rest.trim_start_matches('{').split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default().to_owned();
    names.map(name).collect()
}

fn texts() -> BTreeMap<PathBuf, String> {
    sources(Path::new("src")).into_iter().map(|file| (file.clone(), fs::read_to_string(file).unwrap())).collect()
}

#[test]
fn every_room_uses_only_rooms_below_it() {
    let allowed: BTreeMap<_, _> = ARROWS.iter().copied().collect();
    let mut wrong = Vec::new();
    for (file, text) in texts() {
        let room = room(&file);
        if ["lib", "main", "app"].contains(&room.as_str()) {
            continue;
        }
        let below = allowed.get(room.as_str()).unwrap_or_else(|| panic!("room {room} stands in no line of ARROWS"));
        assert!(!text.contains("use crate::{"), "{}: name each room in a `use` of its own", file.display());
        for used in named_after("crate::", &text) {
            if used != room && allowed.contains_key(used.as_str()) && !below.contains(&used.as_str()) {
                wrong.push(format!("{} uses {used}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "arrows that run the wrong way:\n{}", wrong.join("\n"));
}

#[test]
fn no_room_is_above_itself() {
    let allowed: BTreeMap<_, _> = ARROWS.iter().copied().collect();
    for (at, (room, below)) in ARROWS.iter().enumerate() {
        for used in *below {
            let place = ARROWS.iter().position(|(name, _)| name == used);
            assert!(allowed.contains_key(used) || *used == "app", "{room} uses {used}, which is no room");
            assert!(place.is_none_or(|place| place < at), "{room} stands before {used}, which it uses");
        }
    }
}

#[test]
fn each_mechanism_is_named_in_its_own_room() {
    for (file, text) in texts() {
        for (library, rooms) in ONE_ROOM {
            let names = text.lines().filter(|line| !line.trim_start().starts_with("//")).any(|line| line.contains(&format!("{library}::")));
            assert!(!names || rooms.contains(&room(&file).as_str()), "{} names {library}", file.display());
        }
    }
}

#[test]
fn modes_do_no_io_and_keep_no_time() {
    for (file, text) in texts().into_iter().filter(|(file, _)| ["drivers", "model", "addresses"].contains(&room(file).as_str())) {
        for word in ["async ", ".await", "std::fs", "std::time", "Instant", "rand::", "tokio"] {
            let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            assert!(!code.clone().any(|line| line.contains(word)), "{} says {word:?}", file.display());
        }
    }
}
