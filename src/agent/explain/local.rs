//! A container of this host on a network, by what is declared and planned of it.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;

use super::Local;
use crate::drivers;
use crate::model::{Attached, AttachmentKind, IfName, Key, Link, LinkKind, Member, Object, RouteKind};

impl Local {
    pub(super) fn address(&self, like: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
        self.endpoint.addresses.iter().map(IpNet::addr).find(|address| like(*address))
    }

    pub(super) fn subnets(&self) -> Vec<IpNet> {
        self.network.pools.iter().map(|pool| pool.subnet).collect()
    }

    pub(super) fn has(&self, address: IpAddr) -> bool {
        self.endpoint.addresses.iter().any(|own| own.addr() == address)
    }

    pub(super) fn kind(&self) -> &str {
        drivers::kind_name(&self.network.options)
    }

    /// The bridge that its link is a port of.
    pub(super) fn bridge(&self) -> Option<IfName> {
        self.own.objects.values().find_map(|object| if let Object::Port(port) = object { Some(port.bridge.clone()) } else { None })
    }

    /// The host's link that it is a station on, with a MAC of its own.
    pub(super) fn parent(&self) -> Option<IfName> {
        match &self.own.attachment()?.kind {
            AttachmentKind::Macvlan(child) => Some(child.parent.clone()),
            AttachmentKind::Veth { .. } => None,
        }
    }

    /// By which its packets come to the host as a router; none: the host is none for it.
    pub(super) fn way_in(&self) -> Option<IfName> {
        let attachment = self.own.attachment()?;
        match attachment.kind {
            AttachmentKind::Veth { router: Some(_), .. } => Some(attachment.host.clone()),
            AttachmentKind::Veth { .. } => self.bridge(),
            AttachmentKind::Macvlan(_) => None,
        }
    }

    pub(super) fn sandbox(&self) -> Option<PathBuf> {
        match &self.endpoint.attached {
            Attached::Joined(sandbox) | Attached::Joining(sandbox) => Some(sandbox.path.clone()),
            Attached::No => None,
        }
    }

    /// The planned way to an address: the link, of the longest prefix.
    pub(super) fn planned(&self, to: IpAddr) -> Option<IfName> {
        let unicast = |object: &Object| match object {
            Object::Route(route) if matches!(route.kind, RouteKind::Unicast { .. }) && route.destination.contains(&to) => {
                Some((route.destination.prefix_len(), route.link.clone()))
            }
            _ => None,
        };
        self.whole.objects.values().filter_map(unicast).max_by_key(|(length, _)| *length).map(|(_, link)| link)
    }

    pub(super) fn tunnel(&self) -> Option<(IfName, u16)> {
        self.whole.objects.values().find_map(|object| match object {
            Object::Link(Link { name, kind: LinkKind::Vxlan { port, .. }, .. }) => Some((name.clone(), *port)),
            _ => None,
        })
    }

    pub(super) fn peer(&self, host: &str) -> Option<&Member> {
        self.network.share.as_ref()?.others().find(|peer| peer.host == host)
    }

    pub(super) fn holder(&self, address: IpAddr) -> Option<&Member> {
        self.network.share.as_ref()?.holder(address)
    }

    /// The host's own link on the segment of a macvlan network.
    pub(super) fn planned_station(&self) -> Option<&Key> {
        self.whole.objects.keys().find(|key| matches!(key, Key::Address(..)))
    }
}
