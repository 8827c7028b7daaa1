//! Many links deleted together. After each request to delete links the kernel waits a grace period of 15 ms and more, however many go by it
//! (`rcu_barrier` in `netdev_run_todo`).
//!
//! Those of the host's namespace are put into a link group of their own, and the group is deleted (`RTM_DELLINK` with `IFLA_GROUP`). With it goes
//! whoever is in it: so its number is one that no link of the namespace had just before, somebody else's or ours, and what a request
//! that failed left in a group is not hit by the next. Those in sandboxes are deleted side by side: their grace periods are one.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::thread;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::LinkAttribute;

use super::link::{self, GROUP, Seen};
use super::sysctl::Sysctls;
use super::wire::Wire;
use super::{KernelError, macvlan};
use crate::model::IfName;

/// How many go at a time. The kernel changes no other link meanwhile, which is a millisecond or two for a bridge's port, less for others.
const TOGETHER: usize = 64;

/// Deletes links of ours, whatever becomes of one; the first failure is told. With a name comes the namespace where it is if not here.
pub(super) fn delete(wire: &mut Wire, sysctls: &Sysctls, links: Vec<(&IfName, Option<File>)>) -> Result<(), KernelError> {
    let all = link::dump(wire).map_err(|cause| failed("links", cause))?;
    let group = unused(&all);
    let standing: HashMap<&str, &Seen> = all.iter().map(|seen| (seen.name.as_str(), seen)).collect();
    let (mut here, mut away) = (Vec::new(), Vec::new());
    for (name, sandbox) in links {
        match (standing.get(name.as_str()), sandbox) {
            (Some(seen), _) => here.push(*seen),
            (None, Some(sandbox)) => away.push((name, sandbox)),
            (None, None) => {}
        }
    }
    // those in sandboxes may have their parents among the others
    let outcome = away.chunks(TOGETHER).map(|some| delete_away(sysctls, some)).fold(Ok(()), Result::and);
    here.chunks(TOGETHER).map(|some| delete_here(wire, sysctls, group, some)).fold(outcome, Result::and)
}

fn failed(link: &str, cause: io::Error) -> KernelError {
    KernelError { operation: "delete", object: link.to_owned(), cause }
}

/// A number above ours that no link has.
fn unused(links: &[Seen]) -> u32 {
    let taken: BTreeSet<u32> = links.iter().map(|seen| seen.group).collect();
    // there are more numbers than links
    (GROUP + 1..).find(|number| !taken.contains(number)).unwrap_or(u32::MAX)
}

fn delete_here(wire: &mut Wire, sysctls: &Sysctls, group: u32, links: &[&Seen]) -> Result<(), KernelError> {
    let mark = |seen: &&Seen| mark(wire, sysctls, group, seen).map_err(|cause| failed(&format!("link {}", seen.name), cause));
    let marked = links.iter().map(mark).fold(Ok(()), Result::and);
    let request = RouteNetlinkMessage::DelLink(link::message(0, vec![LinkAttribute::Group(group)]));
    let gone = link::absent_is_none(wire.change(request, 0)).map_err(|cause| failed("links", cause));
    marked.and(gone.map(drop))
}

/// A half-made link is ours by its group alone, which is therefore left to it: it is deleted at once. So is one whose parent has something to say
/// then.
fn mark(wire: &mut Wire, sysctls: &Sysctls, group: u32, seen: &Seen) -> io::Result<()> {
    match seen.is_complete() {
        true if macvlan::is_alone(seen) => macvlan::give_back(sysctls, seen, || link::remove(wire, seen.index)),
        true => link::absent_is_none(link::set(wire, link::message(seen.index, vec![LinkAttribute::Group(group)]))).map(drop),
        false if seen.is_ours() => link::remove(wire, seen.index),
        false => Err(link::foreign(seen)),
    }
}

fn delete_away(sysctls: &Sysctls, links: &[(&IfName, File)]) -> Result<(), KernelError> {
    let delete =
        |name: &IfName, sandbox| macvlan::delete(sysctls, name, sandbox).map_err(|cause| failed(&format!("attachment {name}"), cause));
    thread::scope(|scope| {
        let going: Vec<_> = links.iter().map(|(name, sandbox)| scope.spawn(move || delete(name, sandbox))).collect();
        // `macvlan::delete` has a thread of its own for what could panic
        going.into_iter().filter_map(|thread| thread.join().ok()).fold(Ok(()), Result::and)
    })
}
