//! What a namespace would do with a packet: asked of the kernel, nothing is sent and nothing changed.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{RouteAttribute, RouteMessage};

use super::link::{self, Seen};
use super::sysctl::Sysctls;
use super::wire::Wire;
use super::{address, neighbour, route};
use crate::model::{Family, Flow, IfName, LinkSight, Mac, NeighbourSight, NoWay, Protocol, Question, Sight, WayOut, family_of};

/// In the namespace of the calling thread; of a container's, which has few links, all of them are told.
pub(super) fn look(wire: &mut Wire, sysctls: &Sysctls, question: &Question, container: bool) -> io::Result<Sight> {
    let Flow { from, to, port } = question.flow;
    let by = question.by.as_ref().map(|name| link::need(wire, name)).transpose()?;
    let route = way(wire, question.flow, by.as_ref())?;
    let mut links = if container { link::dump(wire)? } else { Vec::new() };
    for name in &question.links {
        links.extend(link::find(wire, name)?);
    }
    links.extend(by.clone());
    let out = match &route {
        Ok((index, _)) => link::find_index(wire, *index)?,
        Err(_) => None,
    };
    links.extend(out.clone());
    links.sort_by_key(|link| link.index);
    links.dedup_by_key(|link| link.index);
    let route = route.map(|(_, way)| WayOut { link: out.as_ref().map(|link| link.name.clone()).unwrap_or_default(), ..way });
    let next = match (&route, &out) {
        (Ok(way), Some(link)) if !way.local => next_hop(wire, link, way.via.unwrap_or(to))?,
        _ => None,
    };
    let addresses = address::dump_all(wire, 0)?;
    let has = |wanted: IpAddr| addresses.iter().any(|own| own.address.addr() == wanted);
    let on = |index: u32| addresses.iter().filter(|own| own.link == index).map(|own| own.address).collect();
    Ok(Sight {
        has: (has(from), has(to)),
        links: links.iter().map(|link| sight(link, on(link.index))).collect(),
        route,
        next,
        listeners: port.map(|(protocol, port)| listeners(protocol, port)).unwrap_or_default(),
        sysctls: question.by.iter().flat_map(|by| deciding(sysctls, family_of(to), by)).collect(),
    })
}

fn sight(link: &Seen, addresses: Vec<IpNet>) -> LinkSight {
    let (name, mac) = (link.name.clone(), station(Mac::from(link.mac)));
    LinkSight { name, up: link.up, running: link.running, mtu: link.mtu, mac, addresses }
}

/// No group's, and not zero, which is that of loopback.
fn station(mac: Mac) -> Option<Mac> {
    mac.to_string().parse().ok()
}

/// Whether the address is one of the namespace's own.
pub(super) fn has_address(wire: &mut Wire, wanted: IpAddr) -> io::Result<bool> {
    Ok(address::dump_all(wire, 0)?.iter().any(|own| own.address.addr() == wanted))
}

/// By which way the packets leave; the index of the link, and the way without its name.
fn way(wire: &mut Wire, flow: Flow, by: Option<&Seen>) -> io::Result<Result<(u32, WayOut), NoWay>> {
    let question = as_asked(flow, by);
    let answer = match wire.get(RouteNetlinkMessage::GetRoute(question)) {
        Ok(answer) => answer,
        Err(error) => return no_way(error).map(Err),
    };
    let Some(RouteNetlinkMessage::NewRoute(message)) = answer else { return Err(io::Error::other("the kernel tells no route")) };
    let seen = route::Seen::read(&message).ok_or_else(|| io::Error::other("the kernel's answer cannot be read"))?;
    if !seen.unicast && !seen.local {
        return Ok(Err(NoWay { code: nix::libc::EHOSTUNREACH, words: "a route says that it is unreachable".to_owned() }));
    }
    Ok(Ok((seen.link, WayOut { link: String::new(), via: seen.via, local: seen.local })))
}

fn no_way(error: io::Error) -> io::Result<NoWay> {
    match error.raw_os_error() {
        Some(code) => Ok(NoWay { code, words: nix::errno::Errno::from_raw(code).desc().to_owned() }),
        None => Err(error),
    }
}

