//! What all subcommands print alike: tables, times, colours on a terminal only.

use std::fmt::Display;
use std::io::{ErrorKind, IsTerminal, Write};

use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use serde::Serialize;

use super::Failure;

/// Rows that one screen has room for; `--json` has all.
pub const ROWS: usize = 20;

/// Prints, with a line's end. A reader that has enough (`rsnet ports | head -1`) is no failure.
pub fn say(text: impl Display) -> Result<(), Failure> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Prints an answer as it is.
pub fn json(answer: &impl Serialize) -> Result<(), Failure> {
    say(serde_json::to_string_pretty(answer)?)
}

/// A table without lines, of one screen; `more` says how to see what does not fit.
pub fn table<const N: usize>(head: [&str; N], rows: Vec<[String; N]>, more: &str) -> String {
    let (mut table, beyond) = (Table::new(), rows.len().saturating_sub(ROWS));
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_header(head);
    for row in rows.into_iter().take(ROWS) {
        table.add_row(row);
    }
    match beyond {
        0 => table.to_string(),
        _ => format!("{table}\n… and {beyond} more: {more}"),
    }
}

/// A time that is over, in the unit that people would say: `3 min`.
pub fn ago(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86400),
    }
}

/// Of `1 network`, `2 networks`.
pub fn count(number: usize, one: &str) -> String {
    if number == 1 { format!("1 {one}") } else { format!("{number} {one}s") }
}

/// The numbers of the terminal's colours (ECMA-48).
#[derive(Clone, Copy)]
pub enum Colour {
    Red = 31,
    Green = 32,
    Yellow = 33,
}

/// The text in a colour; as it is where nobody sees colours, or wants none (no-color.org).
pub fn painted(text: &str, colour: Colour) -> String {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    if unwanted || !std::io::stdout().is_terminal() { text.to_owned() } else { format!("\u{1b}[{}m{text}\u{1b}[0m", colour as u8) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_in_the_unit_that_people_would_say() {
        assert_eq!([0, 119, 120, 7199, 7200, 172_800].map(ago), ["0 s", "119 s", "2 min", "119 min", "2 h", "2 days"]);
    }

    #[test]
    fn a_table_is_no_longer_than_a_screen_and_says_where_the_rest_is() {
        let rows = |count: usize| (0..count).map(|n| [n.to_string()]).collect::<Vec<_>>();
        assert_eq!(table(["N"], rows(ROWS), "x").lines().count(), ROWS + 1);
        let long = table(["N"], rows(ROWS + 3), "rsnet networks --json");
        assert_eq!((long.lines().count(), long.lines().last()), (ROWS + 2, Some("… and 3 more: rsnet networks --json")));
    }
}
