//! Connection tracking: forgets the flows that a change of the published ports made wrong (`ctnetlink`,
//! `include/uapi/linux/netfilter/nfnetlink_conntrack.h`).
//!
//! The table translates only the first packet of a flow; the others follow what connection tracking noted then. So a flow outlives its
//! mapping and would go on to the next container of the address, and a UDP flow that began before its mapping would never find it.
//!
//! Looking through the flows takes a pass over the kernel's hash table (10 ms for its usual 262,144 buckets, however few flows there are),
//! for which no answer waits: a thread does it, one pass for all that changed meanwhile. Nothing is mapped to a container's address again
//! before its old flows are gone ([`Flows::settled`]), and the thread ends with its work done. New kernels show only the flows that may be
//! meant, older ones all; which are wrong is decided here in any case. Flows are deleted one by one, by tuple and id, as only Linux 6.8 and
//! later delete by filter.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, UdpSocket};
use std::ops::RangeInclusive;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::model::{Protocol, family_of};

use super::attribute::{Attribute, bytes, find, nest, number};
use super::element::Element;
use super::expression::nfproto;
use super::socket::{Message, Reply, Socket};

/// `NFNL_SUBSYS_CTNETLINK`.
const CONNTRACK: u8 = 1;
/// `IPCTNL_MSG_CT_*`.
const GET: u8 = 1;
const DELETE: u8 = 2;
/// `AF_UNSPEC`.
const ANY_FAMILY: u8 = 0;
/// `CTA_*`.
const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const STATUS: u16 = 3;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
const STATUS_MASK: u16 = 26;
const NESTED: u16 = 0x8000;
/// `IPS_DST_NAT`.
const DST_NAT: u32 = 1 << 5;
/// `CTA_FILTER_F_CTA_PROTO_NUM` of the kernel's `net/netfilter/nf_internals.h`.
const BY_PROTOCOL: u32 = 1 << 3;

/// What a mapping takes in: ports of an address of the host, or of each of them, and which container answers there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    pub protocol: u8,
    pub host: Option<IpAddr>,
    pub ports: RangeInclusive<u16>,
    pub to: IpAddr,
}

/// The thread that forgets flows, in the network namespace of the thread that opened it.
pub struct Flows {
    jobs: Option<mpsc::Sender<Job>>,
    worker: Option<JoinHandle<()>>,
    /// The containers whose old flows are still to be forgotten, each as often as it was asked for.
    waiting: Arc<Mutex<Vec<IpAddr>>>,
}

enum Job {
    Forget(Sort, Vec<Way>),
    Tell(oneshot::Sender<()>),
}

/// Ways whose flows are found by one look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Sort {
    translated: bool,
    wrong: Wrong,
}

/// Which flows into a way are wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Wrong {
    /// Those that its container answers: the way is closed.
    Answered,
    /// Those that somebody else answers: the way is new.
    Unanswered,
}

impl Flows {
    pub fn open() -> io::Result<Self> {
        let socket = Socket::open()?;
        let (jobs, queue) = mpsc::channel();
        let waiting = Arc::new(Mutex::default());
        let done = waiting.clone();
        let worker = thread::Builder::new().name("conntrack".into()).spawn(move || work(&socket, queue, &done))?;
        Ok(Flows { jobs: Some(jobs), worker: Some(worker), waiting })
    }

    /// Has the flows forgotten that are wrong since `gone` left the table and `came` entered it.
    pub fn forget<'a>(&self, gone: impl IntoIterator<Item = &'a Element>, came: impl IntoIterator<Item = &'a Element>) {
        let mut passes: BTreeMap<Sort, Vec<Way>> = BTreeMap::new();
        let mut note = |element: &Element, wrong| {
            if let Some(way) = element.way() {
                let sort = Sort { translated: element.translates(), wrong };
                if sort.minds(&way) {
                    passes.entry(sort).or_default().push(way);
                }
            }
        };
        gone.into_iter().for_each(|element| note(element, Wrong::Answered));
        came.into_iter().for_each(|element| note(element, Wrong::Unanswered));
        for (sort, ways) in passes {
            self.waiting.lock().extend(containers(&ways));
            self.queue(Job::Forget(sort, ways));
        }
    }

    /// Returns once nothing is to be forgotten of the containers that `coming` leads to.
    pub async fn settled<'a>(&self, coming: impl IntoIterator<Item = &'a Element>) {
        let waiting = self.waiting.lock().clone();
        if waiting.is_empty() || !coming.into_iter().filter_map(Element::way).any(|way| waiting.contains(&way.to)) {
            return;
        }
        let (tell, told) = oneshot::channel();
        self.queue(Job::Tell(tell));
        // An error would mean that the thread is gone, with all its work.
        let _ = told.await;
    }

    fn queue(&self, job: Job) {
        // The thread lives until the sender is dropped.
        let _ = self.jobs.as_ref().map(|jobs| jobs.send(job));
    }
}

impl Drop for Flows {
    fn drop(&mut self) {
        self.jobs = None;
        let _ = self.worker.take().map(JoinHandle::join);
    }
}

fn containers(ways: &[Way]) -> BTreeSet<IpAddr> {
    ways.iter().map(|way| way.to).collect()
}

