//! More hosts than a small subnet has blocks.

use std::net::IpAddr;

use serde_json::Value;

use super::Cluster;
use super::reach::home;
use crate::lab::{Engine, PATIENCE, wait_until};
use crate::traffic::{Place, Servers, addresses, icmp, reaches, reaches_all, run, serve, serve_at, tcp};

/// Of five hosts of a network that has four blocks of IPv4, the one that found none.
const LATE: usize = 4;

pub fn a_host_for_which_there_is_no_block_takes_part_all_the_same(engine: Engine) {
    let cluster = Cluster::new(engine, LATE + 1, "");
    for (n, transport) in ["vxlan", "auto"].into_iter().enumerate() {
        let network = Net { cluster: &cluster, subnet: format!("10.5{n}.0.0/28"), name: format!("net{n}") };
        cluster.create(&format!("--ipv6 --subnet {} --subnet fd5{n}::/64 -o transport={transport} {}", network.subnet, network.name));
        let all = cluster.run(&network.name, "-p 8080:7");
        run(&cluster.hosts[LATE], "d5", &format!("--network {}", network.name));
        let d5 = addresses(&cluster.hosts[LATE], "d5", &network.name);
        let single = network.lodges();
        {
            let _servers = network.servers();
            network.meets(&all, "c5", &all[LATE]);
            network.meets(&all, "d5", &d5);
            network.meets_the_world();
            network.outlives_its_daemon(&all, &d5);
        }
        assert_eq!(network.lodges(), single);
        network.leaves();
    }
}

struct Net<'c> {
    cluster: &'c Cluster,
    subnet: String,
    name: String,
}

impl Net<'_> {
    /// The address that the late host is at home at, a single one like all that it has of IPv4.
    fn lodges(&self) -> IpAddr {
        let like: IpAddr = [0, 0, 0, 0].into();
        let home = home(self.cluster, LATE, like);
        let told: Value = serde_json::from_str(self.cluster.hosts[LATE].sh(&format!("rsnet addresses {} --json", self.name)).ok()).unwrap();
        let mine = &told["hosts"][0];
        let blocks: Vec<&str> = mine["blocks"].as_array().unwrap().iter().filter_map(Value::as_str).filter(|b| b.contains('.')).collect();
        assert!(blocks.len() > 2 && blocks.iter().all(|block| block.ends_with("/32")), "{told}");
        assert!(
            blocks.contains(&format!("{home}/32").as_str()) && mine["own"].as_array().unwrap().contains(&home.to_string().into()),
            "{told}"
        );
        home
    }

    fn servers(&self) -> Vec<Servers> {
        let hosts = &self.cluster.hosts;
        let containers = hosts.iter().enumerate().map(|(n, host)| serve(host, &format!("c{}", n + 1), &[7]));
        let machines = hosts.iter().chain([&self.cluster.consul.machine]).map(|host| serve_at(Place::Machine(host), &[9]));
        containers.chain([serve(&hosts[LATE], "d5", &[7])]).chain(machines).collect()
    }

    /// A container of the late host, and that host, with those of all others, both ways; each sees the other's true address.
    fn meets(&self, all: &[Vec<IpAddr>], name: &str, own: &[IpAddr]) {
        let (cluster, late) = (self.cluster, &self.cluster.hosts[LATE]);
        let container = Place::Container(late, name);
        for (n, theirs) in all.iter().enumerate().take(LATE) {
            let host = Place::Machine(&cluster.hosts[n]);
            for (own, theirs) in own.iter().zip(theirs) {
                let (late_home, home) = (home(cluster, LATE, *own), home(cluster, n, *own));
                assert_eq!(reaches(container, tcp(*theirs, 7)), *own, "{name} to c{}", n + 1);
                assert_eq!(reaches(cluster.place(n), tcp(*own, 7)), *theirs, "c{} to {name}", n + 1);
                assert_eq!(reaches(host, tcp(*own, 7)), home, "h{} to {name}", n + 1);
                assert_eq!(reaches(container, tcp(home, 9)), *own, "{name} to h{}", n + 1);
                assert_eq!(reaches(Place::Machine(late), tcp(*theirs, 7)), late_home, "h5 to c{}", n + 1);
                assert_eq!(reaches(cluster.place(n), tcp(late_home, 9)), *theirs, "c{} to h5", n + 1);
                assert_eq!(reaches(host, tcp(late_home, 9)), home, "h{} to h5", n + 1);
            }
        }
    }

    fn meets_the_world(&self) {
        let station = &self.cluster.consul.machine;
        for (host, own) in self.cluster.hosts[LATE].addresses().into_iter().zip(station.addresses()) {
            assert_eq!(reaches(self.cluster.place(LATE), tcp(own, 9)), host, "c5 to the station is translated to its host");
            assert_eq!(reaches(Place::Machine(station), tcp(host, 8080)), own, "the station to what c5 publishes");
        }
    }

    fn outlives_its_daemon(&self, all: &[Vec<IpAddr>], d5: &[IpAddr]) {
        let late = &self.cluster.hosts[LATE];
        late.kill_rsnet();
        self.meets(&all[..1], "d5", d5);
        self.cluster.start_rsnet(late, "");
        run(late, "e5", &format!("--network {}", self.name));
        let e5: Vec<_> = addresses(late, "e5", &self.name).into_iter().map(icmp).collect();
        (0..=LATE).for_each(|n| reaches_all(self.cluster.place(n), &e5));
        self.meets(all, "d5", d5);
    }

    /// Its addresses are those of the hosts again that lent them: then there is room for nine containers, beside what is the subnet's, the
    /// gateway's and the four other hosts' own.
    fn leaves(&self) {
        let [first, others @ .., late] = &self.cluster.hosts[..] else { unreachable!("five hosts") };
        late.docker("rm -f c5 d5 e5").ok();
        late.docker(&format!("network rm {}", self.name)).ok();
        wait_until("what was lent to be back", PATIENCE, || {
            // what another host's container borrowed stays
            let below = format!("rsnet/cluster/block/{}", self.subnet.replace('/', "-"));
            let held = self.cluster.consul.sh(&format!("kv get -recurse {below}")).stdout;
            if held.contains("\"host\":\"h5\"") { Err(held) } else { Ok(()) }
        });
        let room = 16 - 3 - 2 * LATE;
        for n in 0..room {
            // a lender may be about to hear of it
            wait_until("one more container to run", PATIENCE, || {
                let seen = first.docker(&format!("run -d --init --name more{n} --network {} box sleep 1000", self.name));
                if seen.succeeded() { Ok(()) } else { Err(format!("{seen} {}", first.docker(&format!("rm -f more{n}")))) }
            });
        }
        first.docker(&format!("run --rm --network {} box true", self.name)).fails_with("no other lends one");
        for host in others.iter().chain([first]) {
            host.sh("docker rm -f $(docker ps -aq)").ok();
            host.docker(&format!("network rm {}", self.name)).ok();
        }
    }
}
