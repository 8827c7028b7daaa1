//! A segment: one Ethernet, a bridge in the lab's switch, with the prefixes that are used on it.

use super::{Host, Inner, ip, try_ip};
use ipnet::IpNet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

/// An Ethernet that machines are plugged into.
pub struct Segment {
    shared: Arc<Shared>,
}

/// What the machines on a segment share with it.
pub(super) struct Shared {
    lab: Arc<Inner>,
    bridge: String,
    prefixes: Vec<IpNet>,
    machines: AtomicU32,
    gateways: Mutex<Vec<IpAddr>>,
}

impl Segment {
    pub(super) fn new(lab: &Arc<Inner>, prefixes: &[&str]) -> Segment {
        let bridge = format!("seg{}", lab.wires.fetch_add(1, Ordering::SeqCst));
        ip(lab.switch.init, &format!("link add {bridge} type bridge mcast_snooping 0"));
        ip(lab.switch.init, &format!("link set {bridge} up"));
        let prefixes = prefixes.iter().map(|p| p.parse().unwrap_or_else(|e| panic!("prefix {p}: {e}")));
        let shared =
            Shared { lab: lab.clone(), bridge, prefixes: prefixes.collect(), machines: AtomicU32::new(0), gateways: Mutex::default() };
        Segment { shared: Arc::new(shared) }
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Machines plugged in from now on send by `router` what is not on the segment.
    pub(super) fn route_by(&self, router: &Host) {
        let here = |address: &IpAddr| self.shared.prefixes.iter().any(|p| p.contains(address));
        let gateways = router.addresses().into_iter().filter(here).collect();
        *self.shared.gateways.lock().expect("no panic while held") = gateways;
    }
}

/// A machine's card on a segment: its addresses and the wire to the switch.
pub(super) struct Nic {
    segment: Arc<Shared>,
    /// The interface in the machine, `eth0` ….
    pub name: String,
    /// The card's own address: a reboot does not change it, or the neighbours would look for the old one for half a minute.
    mac: String,
    /// The switch's end of the wire.
    port: String,
    pub addresses: Vec<IpNet>,
    gateways: Vec<IpAddr>,
}

impl Nic {
    /// The card `eth<number>` with the segment's next free host number, in each of its prefixes, and once more 100 further if
    /// `second`.
    pub fn new(segment: &Arc<Shared>, number: usize, second: bool) -> Nic {
        let host = segment.machines.fetch_add(1, Ordering::SeqCst) + 1;
        let hosts = if second { vec![host, host + 100] } else { vec![host] };
        let addresses = hosts.iter().flat_map(|n| segment.prefixes.iter().map(|prefix| nth(prefix, *n)));
        let wire = segment.lab.wires.fetch_add(1, Ordering::SeqCst);
        Nic {
            name: format!("eth{number}"),
            mac: format!("02:72:73:00:{:02x}:{:02x}", wire / 256 % 256, wire % 256),
            port: format!("port{wire}"),
            addresses: addresses.collect(),
            gateways: segment.gateways.lock().expect("no panic while held").clone(),
            segment: segment.clone(),
        }
    }

    /// Plugs the card into the machine whose first process is `machine`.
    pub fn plug(&self, machine: i32) {
        let (switch, port, name, mac) = (self.segment.lab.switch.init, &self.port, &self.name, &self.mac);
        ip(switch, &format!("link add {port} type veth peer name {name} address {mac} netns {machine}"));
        ip(switch, &format!("link set {port} master {} up", self.segment.bridge));
        for address in &self.addresses {
            let nodad = if address.addr().is_ipv6() { "nodad" } else { "" };
            ip(machine, &format!("addr add {address} dev {name} {nodad}"));
        }
        ip(machine, &format!("link set {name} up"));
        for gateway in &self.gateways {
            ip(machine, &format!("route replace default via {gateway}"));
        }
    }

    /// Takes the card out of a machine that is off. Its wire goes with the machine's namespace, a little later: not waiting for
    /// that frees the names.
    pub fn unplug(&self) {
        let port = format!("link del {}", self.port);
        try_ip(self.segment.lab.switch.init, &port);
    }

    /// Has the switch send the machine's frames back to it where they are for another behind the same wire: a reflective relay.
    pub fn reflect(&self) {
        ip(self.segment.lab.switch.init, &format!("link set {} type bridge_slave hairpin on", self.port));
    }

    /// What fits the wire, on both of its ends.
    pub fn set_mtu(&self, machine: i32, mtu: u32) {
        ip(self.segment.lab.switch.init, &format!("link set {} mtu {mtu}", self.port));
        ip(machine, &format!("link set {} mtu {mtu}", self.name));
    }

    /// Cuts the wire at the switch, or mends it.
    pub fn carry(&self, state: &str) {
        ip(self.segment.lab.switch.init, &format!("link set {} {state}", self.port));
    }
}

/// The `n`th address of a prefix, with the prefix's length.
fn nth(prefix: &IpNet, n: u32) -> IpNet {
    let address = match prefix.network() {
        IpAddr::V4(base) => IpAddr::V4((u32::from(base) + n).into()),
        IpAddr::V6(base) => IpAddr::V6((u128::from(base) + u128::from(n)).into()),
    };
    IpNet::new(address, prefix.prefix_len()).expect("the length came from a valid prefix")
}
