//! The kernel's own news: multicast groups of rtnetlink, told as changes of objects. Links in containers tell of themselves too, where the
//! kernel has a number for the container's namespace (`NETLINK_LISTEN_ALL_NSID`): it gives one when a link goes there.
//!
//! Not told: sysctls. The kernel sends news of some (forwarding, rp_filter) and of others none (route_localnet): `netlink` reads them again
//! and again. Host ports change only by us.

use std::collections::BTreeSet;
use std::future::{pending, poll_fn};
use std::io;
use std::pin::pin;
use std::thread;
use std::time::Duration;

use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt};
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::link::{LinkAttribute, LinkMessage, LinkProtoInfoBridge};
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_proto::Connection;
use netlink_proto::sys::{AsyncSocket, SocketAddr};
use rtnetlink::{MulticastGroup, new_multicast_connection};
use tokio::runtime::Builder;
use tokio::sync::mpsc;
use tokio::task::coop::unconstrained;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::warn;

use super::link::Seen;
use super::observe::{self, Links, address_object, neighbour_object, route_object};
use super::wire::{Wire, enlarge_receive_buffer};
use super::{Change, address, macvlan, neighbour, route};
use crate::model::{Key, Object};

type Message = NetlinkMessage<RouteNetlinkMessage>;
type News = BoxStream<'static, Heard>;

enum Heard {
    /// Of the host's namespace.
    Here(Message),
    /// Of any namespace that has a number, the host's among them.
    Anywhere(Message),
    /// A socket broke: there is no more.
    End,
}

/// All that a socket hears, and its end.
fn heard(news: impl Stream<Item = (Message, SocketAddr)>, of: fn(Message) -> Heard) -> impl Stream<Item = Heard> {
    news.map(move |(message, _)| of(message)).chain(stream::once(async { Heard::End }))
}

/// As many changes wait for the reader; beyond that they become one [`Change::Lost`].
const CAPACITY: usize = 1024;

const GROUPS: [MulticastGroup; 6] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Neigh,
];

/// How long the thread rests when it has told what there was. Whoever makes a link, of which the kernel tells several times, is not to be held
/// up by that; and news are gathered for far longer before they are judged.
const REST: Duration = Duration::from_millis(10);

/// A thread that hears and tells. It ends when this is dropped.
pub(super) struct Watch {
    _end: DropGuard,
}

impl Watch {
    /// Subscribes in the network namespace of the calling thread: what happens after this call is told. Others may tell what they know too.
    pub fn start() -> io::Result<(Self, mpsc::Sender<Change>, mpsc::Receiver<Change>)> {
        let (tell, changes) = mpsc::channel(CAPACITY);
        let ((subscribed, ready), end) = (std::sync::mpsc::channel(), CancellationToken::new());
        let (listening, ended) = (listen(tell.clone(), subscribed), end.clone());
        let runtime = || Builder::new_current_thread().enable_io().build();
        let life = move || runtime().map(|runtime| runtime.block_on(ended.run_until_cancelled_owned(now_and_then(listening))));
        thread::Builder::new().name("rsnet-news".into()).spawn(life)?;
        ready.recv().map_err(|_| io::Error::other("the thread that hears of changes ended at once"))??;
        Ok((Watch { _end: end.drop_guard() }, tell, changes))
    }
}

/// Runs `task` whenever there is something for it, as far as it gets, and rests in between.
async fn now_and_then(task: impl Future<Output = ()>) {
    let mut task = pin!(unconstrained(task));
    poll_fn(|context| {
        let done = task.as_mut().poll(context);
        if done.is_pending() {
            thread::sleep(REST);
        }
        done
    })
    .await;
}

/// Subscribes, says so, and tells until nobody hears it or a socket breaks.
async fn listen(tell: mpsc::Sender<Change>, subscribed: std::sync::mpsc::Sender<io::Result<()>>) {
    let (opened, outcome) = match Subscription::open(tell) {
        Ok(subscription) => (Some(subscription), Ok(())),
        Err(error) => (None, Err(error)),
    };
    // who asked waits for it
    let _ = subscribed.send(outcome);
    if let Some(subscription) = opened {
        subscription.run().await;
    }
}

/// The sockets, what they hear, and who tells it.
struct Subscription {
    sockets: [Connection<RouteNetlinkMessage>; 2],
    news: News,
    teller: Teller,
}

impl Subscription {
    fn open(tell: mpsc::Sender<Change>) -> io::Result<Self> {
        let (mut here, _, news) = new_multicast_connection(&GROUPS)?;
        enlarge_receive_buffer(here.socket_mut().socket_mut())?;
        let (mut anywhere, _, distant) = new_multicast_connection(&[MulticastGroup::Link])?;
        enlarge_receive_buffer(anywhere.socket_mut().socket_mut())?;
        if let Err(error) = anywhere.socket_mut().socket_mut().set_listen_all_namespaces(true) {
            warn!(%error, "without CAP_NET_BROADCAST a macvlan link that is deleted in a container is noticed by the next look only");
        }
        // After subscribing, so that nothing falls between.
        let mut wire = Wire::open()?;
        let links = Links::dump(&mut wire)?;
        let lasting = observe::neighbours(&mut wire, &links, &[])?;
        let lasting = lasting.iter().filter_map(|seen| Some(neighbour_object(&links, seen)?.key())).collect();
        let news = stream::select(heard(news, Heard::Here), heard(distant, Heard::Anywhere)).boxed();
        Ok(Subscription { sockets: [here, anywhere], news, teller: Teller { links, lasting, tell } })
    }

