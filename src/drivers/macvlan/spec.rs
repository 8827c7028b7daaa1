//! The options of a macvlan network, under Docker's names and short ones.

use crate::drivers::attach::Attach;
use crate::drivers::options::{OptionError, Options};
use crate::model::{IfName, Mac, MacvlanMode, Network, Pool};

/// A macvlan network as its options describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    pub parent: IfName,
    pub mode: MacvlanMode,
    /// From whom containers take frames, in mode source.
    pub sources: Vec<Mac>,
    /// Bytes; none: the parent's.
    pub mtu: Option<u32>,
    pub internal: bool,
    pub pools: Vec<Pool>,
    pub attach: Attach,
}

const MODES: &[(&str, MacvlanMode)] = &[
    ("bridge", MacvlanMode::Bridge),
    ("vepa", MacvlanMode::Vepa),
    ("private", MacvlanMode::Private),
    ("passthru", MacvlanMode::Passthru),
    ("source", MacvlanMode::Source),
];

impl Spec {
    pub fn parse(network: &Network, mut options: Options) -> Result<Self, OptionError> {
        let o = &mut options;
        let parent = o.value(&["parent"], "the name of a link of the host, eth0");
        let mode = o.choice(&["macvlan_mode"], MODES).unwrap_or(MacvlanMode::Bridge);
        let sources = o.read(&["source_macs"], "MAC addresses joined by \",\"", macs);
        if mode == MacvlanMode::Source && sources.is_none() {
            o.refuse("option macvlan_mode=source needs source_macs, the MAC addresses that containers take frames from, joined by \",\"");
        }
        if mode != MacvlanMode::Source && sources.is_some() {
            o.refuse("option source_macs is for macvlan_mode=source only; leave it out");
        }
        if parent.is_none() {
            o.refuse("option parent is missing; give the link of the host that containers share, -o parent=eth0");
        }
        let spec = parent.map(|parent| Spec {
            parent,
            mode,
            sources: sources.unwrap_or_default(),
            mtu: mtu(network, o),
            internal: network.internal,
            pools: network.pools.clone(),
            attach: Attach::parse(network, o),
        });
        options.finish()?;
        spec.ok_or_else(OptionError::default)
    }
}

fn macs(value: &str) -> Option<Vec<Mac>> {
    let mut macs: Vec<Mac> = value.split(',').map(|mac| mac.trim().parse().ok()).collect::<Option<_>>()?;
    macs.sort();
    macs.dedup();
    Some(macs)
}

fn mtu(network: &Network, options: &mut Options) -> Option<u32> {
    let least = if network.ipv6 { 1280 } else { 68 };
    let expected = format!("{least} to 65535 bytes");
    let valid = |value: &str| value.parse().ok().filter(|mtu| *mtu == 0 || (least..=65535).contains(mtu));
    options.read(&["com.docker.network.driver.mtu", "mtu"], &expected, valid).filter(|&mtu| mtu != 0)
}
