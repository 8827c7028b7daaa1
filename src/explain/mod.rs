//! Why packets get from A to B, or where they stop: facts in, words out.
//!
//! Pure: what hosts see of a flow ([`facts`]) becomes one line for each part of its way, in the order in which a packet passes, there and
//! back ([`walk`]), and what came of a packet that was really sent ([`progress`]). Does no I/O, asks nobody and knows no mode by name.

mod facts;
mod progress;
#[cfg(test)]
mod tests;
mod walk;

use serde::{Deserialize, Serialize};

pub use facts::{Case, Crossing, End, Mended, Probing, Relation, Row, Side, There, Underlay};
pub use walk::explain;

/// The answer: each part of the way, and whether it works as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// `c1 (10.50.0.5) to c2 (10.50.0.70), 80/tcp`.
    pub question: String,
    pub hops: Vec<Hop>,
    pub reaches: bool,
}

/// One part of the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hop {
    /// Where it is: a container, a host, what is between hosts.
    pub place: String,
    /// What was looked at, as one word by which scripts tell it: `name`, `network`, `interface`, `route`, `row`, `forward`, `firewall`,
    /// `underlay`, `peer`, `port`, `answer`, `mtu`.
    pub about: String,
    pub state: State,
    /// What is so.
    pub says: String,
    /// What to do.
    pub remedy: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Ok,
    /// It works; worth knowing.
    Note,
    /// It could not be looked at.
    Unknown,
    Broken,
}

impl Hop {
    fn new(state: State, place: &str, about: &str, says: impl Into<String>) -> Self {
        Hop { place: place.to_owned(), about: about.to_owned(), state, says: says.into(), remedy: None }
    }

    pub fn ok(place: &str, about: &str, says: impl Into<String>) -> Self {
        Hop::new(State::Ok, place, about, says)
    }

    pub fn note(place: &str, about: &str, says: impl Into<String>) -> Self {
        Hop::new(State::Note, place, about, says)
    }

    pub fn unknown(place: &str, about: &str, says: impl Into<String>) -> Self {
        Hop::new(State::Unknown, place, about, says)
    }

    pub fn broken(place: &str, about: &str, says: impl Into<String>, remedy: impl Into<String>) -> Self {
        Hop { remedy: Some(remedy.into()), ..Hop::new(State::Broken, place, about, says) }
    }
}

impl Explanation {
    /// Of what ends before a packet could be thought of: a name that nobody has.
    pub fn ended(question: String, hops: Vec<Hop>) -> Self {
        Explanation { question, hops, reaches: false }
    }

    /// The first part that does not work.
    pub fn broken(&self) -> Option<&Hop> {
        self.hops.iter().find(|hop| hop.state == State::Broken)
    }
}
