//! Figures by line and way, and the table that is printed.

use std::collections::BTreeMap;

use crate::{ALL, DIRECT, DOCKER, ENGINE, MADE, MOVED, NOTHING, Way};

pub struct Report {
    engine: &'static str,
    lines: Vec<(String, BTreeMap<&'static str, Vec<f64>>)>,
    facts: Vec<String>,
}

impl Report {
    pub fn new(engine: &'static str) -> Self {
        Report { engine, lines: Vec::new(), facts: Vec::new() }
    }

    /// One more figure of a line.
    pub fn add(&mut self, line: &str, way: Way, figure: f64) {
        if !self.lines.iter().any(|(name, _)| name == line) {
            self.lines.push((line.to_owned(), BTreeMap::new()));
        }
        let figures = self.lines.iter_mut().find(|(name, _)| name == line).map(|(_, figures)| figures);
        figures.into_iter().for_each(|figures| figures.entry(way.name).or_default().push(figure));
    }

    /// What has no column.
    pub fn fact(&mut self, fact: String) {
        self.facts.push(fact);
    }

    fn seen(&self, line: &str, way: Way) -> Option<f64> {
        let (_, figures) = self.lines.iter().find(|(name, _)| name == line)?;
        figures.get(way.name).map(|figures| median(figures.clone()))
    }

    /// To Docker's bridge: the median over the rounds, where both had as many, so that a slow moment of the machine counts for neither.
    fn ratio(&self, line: &str, way: Way) -> Option<f64> {
        let (_, figures) = self.lines.iter().find(|(name, _)| name == line)?;
        let (ours, docker) = (figures.get(way.name)?, figures.get(DOCKER.name)?);
        let each = ours.iter().zip(docker).map(|(ours, docker)| ours / docker).collect();
        let paired = ours.len() == docker.len();
        Some(if paired { median(each) } else { median(ours.clone()) / median(docker.clone()) })
    }

    /// What is to be reached, with what was seen.
    fn goals(&self) -> Vec<Option<Goal>> {
        let absolute = |line: &'static str, way: Way, limit: f64| {
            Some(Goal { what: format!("{line}, {}", way.name), seen: self.seen(line, way)?, limit, unit: "" })
        };
        let over = |line: &'static str, way: Way, base: (&'static str, Way), limit: f64| {
            let seen = self.seen(line, way)? - self.seen(base.0, base.1)?;
            Some(Goal { what: format!("{line}, {}: beyond \"{}\", {}", way.name, base.0, base.1.name), seen, limit, unit: " ms" })
        };
        let of_docker = |line: &'static str, way: Way, limit: f64| {
            let seen = self.ratio(line, way)?;
            Some(Goal { what: format!("{line}, {}: of Docker's", way.name), seen, limit, unit: "×" })
        };
        let (create, delete, connect, disconnect) = ("network create, ms", "network delete, ms", "connect, ms", "disconnect, ms");
        let (start, remove) = ("container start, ms", "container remove, ms");
        let (many_start, many_remove) = ("1,000 ports: container start, ms", "1,000 ports: container remove, ms");
        let life = [create, delete].into_iter().flat_map(|line| [ENGINE, DIRECT].map(|way| absolute(line, way, 3.0)));
        let answer = [create, delete].into_iter().map(|line| over(line, ENGINE, (line, NOTHING), 1.5));
        let moved = [connect, disconnect, start].map(|line| over(line, ENGINE, (line, MOVED), 3.0));
        let direct = [absolute(connect, DIRECT, 9.0), absolute(disconnect, DIRECT, 9.0), of_docker(start, DIRECT, 0.85)];
        let ports = [(many_start, start), (many_remove, remove)].into_iter();
        let alone = ports.clone().flat_map(|(many, none)| [ENGINE, DIRECT].map(|way| over(many, way, (none, way), 20.0)));
        let floors = ports.flat_map(|(many, _)| [(ENGINE, MOVED), (DIRECT, MADE)].map(|(way, floor)| over(many, way, (many, floor), 20.0)));
        life.chain(answer).chain(moved).chain(direct).chain(alone).chain(floors).chain(self.data_path()).collect()
    }

    /// Every figure of traffic, as a share of Docker's time: a throughput is turned round.
    fn data_path(&self) -> Vec<Option<Goal>> {
        let traffic = self.lines.iter().filter(|(line, _)| line.ends_with("bit/s") || line.ends_with("second") || line.ends_with("trip"));
        let goal = |line: &str, way: Way| {
            let ratio = self.ratio(line, way)?;
            let seen = if line.ends_with("trip") { ratio } else { 1.0 / ratio };
            Some(Goal { what: format!("{line}, {}: time of Docker's", way.name), seen, limit: 1.0, unit: "×" })
        };
        traffic.flat_map(|(line, _)| [ENGINE, DIRECT].map(|way| goal(line, way))).collect()
    }

    /// A Markdown table: medians, and in brackets the ratio to Docker's bridge; and what is reached.
    fn print(&self) {
        println!("Engine {}, kernel {}, medians; in brackets the ratio to Docker's bridge in the same run.\n", self.engine, kernel());
        println!("| | {} |", ALL.map(|way| way.name).join(" | "));
        println!("|---|{}", "---|".repeat(ALL.len()));
        for (line, figures) in &self.lines {
            let cell = |way: Way| figures.get(way.name).map_or_else(|| "–".to_owned(), |f| shown(median(f.clone()), self.ratio(line, way)));
            println!("| {line} | {} |", ALL.map(cell).join(" | "));
        }
        println!("\n| reach | seen | |\n|---|---|---|");
        self.goals().into_iter().flatten().for_each(|goal| println!("{goal}"));
        println!();
        self.facts.iter().for_each(|fact| println!("- {fact}"));
    }
}

/// What was measured is printed even if something later fails.
impl Drop for Report {
    fn drop(&mut self) {
        self.print();
    }
}

/// A figure with the most that it may be.
struct Goal {
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

fn shown(figure: f64, ratio: Option<f64>) -> String {
    let digits = if figure < 100.0 { 1 } else { 0 };
    let ratio = ratio.map_or_else(String::new, |ratio| format!(" ({ratio:.2})"));
    format!("{figure:.digits$}{ratio}")
}

fn kernel() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}
