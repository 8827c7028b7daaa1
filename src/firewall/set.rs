//! The sets and maps of the tables: what each is called, what is looked up in it, what it leads to, and how a rule asks it.

use crate::model::Family;

use super::batch::Table;
use super::expression::{Expression, Field, NEXT_HOP, WAY_OUT, load, lookup, register};

/// The sets and maps of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Set {
    Segments,
    Hairpin,
    Inner,
    Internal,
    /// Bridges of Docker's.
    Foreign,
    Trusted,
    Enter,
    Masquerade,
    SourceNat(Family),
    /// One port of one address of the host.
    Publish(Family),
    /// One port of every address of the host.
    PublishAny(Family),
    /// Ports that keep their number.
    PublishRange(Family),
    Open(Family),
    /// Numbers of tunnels.
    Tunnels,
    /// Who may send to them.
    Members(Family),
    /// Both addresses in one subnet.
    InnerSubnets(Family),
    /// From whose addresses packets may come in by any link.
    DirectSubnets(Family),
    InternalSubnets(Family),
    EnterSubnets(Family),
    MasqueradeSubnets(Family),
    /// From here on of the table `netdev rsnet` (`fast`). Ports of containers with their source.
    FastPorts(Family),
    /// The port of a container of this host.
    FastHere(Family),
    /// What comes from containers of this host. Not the ports lead to their networks' chains: the kernel looks through all maps of verdicts for
    /// each element that comes to one (`nf_tables_validate`), and a container's start costs what it changes.
    FastSubnets(Family),
    /// Addresses of other hosts' containers: what comes from them.
    FastFrom(Family),
    /// What goes to them.
    FastTo(Family),
    /// The next hop to them.
    FastVia(Family),
    /// No set: the chains of single networks.
    Branches,
    /// No set: the links at whose ingress the chains are.
    Hooks,
}

/// What a map leads to.
pub enum Data {
    /// It is a set.
    None,
    Verdict,
    Fields(Vec<Field>),
}

impl Set {
    pub fn all() -> impl Iterator<Item = Set> {
        let links = [Set::Segments, Set::Hairpin, Set::Inner, Set::Internal, Set::Foreign, Set::Trusted, Set::Enter, Set::Masquerade];
        let twofold = [Set::SourceNat, Set::Publish, Set::PublishAny, Set::PublishRange, Set::Open, Set::Members];
        let twofold = twofold.into_iter().flat_map(|set| Family::BOTH.map(set));
        links.into_iter().chain([Set::Tunnels]).chain(twofold).chain(Set::of_subnets())
    }

    /// Those of networks without a bridge.
    pub fn of_subnets() -> impl Iterator<Item = Set> {
        let twofold = [Set::InnerSubnets, Set::DirectSubnets, Set::InternalSubnets, Set::EnterSubnets, Set::MasqueradeSubnets];
        twofold.into_iter().flat_map(|set| Family::BOTH.map(set))
    }

    /// Those of the table `netdev rsnet`.
    pub fn fast() -> impl Iterator<Item = Set> {
        let twofold = [Set::FastPorts, Set::FastSubnets, Set::FastHere, Set::FastFrom, Set::FastTo, Set::FastVia];
        twofold.into_iter().flat_map(|set| Family::BOTH.map(set))
    }

    pub fn is_fast(self) -> bool {
        self.is_no_set() || Set::fast().any(|fast| fast == self)
    }

    /// Whether its elements stand elsewhere in the table.
    pub fn is_no_set(self) -> bool {
        matches!(self, Set::Hooks | Set::Branches)
    }

    pub fn table(self) -> Table {
        if self.is_fast() { Table::Netdev } else { Table::Inet }
    }

