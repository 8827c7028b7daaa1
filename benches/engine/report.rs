//! Figures by line and way, and the table that is printed.

use std::collections::BTreeMap;

use crate::Way;
use crate::goals::Goal;

pub struct Report {
    title: &'static str,
    /// Columns; the first is what the others are compared with.
    ways: &'static [Way],
    lines: Vec<(String, BTreeMap<&'static str, Vec<f64>>)>,
    facts: Vec<String>,
    goals: fn(&Report) -> Vec<Option<Goal>>,
}

impl Report {
    pub fn new(title: &'static str, ways: &'static [Way], goals: fn(&Report) -> Vec<Option<Goal>>) -> Self {
        Report { title, ways, lines: Vec::new(), facts: Vec::new(), goals }
    }

    pub fn ways(&self) -> &'static [Way] {
        self.ways
    }

    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(|(line, _)| line.as_str())
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

    /// The median.
    pub fn seen(&self, line: &str, way: Way) -> Option<f64> {
        let (_, figures) = self.lines.iter().find(|(name, _)| name == line)?;
        figures.get(way.name).map(|figures| median(figures.clone()))
    }

    /// To the first way: the median over the rounds, where both had as many, so that a slow moment of the machine counts for neither.
    pub fn ratio(&self, line: &str, way: Way) -> Option<f64> {
        let (_, figures) = self.lines.iter().find(|(name, _)| name == line)?;
        let (ours, base) = (figures.get(way.name)?, figures.get(self.ways[0].name)?);
        let each = ours.iter().zip(base).map(|(ours, base)| ours / base).collect();
        let paired = ours.len() == base.len();
        Some(if paired { median(each) } else { median(ours.clone()) / median(base.clone()) })
    }

    /// A Markdown table: medians, and in brackets the ratio to the first way; and what is reached.
    fn print(&self) {
        println!("### {}\n", self.title);
        println!("| | {} |", self.ways.iter().map(|way| way.name).collect::<Vec<_>>().join(" | "));
        println!("|---|{}", "---|".repeat(self.ways.len()));
        for (line, figures) in &self.lines {
            let cell =
                |way: &Way| figures.get(way.name).map_or_else(|| "–".to_owned(), |f| shown(median(f.clone()), self.ratio(line, *way)));
            println!("| {line} | {} |", self.ways.iter().map(cell).collect::<Vec<_>>().join(" | "));
        }
        println!("\n| reach | seen | |\n|---|---|---|");
        (self.goals)(self).into_iter().flatten().for_each(|goal| println!("{goal}"));
        println!();
        self.facts.iter().for_each(|fact| println!("- {fact}"));
        println!();
    }
}

/// What was measured is printed even if something later fails.
impl Drop for Report {
    fn drop(&mut self) {
        self.print();
    }
}

fn shown(figure: f64, ratio: Option<f64>) -> String {
    let digits = if figure < 100.0 { 1 } else { 0 };
    let ratio = ratio.map_or_else(String::new, |ratio| format!(" ({ratio:.2})"));
    format!("{figure:.digits$}{ratio}")
}

pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}
