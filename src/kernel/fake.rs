//! A kernel in memory, with faults on demand. For tests of what stands above the trait.
//!
//! It keeps the laws of the real one that callers can trip over: what stands on a link needs the link and goes with it, foreign links are
//! neither altered nor deleted, a taken host port is refused, and its own changes are told like anybody else's.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::{Change, Kernel, KernelError, Surroundings, Underlay, Uplink, Whereabouts, describe};
use crate::model::{Attachment, HostLink, IfName, Key, Mac, Object, Place, PortRange, Protocol, Route, RouteKind};

/// A call that changes or reads the state.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "tests name it in patterns, and nothing else has one")]
pub enum Call {
    Observe,
    Put(Object),
    Delete(Key),
}

/// Whether a failing call had its effect before it failed, as when the answer is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    None,
    Done,
}

type Matcher = Box<dyn FnMut(&Call) -> bool + Send>;

pub struct Fake {
    state: Mutex<State>,
    tell: mpsc::Sender<Change>,
    changes: Mutex<Option<mpsc::Receiver<Change>>>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<Key, Object>,
    foreign: BTreeSet<IfName>,
    taken: BTreeSet<(Protocol, u16)>,
    sandboxes: BTreeSet<PathBuf>,
    moved_back: BTreeSet<IfName>,
    host_links: BTreeMap<IfName, HostLink>,
    calls: Vec<Call>,
    fault: Option<(Matcher, Effect)>,
    faults_hit: usize,
}

impl Default for Fake {
    fn default() -> Self {
        let (tell, changes) = mpsc::channel(1 << 16);
        Fake { state: Mutex::default(), tell, changes: Mutex::new(Some(changes)) }
    }
}

impl Fake {
    pub fn new() -> Self {
        Self::default()
    }

    /// What stands there.
    pub fn objects(&self) -> BTreeMap<Key, Object> {
        self.state.lock().objects.clone()
    }

    /// The calls since the last time this was asked.
    pub fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.state.lock().calls)
    }

    /// The n-th call from now fails with EIO, 0 being the next.
    pub fn fail_nth(&self, n: usize, effect: Effect) {
        let mut left = n;
        let matcher = move |_: &Call| {
            let now = left == 0;
            left = left.wrapping_sub(1);
            now
        };
        self.fail_matching(matcher, effect);
    }

    /// Every call that matches fails with EIO, until [`Fake::heal`]. Replaces the last fault.
    pub fn fail_matching(&self, matcher: impl FnMut(&Call) -> bool + Send + 'static, effect: Effect) {
        let mut state = self.state.lock();
        state.fault = Some((Box::new(matcher), effect));
        state.faults_hit = 0;
    }

    /// Ends the faults; how many calls failed by them since they began.
    pub fn heal(&self) -> usize {
        let mut state = self.state.lock();
        state.fault = None;
        std::mem::take(&mut state.faults_hit)
    }

    /// A link of this name exists and is somebody else's.
    pub fn add_foreign_link(&self, name: IfName) {
        self.state.lock().foreign.insert(name);
    }

    /// Somebody else holds this port on every address.
    pub fn take_port(&self, protocol: Protocol, port: u16) {
        self.state.lock().taken.insert((protocol, port));
    }

    pub fn add_sandbox(&self, path: impl Into<PathBuf>) {
        self.state.lock().sandboxes.insert(path.into());
    }

    /// The container ended: its namespace and the links in it go, without their host's ends saying so by a call.
    pub fn remove_sandbox(&self, path: &Path) {
        let mut state = self.state.lock();
        state.sandboxes.remove(path);
        let lost: Vec<Key> = state.objects.values().filter(|object| stands_in(object, path)).map(Object::key).collect();
        let gone = lost.iter().flat_map(|key| state.remove(key)).collect();
        self.tell_gone(gone);
    }

    /// The container ended, and the engine took this link of its out before.
    pub fn move_back(&self, sandbox: &Path, link: IfName) {
        let mut state = self.state.lock();
        state.sandboxes.remove(sandbox);
        state.moved_back.insert(link);
    }

    /// The host has this link.
    pub fn add_host_link(&self, name: IfName, link: HostLink) {
        self.state.lock().host_links.insert(name, link);
    }

    /// Somebody deletes the object behind our back.
    pub fn vanish(&self, key: &Key) {
        let gone = self.state.lock().remove(key);
        self.tell_gone(gone);
    }

    /// Events are lost.
    pub fn lose_events(&self) {
        let _ = self.tell.try_send(Change::Lost);
    }

    fn tell_gone(&self, keys: Vec<Key>) {
        for key in keys {
            let _ = self.tell.try_send(Change::Gone(key));
        }
    }

    fn fail(&self, operation: &'static str, key: &Key, cause: io::Error) -> KernelError {
        KernelError { operation, object: describe(key), cause }
    }
}

