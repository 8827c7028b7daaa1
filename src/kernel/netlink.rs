//! The Linux kernel behind the trait.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::crew::{self, Crew};
use super::macvlan::{Means, Settling};
use super::observe::Links;
use super::sysctl::{Sysctls, Watched};
use super::watch::Watch;
use super::wire::Wire;
use super::{
    Change, Kernel, KernelError, Surroundings, Underlay, Uplink, Whereabouts, address, attachment, describe, host_link, link, lot, macvlan,
    neighbour, observe, port, ports, probe, route, sight, underlay,
};
use crate::model::{
    Answer, Attachment, HostLink, HostPort, IfName, Key, Mac, Object, Place, Port, PortRange, Probe, Protocol, Question, Sight,
};

/// How long a new link waits for an old one with its MAC: the engine and the kernel need some 50 ms to clear a container away.
const LEAVING: Duration = Duration::from_secs(2);
/// How often it is looked whether somebody has answered: at first, after so long, and from then on.
const GLANCE: Duration = Duration::from_millis(1);
const SOON: Duration = Duration::from_millis(5);
const SELDOM: Duration = Duration::from_millis(100);
/// How often it looks.
const AGAIN: Duration = Duration::from_millis(10);
/// How often the sysctls that are wanted are read again.
const POLL: Duration = Duration::from_millis(500);

/// How many calls run at a time. They mostly wait: deleting a link is 15 ms of grace period.
const THREADS: usize = 4;

/// Where the kernel is to be found.
#[derive(Clone, Debug)]
pub struct NetlinkConfig {
    /// Where the host's `/proc/sys/net` can be written.
    pub proc_sys_net: PathBuf,
    /// Where the engine keeps its containers' namespaces.
    pub sandboxes: PathBuf,
}

impl Default for NetlinkConfig {
    fn default() -> Self {
        NetlinkConfig { proc_sys_net: "/proc/sys/net".into(), sandboxes: "/var/run/docker/netns".into() }
    }
}

/// The network namespace in which it was made, for as long as it lives.
pub struct Netlink {
    crew: Arc<Crew>,
    host: Arc<Host>,
    changes: Mutex<Option<mpsc::Receiver<Change>>>,
    _watch: Watch,
    _poll: AbortOnDropHandle<()>,
}

/// What the jobs share.
struct Host {
    sysctls: Sysctls,
    watched: Watched,
    ports: ports::Ports,
    /// Where the containers' links are, to have them announced or deleted. After a restart the first look fills it again.
    sandboxes: Mutex<HashMap<IfName, PathBuf>>,
    /// The namespaces from which a link is to be deleted: the engine unmounts them once `Leave` is answered, and whoever is in one keeps it.
    leaving: Mutex<HashMap<IfName, File>>,
    settling: Settling,
    /// Where links of ours may be left of which nothing is declared. Looked at once.
    unseen: Mutex<Option<PathBuf>>,
}

impl Netlink {
    /// Binds to the network namespace of the calling thread, which must be within a tokio runtime. From now on changes are recorded.
    ///
    /// Raises the process's limit of open files to what it may be. Fails if the process may not open sockets or start threads.
    pub fn new(config: NetlinkConfig) -> io::Result<Self> {
        ports::raise_file_limit();
        let (watch, tell, changes) = Watch::start()?;
        let host = Arc::new(Host {
            sysctls: Sysctls::new(config.proc_sys_net),
            watched: Watched::default(),
            ports: ports::Ports::default(),
            sandboxes: Mutex::default(),
            leaving: Mutex::default(),
            settling: Settling::default(),
            unseen: Mutex::new(Some(config.sandboxes)),
        });
        let crew = Arc::new(Crew::muster(THREADS)?);
        let poll = AbortOnDropHandle::new(tokio::spawn(poll(crew.clone(), host.clone(), tell)));
        Ok(Netlink { crew, host, changes: Mutex::new(Some(changes)), _watch: watch, _poll: poll })
    }

