//! What stands between a host and Consul, and misbehaves as told.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// Nothing bad.
    None,
    /// It arrives, and so does its answer, this much later.
    Slow(Duration),
    /// The connection is closed.
    Dropped,
    /// The connection is closed where the request has arrived and was done.
    AnswerLost,
    /// The answer breaks off in the middle.
    Truncated,
    /// Nobody ever answers.
    Silent,
    /// The proxy answers itself, with this status line and body.
    Says(&'static str, &'static str),
}

/// Passes on to 127.0.0.1:8500 of the network in which it was started.
pub struct Proxy {
    script: Arc<Mutex<Vec<Fault>>>,
}

impl Proxy {
    /// One on 127.0.0.1:9500 that does nothing bad.
    pub fn start() -> Self {
        Self::start_at("127.0.0.1:9500")
    }

    /// One that listens there.
    pub fn start_at(address: &str) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let script = Arc::new(Mutex::new(vec![Fault::None]));
        let own = script.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let script = own.clone();
                std::thread::spawn(move || serve(client, &script));
            }
        });
        Self { script }
    }

    /// From now on.
    pub fn does(&self, fault: Fault) {
        *self.script.lock().unwrap() = vec![fault];
    }

    /// With the next request; then nothing bad.
    pub fn does_once(&self, fault: Fault) {
        *self.script.lock().unwrap() = vec![fault, Fault::None];
    }
}

/// One request; then the connection is closed, so that each meets the fault of its time.
fn serve(mut client: TcpStream, script: &Mutex<Vec<Fault>>) -> Option<()> {
    let request = request(&mut client)?;
    let fault = {
        let mut script = script.lock().unwrap();
        if script.len() > 1 { script.remove(0) } else { script[0] }
    };
    match fault {
        Fault::None => client.write_all(&pass(&request)?).ok()?,
        Fault::Slow(time) => {
            std::thread::sleep(time);
            client.write_all(&pass(&request)?).ok()?;
        }
        Fault::Dropped => {}
        Fault::AnswerLost => drop(pass(&request)),
        Fault::Truncated => {
            let answer = pass(&request)?;
            client.write_all(&answer[..answer.len() - 5]).ok()?;
        }
        Fault::Silent => drop(client.read(&mut [0])),
        Fault::Says(status, body) => {
            write!(client, "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len()).ok()?;
        }
    }
    client.shutdown(Shutdown::Both).ok()
}

/// A whole request, made the only one of its connection.
fn request(client: &mut TcpStream) -> Option<Vec<u8>> {
    let mut request = Vec::new();
    let head = loop {
        let mut byte = [0];
        client.read_exact(&mut byte).ok()?;
        request.push(byte[0]);
        if request.ends_with(b"\r\n\r\n") {
            break String::from_utf8_lossy(&request).to_lowercase();
        }
    };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    client.read_exact(&mut body).ok()?;
    request.truncate(request.len() - 2);
    request.extend_from_slice(b"Connection: close\r\n\r\n");
    request.extend(body);
    Some(request)
}

/// Consul's answer to it.
fn pass(request: &[u8]) -> Option<Vec<u8>> {
    let mut consul = TcpStream::connect("127.0.0.1:8500").ok()?;
    consul.write_all(request).ok()?;
    let mut answer = Vec::new();
    consul.read_to_end(&mut answer).ok()?;
    Some(answer)
}
