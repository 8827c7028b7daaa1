//! What a command answered, and how a test says what it expects of it.

use std::fmt;
use std::process::Command;
use std::time::{Duration, Instant};

/// A command that has ended: where it ran, what it was, what it printed.
#[derive(Debug, Clone)]
pub struct Output {
    place: String,
    command: String,
    /// The exit code; 124 when it was ended for taking too long, -1 when a signal ended it.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// Runs the command to its end. `place` and `text` are for people.
    pub fn of(place: &str, text: &str, mut command: Command) -> Output {
        let done = command.output().unwrap_or_else(|e| panic!("on {place}: start `{text}`: {e}"));
        Output {
            place: place.to_string(),
            command: text.to_string(),
            code: done.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&done.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&done.stderr).into_owned(),
        }
    }

    /// Whether it succeeded.
    pub fn succeeded(&self) -> bool {
        self.code == 0
    }

    /// Expects success; what it printed, without the blanks around.
    #[track_caller]
    pub fn ok(&self) -> &str {
        self.expect(self.succeeded(), "success");
        self.stdout.trim()
    }

    /// Expects failure; what it printed on standard error.
    #[track_caller]
    pub fn fails(&self) -> &str {
        self.expect(!self.succeeded(), "failure");
        self.stderr.trim()
    }

    /// Expects success and `text` somewhere in what was printed.
    #[track_caller]
    pub fn says(&self, text: &str) -> &str {
        self.ok();
        self.expect(self.stdout.contains(text), &format!("{text:?} printed"));
        self.stdout.trim()
    }

    /// Expects failure and `text` somewhere in the error.
    #[track_caller]
    pub fn fails_with(&self, text: &str) -> &str {
        self.fails();
        self.expect(self.stderr.contains(text), &format!("an error that says {text:?}"));
        self.stderr.trim()
    }

    #[track_caller]
    fn expect(&self, holds: bool, expected: &str) {
        assert!(holds, "{self}\nexpected: {expected}");
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "on {}: {}", self.place, self.command)?;
        write!(f, "exit code: {}\nstdout: {}\nstderr: {}", self.code, self.stdout.trim_end(), self.stderr.trim_end())
    }
}

/// Asks again and again until the answer is `Ok`; panics with the last answer when the time is over.
#[track_caller]
pub fn wait_until<T>(what: &str, patience: Duration, mut ask: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(seen) if start.elapsed() > patience => {
                panic!("waited {patience:?} for {what}\nlast seen: {seen}")
            }
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}
