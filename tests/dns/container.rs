//! A container's network namespace as Docker leaves it: its resolver at a port of 127.0.0.11, and the rules that lead port 53 there.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use nix::mount::{MntFlags, umount2};

use crate::namespace::{self, eventually, run, sandbox};

pub const RESOLVER: &str = "127.0.0.11:53";
/// How long anything may take that is to come.
const PATIENCE: Duration = Duration::from_secs(10);

pub struct Container {
    pub path: PathBuf,
    namespace: Arc<File>,
}

impl Container {
    /// With loopback only, mounted at `name` in `directory`.
    pub fn new(directory: &Path, name: &str) -> Container {
        Container::at(sandbox(directory, name))
    }

    /// What is mounted there.
    pub fn at(path: PathBuf) -> Container {
        Container { namespace: Arc::new(File::open(&path).unwrap()), path }
    }

    /// As the engine does: from now on only who is in it keeps it.
    pub fn unmount(self) -> PathBuf {
        umount2(&self.path, MntFlags::MNT_DETACH).unwrap();
        self.path
    }

    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        namespace::within(&self.namespace, work)
    }

    /// Docker's rules in a sandbox (`libnetwork/resolver_unix.go`), in place of earlier ones.
    pub fn lead_to(&self, iptables: &str, docker: &Docker) {
        let (udp, tcp) = docker.ports;
        self.within(|| {
            run(&format!(
                "{iptables} -t nat -F; {iptables} -t nat -N DOCKER_OUTPUT || true; {iptables} -t nat -N DOCKER_POSTROUTING || true
                 {iptables} -t nat -A OUTPUT -d 127.0.0.11 -j DOCKER_OUTPUT
                 {iptables} -t nat -A POSTROUTING -d 127.0.0.11 -j DOCKER_POSTROUTING
                 {iptables} -t nat -A DOCKER_OUTPUT -d 127.0.0.11 -p udp --dport 53 -j DNAT --to-destination 127.0.0.11:{udp}
                 {iptables} -t nat -A DOCKER_POSTROUTING -s 127.0.0.11 -p udp --sport {udp} -j SNAT --to-source :53
                 {iptables} -t nat -A DOCKER_OUTPUT -d 127.0.0.11 -p tcp --dport 53 -j DNAT --to-destination 127.0.0.11:{tcp}
                 {iptables} -t nat -A DOCKER_POSTROUTING -s 127.0.0.11 -p tcp --sport {tcp} -j SNAT --to-source :53"
            ))
        });
    }

    /// Asks by a datagram from a socket of its own, which takes answers from the address asked only.
    pub fn ask(&self, query: &[u8]) -> Result<Vec<u8>, String> {
        let query = query.to_vec();
        self.within(move || ask_here(&query, PATIENCE))
    }

    /// Asks by one stream, query after query.
    pub fn ask_by_stream(&self, queries: &[&[u8]]) -> Vec<Vec<u8>> {
        self.within(|| {
            let mut stream = TcpStream::connect(RESOLVER).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            queries.iter().map(|query| exchange(&mut stream, query)).collect()
        })
    }
}

pub fn ask_here(query: &[u8], patience: Duration) -> Result<Vec<u8>, String> {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect(RESOLVER).unwrap();
    ask_by(&socket, query, patience)
}

pub fn ask_by(socket: &UdpSocket, query: &[u8], patience: Duration) -> Result<Vec<u8>, String> {
    socket.set_read_timeout(Some(patience)).unwrap();
    let mut answer = vec![0; 65_535];
    let received = socket.send(query).and_then(|_| socket.recv(&mut answer)).map_err(|error| error.to_string())?;
    answer.truncate(received);
    Ok(answer)
}

fn exchange(stream: &mut TcpStream, query: &[u8]) -> Vec<u8> {
    let length = u16::try_from(query.len()).unwrap().to_be_bytes();
    stream.write_all(&[&length, query].concat()).unwrap();
    read(stream).expect("an answer")
}

fn read(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).ok()?;
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut message).ok()?;
    Some(message)
}

/// In the place of Docker's resolver: answers every query with the same bytes, but for the id and a tail that no resolver would send.
pub struct Docker {
    pub ports: (u16, u16),
    pub asked: Arc<Mutex<Vec<Vec<u8>>>>,
    datagrams: Arc<AtomicBool>,
}

pub fn dockers_answer(query: &[u8], tail: &str) -> Vec<u8> {
    [query, tail.as_bytes()].concat()
}

impl Docker {
    /// Listens in the container. One that is `silent` takes datagrams and says nothing.
    pub fn start(container: &Container, tail: &'static str, silent: bool) -> Docker {
        let any: SocketAddr = "127.0.0.11:0".parse().unwrap();
        let (udp, tcp) = container.within(|| (UdpSocket::bind(any).unwrap(), TcpListener::bind(any).unwrap()));
        let ports = (udp.local_addr().unwrap().port(), tcp.local_addr().unwrap().port());
        let asked: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
        let (by_datagram, by_stream) = (asked.clone(), asked.clone());
        let datagrams = Arc::new(AtomicBool::new(true));
        let goes_on = datagrams.clone();
        udp.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
        thread::spawn(move || {
            let mut query = vec![0; 65_535];
            while goes_on.load(Ordering::Relaxed) {
                let Ok((length, from)) = udp.recv_from(&mut query) else { continue };
                by_datagram.lock().unwrap().push(query[..length].to_vec());
                if !silent {
                    let _ = udp.send_to(&dockers_answer(&query[..length], tail), from);
                }
            }
        });
        thread::spawn(move || {
            for mut stream in tcp.incoming().flatten() {
                let asked = by_stream.clone();
                thread::spawn(move || {
                    while let Some(query) = read(&mut stream) {
                        asked.lock().unwrap().push(query.clone());
                        let answer = dockers_answer(&query, tail);
                        let length = u16::try_from(answer.len()).unwrap().to_be_bytes();
                        let _ = stream.write_all(&[&length[..], &answer].concat());
                    }
                });
            }
        });
        Docker { ports, asked, datagrams }
    }

    /// As the engine ends: nobody takes datagrams any more.
    pub fn stop(&self, container: &Container) {
        self.datagrams.store(false, Ordering::Relaxed);
        let port = self.ports.0;
        eventually("its port is free", || container.within(|| UdpSocket::bind(("127.0.0.11", port)).ok().map(drop)));
    }

    /// What it was asked since the last call.
    pub fn asked(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}