fn as_asked(flow: Flow, by: Option<&Seen>) -> RouteMessage {
    let mut message = route::question(flow.to);
    message.header.source_prefix_length = IpNet::from(flow.from).prefix_len();
    message.attributes.push(RouteAttribute::Source(route::attribute(flow.from)));
    message.attributes.extend(by.map(|link| RouteAttribute::Iif(link.index)));
    message
}

fn next_hop(wire: &mut Wire, link: &Seen, address: IpAddr) -> io::Result<Option<NeighbourSight>> {
    let state = neighbour::known(wire, link.index, address)?;
    // of what has no MACs at all nobody need answer
    let known = state.filter(|mac| mac.is_none_or(|mac| station(mac).is_some()));
    Ok(known.map(|mac| NeighbourSight { address, link: link.name.clone(), mac }))
}

/// What the kernel asks before it leads a packet on that came by `by`.
fn deciding(sysctls: &Sysctls, family: Family, by: &IfName) -> Vec<(String, String)> {
    let paths = match family {
        Family::V4 => [
            "ipv4/ip_forward".to_owned(),
            format!("ipv4/conf/{by}/forwarding"),
            format!("ipv4/conf/{by}/rp_filter"),
            "ipv4/conf/all/rp_filter".to_owned(),
        ]
        .to_vec(),
        Family::V6 => ["ipv6/conf/all/forwarding".to_owned()].to_vec(),
    };
    paths.into_iter().filter_map(|path| Some((sysctls.read(&path).ok()?, path))).map(|(value, path)| (path, value)).collect()
}

/// On which addresses somebody listens, in the namespace of the calling thread.
fn listeners(protocol: Protocol, port: u16) -> Vec<IpAddr> {
    let (name, listening) = match protocol {
        Protocol::Tcp => ("tcp", "0A"),
        Protocol::Udp => ("udp", "07"),
        Protocol::Sctp => return Vec::new(),
    };
    let tables = [name.to_owned(), format!("{name}6")].map(|table| format!("/proc/thread-self/net/{table}"));
    let texts = tables.iter().filter_map(|path| std::fs::read_to_string(path).ok());
    texts.flat_map(|text| text.lines().skip(1).filter_map(|line| listener(line, listening, port)).collect::<Vec<_>>()).collect()
}

/// Of a line of `/proc/net/tcp` and its like: number, own address and port, the other's, state …
fn listener(line: &str, listening: &str, port: u16) -> Option<IpAddr> {
    let mut fields = line.split_whitespace().skip(1);
    let (own, _, state) = (fields.next()?, fields.next()?, fields.next()?);
    let (address, own_port) = own.split_once(':')?;
    (state == listening && u16::from_str_radix(own_port, 16) == Ok(port)).then(|| hex(address))?
}

/// Words of four bytes, each as the machine reads it.
fn hex(text: &str) -> Option<IpAddr> {
    let words = text.as_bytes().chunks(8).map(|word| u32::from_str_radix(str::from_utf8(word).ok()?, 16).ok().map(u32::to_ne_bytes));
    let bytes = words.collect::<Option<Vec<_>>>()?.concat();
    let v4 = <[u8; 4]>::try_from(bytes.as_slice()).ok().map(|bytes| Ipv4Addr::from(bytes).into());
    v4.or_else(|| <[u8; 16]>::try_from(bytes.as_slice()).ok().map(|bytes| Ipv6Addr::from(bytes).to_canonical()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_read_as_the_kernel_writes_them() {
        let v4 = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0";
        assert_eq!(listener(v4, "0A", 8080), Some("127.0.0.1".parse().unwrap()));
        assert_eq!(listener(v4, "0A", 80), None);
        assert_eq!(listener(v4, "07", 8080), None, "a connection, or another protocol");
        let v6 = "   0: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A";
        assert_eq!(listener(v6, "0A", 80), Some("::1".parse().unwrap()));
        for broken in ["", "0: x", "0: 0100007F", "0: zz:0050 0 0A", "  sl  local_address rem_address   st"] {
            assert_eq!(listener(broken, "0A", 80), None, "{broken:?}");
        }
    }
}
