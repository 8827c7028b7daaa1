//! What this host has heard and said of names, and what follows: what it has still to tell whom. No I/O: [`super::exchange`] carries it.
//!
//! A host says all that it has on a network, with a number that grows; the other one answers with the latest number that it has heard. Until that
//! is this one it is said again. So each message can be lost, come twice or late.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use ipnet::IpNet;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tracing::debug;

use super::{Directory, Named};

/// What a host says to another one.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Message {
    pub says: Vec<Said>,
    /// Networks of which it has heard nothing from the other one.
    pub asks: BTreeSet<IpNet>,
}

/// All that a host has on a network.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Said {
    pub network: IpNet,
    /// Grows. 0: it never had anything there.
    pub number: u64,
    pub containers: Vec<Named>,
}

/// What the other one answers.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Answer {
    /// The latest that it has heard of each network that was spoken of; of one that it does not have, nothing.
    pub heard: Vec<(IpNet, u64)>,
    pub says: Vec<Said>,
}

/// What a host is known to have heard of what this one says.
pub type Taken = BTreeMap<IpNet, u64>;

/// This host's.
#[derive(Default)]
pub struct Book {
    pub directory: Arc<Directory>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The largest number that was used.
    last: u64,
    /// The number of what this host says of a network; none: this process never said anything.
    said: BTreeMap<IpNet, u64>,
    /// The networks that each other host has too.
    shared: BTreeMap<String, BTreeSet<IpNet>>,
}

impl State {
    /// Larger than any before, also than those of earlier processes, unless the clock was set back: then whoever heard them says so.
    fn next(&mut self) -> u64 {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_micros();
        self.last = (self.last + 1).max(u64::try_from(now).unwrap_or_default());
        self.last
    }
}

impl Book {
    /// What this host has on each of its networks (on those left out as before), and which of them other hosts have too. Whether anything is news.
    pub fn set(&self, here: BTreeMap<IpNet, Vec<Named>>, shared: BTreeMap<String, BTreeSet<IpNet>>) -> bool {
        let mut state = self.state.lock();
        let mut news = state.shared != shared;
        state.shared = shared;
        for (network, containers) in here {
            if self.directory.set_here(network, containers) {
                let number = state.next();
                state.said.insert(network, number);
                news = true;
            }
        }
        news
    }

    /// What a host has still to hear and to say; none: nothing.
    pub fn message(&self, host: &str, taken: &Taken) -> Option<Message> {
        let state = self.state.lock();
        let shared = state.shared.get(host)?;
        let is_new = |network: &&IpNet| state.said.get(network).is_some_and(|said| taken.get(network) != Some(said));
        let says: Vec<Said> = shared.iter().filter(is_new).filter_map(|network| self.says(&state, *network)).collect();
        let asks: BTreeSet<IpNet> = shared.iter().filter(|network| !self.directory.has_heard(host, **network)).copied().collect();
        (!says.is_empty() || !asks.is_empty()).then_some(Message { says, asks })
    }

    /// Whether all networks that a message is about are known here.
    pub fn has_all(&self, message: &Message) -> bool {
        message.says.iter().map(|said| said.network).chain(message.asks.iter().copied()).all(|network| self.directory.has(network))
    }

    /// What is answered to a host.
    pub fn answer(&self, host: &str, message: Message) -> Answer {
        let heard = self.hear(host, message.says);
        let state = self.state.lock();
        Answer { heard, says: message.asks.into_iter().filter_map(|network| self.says(&state, network)).collect() }
    }

    /// What a host answered to a message. Whether it took and answered all of it; one that does not have a network yet, by its own account, will.
    pub fn take(&self, host: &str, message: &Message, answer: Answer, taken: &mut Taken) -> bool {
        let answered: BTreeSet<IpNet> = answer.says.iter().map(|said| said.network).collect();
        self.hear(host, answer.says);
        let heard: BTreeMap<IpNet, u64> = answer.heard.into_iter().collect();
        for said in &message.says {
            match heard.get(&said.network) {
                Some(number) if *number > said.number => self.outbid(said.network, *number),
                Some(_) => drop(taken.insert(said.network, said.number)),
                None => {}
            }
        }
        answered.is_superset(&message.asks) && message.says.iter().all(|said| heard.contains_key(&said.network))
    }

    fn hear(&self, host: &str, says: Vec<Said>) -> Vec<(IpNet, u64)> {
        let hear = |Said { network, number, containers }| {
            debug!(host, %network, number, containers = containers.len(), "heard names");
            Some((network, self.directory.hear(host, network, number, containers)?))
        };
        says.into_iter().filter_map(hear).collect()
    }

    /// None: this host does not have the network. Under the lock, so that what is said has its own number.
    fn says(&self, state: &State, network: IpNet) -> Option<Said> {
        let number = state.said.get(&network).copied().unwrap_or_default();
        self.directory.has(network).then(|| Said { network, number, containers: self.directory.here(network) })
    }

    /// An earlier process of this host, by a clock that went ahead, used larger numbers.
    fn outbid(&self, network: IpNet, heard: u64) {
        let mut state = self.state.lock();
        state.last = state.last.max(heard);
        let number = state.next();
        state.said.insert(network, number);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Entry, Zone};
    use super::*;
    use crate::model::NetworkId;

