//! Figures by line and way, and the table that is printed.

use std::collections::BTreeMap;

use crate::{ALL, DOCKER, Way};

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

    /// A Markdown table: medians, and in brackets the ratio to Docker's bridge.
    pub fn print(&self) {
        println!("Engine {}, kernel {}, medians; in brackets the ratio to Docker's bridge in the same run.\n", self.engine, kernel());
        println!("| | {} |", ALL.map(|way| way.name).join(" | "));
        println!("|---|{}", "---|".repeat(ALL.len()));
        for (line, figures) in &self.lines {
            let docker = figures.get(DOCKER.name).map(|figures| median(figures.clone()));
            let cell = |way: Way| figures.get(way.name).map_or_else(|| "–".to_owned(), |f| shown(median(f.clone()), docker, way));
            println!("| {line} | {} |", ALL.map(cell).join(" | "));
        }
        println!();
        self.facts.iter().for_each(|fact| println!("- {fact}"));
    }
}

fn shown(figure: f64, docker: Option<f64>, way: Way) -> String {
    let digits = if figure < 100.0 { 1 } else { 0 };
    match docker.filter(|docker| *docker > 0.0 && way.name != DOCKER.name) {
        Some(docker) => format!("{figure:.digits$} ({:.2})", figure / docker),
        None => format!("{figure:.digits$}"),
    }
}

fn kernel() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}
