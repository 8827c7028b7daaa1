//! What is new to this host rests before it is given: until the others have heard whose it is, they lead what is for it to who had it before.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;
use tokio::time::Instant;

/// The blocks of this host, and addresses that it had lent, with when all have heard that they are its own.
#[derive(Default)]
pub struct Resting {
    blocks: BTreeMap<IpNet, Instant>,
    back: HashMap<IpAddr, Instant>,
}

impl Resting {
    /// All blocks that this host has, with when the others have heard of those that it did not have before; and addresses that came back to it,
    /// with the same.
    pub fn note(&mut self, mut blocks: BTreeMap<IpNet, Instant>, back: impl IntoIterator<Item = (IpAddr, Instant)>) {
        for (block, heard_at) in &mut blocks {
            *heard_at = self.blocks.get(block).copied().unwrap_or(*heard_at);
        }
        self.blocks = blocks;
        self.back.extend(back);
        self.back.retain(|_, heard_at| *heard_at > Instant::now());
    }

    /// When all other hosts have heard that the address is this host's to give.
    pub fn heard_at(&self, address: IpAddr) -> Option<Instant> {
        let blocks = self.blocks.iter().filter(|(block, _)| block.contains(&address)).map(|(_, heard_at)| heard_at);
        blocks.chain(self.back.get(&address)).max().copied()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_new_to_this_host_is_given_when_the_others_have_heard() {
        let mut resting = Resting::default();
        let (old, new): (IpNet, IpNet) = ("10.50.0.0/30".parse().unwrap(), "10.50.0.8/30".parse().unwrap());
        let returned: IpAddr = "10.50.0.2".parse().unwrap();
        let rest = Duration::from_secs(1);
        let hold = |resting: &mut Resting, blocks: &[IpNet], back: &[IpAddr]| {
            let soon = Instant::now() + rest;
            resting.note(blocks.iter().map(|block| (*block, soon)).collect(), back.iter().map(|address| (*address, soon)));
        };
        hold(&mut resting, &[old], &[]);
        tokio::time::advance(2 * rest).await;
        hold(&mut resting, &[old, new], &[returned]);
        let waits = |resting: &Resting, address: IpAddr| resting.heard_at(address).is_some_and(|at| at > Instant::now());
        assert!(waits(&resting, new.addr()) && waits(&resting, returned) && !waits(&resting, "10.50.0.1".parse().unwrap()));
        tokio::time::advance(rest).await;
        hold(&mut resting, &[old, new], &[]);
        assert!(!waits(&resting, new.addr()) && !waits(&resting, returned));
        hold(&mut resting, &[old], &[]);
        hold(&mut resting, &[old, new], &[]);
        assert!(waits(&resting, new.addr()), "it was another host's meanwhile");
    }
}