    async fn run(self) {
        let Subscription { sockets: [here, anywhere], news, teller } = self;
        tokio::select! {
            () = teller.run(news) => {}
            // they ended; the teller says so
            () = async { tokio::join!(here, anywhere); pending().await } => {}
        }
    }
}

struct Teller {
    links: Links,
    /// The neighbours and forwarding entries of our links that do not age. Of others, which come and go with traffic, nothing is told.
    lasting: BTreeSet<Key>,
    tell: mpsc::Sender<Change>,
}

impl Teller {
    async fn run(mut self, mut news: News) {
        while let Some(heard) = news.next().await {
            let changes = match heard {
                Heard::Here(message) => told(message.payload, |inner| self.understand(inner)),
                Heard::Anywhere(message) => told(message.payload, |inner| self.hear_of_children(inner)),
                Heard::End => break,
            };
            if changes.into_iter().any(|change| self.tell.try_send(change).is_err()) && !self.admit_loss(&mut news).await {
                return;
            }
        }
        // The socket broke: say so once; the stream's end says the rest.
        let _ = self.tell.send(Change::Lost).await;
    }

    /// Waits for room, forgets what came meanwhile (but for the links, whose names are needed), and says that something was lost.
    async fn admit_loss(&mut self, news: &mut News) -> bool {
        let Ok(room) = self.tell.clone().reserve_owned().await else { return false };
        let mut more = true;
        while let Some(Some(heard)) = futures_util::FutureExt::now_or_never(news.next()) {
            match heard {
                Heard::Here(message) => drop(told(message.payload, |inner| self.understand(inner))),
                Heard::Anywhere(_) => {}
                Heard::End => more = false,
            }
        }
        room.send(Change::Lost);
        more
    }

    fn understand(&mut self, message: &RouteNetlinkMessage) -> Vec<Change> {
        let now = |object: Option<Object>| object.map(|object| Change::Now(Box::new(object))).into_iter().collect();
        let gone = |object: Option<Object>| object.map(|object| Change::Gone(object.key())).into_iter().collect();
        let links = &self.links;
        let address_of = |m| address::read(m).and_then(|(index, address)| address_object(links, index, address, &[]));
        let route_of = |m| route::Seen::read(m).and_then(|seen| route_object(links, &seen));
        match message {
            RouteNetlinkMessage::NewLink(m) => self.link_now(m),
            RouteNetlinkMessage::DelLink(m) => self.link_gone(m),
            RouteNetlinkMessage::NewAddress(m) => now(address_of(m)),
            RouteNetlinkMessage::DelAddress(m) => gone(address_of(m)),
            RouteNetlinkMessage::NewRoute(m) => now(route_of(m)),
            RouteNetlinkMessage::DelRoute(m) => gone(route_of(m)),
            RouteNetlinkMessage::NewNeighbour(m) => self.neighbour(m, true),
            RouteNetlinkMessage::DelNeighbour(m) => self.neighbour(m, false),
            _ => Vec::new(),
        }
    }

    /// One that begins to age, or failed, is gone too.
    fn neighbour(&mut self, message: &NeighbourMessage, stands: bool) -> Vec<Change> {
        let seen = neighbour::Seen::read(message);
        let Some((seen, object)) = seen.and_then(|seen| Some((seen, neighbour_object(&self.links, &seen)?))) else { return Vec::new() };
        let key = object.key();
        if stands && seen.permanent {
            self.lasting.insert(key);
            return vec![Change::Now(Box::new(object))];
        }
        if self.lasting.remove(&key) { vec![Change::Gone(key)] } else { Vec::new() }
    }

    /// Links of ours in containers whose parent is the host's.
    fn hear_of_children(&self, message: &RouteNetlinkMessage) -> Vec<Change> {
        let child = |m| macvlan::told(&Seen::read(m), &self.links);
        match message {
            RouteNetlinkMessage::NewLink(m) => child(m).map(|child| Change::Now(Box::new(Object::Attachment(child)))).into_iter().collect(),
            // to another namespace: that one tells
            RouteNetlinkMessage::DelLink(m) if Seen::read(m).moved => Vec::new(),
            RouteNetlinkMessage::DelLink(m) => child(m).map(|child| Change::Gone(Key::Attachment(child.host))).into_iter().collect(),
            _ => Vec::new(),
        }
    }

