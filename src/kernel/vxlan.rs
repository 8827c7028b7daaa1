//! VXLAN links (RFC 7348) that learn nothing and know no peer but those of their forwarding database.
//!
//! Checksums are the kernel's default, in UDP over IPv4 and over IPv6: sent, and demanded over IPv6. It is what others send too, and links
//! that differ in what they accept cannot share a UDP port.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, InfoVxlan, LinkAttribute, LinkInfo};
use nix::errno::Errno;

use super::Tunnel;
use super::link::{self, Seen};
use super::ports;
use super::wire::Wire;
use crate::model::{Family, HostPort, Link, LinkKind, PortRange, Protocol};

/// Where a kernel that has VXLAN says so, built in or loaded.
const MODULE: &str = "/sys/module/vxlan";

/// What a link tells of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Vxlan {
    pub vni: u32,
    pub local: IpAddr,
    /// UDP.
    pub port: u16,
    /// It was altered so that it learns who is where from what it receives.
    pub learns: bool,
}

impl Vxlan {
    pub fn read(settings: &[InfoVxlan]) -> Self {
        let mut seen = Vxlan { vni: 0, local: Ipv4Addr::UNSPECIFIED.into(), port: 0, learns: false };
        for setting in settings {
            match setting {
                InfoVxlan::Id(vni) => seen.vni = *vni,
                InfoVxlan::Local(address) => seen.local = (*address).into(),
                InfoVxlan::Local6(address) => seen.local = (*address).into(),
                InfoVxlan::Port(port) => seen.port = *port,
                InfoVxlan::Learning(on) => seen.learns = *on,
                _ => {}
            }
        }
        seen
    }

    pub fn kind(&self) -> LinkKind {
        LinkKind::Vxlan { vni: self.vni, local: self.local, port: self.port }
    }
}

/// No remote: a MAC that the forwarding database does not have is nowhere.
pub(super) fn settings(vni: u32, local: IpAddr, port: u16) -> Vec<InfoVxlan> {
    let local = match local {
        IpAddr::V4(address) => InfoVxlan::Local(address),
        IpAddr::V6(address) => InfoVxlan::Local6(address),
    };
    vec![InfoVxlan::Id(vni), local, InfoVxlan::Port(port), InfoVxlan::Learning(false)]
}

/// All VXLAN links of the namespace: the kernel leaves the others out. One that has never heard of VXLAN would tell of all links instead.
pub(super) fn dump(wire: &mut Wire) -> io::Result<Vec<Seen>> {
    if Path::new("/sys/module").exists() && !Path::new(MODULE).exists() {
        return Ok(Vec::new());
    }
    let kind = LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vxlan)]);
    let answers = wire.dump(RouteNetlinkMessage::GetLink(link::message(0, vec![kind, link::without_statistics()])))?;
    Ok(answers.iter().filter_map(link::read).filter(|seen| seen.vxlan.is_some()).collect())
}

/// Links that are not ours.
pub(super) fn foreign(wire: &mut Wire) -> io::Result<Vec<Tunnel>> {
    let foreign = dump(wire)?.into_iter().filter(|seen| !seen.is_ours());
    Ok(foreign.filter_map(|seen| seen.vxlan.map(|vxlan| Tunnel { link: seen.name, vni: vxlan.vni, port: vxlan.port })).collect())
}

/// What the kernel's short answers mean here: the UDP port is bound when the link goes up, the VNI taken when it is made.
pub(super) fn explain(error: io::Error, wire: &mut Wire, wanted: &Link) -> io::Error {
    let LinkKind::Vxlan { vni, local, port } = wanted.kind else { return error };
    let text = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EADDRINUSE) => port_taken(local, port),
        Some(Errno::EEXIST) => number_taken(wire, wanted, vni, port),
        Some(Errno::EOPNOTSUPP) => format!("this kernel has no VXLAN: load the module vxlan: {error}"),
        Some(Errno::EAFNOSUPPORT) => format!("its outer address {local} is of IPv6, which this kernel does not have: {error}"),
        _ => return error,
    };
    io::Error::new(error.kind(), text)
}

fn port_taken(local: IpAddr, port: u16) -> String {
    let host = if local.is_ipv4() { Family::V4 } else { Family::V6 }.unspecified();
    let holder = ports::conflict(&HostPort { protocol: Protocol::Udp, host, ports: PortRange::one(port) }, port);
    format!(
        "{holder}, or by a VXLAN device with other settings (`ip -d link show type vxlan`); stop that, or use another UDP port on all hosts"
    )
}

/// The kernel counts those too that were moved to other namespaces after they were made, which nobody can list.
fn number_taken(wire: &mut Wire, wanted: &Link, vni: u32, port: u16) -> String {
    let same = |seen: &Seen| seen.name != wanted.name.as_str() && seen.vxlan.as_ref().is_some_and(|v| (v.vni, v.port) == (vni, port));
    let holder = dump(wire).unwrap_or_default().into_iter().find(same).map(|seen| format!("the VXLAN device {}", seen.name));
    let holder = holder.unwrap_or_else(|| "a VXLAN device in another network namespace, as Docker's overlay networks have them".to_owned());
    format!("VNI {vni} on UDP port {port} is taken by {holder}; delete that, or use another VNI or UDP port on all hosts")
}
