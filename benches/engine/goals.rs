//! What is to be reached, and what was seen of it.

use crate::report::Report;
use crate::{DIRECT, ENGINE, MADE, MOVED, NOTHING, Way, macvlan, overlay};

const CREATE: &str = "network create, ms";
const DELETE: &str = "network delete, ms";
const CONNECT: &str = "connect, ms";
const DISCONNECT: &str = "disconnect, ms";
const START: &str = "container start, ms";
const REMOVE: &str = "container remove, ms";
const MANY_START: &str = "1,000 ports: container start, ms";
const MANY_REMOVE: &str = "1,000 ports: container remove, ms";

/// Where a difference is only noise.
const NOISE: f64 = 0.03;

/// A figure with the most that it may be.
pub struct Goal {
    what: String,
    seen: f64,
    limit: f64,
    unit: &'static str,
}

impl std::fmt::Display for Goal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Goal { what, seen, limit, unit } = self;
        let verdict = if seen <= limit { "reached" } else { "**not reached**" };
        write!(f, "| {what} ≤ {limit}{unit} | {seen:.2}{unit} | {verdict} |")
    }
}

/// A figure as it is.
fn absolute(report: &Report, line: &str, way: Way, limit: f64) -> Option<Goal> {
    Some(Goal { what: format!("{line}, {}", way.name), seen: report.seen(line, way)?, limit, unit: "" })
}

/// How far a figure is beyond another.
fn over(report: &Report, line: &str, way: Way, base: (&str, Way), limit: f64) -> Option<Goal> {
    let seen = report.seen(line, way)? - report.seen(base.0, base.1)?;
    Some(Goal { what: format!("{line}, {}: beyond \"{}\", {}", way.name, base.0, base.1.name), seen, limit, unit: " ms" })
}

/// A figure as a share of the first way's.
fn share(report: &Report, line: &str, way: Way, limit: f64) -> Option<Goal> {
    let what = format!("{line}, {}: of \"{}\"", way.name, report.ways()[0].name);
    Some(Goal { what, seen: report.ratio(line, way)?, limit, unit: "×" })
}

/// Every figure of traffic, as a share of the first way's time: a throughput is turned round.
fn data_path(report: &Report, ways: &[Way]) -> Vec<Option<Goal>> {
    let is_traffic = |line: &&str| line.ends_with("bit/s") || line.ends_with("second") || line.ends_with("trip");
    let goal = |line: &str, way: Way| {
        let ratio = report.ratio(line, way)?;
        let seen = if line.ends_with("trip") { ratio } else { 1.0 / ratio };
        let what = format!("{line}, {}: time of \"{}\"", way.name, report.ways()[0].name);
        Some(Goal { what, seen, limit: 1.0 + NOISE, unit: "×" })
    };
    report.lines().filter(is_traffic).flat_map(|line| ways.iter().map(move |way| goal(line, *way))).collect()
}

/// Of mode bridge.
pub fn bridge(report: &Report) -> Vec<Option<Goal>> {
    let ours = [ENGINE, DIRECT];
    let life = [CREATE, DELETE].into_iter().flat_map(|line| ours.map(|way| absolute(report, line, way, 3.0)));
    let answer = [CREATE, DELETE].map(|line| over(report, line, ENGINE, (line, NOTHING), 1.5));
    let moved = [CONNECT, DISCONNECT, START].map(|line| over(report, line, ENGINE, (line, MOVED), 3.0));
    let direct = [absolute(report, CONNECT, DIRECT, 9.0), absolute(report, DISCONNECT, DIRECT, 9.0), share(report, START, DIRECT, 0.85)];
    let ports = [(MANY_START, START), (MANY_REMOVE, REMOVE)].into_iter();
    let alone = ports.clone().flat_map(|(many, none)| ours.map(|way| over(report, many, way, (none, way), 20.0)));
    let floors =
        ports.flat_map(|(many, _)| [(ENGINE, MOVED), (DIRECT, MADE)].map(|(way, floor)| over(report, many, way, (many, floor), 20.0)));
    life.chain(answer).chain(moved).chain(direct).chain(alone).chain(floors).chain(data_path(report, &ours)).collect()
}

/// Of mode macvlan: nothing worse than Docker's.
pub fn macvlan(report: &Report) -> Vec<Option<Goal>> {
    let ours = [macvlan::ENGINE, macvlan::DIRECT];
    let life = [CREATE, DELETE, CONNECT, DISCONNECT, START, REMOVE];
    let none_worse = life.into_iter().flat_map(|line| ours.map(|way| share(report, line, way, 1.0 + NOISE)));
    let direct = [
        absolute(report, CONNECT, macvlan::DIRECT, 9.0),
        absolute(report, DISCONNECT, macvlan::DIRECT, 9.0),
        share(report, START, macvlan::DIRECT, 0.85),
    ];
    none_worse.chain(direct).collect()
}

/// Of mode overlay: with tunnels as fast as Docker's, without them faster, and there at once.
pub fn overlay(report: &Report) -> Vec<Option<Goal>> {
    let late = "first reply from the other host, ms late";
    let tunnels = [overlay::ENGINE, overlay::DIRECT].into_iter().flat_map(|way| faster(report, way, 1.0, 1.1));
    let start = [share(report, START, overlay::DIRECT, 0.3), over(report, START, overlay::ENGINE, (START, MOVED), 5.0)];
    let first = [overlay::ENGINE, overlay::DIRECT].map(|way| absolute(report, late, way, 5.0));
    tunnels.chain(faster(report, overlay::ROUTED, 1.2, 0.9)).chain(start).chain(first).collect()
}

/// A throughput that is at least `times` the first way's, a round trip that takes at most `share` of it.
fn faster(report: &Report, way: Way, times: f64, share_of_trip: f64) -> Vec<Option<Goal>> {
    let slower = |line: &str| {
        let what = format!("{line}, {}: \"{}\" as a share of it", way.name, report.ways()[0].name);
        Some(Goal { what, seen: 1.0 / report.ratio(line, way)?, limit: (100.0 / times).round() / 100.0, unit: "×" })
    };
    let through = ["one TCP stream, Gbit/s", "eight TCP streams, Gbit/s", "UDP, Gbit/s"].into_iter().map(slower);
    through.chain([share(report, "µs a round trip", way, share_of_trip)]).collect()
}

/// As fast as a link made by hand.
pub fn macvlan_traffic(report: &Report) -> Vec<Option<Goal>> {
    data_path(report, &[macvlan::ENGINE, macvlan::DIRECT])
}
