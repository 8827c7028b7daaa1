//! `rsnet ports`: what `docker ps` cannot show of a plugin's networks.

use super::client::Asking;
use super::{Failure, client, print, runtime};
use crate::agent::Published;

pub fn run(arguments: &Asking) -> Result<(), Failure> {
    let ports = runtime()?.block_on(ask(arguments))?;
    if arguments.json {
        return print::json(&ports);
    }
    if ports.is_empty() {
        return print::say("Nothing is published. Publish with `docker run --network NAME -p 8080:80 …` on a network of `-d rsnet`.");
    }
    let rows = ports.iter().map(row).collect();
    print::say(print::table(["HOST", "PROTO", "CONTAINER", "PORT", "NETWORK", "ENDPOINT"], rows, "rsnet ports --json"))
}

async fn ask(arguments: &Asking) -> Result<Vec<Published>, Failure> {
    let engine = client::engine().await.unwrap_or_default();
    let mut ports: Vec<Published> = client::get(&arguments.socket, "/rsnet/ports").await?;
    for port in &mut ports {
        let name = engine.networks.get(port.network.as_str()).cloned();
        port.network_name = name.or(port.network_name.take());
    }
    Ok(ports)
}

fn row(port: &Published) -> [String; 6] {
    let host = port.binding.host.map_or_else(|| "*".to_owned(), |host| host.to_string());
    let container: Vec<_> = port.container.iter().map(ToString::to_string).collect();
    [
        format!("{host}:{}", port.binding.host_ports),
        port.binding.protocol.to_string(),
        container.join(" "),
        port.binding.container_ports().to_string(),
        client::named(port.network_name.as_ref(), &port.network),
        port.endpoint.short().to_owned(),
    ]
}