    fn link_now(&mut self, message: &LinkMessage) -> Vec<Change> {
        let index = message.header.index;
        let old = self.links.get(index).cloned();
        let Some(seen) = merged(message, old.as_ref()) else { return Vec::new() };
        if old.as_ref().is_some_and(|old| !old.is_ours() && old.mtu != seen.mtu) {
            // it may be the parent of links in containers, which follow it
            self.links.insert(seen);
            return vec![Change::Lost];
        }
        let before = old.map(|old| self.links.objects(&old)).unwrap_or_default();
        let after = self.links.objects(&seen);
        self.links.insert(seen);
        difference(&before, after)
    }

    /// A bridge also says so of a port that leaves it; the link itself tells that better.
    fn link_gone(&mut self, message: &LinkMessage) -> Vec<Change> {
        if message.header.interface_family == AddressFamily::Bridge {
            return Vec::new();
        }
        let Some(old) = self.links.get(message.header.index).cloned() else { return Vec::new() };
        let before = self.links.objects(&old);
        self.links.remove(old.index);
        self.lasting.retain(|key| key.stands_on().is_none_or(|link| link.as_str() != old.name));
        if Seen::read(message).moved { Vec::new() } else { difference(&before, Vec::new()) }
    }
}

fn told(payload: NetlinkPayload<RouteNetlinkMessage>, understand: impl FnOnce(&RouteNetlinkMessage) -> Vec<Change>) -> Vec<Change> {
    match payload {
        NetlinkPayload::InnerMessage(inner) => understand(&inner),
        NetlinkPayload::Overrun(_) => vec![Change::Lost],
        _ => Vec::new(),
    }
}

fn difference(before: &[Object], after: Vec<Object>) -> Vec<Change> {
    let gone = before.iter().map(Object::key).filter(|key| after.iter().all(|object| object.key() != *key));
    let mut changes: Vec<Change> = gone.map(Change::Gone).collect();
    changes.extend(after.into_iter().filter(|object| !before.contains(object)).map(|object| Change::Now(Box::new(object))));
    changes
}

/// What is known of a link after `message`. What a bridge says of its ports tells only their settings.
fn merged(message: &LinkMessage, old: Option<&Seen>) -> Option<Seen> {
    if message.header.interface_family != AddressFamily::Bridge {
        return Some(Seen::read(message));
    }
    let mut seen = old.cloned()?;
    for attribute in &message.attributes {
        if let LinkAttribute::ProtoInfoBridge(settings) = attribute {
            settings.iter().for_each(|setting| read_port_setting(&mut seen, setting));
        }
    }
    Some(seen)
}

/// `IFLA_BRPORT_MODE` and `IFLA_BRPORT_ISOLATED`.
const HAIRPIN: u16 = 4;
const ISOLATED: u16 = 33;

fn read_port_setting(seen: &mut Seen, setting: &LinkProtoInfoBridge) {
    use netlink_packet_core::Nla;
    let LinkProtoInfoBridge::Other(raw) = setting else { return };
    let mut value = vec![0; raw.value_len()];
    raw.emit_value(&mut value);
    match raw.kind() {
        HAIRPIN => seen.hairpin = value == [1],
        ISOLATED => seen.isolated = value == [1],
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::{InfoKind, LinkInfo};

    use super::*;

    fn bridge_of_mtu(mtu: u32) -> Heard {
        let mut link = LinkMessage::default();
        link.header.index = 7;
        link.attributes = vec![
            LinkAttribute::IfName("rsb-a".into()),
            LinkAttribute::IfAlias("rsnet:a".into()),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
        ];
        link.header.flags = netlink_packet_route::link::LinkFlags::Up;
        Heard::Here(NetlinkMessage::from(RouteNetlinkMessage::NewLink(link)))
    }

    /// The MTUs told, and 0 for a loss.
    async fn told(changes: &mut mpsc::Receiver<Change>, count: usize) -> Vec<u32> {
        let mut mtus = Vec::new();
        for _ in 0..count {
            match &changes.recv().await {
                Some(Change::Now(object)) if let Object::Link(link) = &**object => mtus.extend(link.mtu),
                Some(Change::Lost) => mtus.push(0),
                other => panic!("{other:?}"),
            }
        }
        mtus
    }

    #[tokio::test]
    async fn what_a_slow_reader_has_no_room_for_becomes_one_word_that_something_is_lost() {
        let (tell, mut changes) = mpsc::channel(2);
        let (send, news) = mpsc::unbounded_channel();
        (1281..1286).for_each(|mtu| send.send(bridge_of_mtu(mtu)).unwrap());
        let news = stream::unfold(news, |mut news| async { news.recv().await.map(|message| (message, news)) });
        let teller = tokio::spawn(Teller { links: Links::default(), lasting: BTreeSet::new(), tell }.run(news.boxed()));
        // The teller runs until it waits for room: there is one thread, and all the news is there.
        while changes.len() < 2 {
            tokio::task::yield_now().await;
        }
        assert_eq!(told(&mut changes, 3).await, [1281, 1282, 0]);
        send.send(bridge_of_mtu(1300)).unwrap();
        assert_eq!(told(&mut changes, 1).await, [1300]);
        drop(send);
        assert_eq!(told(&mut changes, 1).await, [0], "the end of the news is told as a loss");
        teller.await.unwrap();
    }
}
