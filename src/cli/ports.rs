//! `rsnet ports`: what `docker ps` cannot show of a plugin's networks.

use comfy_table::Table;
use comfy_table::presets::NOTHING;

use super::client::Asking;
use super::{Failure, client, runtime};
use crate::agent::Published;

pub fn run(arguments: &Asking) -> Result<(), Failure> {
    let ports: Vec<Published> = runtime()?.block_on(client::get(&arguments.socket, "/rsnet/ports"))?;
    if arguments.json {
        return client::print_json(&ports);
    }
    if ports.is_empty() {
        println!("Nothing is published. Publish with `docker run --network NAME -p 8080:80 …` on a network of `-d rsnet`.");
    } else {
        println!("{}", table(&ports));
    }
    Ok(())
}

fn table(ports: &[Published]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(["HOST", "PROTO", "CONTAINER", "PORT", "NETWORK", "ENDPOINT"]);
    for port in ports {
        let host = port.binding.host.map_or_else(|| "*".to_owned(), |host| host.to_string());
        let container: Vec<_> = port.container.iter().map(ToString::to_string).collect();
        table.add_row([
            format!("{host}:{}", port.binding.host_ports),
            port.binding.protocol.to_string(),
            container.join(" "),
            port.binding.container_ports().to_string(),
            port.network_name.clone().unwrap_or_else(|| port.network.short().to_owned()),
            port.endpoint.short().to_owned(),
        ]);
    }
    table
}