fn stands_in(object: &Object, sandbox: &Path) -> bool {
    matches!(object, Object::Attachment(a) if matches!(&a.place, Place::Sandbox { path, .. } if path == sandbox))
}

/// As the real kernel shows it.
fn seen(object: &Object) -> Object {
    match object {
        Object::Attachment(a) => Object::Attachment(Attachment { mac: Mac::from([0; 6]), place: Place::Host, ..a.clone() }),
        other => other.clone(),
    }
}

impl State {
    /// Notes the call; the fault that it meets, if any.
    fn note(&mut self, call: Call) -> Option<Effect> {
        let (matcher, effect) = self.fault.as_mut().map_or((None, Effect::None), |(matcher, effect)| (Some(matcher), *effect));
        let hit = matcher.is_some_and(|matcher| matcher(&call));
        self.calls.push(call);
        self.faults_hit += usize::from(hit);
        hit.then_some(effect)
    }

    /// Whether `put` would be refused.
    fn check(&self, object: &Object) -> io::Result<()> {
        let missing = |name: &IfName| io::Error::new(io::ErrorKind::NotFound, format!("link {name} does not exist"));
        let need = |name: &IfName| if self.has_link(name) { Ok(()) } else { Err(missing(name)) };
        match object {
            Object::HostPort(p) if p.ports.ports().any(|port| self.taken.contains(&(p.protocol, port))) => Err(in_use(p.ports)),
            Object::Link(link) => self.refuse_foreign(&link.name),
            Object::Attachment(attachment) => self.refuse_foreign(&attachment.host).and_then(|()| self.check_place(attachment)),
            Object::Address { link, .. } | Object::Neighbour { link, .. } | Object::Fdb { link, .. } => need(link),
            Object::Route(route) if self.host_links.contains_key(&route.link) => Ok(()),
            Object::Route(Route { kind: RouteKind::Unreachable, .. }) => Ok(()),
            Object::Route(route) => need(&route.link),
            Object::Port(port) => need(&port.link).and_then(|()| need(&port.bridge)),
            Object::LinkSysctl { path, .. } if !self.links().any(|name| names(path, name)) => {
                Err(io::Error::new(io::ErrorKind::NotFound, format!("/proc/sys/net/{path}: no such file")))
            }
            _ => Ok(()),
        }
    }

    fn check_place(&self, attachment: &Attachment) -> io::Result<()> {
        match &attachment.place {
            Place::Sandbox { path, .. } if !self.sandboxes.contains(path) => {
                Err(io::Error::new(io::ErrorKind::NotFound, format!("network namespace {}: no such file", path.display())))
            }
            _ => Ok(()),
        }
    }

    fn refuse_foreign(&self, name: &IfName) -> io::Result<()> {
        if self.foreign.contains(name) {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("link {name} exists and is not rsnet's")));
        }
        Ok(())
    }

    /// Removes what a route takes the place of: another to the same destination. Of local ones there are several in IPv6.
    fn displace(&mut self, object: &Object) -> Vec<Key> {
        let Object::Route(new) = object else { return Vec::new() };
        let local = |route: &Route| route.kind == RouteKind::Local;
        let beside = local(new) && new.destination.addr().is_ipv6();
        let displaced = |object: &&Object| {
            let Object::Route(old) = object else { return false };
            old.link != new.link && old.destination.trunc() == new.destination.trunc() && local(old) == local(new) && !beside
        };
        let keys: Vec<Key> = self.objects.values().filter(displaced).map(Object::key).collect();
        keys.iter().flat_map(|key| self.remove(key)).collect()
    }

    fn links(&self) -> impl Iterator<Item = &IfName> {
        self.objects.keys().filter_map(|key| if let Key::Link(name) | Key::Attachment(name) = key { Some(name) } else { None })
    }

    fn has_link(&self, name: &IfName) -> bool {
        self.links().any(|link| link == name)
    }

    /// Removes the object and what stands on it; the keys of all that went. A sysctl of the host stays.
    fn remove(&mut self, key: &Key) -> Vec<Key> {
        if matches!(key, Key::HostSysctl(_) | Key::LinkSysctl(_)) || self.objects.remove(key).is_none() {
            return Vec::new();
        }
        let mut gone = vec![key.clone()];
        if let Key::Link(link) | Key::Attachment(link) = key {
            let above: Vec<Key> = self.objects.values().filter(|object| stands_on(object, link)).map(Object::key).collect();
            self.objects.retain(|key, _| !above.contains(key));
            gone.extend(above);
        }
        gone
    }
}

fn stands_on(object: &Object, name: &IfName) -> bool {
    match object {
        Object::Address { link, .. } | Object::Neighbour { link, .. } | Object::Fdb { link, .. } => link == name,
        Object::Route(route) => route.link == *name,
        Object::Port(port) => port.link == *name || port.bridge == *name,
        Object::LinkSysctl { path, .. } => names(path, name),
        _ => false,
    }
}

