//! An engine that only answers questions: what the command line asks of one.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use serde_json::{Value, json};
use tempfile::TempDir;

/// Until the process ends.
pub struct Engine {
    dir: TempDir,
}

impl Engine {
    /// With networks of rsnet's, `(id, name)`, and running containers on them, `(endpoint, container, network)`.
    pub fn start(networks: &[(&str, &str)], containers: &[(&str, &str, &str)]) -> Engine {
        let network = |(id, name): &(&str, &str)| json!({ "Id": id, "Name": name, "Driver": "rsnet", "Scope": "local" });
        let container = |(endpoint, name, network): &(&str, &str, &str)| {
            let place = json!({ "EndpointID": endpoint, "NetworkID": network });
            json!({ "Id": name, "Names": [format!("/{name}")], "NetworkSettings": { "Networks": { "x": place } } })
        };
        let networks: Value = networks.iter().map(network).collect();
        let containers: Value = containers.iter().map(container).collect();
        let engine = Engine { dir: tempfile::tempdir().unwrap() };
        let listener = UnixListener::bind(engine.socket()).unwrap();
        std::thread::spawn(move || listener.incoming().for_each(|stream| answer(stream.unwrap(), &networks, &containers)));
        engine
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("docker.sock")
    }
}

fn answer(mut stream: UnixStream, networks: &Value, containers: &Value) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let question = lines.next().unwrap_or_default();
    lines.take_while(|line| !line.is_empty()).for_each(drop);
    let path = question.split(' ').nth(1).unwrap_or_default();
    let body = match path {
        path if path.contains("/networks") => networks.clone(),
        path if path.contains("/containers/json") => containers.clone(),
        _ => json!({ "Version": "28.5.1", "ApiVersion": "1.51", "MinAPIVersion": "1.24" }),
    };
    let body = body.to_string();
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close";
    let _ = write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
}
