//! The table, or the same as JSON.

use serde_json::{Value, json};

use crate::Options;
use crate::meter::Used;

const COLUMNS: [&str; 8] = ["", "seconds", "reach", "questions a host", "KB a host", "rows a host", "Consul CPU s", "hosts CPU s"];

/// A line: what happened, how long it took until all knew, and what it cost.
struct Line {
    what: String,
    seconds: f64,
    limit: Option<f64>,
    /// Of all hosts together.
    used: Used,
}

pub struct Report {
    title: String,
    hosts: f64,
    lines: Vec<Line>,
    facts: Vec<String>,
}

impl Report {
    pub fn new(options: &Options) -> Self {
        let title = format!("{} hosts, {} networks each, Consul: {} server(s)", options.hosts, options.networks, options.servers);
        Report { title, hosts: options.hosts as f64, lines: vec![], facts: vec![] }
    }

    /// `limit`: seconds that it may take.
    pub fn add(&mut self, what: &str, seconds: f64, limit: Option<f64>, used: Used) {
        eprintln!("{what}: {seconds:.2} s, {used:?}");
        self.lines.push(Line { what: what.to_owned(), seconds, limit, used });
    }

    pub fn fact(&mut self, fact: String) {
        eprintln!("{fact}");
        self.facts.push(fact);
    }

    /// A figure with the most that it may be.
    pub fn goal(&mut self, what: String, seen: f64, limit: f64) {
        let verdict = if seen < limit { "reached" } else { "**not reached**" };
        self.fact(format!("{what}: {seen:.2}, reach < {limit}: {verdict}"));
    }

    pub fn print(&self, json: bool) {
        if json {
            println!("{:#}", self.json());
            return;
        }
        println!("{}\n", self.title);
        if !self.lines.is_empty() {
            self.print_lines();
        }
        self.facts.iter().for_each(|fact| println!("- {fact}"));
    }

    fn print_lines(&self) {
        let row = |cells: &[String]| println!("| {} |", cells.join(" | "));
        row(&COLUMNS.map(String::from));
        row(&COLUMNS.map(|_| "---".to_owned()));
        self.lines.iter().for_each(|line| row(&self.cells(line)));
        println!();
    }

    fn cells(&self, Line { what, seconds, limit, used }: &Line) -> Vec<String> {
        let verdict = |limit: f64| format!("< {limit} s: {}", if *seconds < limit { "reached" } else { "**not reached**" });
        let each = |all: u64| all as f64 / self.hosts;
        vec![
            what.clone(),
            format!("{seconds:.2}"),
            limit.map_or_else(String::new, verdict),
            format!("{:.1}", each(used.asked)),
            format!("{:.1}", each(used.heard) / 1e3),
            format!("{:.1}", each(used.rows)),
            format!("{:.2}", used.consul),
            format!("{:.2}", used.hosts),
        ]
    }

    fn json(&self) -> Value {
        let line = |Line { what, seconds, limit, used }: &Line| {
            json!({
                "what": what, "seconds": seconds, "limit": limit, "questions": used.asked, "bytes": used.heard, "rows": used.rows,
                "consul_cpu": used.consul, "hosts_cpu": used.hosts,
            })
        };
        json!({ "title": self.title, "lines": self.lines.iter().map(line).collect::<Vec<_>>(), "facts": self.facts })
    }
}