fn names(path: &str, link: &IfName) -> bool {
    path.split('/').any(|part| part == link.as_str())
}

fn in_use(ports: PortRange) -> io::Error {
    io::Error::new(io::ErrorKind::AddrInUse, format!("port {ports} is in use by another (pid 1)"))
}

fn broken() -> io::Error {
    io::Error::from_raw_os_error(nix::libc::EIO)
}

#[async_trait]
impl Kernel for Fake {
    async fn observe(&self, wanted: &[Object]) -> Result<Vec<Object>, KernelError> {
        let mut state = self.state.lock();
        if state.note(Call::Observe).is_some() {
            return Err(KernelError { operation: "observe", object: "the network namespace".into(), cause: broken() });
        }
        let shown = |key: &Key| !matches!(key, Key::HostSysctl(_) | Key::LinkSysctl(_)) || wanted.iter().any(|object| object.key() == *key);
        Ok(state.objects.values().filter(|object| shown(&object.key())).map(seen).collect())
    }

    async fn put(&self, object: &Object) -> Result<(), KernelError> {
        let key = object.key();
        let mut state = self.state.lock();
        let fault = state.note(Call::Put(object.clone()));
        if fault == Some(Effect::None) {
            return Err(self.fail("create", &key, broken()));
        }
        state.check(object).map_err(|cause| self.fail("create", &key, cause))?;
        self.tell_gone(state.displace(object));
        if state.objects.insert(key.clone(), object.clone()).as_ref() != Some(object) {
            let _ = self.tell.try_send(Change::Now(Box::new(seen(object))));
        }
        if fault.is_some() { Err(self.fail("create", &key, broken())) } else { Ok(()) }
    }

    async fn delete(&self, key: &Key) -> Result<(), KernelError> {
        let mut state = self.state.lock();
        let fault = state.note(Call::Delete(key.clone()));
        if fault == Some(Effect::None) {
            return Err(self.fail("delete", key, broken()));
        }
        if let Key::Link(name) | Key::Attachment(name) = key {
            state.refuse_foreign(name).map_err(|cause| self.fail("delete", key, cause))?;
        }
        self.tell_gone(state.remove(key));
        if fault.is_some() { Err(self.fail("delete", key, broken())) } else { Ok(()) }
    }

    fn changes(&self) -> mpsc::Receiver<Change> {
        let taken = self.changes.lock().take();
        taken.unwrap_or_else(|| mpsc::channel(1).1)
    }

    async fn surroundings(&self) -> Result<Surroundings, KernelError> {
        Ok(Surroundings::default())
    }

    fn sysctl(&self, path: &str) -> Option<String> {
        let objects = &self.state.lock().objects;
        objects.values().find_map(|object| match object {
            Object::HostSysctl { path: known, value } | Object::LinkSysctl { path: known, value } if known == path => Some(value.clone()),
            _ => None,
        })
    }

    async fn underlay(&self, _: &Underlay) -> Result<Option<Uplink>, KernelError> {
        Ok(None)
    }

    async fn host_link(&self, name: &IfName) -> Result<Option<HostLink>, KernelError> {
        Ok(self.state.lock().host_links.get(name).cloned())
    }

    async fn who_has(&self, _: IfName, _: IpAddr, _: Duration) -> Option<Mac> {
        None
    }

    async fn is_free(&self, protocol: Protocol, host: IpAddr, ports: PortRange) -> bool {
        let state = self.state.lock();
        let same = |other: IpAddr| other == host || other.is_unspecified() || host.is_unspecified();
        let held =
            |object: &Object| matches!(object, Object::HostPort(p) if p.protocol == protocol && p.ports.overlaps(ports) && same(p.host));
        !ports.ports().any(|port| state.taken.contains(&(protocol, port))) && !state.objects.values().any(held)
    }

    fn is_sandbox(&self, path: &Path) -> bool {
        self.state.lock().sandboxes.contains(path)
    }

    async fn addresses(&self, link: &IfName) -> Result<Option<Vec<IpAddr>>, KernelError> {
        Ok(self.state.lock().host_links.get(link).map(|link| link.addresses.clone()))
    }

    async fn tune(&self, _: &Attachment) -> Result<bool, KernelError> {
        Ok(true)
    }

    /// The engine is taken to have moved every link that it was to move, and has not moved it back.
    fn whereabouts(&self, attachment: &Attachment) -> Whereabouts {
        let state = self.state.lock();
        match state.has_link(&attachment.host) {
            true if state.moved_back.contains(&attachment.host) => Whereabouts::Host,
            true => Whereabouts::Away,
            false => Whereabouts::Nowhere,
        }
    }
}
