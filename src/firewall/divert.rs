//! A divert: in the network namespace of a container, what its processes send to one port of one address goes to another port instead.
//!
//! It is a table with an owner (`NFT_TABLE_F_OWNER`, Linux 5.12): the kernel removes it when the netlink socket that made it is closed,
//! however that comes about. So nothing is left to be undone after a crash, and nothing is ever read back. It is asked before Docker's own
//! rules (-110 before -100), and a packet that carries the mark goes by to those.

use std::io;
use std::net::SocketAddrV4;

use nix::libc;

use crate::model::{Family, Protocol};

use super::FirewallError;
use super::attribute::{nest, number, string};
use super::batch::{Operation, message, operation};
use super::expression::{Expression, Field, begins, dnat, expressions, load_value, marked_otherwise, nfproto};
use super::socket::{Refused, Socket};

const TABLE: &str = "rsnet-names";
const CHAIN: &str = "output";

const OWNER: u32 = 2;
const OUTPUT: u32 = 3;
const PRIORITY: i32 = -110;
const ACCEPT_POLICY: u32 = 1;
const NLM_F_EXCL: u16 = 0x200;

/// What is to be led where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Diverted {
    pub from: SocketAddrV4,
    /// The ports of the same address that get it instead.
    pub udp: u16,
    pub tcp: u16,
    /// Packets with this mark are led nowhere.
    pub unless_marked: u32,
}

/// Stands for as long as this value lives. Dropping it blocks for a grace period of the kernel, 15 ms and more.
pub struct Divert(#[allow(dead_code, reason = "the table goes with the socket")] Socket);

impl Divert {
    /// Makes it in the network namespace of the calling thread. `Unsupported`: the kernel knows no tables with an owner.
    pub fn open(wanted: &Diverted) -> Result<Self, FirewallError> {
        let failed = |operation, cause| FirewallError { operation, object: format!("table ip {TABLE}"), cause };
        let socket = Socket::open().map_err(|cause| failed("open a socket for", cause))?;
        match socket.commit(&operations(wanted)) {
            Ok(()) => Ok(Divert(socket)),
            Err(refused) => Err(failed("create", explained(refused))),
        }
    }
}

/// What a kernel says that does not know the flag: EINVAL up to 5.11, EOPNOTSUPP of a later one that lacks it.
fn explained(Refused { operation, cause }: Refused) -> io::Error {
    let unknown = operation == Some(0) && matches!(cause.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP));
    if unknown { io::Error::new(io::ErrorKind::Unsupported, "the kernel has no nftables tables with an owner (Linux 5.12)") } else { cause }
}

fn operations(wanted: &Diverted) -> Vec<Operation> {
    let family = nfproto(Family::V4);
    let mut table = operation("create", "table", family, message::NEWTABLE, vec![string(1, TABLE), number(2, OWNER)]);
    // somebody else's of this name is not ours to change
    table.message.flags |= NLM_F_EXCL;
    let hook = nest(4, [number(1, OUTPUT), number(2, PRIORITY.cast_unsigned())]);
    let chain = vec![string(1, TABLE), string(3, CHAIN), hook, number(5, ACCEPT_POLICY), string(7, "nat")];
    let chain = operation("create", "chain", family, message::NEWCHAIN, chain);
    let rules = [(Protocol::Udp, wanted.udp), (Protocol::Tcp, wanted.tcp)].map(|(protocol, to)| {
        let attributes = vec![string(1, TABLE), string(2, CHAIN), expressions(rule(wanted, protocol, to))];
        operation("add a rule to", "chain", family, message::NEWRULE, attributes)
    });
    [table, chain].into_iter().chain(rules).collect()
}

fn rule(wanted: &Diverted, protocol: Protocol, to: u16) -> Vec<Vec<Expression>> {
    let address = wanted.from.ip().octets();
    vec![
        begins(Field::Destination(Family::V4), &address),
        begins(Field::L4proto, &[protocol.number()]),
        begins(Field::Port, &wanted.from.port().to_be_bytes()),
        marked_otherwise(wanted.unless_marked),
        vec![load_value(0, &address), load_value(1, &to.to_be_bytes())],
        dnat(Family::V4, true),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_kernel_that_does_not_know_the_flag_is_one_that_cannot() {
        let kind = |operation, number| explained(Refused { operation, cause: io::Error::from_raw_os_error(number) }).kind();
        assert_eq!(kind(Some(0), libc::EINVAL), io::ErrorKind::Unsupported);
        assert_eq!(kind(Some(0), libc::EOPNOTSUPP), io::ErrorKind::Unsupported);
        for (operation, number) in [(Some(1), libc::EINVAL), (None, libc::EINVAL), (Some(0), libc::EEXIST), (Some(0), libc::EPERM)] {
            assert_eq!(kind(operation, number), io::Error::from_raw_os_error(number).kind());
        }
    }
}
