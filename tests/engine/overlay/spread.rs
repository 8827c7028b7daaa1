//! Networks that appear by themselves.

use super::{Cluster, NETWORK};
use crate::lab::{Engine, Host, PATIENCE, wait_until};
use crate::traffic::{Place, addresses, icmp, reaches_all, run};

const ON: &str = "RSNET_SPREAD=on";
/// All that a user gives.
const GIVEN: &str = "{{json .Options}} {{json .Labels}} {{json .IPAM}} {{.Internal}} {{.EnableIPv6}} {{.Attachable}} {{.Driver}}";

fn inspected(host: &Host, network: &str, format: &str) -> Option<String> {
    let seen = host.docker(&format!("network inspect -f '{format}' {network}"));
    seen.succeeded().then(|| seen.ok().trim().to_owned())
}

fn await_network(host: &Host, network: &str, there: bool) {
    wait_until(&format!("network {network} on {}: {there}", host.name), PATIENCE, || match inspected(host, network, "{{.ID}}") {
        id if id.is_some() == there => Ok(()),
        id => Err(format!("{id:?}")),
    });
}

pub fn a_network_of_one_host_appears_on_all_and_goes_when_nobody_uses_it(engine: Engine) {
    let cluster = Cluster::new(engine, 3, ON);
    let [h1, h2, h3] = &cluster.hosts[..] else { unreachable!() };
    h3.stop_rsnet();
    h1.docker(&format!("network create {NETWORK} --ipv6 --subnet 10.50.0.0/16 --subnet fd00:50::/64 --label team=red --attachable blue"))
        .ok();
    await_network(h2, "blue", true);
    assert_eq!(inspected(h2, "blue", GIVEN), inspected(h1, "blue", GIVEN));
    cluster.start_rsnet(h3, ON);
    await_network(h3, "blue", true);
    let all = cluster.run("blue", "");
    for n in 0..3 {
        reaches_all(cluster.place(n), &all.iter().flatten().copied().map(icmp).collect::<Vec<_>>());
    }

    // an engine cannot be kept from it; what others use comes back
    let ids = [h1, h2].map(|host| inspected(host, "blue", "{{.ID}}"));
    h3.docker("rm -f c3").ok();
    let before = inspected(h3, "blue", "{{.ID}}");
    h3.docker("network rm blue").ok();
    wait_until("blue on h3 again", PATIENCE, || match inspected(h3, "blue", "{{.ID}}") {
        id if id.is_some() && id != before => Ok(()),
        id => Err(format!("{id:?}")),
    });
    assert_eq!([h1, h2].map(|host| inspected(host, "blue", "{{.ID}}")), ids, "where it is in use nothing happened");
    let told = std::fs::read_to_string(h3.log("rsnet")).unwrap();
    assert!(told.contains("it was removed while host h") && told.contains("(containers c"), "{told}");
    run(h3, "c3", "--network blue");
    let there = addresses(h3, "c3", "blue");
    reaches_all(Place::Container(h1, "c1"), &there.into_iter().map(icmp).collect::<Vec<_>>());

    // a host that is away hears of it when it is back
    for (n, host) in cluster.hosts.iter().enumerate() {
        host.docker(&format!("rm -f c{}", n + 1)).ok();
    }
    h3.stop_rsnet();
    h1.docker("network rm blue").ok();
    await_network(h2, "blue", false);
    cluster.start_rsnet(h3, ON);
    await_network(h3, "blue", false);
    assert!(inspected(h1, "blue", "{{.ID}}").is_none());
}

pub fn a_name_that_another_network_has_is_told_and_left_alone(engine: Engine) {
    let cluster = Cluster::new(engine, 2, ON);
    let [h1, h2] = &cluster.hosts[..] else { unreachable!() };
    h2.docker("network create green").ok();
    let before = inspected(h2, "green", "{{.ID}}");
    h1.docker(&format!("network create {NETWORK} --subnet 10.60.0.0/16 green")).ok();
    let told = "network green: this host's network green is not rsnet's, unlike the one that host h1 made";
    wait_until("the clash to be told", PATIENCE, || match h2.sh("rsnet hosts") {
        seen if seen.ok().contains(told) => Ok(()),
        seen => Err(seen.to_string()),
    });
    h2.sh("rsnet networks --json").says("\"in_the_way\": \"this host's network green is not rsnet's");
    assert_eq!(inspected(h2, "green", "{{.ID}}"), before);
    h2.docker("network rm green").ok();
    wait_until("green to be h1's", PATIENCE, || match inspected(h2, "green", "{{.Driver}}") {
        Some(driver) if driver == "rsnet" => Ok(()),
        driver => Err(format!("{driver:?}")),
    });
}