    pub fn name(self) -> &'static str {
        match self {
            Set::Segments => "segments",
            Set::Hairpin => "hairpin",
            Set::Inner => "inner",
            Set::Internal => "internal",
            Set::Foreign => "foreign",
            Set::Trusted => "trusted",
            Set::Enter => "enter",
            Set::Masquerade => "masquerade",
            Set::SourceNat(f) => of(f, ["snat4", "snat6"]),
            Set::Publish(f) => of(f, ["publish4", "publish6"]),
            Set::PublishAny(f) => of(f, ["publish4_any", "publish6_any"]),
            Set::PublishRange(f) => of(f, ["publish4_range", "publish6_range"]),
            Set::Open(f) => of(f, ["open4", "open6"]),
            Set::Tunnels => "tunnels",
            Set::Members(f) => of(f, ["members4", "members6"]),
            Set::InnerSubnets(f) => of(f, ["inner4", "inner6"]),
            Set::DirectSubnets(f) => of(f, ["direct4", "direct6"]),
            Set::InternalSubnets(f) => of(f, ["internal4", "internal6"]),
            Set::EnterSubnets(f) => of(f, ["enter4", "enter6"]),
            Set::MasqueradeSubnets(f) => of(f, ["masquerade4", "masquerade6"]),
            Set::FastPorts(f) => of(f, ["ports4", "ports6"]),
            Set::FastHere(f) => of(f, ["here4", "here6"]),
            Set::FastSubnets(f) => of(f, ["subnets4", "subnets6"]),
            Set::FastFrom(f) => of(f, ["from4", "from6"]),
            Set::FastTo(f) => of(f, ["to4", "to6"]),
            Set::FastVia(f) => of(f, ["via4", "via6"]),
            Set::Branches => "branches",
            Set::Hooks => "hooks",
        }
    }

    /// What is looked up in it.
    pub fn key(self) -> Vec<Field> {
        match self {
            Set::Segments | Set::Internal | Set::Foreign | Set::Hooks | Set::Branches | Set::SourceNat(_) => vec![Field::Iifname],
            Set::Hairpin | Set::Inner | Set::Trusted => vec![Field::Iifname, Field::Oifname],
            Set::Enter => vec![Field::Nfproto, Field::Oifname],
            Set::Masquerade => vec![Field::Nfproto, Field::Iifname],
            Set::Publish(f) | Set::PublishRange(f) | Set::Open(f) => vec![Field::Destination(f), Field::L4proto, Field::Port],
            Set::PublishAny(_) => vec![Field::L4proto, Field::Port],
            Set::Tunnels => vec![Field::Port, Field::Vni],
            Set::Members(f) => vec![Field::Source(f), Field::Port, Field::Vni],
            Set::InnerSubnets(f) => vec![Field::Source(f), Field::Destination(f)],
            // the family stands before the address: the kernel has ranges with both ends in one element only for keys of several fields
            Set::DirectSubnets(f) | Set::InternalSubnets(f) | Set::MasqueradeSubnets(f) => vec![Field::Nfproto, Field::Source(f)],
            Set::EnterSubnets(f) => vec![Field::Nfproto, Field::Destination(f)],
            Set::FastPorts(f) => vec![Field::Index, Field::Source(f)],
            // ranges of one field: the kernel looks into them at a fraction of what it takes for several
            Set::FastSubnets(f) | Set::FastFrom(f) => vec![Field::Source(f)],
            Set::FastHere(f) | Set::FastTo(f) | Set::FastVia(f) => vec![Field::Destination(f)],
        }
    }

    pub fn data(self) -> Data {
        match self {
            Set::Enter | Set::EnterSubnets(_) | Set::FastSubnets(_) | Set::FastFrom(_) | Set::FastTo(_) => Data::Verdict,
            Set::SourceNat(f) | Set::PublishRange(f) | Set::FastVia(f) => Data::Fields(vec![Field::Destination(f)]),
            Set::Publish(f) | Set::PublishAny(f) => Data::Fields(vec![Field::Destination(f), Field::Port]),
            Set::FastHere(_) => Data::Fields(vec![Field::Index]),
            _ => Data::None,
        }
    }

    /// Whether its elements have a lower and an upper end.
    pub fn has_ranges(self) -> bool {
        matches!(self, Set::PublishRange(_) | Set::Open(_) | Set::FastSubnets(_) | Set::FastFrom(_) | Set::FastTo(_) | Set::FastVia(_))
            || Set::of_subnets().any(|subnets| subnets == self)
    }

    /// Whether the kernel has a range as two elements: where it begins, and where it is over.
    pub fn has_split_ranges(self) -> bool {
        self.has_ranges() && self.key().len() == 1
    }

    /// A packet is in it.
    pub fn has(self) -> Vec<Expression> {
        self.has_by(&self.key())
    }

    /// These fields of a packet are in it, in the place of those of its key.
    pub fn has_by(self, fields: &[Field]) -> Vec<Expression> {
        load(fields).chain([lookup(self.name(), None)]).collect()
    }

    /// A packet is a key of the map, whose value is in the registers from word 0 on.
    pub fn maps(self) -> Vec<Expression> {
        self.leads_to(register(0))
    }

    /// The verdict that the map has for a packet; the rule goes by where there is none.
    pub fn decides(self) -> Vec<Expression> {
        self.leads_to(0)
    }

    /// The number of the link to a packet's way out is what the map has for it; it is kept for [`led_out`](super::expression::led_out).
    pub fn way_out(self) -> Vec<Expression> {
        self.leads_to(register(WAY_OUT))
    }

    /// So is the next hop.
    pub fn next_hop(self) -> Vec<Expression> {
        self.leads_to(register(NEXT_HOP))
    }

    fn leads_to(self, register: u32) -> Vec<Expression> {
        load(&self.key()).chain([lookup(self.name(), Some(register))]).collect()
    }
}

fn of<T>(family: Family, [v4, v6]: [T; 2]) -> T {
    match family {
        Family::V4 => v4,
        Family::V6 => v6,
    }
}