    async fn run<T, J>(&self, operation: &'static str, object: String, job: J) -> Result<T, KernelError>
    where
        T: Send + 'static,
        J: FnOnce(&Host, &mut Wire) -> io::Result<T> + Send + 'static,
    {
        let host = self.host.clone();
        self.crew.run(move |wire| job(&host, wire)).await.map_err(|cause| KernelError { operation, object, cause })
    }
}

impl Netlink {
    /// Runs `job` again while somebody holds what it needs who is leaving.
    async fn run_patiently<T, J>(&self, job: J) -> Result<T, KernelError>
    where
        T: Send + 'static,
        J: Fn(&Host, &mut Wire) -> Result<T, KernelError> + Clone + Send + 'static,
    {
        let deadline = Instant::now() + LEAVING;
        loop {
            let attempt = job.clone();
            match self.run("change", "objects".into(), move |host, wire| Ok(attempt(host, wire))).await? {
                Err(error) if error.cause.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                    tokio::time::sleep(AGAIN).await;
                }
                result => return result,
            }
        }
    }
}

fn put(host: &Host, wire: &mut Wire, object: &Object) -> Result<(), KernelError> {
    host.put(wire, object).map_err(|cause| KernelError { operation: "create", object: describe(&object.key()), cause })
}

fn delete(host: &Host, wire: &mut Wire, key: &Key) -> Result<(), KernelError> {
    host.delete(wire, key).map_err(|cause| KernelError { operation: "delete", object: describe(key), cause })
}

/// Tells of sysctls that somebody altered, and of links that nobody brings up.
async fn poll(crew: Arc<Crew>, host: Arc<Host>, tell: mpsc::Sender<Change>) {
    loop {
        tokio::time::sleep(POLL).await;
        if host.settling.is_over() && tell.send(Change::Lost).await.is_err() {
            return;
        }
        let host = host.clone();
        let changed = crew.run(move |_| Ok(host.watched.changed(&host.sysctls))).await.unwrap_or_default();
        for object in changed {
            if tell.send(Change::Now(Box::new(object))).await.is_err() {
                return;
            }
        }
    }
}

impl Host {
    fn put(&self, wire: &mut Wire, object: &Object) -> io::Result<()> {
        match object {
            Object::HostPort(wanted) => self.ports.put(wanted),
            Object::HostSysctl { path, value } | Object::LinkSysctl { path, value } => {
                self.watched.add(object.key(), value);
                self.sysctls.write(path, value)
            }
            Object::Link(wanted) => link::put(wire, &self.sysctls, wanted),
            Object::Address { link, address } => address::put(wire, link, *address),
            Object::Neighbour { link, address, mac } => neighbour::put(wire, link, *address, *mac),
            Object::Fdb { link, mac, vtep } => neighbour::put_forwarding(wire, link, *mac, *vtep),
            Object::Route(wanted) => route::put(wire, wanted),
            Object::Attachment(wanted) => self.put_attachment(wire, wanted),
            Object::Port(wanted) => self.put_port(wire, wanted),
        }
    }

    fn put_attachment(&self, wire: &mut Wire, wanted: &Attachment) -> io::Result<()> {
        attachment::put(wire, Means { sysctls: &self.sysctls, settling: &self.settling }, wanted)?;
        if let Place::Sandbox { path, .. } = &wanted.place {
            self.sandboxes.lock().insert(wanted.host.clone(), path.clone());
        }
        Ok(())
    }

    /// A container is announced when its port is set: no frame of it got farther before.
    fn put_port(&self, wire: &mut Wire, wanted: &Port) -> io::Result<()> {
        let moved = port::put(wire, wanted)?;
        let path = self.sandboxes.lock().get(&wanted.link).cloned();
        if let (Some(link), Some(path)) = (moved, path) {
            attachment::announce(&path, &link);
        }
        Ok(())
    }

    fn retire(&self, name: &IfName) {
        let path = self.sandboxes.lock().remove(name);
        if let Some(Ok(namespace)) = path.map(|path| crew::open_namespace(&path)) {
            self.leaving.lock().insert(name.clone(), namespace);
        }
    }

    /// The namespace from which the link is to be deleted now.
    fn leave(&self, name: &IfName) -> Option<File> {
        self.retire(name);
        self.leaving.lock().remove(name)
    }

