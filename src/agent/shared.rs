//! Networks that hosts share: what this host agrees on with the others, and what it hears of them.
//!
//! Nothing of it is on the way of a container's start. An address comes from this host's own blocks; what the others do reaches the host as
//! a new plan of the network.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tracing::{info, warn};

use super::state::{Live, declare_network};
use super::{Agent, Error};
use crate::cluster::Wanted;
use crate::drivers::{self, Mode};
use crate::model::{Agreement, Network, NetworkId, Share};

/// How often a host whose blocks are short asks for one more.
const AGAIN: Duration = Duration::from_secs(10);

impl Agent {
    /// Agrees with the other hosts on a network that is to be made here.
    pub(super) async fn share(&self, network: Network, mode: Arc<dyn Mode>) -> Result<(Network, Arc<dyn Mode>), Error> {
        let Some(agreement) = mode.agreement() else { return Ok((network, mode)) };
        let wanted = Wanted { agreement, foreign_vnis: self.kernel.surroundings().await?.vnis };
        let network = Network { share: Some(self.cluster.join(&wanted).await?), ..network };
        self.confine(&network).await;
        let mode = drivers::open(&network)?.into();
        Ok((network, mode))
    }

    /// Follows what the others do until the process ends.
    pub async fn follow(&self) {
        let mut views = self.cluster.views();
        loop {
            let view = views.borrow_and_update().clone();
            for (id, share) in self.stale(|agreement| view.share(&agreement.subnets)) {
                if let Err(error) = self.hear(&id, share).await {
                    warn!(network = %self.names.show(&id), %error, "what other hosts did could not be followed whole; trying again");
                    self.reconciler.look_again();
                }
            }
            tokio::select! {
                changed = views.changed() => if changed.is_err() { return },
                () = self.short.notified() => self.grow().await,
            }
        }
    }

    /// The networks of which `heard` tells something new.
    fn stale(&self, heard: impl Fn(&Agreement) -> Option<Share>) -> Vec<(NetworkId, Share)> {
        let state = self.state();
        let stale = state.networks.values().filter_map(|live| {
            let share = heard(&live.mode.agreement()?)?;
            (live.network.share.as_ref() != Some(&share)).then(|| (live.network.id.clone(), share))
        });
        stale.collect()
    }

    /// Makes what is heard of a network so. There is no way back to what was: it is not true any more.
    async fn hear(&self, id: &NetworkId, share: Share) -> Result<(), Error> {
        let _held = self.locks.hold(id.as_str()).await;
        let network = Network { share: Some(share), ..self.network(id)? };
        let mode: Arc<dyn Mode> = drivers::open(&network)?.into();
        self.confine(&network).await;
        let (kept, made) = self.make(declare_network(id, Some((&network, &*mode)))).await;
        for endpoint in self.replace(network, mode) {
            self.renew(id, &endpoint).await?;
        }
        kept.and(made.map_err(Error::from))
    }

    /// Lets containers have addresses of this host's blocks only.
    pub(super) async fn confine(&self, network: &Network) {
        self.addressing.lock().await.confine(network);
    }

    /// Leaves what no network here is a part of any more.
    pub(super) async fn leave_unused(&self) {
        let _creating = self.locks.hold("create").await;
        let used: Vec<Vec<IpNet>> = {
            let state = self.state();
            state.networks.values().filter_map(|live| live.mode.agreement()).map(|agreement| agreement.subnets).collect()
        };
        for subnets in self.cluster.joined().into_iter().filter(|subnets| !used.contains(subnets)) {
            self.cluster.leave(&subnets).await;
        }
    }

    /// Takes an address that a user chose and that is not in this host's blocks.
    pub(super) async fn claim(&self, subnet: IpNet, address: IpAddr) -> Result<(), Error> {
        if !self.is_shared(subnet) || self.addressing.lock().await.covers(subnet, address) {
            return Ok(());
        }
        self.cluster.claim(subnet, address).await?;
        self.hear_of(subnet).await
    }

    /// One more block for each pool that is more than half used.
    async fn grow(&self) {
        let short = self.addressing.lock().await.short();
        for subnet in short.into_iter().filter(|subnet| self.is_shared(*subnet)) {
            match self.cluster.grow(subnet).await {
                Ok(block) => info!(%subnet, %block, "this host has one more block of addresses"),
                Err(error) => warn!(%subnet, %error, "no block of addresses ahead; trying again in {} s or more", AGAIN.as_secs()),
            }
        }
    }

    /// Takes in at once what this host itself changed.
    async fn hear_of(&self, subnet: IpNet) -> Result<(), Error> {
        let view = self.cluster.views().borrow().clone();
        for (id, share) in self.stale(|agreement| agreement.subnets.contains(&subnet).then(|| view.share(&agreement.subnets)).flatten()) {
            self.hear(&id, share).await?;
        }
        Ok(())
    }

    /// Gives an address back that was claimed alone.
    pub(super) async fn give_back(&self, subnet: IpNet, address: IpAddr) {
        let alone = |live: &Live| {
            let mine = live.network.share.as_ref().map(|share| &share.mine);
            mine.is_some_and(|mine| mine.blocks.contains(&IpNet::from(address)))
        };
        let alone = self.state().networks.values().any(alone);
        if alone {
            self.cluster.release(subnet, address).await;
        }
    }

    fn is_shared(&self, subnet: IpNet) -> bool {
        let state = self.state();
        state.networks.values().filter_map(|live| live.mode.agreement()).any(|agreement| agreement.subnets.contains(&subnet))
    }
}
