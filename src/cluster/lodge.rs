//! Taking part in a network of which no block is free. The host is at home at one address that another lends, and its containers have such ones
//! too, until there is a block for it. On a segment it needs no address of its own.

use std::net::IpAddr;

use tracing::info;

use super::error::Error;
use super::record::{networks_key, unchanged};
use super::side::Side;
use super::{Cluster, contend};
use crate::store::Entry;

impl Cluster {
    /// What a host begins with that finds no block; none: a record that it relied on is another by now. Whoever calls is alone in writing.
    pub(super) async fn lodge(&self, sides: &[Side], at: usize, relied: &Entry) -> Result<Option<Side>, Error> {
        let mut side = sides[at].clone();
        if side.is_homeless() {
            let home = self.borrowing(side.subnet, self.borrow_home(&side)).await?;
            info!(subnet = %side.subnet, address = %home, "no block is free; this host is at home at an address that another lent");
            side.hold_borrowed(home);
        }
        let mut with = sides.to_vec();
        with[at] = side.clone();
        let action = format!("take part in the network of {} without a block", side.subnet);
        let tell = || async {
            let ops = [unchanged(networks_key(), Some(relied))].into_iter().chain(self.tell_held(&with)).collect();
            self.commit_relying(ops).await.map_err(Error::store(&action))
        };
        Ok(contend(&action, tell).await?.map(|()| side))
    }

    async fn borrow_home(&self, side: &Side) -> Result<IpAddr, Error> {
        let lent = self.ask_around(side, || self.granted(side)).await?;
        lent.map_err(|said| Error::NoneToLodge { subnet: side.subnet, said })
    }
}