    fn delete(&self, wire: &mut Wire, key: &Key) -> io::Result<()> {
        match key {
            Key::HostPort { .. } => {
                self.ports.delete(key);
                Ok(())
            }
            // The one is never taken back, the other goes with its link.
            Key::HostSysctl(_) | Key::LinkSysctl(_) => {
                self.watched.remove(key);
                Ok(())
            }
            Key::Link(name) => link::delete(wire, name),
            Key::Attachment(name) => {
                let namespace = self.leave(name);
                attachment::delete(wire, &self.sysctls, name, namespace.as_ref())
            }
            Key::Neighbour(link, address) => neighbour::delete(wire, link, *address),
            Key::Fdb(link, mac) => neighbour::delete_forwarding(wire, link, *mac),
            Key::Address(link, address) => address::delete(wire, link, *address),
            Key::Route { destination, link } => route::delete(wire, *destination, link),
            Key::Port(name) => port::delete(wire, name),
        }
    }

    /// All, whatever becomes of one; the first failure is told. Links go last, and many together.
    fn delete_all(&self, wire: &mut Wire, keys: &[Key]) -> Result<(), KernelError> {
        let (links, others): (Vec<&Key>, Vec<&Key>) = keys.iter().partition(|key| key.link().is_some());
        let outcome = others.into_iter().map(|key| delete(self, wire, key)).fold(Ok(()), Result::and);
        match links[..] {
            [] => outcome,
            [one] => outcome.and(delete(self, wire, one)),
            _ => {
                let links = links.into_iter().filter_map(Key::link).map(|name| (name, self.leave(name)));
                outcome.and(lot::delete(wire, &self.sysctls, links.collect()))
            }
        }
    }

    fn observe(&self, wire: &mut Wire, wanted: &[Object]) -> io::Result<Vec<Object>> {
        let keys: Vec<Key> = wanted.iter().map(Object::key).collect();
        self.watched.expect(&self.sysctls, &keys);
        let links = Links::dump(wire)?;
        let mut objects = observe::observe(wire, &self.sysctls, &keys, &links)?;
        objects.extend(self.ports.held());
        objects.extend(self.observe_sandboxes(wanted, &links));
        Ok(objects)
    }

    fn observe_sandboxes(&self, wanted: &[Object], links: &Links) -> impl Iterator<Item = Object> {
        let unseen = self.unseen.lock().take();
        let found = macvlan::observe(wanted, links, &self.settling, unseen.as_deref());
        self.sandboxes.lock().extend(found.iter().map(|(path, attachment)| (attachment.host.clone(), path.clone())));
        found.into_iter().map(|(_, attachment)| Object::Attachment(attachment))
    }
}

#[async_trait]
impl Kernel for Netlink {
    async fn observe(&self, wanted: &[Object]) -> Result<Vec<Object>, KernelError> {
        let wanted = wanted.to_vec();
        self.run("observe", "the network namespace".into(), move |host, wire| host.observe(wire, &wanted)).await
    }

    async fn put(&self, object: &Object) -> Result<(), KernelError> {
        self.put_all(std::slice::from_ref(object)).await
    }

    /// In one job: to pass from thread to thread takes as long as most objects do. What is held by somebody who is leaving is waited for
    /// between jobs: what makes him go may need the thread.
    async fn put_all(&self, objects: &[Object]) -> Result<(), KernelError> {
        let objects = objects.to_vec();
        self.run_patiently(move |host, wire| objects.iter().try_for_each(|object| put(host, wire, object))).await
    }

    fn retire(&self, key: &Key) {
        if let Key::Attachment(name) = key {
            self.host.retire(name);
        }
    }

    async fn delete(&self, key: &Key) -> Result<(), KernelError> {
        self.delete_all(std::slice::from_ref(key)).await
    }

    /// In one job, as [`Kernel::put_all`].
    async fn delete_all(&self, keys: &[Key]) -> Result<(), KernelError> {
        let keys = keys.to_vec();
        self.run("delete", "objects".into(), move |host, wire| Ok(host.delete_all(wire, &keys))).await?
    }

    fn changes(&self) -> mpsc::Receiver<Change> {
        let taken = self.changes.lock().take();
        taken.unwrap_or_else(|| mpsc::channel(1).1)
    }

    async fn surroundings(&self) -> Result<Surroundings, KernelError> {
        self.run("look at", "the host's links and routes".into(), |host, wire| observe::surroundings(wire, &host.sysctls)).await
    }

    fn sysctl(&self, path: &str) -> Option<String> {
        self.host.sysctls.read(path).ok()
    }

    async fn underlay(&self, wanted: &Underlay) -> Result<Option<Uplink>, KernelError> {
        let wanted = wanted.clone();
        self.run("look for", "the way out of the host".into(), move |_, wire| underlay::look(wire, &wanted)).await
    }