    fn net() -> IpNet {
        "10.50.0.0/16".parse().unwrap()
    }

    fn id() -> NetworkId {
        "1".parse().unwrap()
    }

    fn named(name: &str) -> Named {
        Named { names: vec![name.to_owned()], addresses: vec!["10.50.0.9".parse().unwrap()] }
    }

    /// A host that has the network, as does `other`.
    fn host(other: &str) -> Book {
        let book = Book::default();
        book.directory.set_zones([(id(), Zone { name: None, subnets: vec![net()] })].into());
        let others: BTreeSet<String> = [other.to_owned()].into();
        book.directory.set_hosts(&others, others.clone());
        has(&book, other, &[]);
        book
    }

    fn has(book: &Book, other: &str, containers: &[&str]) {
        let shared = [(other.to_owned(), [net()].into())].into();
        book.set([(net(), containers.iter().map(|name| named(name)).collect())].into(), shared);
    }

    fn knows(book: &Book) -> Vec<String> {
        let others = book.directory.entries(&id()).into_iter().filter(|entry| entry.host.is_some());
        others.map(|Entry { named, .. }| named.names[0].clone()).collect()
    }

    /// One message and its answer, if there is one to say.
    fn tell(from: (&str, &Book), to: (&str, &Book), taken: &mut Taken) -> bool {
        let Some(message) = from.1.message(to.0, taken) else { return false };
        let answer = to.1.answer(from.0, message.clone());
        from.1.take(to.0, &message, answer, taken);
        true
    }

    #[test]
    fn one_message_each_way_and_then_silence() {
        let (a, b, mut taken) = (host("b"), host("a"), Taken::new());
        has(&a, "b", &["web"]);
        has(&b, "a", &["db"]);
        assert!(tell(("a", &a), ("b", &b), &mut taken));
        assert_eq!((knows(&a), knows(&b)), (vec!["db".to_owned()], vec!["web".to_owned()]));
        assert!(!tell(("a", &a), ("b", &b), &mut taken));
        has(&a, "b", &[]);
        assert!(tell(("a", &a), ("b", &b), &mut taken));
        assert_eq!(knows(&b), Vec::<String>::new());
    }

    #[test]
    fn a_host_whose_clock_was_set_back_is_heard_all_the_same() {
        let (a, b, mut taken) = (host("b"), host("a"), Taken::new());
        b.directory.hear("a", net(), u64::MAX / 2, vec![named("before")]);
        has(&a, "b", &["after"]);
        assert!(tell(("a", &a), ("b", &b), &mut taken));
        assert!(tell(("a", &a), ("b", &b), &mut taken));
        assert_eq!(knows(&b), ["after"]);
        assert!(!tell(("a", &a), ("b", &b), &mut taken));
    }

    #[test]
    fn a_host_that_does_not_have_the_network_yet_is_told_again() {
        let (a, b, mut taken) = (host("b"), Book::default(), Taken::new());
        has(&a, "b", &["web"]);
        let message = a.message("b", &taken).unwrap();
        let answer = b.answer("a", message.clone());
        assert!(!a.take("b", &message, answer, &mut taken));
        assert!(a.message("b", &taken).is_some());
    }

    #[derive(Clone, Debug)]
    enum Step {
        /// Something starts or stops on a.
        Change(usize),
        /// a tells b; the message is lost, or the answer is, or both arrive.
        Tell(u8),
        /// An old message comes late.
        Late(usize),
        /// a's process ends and the next one begins, with nothing that runs.
        Reboot,
        /// b's process ends and the next one begins.
        Restart,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..4usize).prop_map(Step::Change),
            (0..3u8).prop_map(Step::Tell),
            (0..9usize).prop_map(Step::Late),
            Just(Step::Reboot),
            Just(Step::Restart)
        ]
    }

    proptest! {
        /// Whatever is lost, repeated or late: once messages arrive, b knows what a has.
        #[test]
        fn hosts_that_reach_each_other_end_up_with_the_same(steps in proptest::collection::vec(step(), 0..40)) {
            let (mut a, mut b, mut taken, mut sent) = (host("b"), host("a"), Taken::new(), Vec::<Message>::new());
            let mut there = Vec::new();
            for step in steps {
                match step {
                    Step::Change(n) => {
                        there = ["w", "x", "y", "z"][..n].to_vec();
                        has(&a, "b", &there);
                    }
                    Step::Tell(outcome) => if let Some(message) = a.message("b", &taken) {
                        sent.push(message.clone());
                        if outcome > 0 {
                            let answer = b.answer("a", message.clone());
                            if outcome > 1 { a.take("b", &message, answer, &mut taken); }
                        }
                    },
                    Step::Late(n) => if let Some(message) = sent.get(n) { b.answer("a", message.clone()); },
                    // connections end with the process
                    Step::Reboot => (a, taken, there) = (host("b"), Taken::new(), Vec::new()),
                    Step::Restart => (b, sent) = (host("a"), Vec::new()),
                }
            }
            // both directions have a courier
            let mut back = Taken::new();
            while tell(("b", &b), ("a", &a), &mut back) || tell(("a", &a), ("b", &b), &mut taken) {}
            prop_assert_eq!(knows(&b), there);
        }
    }
}
