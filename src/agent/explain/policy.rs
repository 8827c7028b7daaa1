//! What networks and their rules say of two containers.

use super::{Local, Target};
use crate::explain::Relation;
use crate::model::{AttachmentKind, Entry, Flow, Inbound, MacvlanMode, Zone, family_of};

/// The container to which a port of this host leads, and the flow behind the translation.
pub(super) fn published(all: &[Local], flow: Flow) -> Option<(Local, Flow)> {
    let (protocol, port) = flow.port?;
    all.iter().find_map(|local| {
        local.own.entries.iter().find_map(|entry| match entry {
            Entry::Publish { protocol: of, host, ports, to, to_port }
                if *of == protocol
                    && family_of(*host) == family_of(flow.to)
                    && (host.is_unspecified() || *host == flow.to)
                    && ports.ports().any(|one| one == port) =>
            {
                let inner = to_port + (port - ports.first);
                Some((local.clone(), Flow { to: *to, port: Some((protocol, inner)), ..flow }))
            }
            _ => None,
        })
    })
}

/// What the networks' rules say.
pub(super) fn relate(a: &Local, target: &Target, b: Option<&Local>, flow: Flow, translated: bool) -> Relation {
    let open = |says: String, one_segment| Relation { says, refusal: None, one_segment };
    let closed = |says: String, remedy: String| Relation { says: String::new(), refusal: Some((says, remedy)), one_segment: false };
    let name = &a.name;
    match (target, b) {
        (Target::Container(_), Some(b)) if b.network.id == a.network.id => neighbours(a).map_or_else(
            || open(format!("both are on \"{name}\""), a.bridge().is_some() || a.kind() == "macvlan"),
            |(says, remedy)| closed(says, remedy),
        ),
        (Target::Container(_), Some(b)) if admits(b, flow) => open(format!("\"{}\" lets it in", b.name), false),
        (Target::Container(_), Some(b)) => closed(
            format!("one is on \"{name}\", the other on \"{}\": networks are walled off from each other", b.name),
            format!("`docker network connect {name} …` puts the other on \"{name}\" too; or publish its port and ask the host for it"),
        ),
        (Target::Foreign(networks), _) => closed(
            format!("one is on \"{name}\", the other on {networks}, which is not rsnet's: they are walled off from each other"),
            format!("`docker network connect {name} …` puts the other on \"{name}\" too; or publish its port and ask the host for it"),
        ),
        (Target::Elsewhere(host), _) => open(format!("both are on \"{name}\", the other on host {host}"), a.kind() == "macvlan"),
        (Target::Host, Some(b)) if translated => match a.network.internal {
            true => closed(
                format!("\"{name}\" is internal: not even published ports are reached from it"),
                format!("connect the container to another network too, or make \"{name}\" without --internal"),
            ),
            false => open(format!("the host leads that port to {} on \"{}\"", flow.to, b.name), false),
        },
        (Target::Host, _) if a.kind() == "macvlan" && a.planned_station().is_none() => closed(
            format!("\"{name}\" is a macvlan network: its containers and their own host do not meet on the card"),
            "make the network with -o host_access=true".to_owned(),
        ),
        (Target::Host, _) => open("it is this host itself".to_owned(), a.kind() == "macvlan"),
        (_, _) if a.network.internal => closed(
            format!("\"{name}\" is internal: nothing leaves it"),
            format!("connect the container to another network too, or make \"{name}\" without --internal"),
        ),
        (_, _) if a.kind() == "macvlan" => open(format!("from \"{name}\" by the LAN"), true),
        (_, _) => open(format!("it is outside: from \"{name}\" by this host"), false),
    }
}
/// Why containers of one network do not meet.
fn neighbours(a: &Local) -> Option<(String, String)> {
    let name = &a.name;
    let mode = match a.own.attachment().map(|attachment| &attachment.kind) {
        Some(AttachmentKind::Macvlan(child)) => Some(child.mode),
        _ => None,
    };
    let inner = a.whole.entries.iter().any(|entry| matches!(entry, Entry::Inner { .. }));
    match mode {
        Some(MacvlanMode::Private) => Some((
            format!("\"{name}\" has macvlan_mode=private: its containers do not meet"),
            "make the network with -o macvlan_mode=bridge".to_owned(),
        )),
        Some(_) => None,
        None if inner => None,
        None => Some((
            format!("\"{name}\" has icc=false: its containers meet by published ports only"),
            "publish the port and ask the host for it, or make the network with -o icc=true".to_owned(),
        )),
    }
}

/// Whether B's network lets in what comes from another network of this host.
fn admits(b: &Local, flow: Flow) -> bool {
    let opened = |entry: &Entry| matches!(entry, Entry::Enter { zone: Zone::Link(_) | Zone::Subnet(_), family, rule: Inbound::Opened } if *family == family_of(flow.to));
    let port = |entry: &Entry| matches!((entry, flow.port), (Entry::Open { protocol, to, ports }, Some((of, port))) if *protocol == of && *to == flow.to && ports.ports().any(|one| one == port));
    b.whole.entries.iter().any(opened) && (flow.port.is_none() || b.own.entries.iter().any(port))
}