/// Takes all that waits at once, so that a burst of changes is few passes.
fn work(socket: &Socket, queue: mpsc::Receiver<Job>, waiting: &Mutex<Vec<IpAddr>>) {
    while let Ok(first) = queue.recv() {
        let (mut passes, mut done, mut tells) = (BTreeMap::<_, Vec<_>>::new(), Vec::new(), Vec::new());
        for job in [first].into_iter().chain(queue.try_iter()) {
            match job {
                Job::Forget(sort, ways) => {
                    done.extend(containers(&ways));
                    passes.entry(sort).or_default().extend(ways);
                }
                Job::Tell(tell) => tells.push(tell),
            }
        }
        for (sort, ways) in passes {
            if let Err(error) = sort.forget(&ways, socket) {
                tracing::warn!(%error, ?ways, "could not forget old flows of published ports: they last until they time out");
            }
        }
        let mut waiting = waiting.lock();
        for container in done {
            waiting.iter().position(|waits| *waits == container).map(|found| waiting.swap_remove(found));
        }
        drop(waiting);
        // Who asked may have gone.
        tells.into_iter().for_each(|tell| tell.send(()).unwrap_or_default());
    }
}

impl Sort {
    /// New ways matter to UDP alone: a TCP connection to the host's own port is none that could go on elsewhere.
    fn minds(&self, way: &Way) -> bool {
        self.wrong == Wrong::Answered || (self.translated && way.protocol == Protocol::Udp.number())
    }

    fn forget(&self, ways: &[Way], socket: &Socket) -> io::Result<()> {
        let message = |kind, family, attributes| Message { subsystem: CONNTRACK, kind, flags: 0, family, attributes };
        let mut flows = Vec::new();
        for family in self.families(ways) {
            flows.extend(socket.dump(&message(GET, family, self.filter()))?);
        }
        let wrong: Vec<_> = flows.iter().filter_map(Flow::read).filter(|flow| self.is_wrong(flow, ways)).collect();
        tracing::debug!(seen = flows.len(), forgotten = wrong.len(), "looked through connection tracking");
        for flow in wrong {
            // One that ended meanwhile is as good as forgotten.
            socket.get(&message(DELETE, nfproto(family_of(flow.to)), flow.identity))?;
        }
        Ok(())
    }

    /// Both at once, but where the filter names parts of a tuple.
    fn families(&self, ways: &[Way]) -> BTreeSet<u8> {
        match self.wrong {
            Wrong::Answered => BTreeSet::from([ANY_FAMILY]),
            Wrong::Unanswered => ways.iter().map(|way| nfproto(family_of(way.to))).collect(),
        }
    }

    /// For closed ways flows with a translated destination, for new ones those of UDP. Addresses are left out: the kernel (6.18 too)
    /// compares those of IPv6 the wrong way round and would show all flows but the ones meant.
    fn filter(&self) -> Vec<Attribute> {
        match (self.wrong, self.translated) {
            (Wrong::Answered, true) => vec![number(STATUS, DST_NAT), number(STATUS_MASK, DST_NAT)],
            (Wrong::Answered, false) => Vec::new(),
            (Wrong::Unanswered, _) => {
                // These flags alone are in the host's byte order.
                let flags = [bytes(1, BY_PROTOCOL.to_ne_bytes()), bytes(2, [0; 4])];
                vec![nest(TUPLE_ORIG, [nest(2, [bytes(1, [Protocol::Udp.number()])])]), nest(FILTER, flags)]
            }
        }
    }

    fn is_wrong(&self, flow: &Flow, ways: &[Way]) -> bool {
        match self.wrong {
            Wrong::Answered => ways.iter().any(|way| way.takes(flow) && flow.answerer == way.to),
            Wrong::Unanswered => ways.iter().any(|way| way.takes(flow) && flow.answerer != way.to) && is_ours(flow.to),
        }
    }
}

impl Way {
    fn takes(&self, flow: &Flow) -> bool {
        let to_host = self.host.map_or(family_of(self.to) == family_of(flow.to), |host| host == flow.to);
        to_host && flow.protocol == self.protocol && self.ports.contains(&flow.port)
    }
}

/// Whether the address is one of this host's: only to such can a socket be bound.
fn is_ours(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

/// What connection tracking notes of a flow.
struct Flow {
    protocol: u8,
    to: IpAddr,
    port: u16,
    answerer: IpAddr,
    /// By which it is deleted.
    identity: Vec<Attribute>,
}

impl Flow {
    /// Nothing for a flow without ports.
    fn read(reply: &Reply) -> Option<Self> {
        let (orig, answer) = (find(&reply.attributes, TUPLE_ORIG)?, find(&reply.attributes, TUPLE_REPLY)?);
        let ports = find(orig, 2)?;
        let again = |kind, mark| find(&reply.attributes, kind).map(|value| bytes(kind | mark, value));
        Some(Flow {
            protocol: *find(ports, 1)?.first()?,
            to: address_in(orig, 2, 4)?,
            port: u16::from_be_bytes(find(ports, 3)?.try_into().ok()?),
            answerer: address_in(answer, 1, 3)?,
            identity: [again(TUPLE_ORIG, NESTED), again(ID, 0), again(ZONE, 0)].into_iter().flatten().collect(),
        })
    }
}

/// The address of a tuple that has one of these numbers in `CTA_TUPLE_IP`, by family.
fn address_in(tuple: &[u8], v4: u16, v6: u16) -> Option<IpAddr> {
    let addresses = find(tuple, 1)?;
    let v4 = find(addresses, v4).and_then(|octets| <[u8; 4]>::try_from(octets).ok()).map(IpAddr::from);
    v4.or_else(|| find(addresses, v6).and_then(|octets| <[u8; 16]>::try_from(octets).ok()).map(IpAddr::from))
}
