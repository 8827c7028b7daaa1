//! Host ports: sockets that are bound and not listening, so that nobody else takes what rsnet publishes.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt};
use nix::unistd::close;
use parking_lot::Mutex;

use crate::model::{HostPort, Key, Object, Protocol};

/// The sockets held, one a port.
#[derive(Default)]
pub(super) struct Ports(Mutex<HashMap<Key, (HostPort, Vec<OwnedFd>)>>);

impl Ports {
    pub fn put(&self, wanted: &HostPort) -> io::Result<()> {
        if let Entry::Vacant(place) = self.0.lock().entry(Object::HostPort(wanted.clone()).key()) {
            place.insert((wanted.clone(), bind_all(wanted)?));
        }
        Ok(())
    }

    pub fn delete(&self, key: &Key) {
        let released = self.0.lock().remove(key);
        drop(released);
    }

    pub fn held(&self) -> Vec<Object> {
        self.0.lock().values().map(|(port, _)| Object::HostPort(port.clone())).collect()
    }
}

/// Open files for which there is room from the start. The kernel makes room for twice as many whenever they do not suffice, and each time
/// waits for a grace period where threads share them: the first thousand ports would take 25 ms longer than the next.
const ROOM: i32 = 4096;

/// A thousand published ports are as many open files: the soft limit of 1,024 that most processes start with is not enough.
pub(super) fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "could not raise the limit of open files: a large range of published ports may fail");
    }
    // without it all works, and some of it later
    let _ = File::open("/dev/null").and_then(|file| make_room(&file));
}

/// The last of as many files is opened, and closed again.
fn make_room(file: &File) -> io::Result<()> {
    let last = fcntl(file, FcntlArg::F_DUPFD_CLOEXEC(ROOM - 1))?;
    Ok(close(last)?)
}

pub(super) fn is_free(wanted: &HostPort) -> bool {
    bind_range(wanted).is_ok()
}

/// As [`bind_range`]; a conflict names the holder.
fn bind_all(wanted: &HostPort) -> io::Result<Vec<OwnedFd>> {
    bind_range(wanted).map_err(|(port, error)| match error {
        Errno::EADDRINUSE => io::Error::new(io::ErrorKind::AddrInUse, conflict(wanted, port)),
        other => {
            let cause = io::Error::from(other);
            io::Error::new(cause.kind(), format!("port {port}/{} on {}: {cause}", wanted.protocol, wanted.host))
        }
    })
}

/// A socket for each port, none where there can be none (SCTP, a family that the kernel lacks); or the port that failed.
fn bind_range(wanted: &HostPort) -> Result<Vec<OwnedFd>, (u16, Errno)> {
    let kind = match wanted.protocol {
        Protocol::Tcp => SockType::Stream,
        Protocol::Udp => SockType::Datagram,
        Protocol::Sctp => return Ok(Vec::new()),
    };
    match wanted.ports.ports().map(|port| bind_one(wanted.host, port, kind).map_err(|error| (port, error))).collect() {
        Err((_, Errno::EAFNOSUPPORT)) => Ok(Vec::new()),
        result => result,
    }
}

fn bind_one(host: IpAddr, port: u16, kind: SockType) -> nix::Result<OwnedFd> {
    let family = if host.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
    if host.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    // connections that were just closed are no obstacle while it is bound, as with any server; later nobody may bind beside it
    let reuse = |on: bool| if kind == SockType::Stream { setsockopt(&socket, sockopt::ReuseAddr, &on) } else { Ok(()) };
    reuse(true)?;
    bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &SockaddrStorage::from(SocketAddr::new(host, port)))?;
    reuse(false)?;
    Ok(socket)
}

/// Who holds the port, as far as can be found out.
pub(super) fn conflict(wanted: &HostPort, port: u16) -> String {
    let what = format!("port {port}/{} on {} is in use", wanted.protocol, wanted.host);
    let rows = table(wanted.protocol).into_iter().filter(|row| row.port == port);
    if let Some((name, pid)) = rows.into_iter().find_map(|row| holder(row.inode)) {
        return format!("{what} by {name} (pid {pid})");
    }
    let option = if wanted.protocol == Protocol::Udp { "u" } else { "t" };
    format!("{what} by a process that rsnet cannot see; find it on the host with: ss -H{option}anp 'sport = :{port}'")
}

/// A line of `/proc/net/tcp` and its like (`Documentation/networking/proc_net_tcp.rst`). Connections in TIME_WAIT have inode 0.
struct Row {
    port: u16,
    inode: u64,
}

/// Both families: `[::]` takes a port from `0.0.0.0` unless it is for IPv6 only. The namespace is that of the thread, not of the process.
fn table(protocol: Protocol) -> Vec<Row> {
    let read = |suffix: &str| fs::read_to_string(format!("/proc/thread-self/net/{protocol}{suffix}")).unwrap_or_default();
    format!("{}{}", read(""), read("6")).lines().filter_map(row).collect()
}

fn row(line: &str) -> Option<Row> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let port = fields.get(1)?.rsplit_once(':')?.1;
    Some(Row { port: u16::from_str_radix(port, 16).ok()?, inode: fields.get(9)?.parse().ok()? })
}

/// The process that has the socket of this inode open, among those that can be seen: name and pid.
fn holder(inode: u64) -> Option<(String, u32)> {
    let socket = format!("socket:[{inode}]");
    let pids = fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let pid = pids.into_iter().find(|pid| has_open(*pid, &socket))?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some((name.trim().to_owned(), pid))
}

fn has_open(pid: u32, socket: &str) -> bool {
    let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    files.filter_map(Result::ok).any(|file| fs::read_link(file.path()).is_ok_and(|target| target.as_os_str() == socket))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_socket_table_is_read() {
        let line = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0";
        let row = row(line).unwrap();
        assert_eq!((row.port, row.inode), (8080, 4711));
    }

    #[test]
    fn its_heading_is_not() {
        assert!(row("  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode").is_none());
    }
}
