//! Mode `none`: any number of networks whose containers have loopback only.

use super::options::Options;
use super::{Claim, Join, Mode, OptionError, PortRequest};
use crate::model::{Binding, Endpoint, Family, HostPort, Plan, Way};

pub struct Isolated;

impl Isolated {
    pub fn parse(options: Options) -> Result<Self, OptionError> {
        options.finish()?;
        Ok(Isolated)
    }
}

impl Mode for Isolated {
    fn network(&self) -> Plan {
        Plan::default()
    }

    fn endpoint(&self, _: &Endpoint) -> Plan {
        Plan::default()
    }

    fn join(&self, _: &Endpoint) -> Join {
        Join::default()
    }

    /// The engine names the sandbox's ports to whatever network it takes for the gateway; here there is nothing that they could lead to.
    fn publish(&self, _: &Endpoint, _: &[PortRequest]) -> Result<Vec<PortRequest>, String> {
        Ok(Vec::new())
    }

    fn host_ports(&self, _: &Endpoint, _: &Binding) -> Vec<HostPort> {
        Vec::new()
    }

    fn way(&self) -> Way {
        Way::Engine
    }

    fn claims(&self) -> Vec<Claim> {
        Vec::new()
    }

    fn without_gateway(&self) -> Vec<Family> {
        Family::BOTH.to_vec()
    }
}
