//! What others do to our table and to Docker's chains (`NFNLGRP_NFTABLES`), and to those of the old iptables, of which no event tells.

use std::io;
use std::time::Duration;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket, AsyncSocketExt, TokioSocket};
use nix::libc::ENOBUFS;
use tokio::sync::mpsc;
use tokio::time::interval;

use crate::model::Family;

use super::attribute::find_string;
use super::batch::{INET, NETDEV, message};
use super::docker;
use super::expression::nfproto;
use super::legacy;
use super::socket::{NFTABLES, READ, Reply, messages, prepare, reply};
use super::table::TABLE;

const NFNLGRP_NFTABLES: u32 = 7;
/// How often the sizes of the old tables are looked at: two small files and, where there are such tables, two calls.
const GLANCE: Duration = Duration::from_secs(1);

/// A socket that hears of every change from now on, in the network namespace of the calling thread.
pub fn subscribe() -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
    prepare(socket.socket_mut())?;
    socket.socket_ref().add_membership(NFNLGRP_NFTABLES)?;
    Ok(socket)
}

/// Wakes the receiver until it is dropped. `own` is the port of the socket whose changes are ours; `wary`: rules of others count as well.
pub async fn watch(socket: TokioSocket, own: u32, wary: impl Fn() -> bool, wake: mpsc::Sender<()>) -> io::Result<()> {
    let mut sizes = legacy::sizes();
    let mut glance = interval(GLANCE);
    loop {
        let mut datagram = Vec::with_capacity(READ);
        let received = tokio::select! {
            received = socket.recv(&mut datagram) => received,
            () = wake.closed() => return Ok(()),
            _ = glance.tick() => {
                let before = std::mem::replace(&mut sizes, legacy::sizes());
                if before != sizes {
                    let _ = wake.try_send(());
                }
                continue;
            }
        };
        let concerned = match received {
            Ok(_) => messages(&datagram).filter_map(|m| reply(&m)).any(|event| concerns(&event, own, wary())),
            // Events were lost; one of them may have concerned us.
            Err(error) if error.raw_os_error() == Some(ENOBUFS) => true,
            Err(error) => return Err(error),
        };
        if concerned {
            // A full channel already says it.
            let _ = wake.try_send(());
        }
    }
}

fn concerns(event: &Reply, own: u32, wary: bool) -> bool {
    if event.subsystem != NFTABLES || event.port == own {
        return false;
    }
    // The table's name is attribute 1 of every object.
    let of_ip = Family::BOTH.map(nfproto).contains(&event.family);
    match find_string(&event.attributes, 1) {
        Some(TABLE) => [INET, NETDEV].contains(&event.family),
        Some(docker::TABLE) if of_ip => chain(event).is_none_or(docker::depends_on),
        // a bridge came or went; each published port is a rule, which is of no matter
        Some(docker::NATIVE) if of_ip => !is_rule(event) && chain(event).is_none_or(|chain| docker::bridge_of(chain).is_some()),
        Some(table) => wary && filters(event, table, of_ip),
        None => false,
    }
}

/// Whether it may begin or cease to drop what is forwarded: chains and rules of others, iptables' other tables and our own traces apart.
fn filters(event: &Reply, table: &str, of_ip: bool) -> bool {
    let of_forwarding = of_ip || event.family == INET;
    let elsewhere = of_ip && ["nat", "mangle", "raw", "security"].contains(&table);
    of_forwarding && chain(event) != Some("") && !elsewhere && !table.starts_with("rsnet-")
}

fn is_rule(event: &Reply) -> bool {
    [message::NEWRULE, message::DELRULE].contains(&event.kind)
}

/// The chain that an event is about; none for a table.
fn chain(event: &Reply) -> Option<&str> {
    match event.kind {
        message::NEWCHAIN | message::DELCHAIN => find_string(&event.attributes, 3),
        message::NEWRULE | message::DELRULE => find_string(&event.attributes, 2),
        message::DELTABLE => None,
        _ => Some(""),
    }
}
