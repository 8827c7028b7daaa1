//! The options of a macvlan network, under Docker's names and short ones.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use crate::drivers::attach::Attach;
use crate::drivers::options::{OptionError, Options};
use crate::model::{HostLink, IfName, Link, LinkKind, Mac, MacvlanMode, Network, Pool};

/// A macvlan network as its options describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    pub parent: IfName,
    /// The parent, where it is to be made with the network and to go with it.
    pub made: Option<Link>,
    /// What the parent was when the network was made.
    pub found: HostLink,
    pub mode: MacvlanMode,
    /// From whom containers take frames, in mode source.
    pub sources: Vec<Mac>,
    /// Bytes; none: the parent's.
    pub mtu: Option<u32>,
    pub internal: bool,
    /// The host and its containers reach each other.
    pub host_access: bool,
    /// Containers heed router advertisements.
    pub slaac: bool,
    /// Look for strangers that have a container's address.
    pub probe: bool,
    pub pools: Vec<Pool>,
    /// The parts of the subnets that containers have their addresses of, where hosts may share those.
    pub ranges: Option<Vec<IpNet>>,
    pub attach: Attach,
}

/// Whom containers hear in mode source: MACs joined by `,`.
const SOURCES: &str = "source_macs";

const MODES: &[(&str, MacvlanMode)] = &[
    ("bridge", MacvlanMode::Bridge),
    ("vepa", MacvlanMode::Vepa),
    ("private", MacvlanMode::Private),
    ("passthru", MacvlanMode::Passthru),
    ("source", MacvlanMode::Source),
];

/// The parent, and the link whose VLAN it would be.
pub fn host_links(options: &BTreeMap<String, String>) -> Vec<IfName> {
    let parent: Option<IfName> = options.get("parent").and_then(|name| name.parse().ok());
    let trunk = parent.as_ref().and_then(vlan).map(|(trunk, _)| trunk);
    parent.into_iter().chain(trunk).collect()
}

/// `eth0.10` as (eth0, 10), whether or not 802.1Q has that number.
fn vlan(name: &IfName) -> Option<(IfName, u16)> {
    let (trunk, id) = name.as_str().rsplit_once('.')?;
    Some((trunk.parse().ok()?, id.parse().ok()?))
}

impl Spec {
    pub fn parse(network: &Network, mut options: Options) -> Result<Self, OptionError> {
        let o = &mut options;
        let given: Option<IfName> = o.value(&["parent"], "the name of a link of the host, eth0");
        let mode = o.choice(&["macvlan_mode"], MODES).unwrap_or(MacvlanMode::Bridge);
        let (parent, made, found) = parent(network, given, o);
        let spec = Spec {
            parent,
            made,
            mode,
            sources: sources(mode, o),
            mtu: o.mtu(network),
            internal: network.internal,
            host_access: host_access(mode, o),
            slaac: slaac(network, o),
            probe: o.flag(&["probe"]).unwrap_or(true),
            pools: network.pools.clone(),
            // a segment of its own on this host has no other hosts; nor has one without addresses anything to share
            ranges: network.ranges.clone().filter(|ranges| network.options.contains_key("parent") && !ranges.is_empty()),
            attach: Attach::parse(network, o),
            found,
        };
        options.finish()?;
        Ok(spec)
    }
}

/// The parent's name, the parent itself if it is to be made, and what it is.
fn parent(network: &Network, given: Option<IfName>, options: &mut Options) -> (IfName, Option<Link>, HostLink) {
    let alias = format!("rsnet:{}", network.id);
    let Some(name) = given else {
        if !network.internal {
            options.refuse(
                "option parent is missing; give the link of the host that containers share, -o parent=eth0, or --internal for a segment of \
                 its own on this host",
            );
        }
        let name = IfName::of("rsp-", network.id.as_str());
        return (name.clone(), Some(Link { name, alias, kind: LinkKind::Dummy, mac: None, mtu: None }), HostLink::default());
    };
    let trunk = vlan(&name).and_then(|(trunk, id)| Some((network.host_links.get(&trunk)?.clone(), trunk, id)));
    let (made, found) = match (network.host_links.get(&name), trunk) {
        (Some(found), _) => (None, found.clone()),
        (None, Some((_, trunk, id @ (0 | 4095..)))) => {
            options.refuse(format!("parent {name} does not exist, and {trunk} can have no VLAN {id}: they are 1 to 4094"));
            (None, HostLink::default())
        }
        (None, Some((found, trunk, id))) => {
            let kind = LinkKind::Vlan { parent: trunk, id };
            // children, a bridge and addresses of the trunk are about frames without a tag
            let found = HostLink { refusal: None, addresses: Vec::new(), ..found };
            (Some(Link { name: name.clone(), alias, kind, mac: None, mtu: None }), found)
        }
        (None, None) => {
            options.refuse(format!("parent {name} does not exist on this host; `ip link` shows those that do"));
            (None, HostLink::default())
        }
    };
    refuse_unfit(&name, &found, options);
    (name, made, found)
}