    async fn host_link(&self, name: &IfName) -> Result<Option<HostLink>, KernelError> {
        let name = name.clone();
        let failed = |name: &IfName, cause| KernelError { operation: "look at", object: format!("link {name}"), cause };
        let look = move |_: &Host, wire: &mut Wire| host_link::look(wire, &name).map_err(|cause| failed(&name, cause));
        let found = self.run_patiently(look).await;
        // a link takes a grace period to go, for which no answer waits
        let crew = self.crew.clone();
        tokio::spawn(async move { crew.run(macvlan::clear_probes).await });
        found
    }

    async fn who_has(&self, link: IfName, address: IpAddr, patience: Duration) -> Option<Mac> {
        let began = Instant::now();
        let (asked, seen) = (link.clone(), link.clone());
        self.crew.run(move |wire| neighbour::ask(wire, &asked, address)).await.ok()?;
        let mut answer = None;
        while answer.is_none() && began.elapsed() < patience {
            tokio::time::sleep(if began.elapsed() < SOON { GLANCE } else { SELDOM }).await;
            let link = seen.clone();
            answer = self.crew.run(move |wire| neighbour::answer(wire, &link, address)).await.ok().flatten();
        }
        let crew = self.crew.clone();
        tokio::spawn(async move { crew.run(move |wire| neighbour::delete(wire, &link, address)).await });
        answer
    }

    async fn is_free(&self, protocol: Protocol, host: IpAddr, ports: PortRange) -> bool {
        let wanted = HostPort { protocol, host, ports };
        self.run("probe", "host ports".into(), move |_, _| Ok(ports::is_free(&wanted))).await.unwrap_or(false)
    }

    fn is_sandbox(&self, path: &Path) -> bool {
        crew::is_sandbox(path)
    }

    async fn addresses(&self, link: &IfName) -> Result<Option<Vec<IpAddr>>, KernelError> {
        let (name, object) = (link.clone(), describe(&Key::Link(link.clone())));
        self.run("look at", object, move |_, wire| host_link::addresses_of(wire, &name)).await
    }

    async fn tune(&self, wanted: &Attachment) -> Result<bool, KernelError> {
        let (wanted, object) = (wanted.clone(), describe(&Key::Attachment(wanted.host.clone())));
        self.run("set up", object, move |host, _| macvlan::set_up(&host.sysctls, &wanted)).await
    }

    /// What cannot be asked is taken for where it should be.
    fn whereabouts(&self, wanted: &Attachment) -> Whereabouts {
        attachment::whereabouts(wanted).unwrap_or(Whereabouts::Away)
    }

    async fn sight(&self, sandbox: Option<&Path>, question: &Question) -> Result<Sight, KernelError> {
        let (sandbox, question) = (sandbox.map(Path::to_owned), question.clone());
        let object = format!("the way to {}", question.flow.to);
        self.run("look for", object, move |host, wire| match sandbox {
            None => sight::look(wire, &host.sysctls, &question, false),
            Some(path) => crew::within(&crew::open_namespace(&path)?, || sight::look(&mut Wire::open()?, &host.sysctls, &question, true)),
        })
        .await
    }

    /// Not on a thread of the crew: it waits.
    async fn probe(&self, sandbox: &Path, wanted: &Probe, patience: Duration) -> Result<Answer, KernelError> {
        let (path, wanted) = (sandbox.to_owned(), wanted.clone());
        let failed = |cause| KernelError { operation: "ask", object: wanted.flow.to.to_string(), cause };
        let asked = wanted.clone();
        let job = move || crew::within(&crew::open_namespace(&path)?, || probe::send_one(&asked, patience));
        tokio::task::spawn_blocking(job).await.map_err(|error| failed(io::Error::other(error)))?.map_err(failed)
    }

    /// What cannot be looked into has nothing.
    async fn which_have(&self, address: IpAddr, sandboxes: Vec<PathBuf>) -> Vec<PathBuf> {
        let has = move |path: &Path| crew::within(&crew::open_namespace(path)?, || sight::has_address(&mut Wire::open()?, address));
        let job = move |_: &Host, _: &mut Wire| Ok(sandboxes.into_iter().filter(|path| has(path).unwrap_or(false)).collect());
        self.run("look for", address.to_string(), job).await.unwrap_or_default()
    }
}
