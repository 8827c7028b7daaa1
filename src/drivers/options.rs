//! Reading `-o` options: each under its long name of Docker's and its short one, each mistake by name, all mistakes at once.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;

use crate::model::Network;

/// Everything that is wrong with a network's options, a sentence each.
#[derive(Clone, Debug, Default, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct OptionError(Vec<String>);

/// Options that the engine itself acts on, whatever the driver (engine 28.0 and newer).
const ENGINE_OPTIONS: &[&str] = &[
    "com.docker.network.advertise_addr_nmsgs",
    "com.docker.network.advertise_addr_ms",
    "com.docker.network.enable_ipv4",
    "com.docker.network.enable_ipv6",
];

/// The options not read yet, the names that were asked for, and what was wrong.
pub struct Options<'a> {
    left: BTreeMap<&'a str, &'a str>,
    known: Vec<&'static str>,
    errors: Vec<String>,
}

impl<'a> Options<'a> {
    pub fn new(given: &'a BTreeMap<String, String>) -> Self {
        let left = given.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let mut options = Options { left, known: Vec::new(), errors: Vec::new() };
        for name in ENGINE_OPTIONS {
            options.left.remove(name);
        }
        options
    }

    /// The value under any of `names`, with the name it was given under. Two names with two values contradict each other.
    fn take(&mut self, names: &[&'static str]) -> Option<(&'static str, &'a str)> {
        self.known.extend(names);
        let given: Vec<_> = names.iter().filter_map(|&name| self.left.remove(name).map(|value| (name, value))).collect();
        if let [(first, a), (second, b), ..] = given[..]
            && a != b
        {
            self.errors.push(format!("options {first}={a} and {second}={b} contradict each other; give one"));
        }
        given.first().copied()
    }

    /// A value read by `parse`; `expected` says what one looks like.
    pub fn read<T>(&mut self, names: &[&'static str], expected: &str, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        let (name, value) = self.take(names)?;
        let parsed = parse(value);
        if parsed.is_none() {
            self.errors.push(format!("option {name}={value} is not valid; give {expected}"));
        }
        parsed
    }

    pub fn value<T: FromStr>(&mut self, names: &[&'static str], expected: &str) -> Option<T> {
        self.read(names, expected, |value| value.parse().ok())
    }

    /// As Go's `strconv.ParseBool`, which Docker's own drivers use.
    pub fn flag(&mut self, names: &[&'static str]) -> Option<bool> {
        self.read(names, "true or false", |value| match value {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
            _ => None,
        })
    }

    /// One of a few words; the error names the nearest.
    pub fn choice<T: Copy>(&mut self, names: &[&'static str], words: &[(&'static str, T)]) -> Option<T> {
        let (name, value) = self.take(names)?;
        let found = words.iter().find(|(word, _)| *word == value).map(|(_, choice)| *choice);
        if found.is_none() {
            let all: Vec<_> = words.iter().map(|(word, _)| *word).collect();
            let hint = nearest(value, &all).map(|word| format!("did you mean {word}? ")).unwrap_or_default();
            self.errors.push(format!("option {name}={value} is not valid; {hint}It is one of {}", all.join(", ")));
        }
        found
    }

    /// The MTU of a network's links, in bytes; none: the mode's own default, as Docker reads 0.
    pub fn mtu(&mut self, network: &Network) -> Option<u32> {
        let least = network.least_mtu();
        let valid = |value: &str| if value == "0" { Some(0) } else { value.parse().ok().filter(|mtu| (least..=65535).contains(mtu)) };
        let expected = format!("{least} to 65535 bytes");
        self.read(&["com.docker.network.driver.mtu", "mtu"], &expected, valid).filter(|mtu| *mtu != 0)
    }

    pub fn refuse(&mut self, problem: impl Display) {
        self.errors.push(problem.to_string());
    }

    /// Refuses IPv6 where the host has none.
    pub fn refuse_lost_ipv6(&mut self, network: &Network) {
        if network.ipv6 && network.host_without_ipv6 {
            self.refuse("--ipv6 needs a host with IPv6, and this one's kernel was started without; leave --ipv6 out");
        }
    }

    /// What nobody asked for is refused by name, with the nearest that exists.
    pub fn finish(mut self) -> Result<(), OptionError> {
        for (name, value) in &self.left {
            let hint = nearest(name, &self.known).map(|known| format!("; did you mean {known}?")).unwrap_or_default();
            self.errors.push(format!("option {name}={value} is unknown{hint}"));
        }
        if self.errors.is_empty() { Ok(()) } else { Err(OptionError(self.errors)) }
    }
}

/// The nearest of `words`, if one is near enough to have been meant.
fn nearest<'w>(word: &str, words: &[&'w str]) -> Option<&'w str> {
    let near = |candidate: &str| strsim::jaro_winkler(word, candidate);
    words.iter().copied().max_by(|a, b| near(a).total_cmp(&near(b))).filter(|best| near(best) > 0.7)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn every_mistake_is_reported_at_once_with_the_nearest_valid_one() {
        let given = given(&[("mtuu", "9"), ("icc", "maybe"), ("gateway_mode", "routd")]);
        let mut options = Options::new(&given);
        options.value::<u32>(&["mtu"], "bytes");
        options.flag(&["icc"]);
        options.choice(&["gateway_mode"], &[("nat", 1), ("routed", 2)]);
        let error = options.finish().unwrap_err().to_string();
        for part in ["mtuu=9 is unknown; did you mean mtu?", "icc=maybe", "true or false", "gateway_mode=routd", "did you mean routed?"] {
            assert!(error.contains(part), "{part:?} not in {error:?}");
        }
    }

    #[test]
    fn a_long_and_a_short_name_may_agree_but_not_contradict() {
        let agree = given(&[("mtu", "1400"), ("com.docker.network.driver.mtu", "1400")]);
        let mut options = Options::new(&agree);
        assert_eq!(options.value::<u32>(&["com.docker.network.driver.mtu", "mtu"], "bytes"), Some(1400));
        assert!(options.finish().is_ok());
        let contradict = given(&[("mtu", "1400"), ("com.docker.network.driver.mtu", "1500")]);
        let mut options = Options::new(&contradict);
        options.value::<u32>(&["com.docker.network.driver.mtu", "mtu"], "bytes");
        assert!(options.finish().unwrap_err().to_string().contains("contradict"));
    }
}