fn refuse_unfit(name: &IfName, found: &HostLink, options: &mut Options) {
    if found.wireless {
        options.refuse(format!(
            "parent {name} is Wi-Fi: an access point takes frames from the MAC it knows only, so no container would reach anything; \
             use mode bridge, or a wired link"
        ));
    } else if let Some(refusal) = &found.refusal {
        options.refuse(format!("parent {name} takes no macvlan: {refusal}"));
    }
    if let Some(other) = &found.made_for {
        options.refuse(format!(
            "parent {name} was made by rsnet for network {other} and goes with it; make it yourself to share it: ip link add"
        ));
    }
}

fn sources(mode: MacvlanMode, options: &mut Options) -> Vec<Mac> {
    let sources = options.read(&[SOURCES], "MAC addresses joined by \",\"", macs);
    match (mode, &sources) {
        (MacvlanMode::Source, None) => {
            options.refuse(
                "option macvlan_mode=source needs source_macs, the MAC addresses that containers take frames from, joined by \",\"",
            );
        }
        (MacvlanMode::Source, Some(_)) | (_, None) => {}
        (_, Some(_)) => options.refuse("option source_macs is for macvlan_mode=source only; leave it out"),
    }
    sources.unwrap_or_default()
}

/// The options with another list of sources, and the list.
pub fn with_sources(
    options: &BTreeMap<String, String>,
    add: &[Mac],
    remove: &[Mac],
) -> Result<(BTreeMap<String, String>, Vec<Mac>), String> {
    let listed = options.get(SOURCES).and_then(|value| macs(value)).ok_or("the network is not of macvlan_mode=source: it has no list")?;
    if let Some(mac) = remove.iter().find(|mac| !listed.contains(mac)) {
        return Err(format!("MAC {mac} is not in the list ({})", join(&listed)));
    }
    let kept = listed.iter().filter(|mac| !remove.contains(mac));
    let changed: BTreeSet<Mac> = kept.chain(add).copied().collect();
    if changed.is_empty() {
        return Err("the last MAC stays: containers would hear nobody; add another one in the same command".to_owned());
    }
    let changed: Vec<Mac> = changed.into_iter().collect();
    let mut options = options.clone();
    options.insert(SOURCES.to_owned(), join(&changed));
    Ok((options, changed))
}

fn join(macs: &[Mac]) -> String {
    macs.iter().map(Mac::to_string).collect::<Vec<_>>().join(",")
}

fn macs(value: &str) -> Option<Vec<Mac>> {
    let mut macs: Vec<Mac> = value.split(',').map(|mac| mac.trim().parse().ok()).collect::<Option<_>>()?;
    macs.sort();
    macs.dedup();
    Some(macs)
}

fn host_access(mode: MacvlanMode, options: &mut Options) -> bool {
    let wanted = options.flag(&["host_access"]).unwrap_or(false);
    if wanted && mode != MacvlanMode::Bridge {
        options.refuse("option host_access=true needs macvlan_mode=bridge: in the other modes neighbours on a parent do not meet, and the host would be one");
    }
    wanted
}

fn slaac(network: &Network, options: &mut Options) -> bool {
    let wanted = options.flag(&["slaac"]).unwrap_or(false);
    if wanted && network.host_without_ipv6 {
        options.refuse("option slaac=true needs IPv6, which this host's kernel has not (ipv6.disable=1)");
    }
    wanted
}
