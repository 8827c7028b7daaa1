//! The real kernel, in network namespaces made for each test; `ip -j` is the second opinion.

#[path = "../lab/namespace.rs"]
#[allow(dead_code, reason = "others use the rest")]
mod namespace;
mod overlay;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use namespace::{become_a_host, eventually, run, sandbox};
use rsnet::kernel::{Change, Kernel, Netlink, NetlinkConfig, Whereabouts};
use rsnet::model::{
    Attachment, AttachmentKind, Family, HostPort, IfName, Key, Link, LinkKind, Mac, Macvlan, MacvlanMode, Object, Place, Port, PortRange,
    Protocol, Route, RouteKind, SandboxName, conf_path,
};
use serde_json::Value;

/// A host of its own: fresh network and mount namespaces for this thread, and a directory for its sandboxes.
struct Host {
    kernel: Netlink,
    directory: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        become_a_host();
        Host { kernel: Netlink::new(NetlinkConfig::default()).unwrap(), directory: tempfile::tempdir().unwrap() }
    }

    /// A namespace like those that the engine makes.
    fn sandbox(&self, name: &str) -> PathBuf {
        sandbox(self.directory.path(), name)
    }

    async fn put(&self, object: &Object) {
        self.kernel.put(object).await.unwrap();
    }

    /// Puts what is there already, and proves that nothing changed and the kernel had nothing to tell. Several times, since news of
    /// what was done before may come late (a carrier, a link-local address): a put that changes something is never quiet.
    async fn put_again(&self, object: &Object) {
        let mut news = Vec::new();
        for _ in 0..20 {
            let before = fingerprint();
            let monitor = Monitor::start(&self.directory.path().join("monitor"));
            self.put(object).await;
            news = monitor.news();
            if news.is_empty() && fingerprint() == before {
                return;
            }
        }
        panic!("a second put of {object:?} changed something: {news:#?}");
    }

    /// What stands where `wanted` is wanted.
    async fn observed(&self, wanted: &Object) -> Option<Object> {
        self.kernel.observe(std::slice::from_ref(wanted)).await.unwrap().into_iter().find(|object| object.key() == wanted.key())
    }
}

fn json(command: &str) -> Value {
    let text = run(command);
    serde_json::from_str(if text.trim().is_empty() { "[]" } else { &text }).unwrap()
}

fn inside(path: &Path, command: &str) -> String {
    format!("nsenter --net={} {command}", path.display())
}

fn fingerprint() -> String {
    let text = run("ip -o -d link show; ip -o addr show; ip route show table all; ip -6 route show table all");
    // Timers run, and the kernel tells carriers when it has time.
    let mut words: Vec<&str> = text.split_whitespace().collect();
    words.retain(|word| !word.contains('.') || word.parse::<f64>().is_err());
    words.retain(|word| !word.starts_with('<') && !["UP", "DOWN", "UNKNOWN", "linkdown"].contains(word));
    words.join(" ")
}

fn poll(what: &str, mut holds: impl FnMut() -> bool) {
    eventually(what, || holds().then_some(()));
}

/// `ip monitor` into a file. An address on `lo` that comes and goes tells that it has begun, and that it has told all.
struct Monitor {
    child: Child,
    file: PathBuf,
}

impl Monitor {
    fn start(file: &Path) -> Self {
        let output = std::fs::File::create(file).unwrap();
        let child = Command::new("ip").args(["-o", "monitor", "link", "address", "route", "neigh"]).stdout(output).spawn().unwrap();
        let monitor = Monitor { child, file: file.into() };
        monitor.fence("127.9.9.8");
        monitor
    }

    fn fence(&self, address: &str) {
        poll("ip monitor says nothing", || {
            run(&format!("ip addr add {address}/32 dev lo; ip addr del {address}/32 dev lo"));
            self.text().contains(address)
        });
    }

    fn text(&self) -> String {
        std::fs::read_to_string(&self.file).unwrap()
    }

    fn news(&self) -> Vec<String> {
        self.fence("127.9.9.9");
        self.text().lines().filter(|line| !line.contains("127.9.9.")).map(str::to_owned).collect()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn name(text: &str) -> IfName {
    text.parse().unwrap()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn mac(last: u8) -> Mac {
    Mac::local([0, 1, 2, 3, 4, last])
}

fn bridge() -> Link {
    Link {
        name: name("rsb-0123456789"),
        alias: "rsnet:0123456789abcdef".into(),
        kind: LinkKind::Bridge,
        mac: Some(mac(1)),
        mtu: Some(1400),
    }
}

fn here(id: &str) -> Attachment {
    let (host, peer) = (IfName::of("rsv-", id), IfName::of("rsc-", id));
    Attachment {
        host,
        alias: format!("rsnet:{id}"),
        kind: AttachmentKind::Veth { peer, router: None },
        mac: mac(7),
        mtu: Some(1400),
        place: Place::Host,
    }
}

fn in_sandbox(id: &str, last: u8, path: &Path) -> Attachment {
    let place = Place::Sandbox {
        path: path.into(),
        name: SandboxName::Prefix("net".into()),
        addresses: vec![net(&format!("10.9.0.{last}/24")), net(&format!("fd09::{last}/64"))],
        sysctls: vec![("net.ipv4.conf.IFNAME.log_martians".into(), "1".into())],
        gateways: vec![],
        routes: vec![],
    };
    Attachment { mac: mac(last), place, ..here(id) }
}

fn port(id: &str, isolated: bool) -> Port {
    Port { link: IfName::of("rsv-", id), bridge: bridge().name, isolated, hairpin: true }
}

fn route(destination: IpNet, kind: RouteKind) -> Object {
    Object::Route(Route { destination, link: bridge().name, kind })
}

fn address(text: &str) -> Object {
    Object::Address { link: bridge().name, address: net(text) }
}

fn is_up(link: &Value) -> bool {
    link["flags"].as_array().unwrap().contains(&"UP".into())
}

#[tokio::test]
async fn a_bridge_is_made_as_asked_and_made_once() {
    let host = Host::new();
    let wanted = Object::Link(bridge());
    host.put(&wanted).await;
    let shown = &json("ip -j -d link show rsb-0123456789")[0];
    assert_eq!(shown["linkinfo"]["info_kind"], "bridge");
    assert_eq!(shown["address"], mac(1).to_string());
    assert_eq!(shown["mtu"], 1400);
    assert_eq!(shown["ifalias"], "rsnet:0123456789abcdef");
    assert!(is_up(shown));
    assert_eq!(shown["linkinfo"]["info_data"]["stp_state"], 0);
    assert_eq!(shown["linkinfo"]["info_data"]["forward_delay"], 0);
    host.put_again(&wanted).await;
    assert_eq!(host.observed(&wanted).await, Some(wanted));
}

#[tokio::test]
async fn a_bridge_that_differs_is_altered_in_place() {
    let host = Host::new();
    host.put(&Object::Link(bridge())).await;
    let index = json("ip -j link show rsb-0123456789")[0]["ifindex"].clone();
    run("ip link set rsb-0123456789 down");
    let wanted = Object::Link(Link { mac: Some(mac(2)), mtu: Some(1300), ..bridge() });
    host.put(&wanted).await;
    let shown = &json("ip -j link show rsb-0123456789")[0];
    assert_eq!((&shown["ifindex"], &shown["mtu"]), (&index, &1300.into()));
    assert_eq!(shown["address"], mac(2).to_string());
    assert!(is_up(shown));
    assert_eq!(host.observed(&wanted).await, Some(wanted));
}

#[tokio::test]
async fn a_bridge_that_is_only_down_is_seen_as_different_and_brought_up() {
    let host = Host::new();
    let wanted = Object::Link(bridge());
    host.put(&wanted).await;
    run("ip link set rsb-0123456789 down");
    assert!(!wanted.is_met_by(&host.observed(&wanted).await.unwrap()));
    host.put(&wanted).await;
    assert_eq!(host.observed(&wanted).await, Some(wanted));
}

#[tokio::test]
async fn a_bridge_whose_maker_was_killed_before_it_set_the_alias_is_finished() {
    let host = Host::new();
    run("ip link add name rsb-0123456789 group 7500654 type bridge");
    let wanted = Object::Link(bridge());
    let seen = host.observed(&wanted).await.expect("it counts as ours");
    assert!(!wanted.is_met_by(&seen));
    host.put(&wanted).await;
    assert_eq!(host.observed(&wanted).await, Some(wanted));
}

#[tokio::test]
async fn foreign_links_are_not_touched() {
    let host = Host::new();
    run("ip link add rsb-0123456789 type bridge; ip link add br0 type bridge; ip link add rsv-aa type veth peer name x");
    run("ip link set br0 up; ip addr add 10.1.0.1/24 dev br0; ip route add 10.2.0.0/24 via 10.1.0.9; ip link set br0 alias 'not rsnet:'");
    let before = fingerprint();
    for object in [Object::Link(bridge()), Object::Attachment(here("aa"))] {
        let error = host.kernel.put(&object).await.unwrap_err();
        assert_eq!(error.cause.kind(), std::io::ErrorKind::AlreadyExists, "{error}");
        assert!(error.to_string().contains("is not rsnet's"), "{error}");
        host.kernel.delete(&object.key()).await.unwrap_err();
    }
    host.kernel.delete(&Key::Port(name("x"))).await.unwrap();
    assert_eq!(host.kernel.observe(&[]).await.unwrap(), []);
    assert_eq!(fingerprint(), before);
}

#[tokio::test]
async fn addresses_come_and_go_without_a_search_for_duplicates() {
    let host = Host::new();
    host.put(&Object::Link(bridge())).await;
    for (object, family) in [(address("10.9.0.1/24"), "inet"), (address("fd09::1/64"), "inet6")] {
        host.put(&object).await;
        let shown = json("ip -j addr show dev rsb-0123456789")[0]["addr_info"].clone();
        let of_family = |i: &&Value| i["family"] == family && i["scope"] == "global";
        let infos: Vec<&Value> = shown.as_array().unwrap().iter().filter(of_family).collect();
        assert_eq!(infos.len(), 1, "{shown}");
        assert_eq!(infos[0]["nodad"].as_bool().unwrap_or(false), family == "inet6", "{shown}");
        host.put_again(&object).await;
        assert_eq!(host.observed(&object).await.as_ref(), Some(&object));
        host.kernel.delete(&object.key()).await.unwrap();
        host.kernel.delete(&object.key()).await.unwrap();
        assert_eq!(host.observed(&object).await, None);
    }
}

#[tokio::test]
async fn a_route_carries_our_number_and_another_owner_s_is_left_alone() {
    let host = Host::new();
    host.put(&Object::Link(bridge())).await;
    run("ip link add x type veth peer name y; ip link set x up; ip link set y up; ip route add 10.7.0.0/24 dev x");
    for destination in ["10.8.0.0/24", "fd08::/64"] {
        let object = route(net(destination), RouteKind::Unicast { via: None, source: None });
        host.put(&object).await;
        let family = if destination.contains(':') { "-6" } else { "-4" };
        let shown = json(&format!("ip -j {family} route show proto 195"));
        assert_eq!((&shown[0]["dst"], &shown[0]["dev"]), (&destination.into(), &"rsb-0123456789".into()), "{shown}");
        host.put_again(&object).await;
        assert_eq!(host.observed(&object).await.as_ref(), Some(&object));
        host.kernel.delete(&object.key()).await.unwrap();
        host.kernel.delete(&object.key()).await.unwrap();
        assert_eq!(host.observed(&object).await, None);
    }
    let taken = route(net("10.7.0.0/24"), RouteKind::Unicast { via: None, source: None });
    host.kernel.put(&taken).await.unwrap_err();
    host.kernel.delete(&taken.key()).await.unwrap();
    assert_eq!(json("ip -j route show 10.7.0.0/24")[0]["dev"], "x");
}

#[tokio::test]
async fn loopback_can_be_local_on_two_bridges() {
    let host = Host::new();
    let second = Link { name: name("rsb-second"), alias: "rsnet:second".into(), ..bridge() };
    for link in [bridge(), second] {
        host.put(&Object::Link(link.clone())).await;
        let object = Object::Route(Route { destination: net("::1/128"), link: link.name.clone(), kind: RouteKind::Local });
        host.put(&object).await;
        host.put_again(&object).await;
        assert_eq!(host.observed(&object).await.as_ref(), Some(&object));
    }
    let shown = || run("ip -6 route show table local");
    assert!(shown().contains("::1 dev rsb-0123456789") && shown().contains("::1 dev rsb-second"), "{}", shown());
    host.kernel.delete(&Key::Route { destination: net("::1/128"), link: name("rsb-second") }).await.unwrap();
    assert!(shown().contains("::1 dev rsb-0123456789") && !shown().contains("::1 dev rsb-second"), "{}", shown());
    assert!(shown().contains("::1 dev lo"), "{}", shown());
}

#[tokio::test]
async fn sysctls_are_written_and_seen_where_they_are_wanted() {
    let host = Host::new();
    host.put(&Object::Link(bridge())).await;
    let link = Object::LinkSysctl { path: conf_path(Family::V4, &bridge().name, "route_localnet"), value: "1".into() };
    let whole = Object::HostSysctl { path: "ipv4/ip_forward".into(), value: "1".into() };
    for object in [link, whole] {
        assert!(!object.is_met_by(&host.observed(&object).await.unwrap()));
        host.put(&object).await;
        host.put_again(&object).await;
        assert_eq!(host.observed(&object).await.as_ref(), Some(&object));
        host.kernel.delete(&object.key()).await.unwrap();
    }
    assert_eq!(run("cat /proc/sys/net/ipv4/ip_forward").trim(), "1");
    assert_eq!(run("cat /proc/sys/net/ipv4/conf/rsb-0123456789/route_localnet").trim(), "1");
    let bad = Object::HostSysctl { path: "../kernel/hostname".into(), value: "x".into() };
    assert_eq!(host.kernel.put(&bad).await.unwrap_err().cause.kind(), std::io::ErrorKind::InvalidInput);
}

#[tokio::test]
async fn an_attachment_for_the_engine_waits_in_the_host_s_namespace() {
    let host = Host::new();
    let wanted = Object::Attachment(here("aa"));
    host.put(&wanted).await;
    let (end, peer) = (&json("ip -j link show rsv-aa")[0], &json("ip -j link show rsc-aa")[0]);
    assert_eq!((&end["mtu"], &end["ifalias"], &peer["mtu"]), (&1400.into(), &"rsnet:aa".into(), &1400.into()));
    assert_eq!(peer["address"], mac(7).to_string());
    assert!(is_up(end) && !is_up(peer));
    host.put_again(&wanted).await;
    assert!(wanted.is_met_by(&host.observed(&wanted).await.unwrap()));

    run("ip link set rsv-aa down mtu 1300");
    assert!(!wanted.is_met_by(&host.observed(&wanted).await.unwrap()));
    host.put(&wanted).await;
    assert!(wanted.is_met_by(&host.observed(&wanted).await.unwrap()));

    host.kernel.delete(&wanted.key()).await.unwrap();
    host.kernel.delete(&wanted.key()).await.unwrap();
    assert_eq!(json("ip -j link show").as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn an_attachment_in_a_sandbox_has_all_that_the_engine_would_have_set() {
    let host = Host::new();
    let sandbox = host.sandbox("s");
    run(&inside(&sandbox, "ip link add net0 type veth peer name other"));
    let mut wanted = in_sandbox("aa", 7, &sandbox);
    if let Place::Sandbox { gateways, .. } = &mut wanted.place {
        *gateways = vec!["10.9.0.1".parse().unwrap(), "fd09::1".parse().unwrap()];
    }
    let wanted = Object::Attachment(wanted);
    host.put(&wanted).await;
    let shown = json(&inside(&sandbox, "ip -j addr show dev net1"))[0].clone();
    assert_eq!((&shown["mtu"], &shown["operstate"]), (&1400.into(), &"UP".into()), "{shown}");
    assert_eq!(shown["address"], mac(7).to_string());
    let text = |i: &Value| format!("{}/{} {}", i["local"].as_str().unwrap(), i["prefixlen"], i["tentative"].as_bool().unwrap_or(false));
    let global = shown["addr_info"].as_array().unwrap().iter().filter(|i| i["scope"] == "global");
    assert_eq!(global.map(text).collect::<Vec<_>>(), ["10.9.0.7/24 false", "fd09::7/64 false"]);
    assert_eq!(run(&inside(&sandbox, "cat /proc/sys/net/ipv4/conf/net1/log_martians")).trim(), "1");
    assert_eq!(json(&inside(&sandbox, "ip -j route show default"))[0]["gateway"], "10.9.0.1");
    assert_eq!(json(&inside(&sandbox, "ip -j -6 route show default"))[0]["gateway"], "fd09::1");

    let before = run(&inside(&sandbox, "ip -o -d link"));
    host.put_again(&wanted).await;
    assert_eq!(run(&inside(&sandbox, "ip -o -d link")), before);
    assert!(wanted.is_met_by(&host.observed(&wanted).await.unwrap()));
    host.kernel.delete(&wanted.key()).await.unwrap();
    assert!(!run(&inside(&sandbox, "ip -o link")).contains("net1"));
}

#[tokio::test]
async fn a_sandbox_without_ipv6_addresses_has_no_ipv6_on_the_link() {
    let host = Host::new();
    let sandbox = host.sandbox("s");
    let mut wanted = in_sandbox("aa", 7, &sandbox);
    if let Place::Sandbox { addresses, name: given, .. } = &mut wanted.place {
        addresses.truncate(1);
        *given = SandboxName::Exact(name("front"));
    }
    host.put(&Object::Attachment(wanted)).await;
    assert_eq!(run(&inside(&sandbox, "cat /proc/sys/net/ipv6/conf/front/disable_ipv6")).trim(), "1");
}

#[tokio::test]
async fn a_failure_half_way_leaves_no_half_made_pair() {
    let host = Host::new();
    let sandbox = host.sandbox("s");
    let mut wanted = in_sandbox("aa", 7, &sandbox);
    if let Place::Sandbox { sysctls, .. } = &mut wanted.place {
        sysctls.push(("net.ipv4.conf.IFNAME.no_such_thing".into(), "1".into()));
    }
    let error = host.kernel.put(&Object::Attachment(wanted)).await.unwrap_err();
    assert!(error.to_string().contains("no_such_thing"), "{error}");
    assert_eq!(json("ip -j link show").as_array().unwrap().len(), 1);
    assert_eq!(json(&inside(&sandbox, "ip -j link show")).as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_pair_whose_maker_was_killed_half_way_is_made_anew() {
    let host = Host::new();
    let sandbox = host.sandbox("s");
    run("ip link add rsv-aa group 7500654 type veth peer name net0");
    let wanted = Object::Attachment(in_sandbox("aa", 7, &sandbox));
    assert!(!wanted.is_met_by(&host.observed(&wanted).await.expect("it counts as ours")));
    host.put(&wanted).await;
    assert!(wanted.is_met_by(&host.observed(&wanted).await.unwrap()));
    assert!(run(&inside(&sandbox, "ip -o addr show net0")).contains("10.9.0.7/24"));
}

#[tokio::test]
async fn a_path_that_is_no_namespace_is_refused_by_name() {
    let host = Host::new();
    let (sandbox, plain) = (host.sandbox("s"), host.directory.path().join("plain"));
    std::fs::write(&plain, "").unwrap();
    let absent = host.directory.path().join("absent");
    assert!(host.kernel.is_sandbox(&sandbox) && !host.kernel.is_sandbox(&plain) && !host.kernel.is_sandbox(&absent));
    for (path, kind) in [(&plain, std::io::ErrorKind::InvalidInput), (&absent, std::io::ErrorKind::NotFound)] {
        let error = host.kernel.put(&Object::Attachment(in_sandbox("aa", 7, path))).await.unwrap_err();
        assert_eq!(error.cause.kind(), kind, "{error}");
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
    assert_eq!(json("ip -j link show").as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn port_settings_are_set_altered_and_taken_back() {
    let host = Host::new();
    host.put(&Object::Link(bridge())).await;
    host.put(&Object::Attachment(here("aa"))).await;
    for isolated in [false, true, false] {
        let wanted = Object::Port(port("aa", isolated));
        host.put(&wanted).await;
        let shown = &json("bridge -j -d link show dev rsv-aa")[0];
        assert_eq!((&shown["isolated"], &shown["hairpin"]), (&isolated.into(), &true.into()), "{shown}");
        assert_eq!(shown["master"], "rsb-0123456789");
        host.put_again(&wanted).await;
        assert_eq!(host.observed(&wanted).await, Some(wanted));
    }
    let key = Key::Port(name("rsv-aa"));
    host.kernel.delete(&key).await.unwrap();
    assert!(json("ip -j link show rsv-aa")[0].get("master").is_none());
    assert_eq!(host.observed(&Object::Port(port("aa", false))).await, None);
    host.kernel.delete(&key).await.unwrap();
    host.kernel.delete(&Key::Port(name("rsv-none"))).await.unwrap();
}

/// Two containers on a bridge, as a plan would have them.
async fn two_containers(host: &Host) -> (PathBuf, PathBuf) {
    let (one, two) = (host.sandbox("one"), host.sandbox("two"));
    host.put(&Object::Link(bridge())).await;
    for (id, last, path) in [("aa", 7, &one), ("bb", 8, &two)] {
        host.put(&Object::Attachment(in_sandbox(id, last, path))).await;
        host.put(&Object::Port(port(id, false))).await;
    }
    (one, two)
}

fn pings(from: &Path, target: &str) -> bool {
    Command::new("sh").args(["-c", &inside(from, &format!("ping -q -c 1 -W 1 {target}"))]).status().unwrap().success()
}

#[tokio::test]
async fn two_sandboxes_reach_each_other_through_the_bridge_unless_isolated() {
    let host = Host::new();
    let (one, _two) = two_containers(&host).await;
    assert!(pings(&one, "10.9.0.8") && pings(&one, "fd09::8"));
    host.put(&Object::Port(port("aa", true))).await;
    host.put(&Object::Port(port("bb", true))).await;
    assert!(!pings(&one, "10.9.0.8"));
}

#[tokio::test]
async fn a_new_container_tells_its_neighbours_that_the_address_is_now_its_own() {
    let host = Host::new();
    let (one, _two) = two_containers(&host).await;
    assert!(pings(&one, "10.9.0.8") && pings(&one, "fd09::8"));
    host.kernel.delete(&Key::Attachment(name("rsv-bb"))).await.unwrap();
    let three = host.sandbox("three");
    host.put(&Object::Attachment(Attachment { mac: mac(99), ..in_sandbox("cc", 8, &three) })).await;
    host.put(&Object::Port(port("cc", false))).await;
    let new = mac(99).to_string();
    for target in ["10.9.0.8", "fd09::8"] {
        let command = inside(&one, &format!("ip neigh show {target} dev net0"));
        poll(&format!("{target} keeps the old MAC"), || run(&command).contains(&new));
    }
}

/// The changes until one satisfies `wanted`.
async fn await_change(changes: &mut tokio::sync::mpsc::Receiver<Change>, wanted: impl Fn(&Change) -> bool) -> Vec<Change> {
    let mut seen = Vec::new();
    while !seen.last().is_some_and(&wanted) {
        let change = tokio::time::timeout(Duration::from_secs(5), changes.recv()).await;
        seen.push(change.unwrap_or_else(|_| panic!("it did not come: {seen:#?}")).unwrap());
    }
    seen
}

#[tokio::test]
async fn what_others_do_to_our_objects_is_told() {
    let host = Host::new();
    let mut changes = host.kernel.changes();
    host.put(&Object::Link(bridge())).await;
    host.put(&address("10.9.0.1/24")).await;
    host.put(&Object::Attachment(here("aa"))).await;
    host.put(&Object::Port(port("aa", false))).await;
    let now = |object: Object| move |change: &Change| *change == Change::Now(Box::new(object.clone()));
    let gone = |key: Key| move |change: &Change| *change == Change::Gone(key.clone());
    await_change(&mut changes, now(address("10.9.0.1/24"))).await;
    await_change(&mut changes, now(Object::Port(port("aa", false)))).await;

    run("ip addr del 10.9.0.1/24 dev rsb-0123456789");
    await_change(&mut changes, gone(address("10.9.0.1/24").key())).await;
    run("bridge link set dev rsv-aa isolated on");
    await_change(&mut changes, now(Object::Port(port("aa", true)))).await;
    run("ip link set rsb-0123456789 mtu 1280");
    await_change(&mut changes, now(Object::Link(Link { mtu: Some(1280), ..bridge() }))).await;
    run("ip link set rsv-aa nomaster");
    await_change(&mut changes, gone(Key::Port(name("rsv-aa")))).await;
    run("ip link del rsv-aa");
    await_change(&mut changes, gone(Key::Attachment(name("rsv-aa")))).await;
    run("ip link add foreign type bridge; ip link del foreign; ip link del rsb-0123456789");
    let last = await_change(&mut changes, gone(Object::Link(bridge()).key())).await;
    assert!(!format!("{last:?}").contains("foreign"), "{last:?}");
}

#[tokio::test]
async fn the_end_of_a_sandbox_is_told() {
    let host = Host::new();
    let sandbox = host.sandbox("s");
    let mut changes = host.kernel.changes();
    host.put(&Object::Attachment(in_sandbox("aa", 7, &sandbox))).await;
    run(&format!("umount {0}; rm {0}", sandbox.display()));
    await_change(&mut changes, |change| *change == Change::Gone(Key::Attachment(name("rsv-aa")))).await;
    assert!(!host.kernel.is_sandbox(&sandbox));
}

fn host_port(host: &str, ports: PortRange, protocol: Protocol) -> Object {
    Object::HostPort(HostPort { protocol, host: host.parse().unwrap(), ports })
}

#[tokio::test]
async fn a_thousand_ports_are_held_and_released() {
    let host = Host::new();
    let range = PortRange::new(20000, 20999);
    for (at, protocol) in [("0.0.0.0", Protocol::Tcp), ("::", Protocol::Tcp), ("0.0.0.0", Protocol::Udp)] {
        let wanted = host_port(at, range, protocol);
        let ip: IpAddr = at.parse().unwrap();
        assert!(host.kernel.is_free(protocol, ip, range).await);
        let start = Instant::now();
        host.put(&wanted).await;
        let took = start.elapsed();
        println!("{took:?}");
        assert!(took < Duration::from_millis(100), "{took:?}");
        host.put(&wanted).await;
        assert!(!host.kernel.is_free(protocol, ip, PortRange::one(20999)).await);
        assert_eq!(host.observed(&wanted).await.as_ref(), Some(&wanted));
    }
    let stranger = |port: u16| std::net::TcpListener::bind(("0.0.0.0", port)).map(drop).is_ok();
    assert!(!stranger(20500) && stranger(21000));
    host.kernel.delete(&host_port("0.0.0.0", range, Protocol::Tcp).key()).await.unwrap();
    host.kernel.delete(&host_port("0.0.0.0", range, Protocol::Tcp).key()).await.unwrap();
    assert!(stranger(20500));
}

#[tokio::test]
async fn a_conflict_over_a_host_port_names_its_holder() {
    let host = Host::new();
    let tcp = std::net::TcpListener::bind("127.0.0.1:8081").unwrap();
    let udp = std::net::UdpSocket::bind("[::1]:8082").unwrap();
    let comm = std::fs::read_to_string("/proc/self/comm").unwrap();
    for (at, port, protocol) in [("0.0.0.0", 8081, Protocol::Tcp), ("::", 8082, Protocol::Udp)] {
        let error = host.kernel.put(&host_port(at, PortRange::new(8080, port), protocol)).await.unwrap_err();
        assert_eq!(error.cause.kind(), std::io::ErrorKind::AddrInUse);
        let by = format!("port {port}/{protocol} on {at} is in use by {} (pid {})", comm.trim(), std::process::id());
        assert!(error.to_string().contains(&by), "{error}");
    }
    // Nothing is held of a range that failed.
    assert!(host.kernel.is_free(Protocol::Tcp, "0.0.0.0".parse().unwrap(), PortRange::one(8080)).await);
    host.put(&host_port("0.0.0.0", PortRange::one(8081), Protocol::Sctp)).await;
    drop((tcp, udp));
}

#[tokio::test]
async fn the_surroundings_are_what_is_not_ours() {
    let host = Host::new();
    assert_eq!(host.kernel.surroundings().await.unwrap().mtu, None);
    run("ip link add uplink type veth peer name isp; ip link set uplink mtu 1450 up; ip link set isp up");
    run("ip addr add 192.0.2.2/24 dev uplink; ip route add default via 192.0.2.1; ip route add 10.64.0.0/10 via 192.0.2.3 table 77");
    host.put(&Object::Link(bridge())).await;
    host.put(&address("10.9.0.1/24")).await;
    let seen = host.kernel.surroundings().await.unwrap();
    assert_eq!(seen.mtu, Some(1450));
    assert_eq!(seen.subnets, [(net("10.64.0.0/10"), "uplink".to_owned()), (net("192.0.2.0/24"), "uplink".to_owned())]);
}

#[tokio::test]
async fn what_a_plan_made_can_be_taken_down_backwards() {
    let host = Host::new();
    let sandbox = host.sandbox("s");
    let before = fingerprint();
    let objects = [
        host_port("0.0.0.0", PortRange::one(8080), Protocol::Tcp),
        Object::Link(bridge()),
        Object::LinkSysctl { path: conf_path(Family::V6, &bridge().name, "accept_ra"), value: "0".into() },
        address("10.9.0.1/24"),
        address("fd09::1/64"),
        route(net("::1/128"), RouteKind::Local),
        Object::Attachment(in_sandbox("aa", 7, &sandbox)),
        Object::Port(port("aa", false)),
    ];
    for object in &objects {
        host.put(object).await;
    }
    let seen = host.kernel.observe(&objects).await.unwrap();
    assert_eq!(seen.len(), objects.len(), "{seen:#?}");
    assert!(objects.iter().all(|wanted| seen.iter().any(|seen| wanted.key() == seen.key() && wanted.is_met_by(seen))), "{seen:#?}");
    for object in objects.iter().rev() {
        host.kernel.delete(&object.key()).await.unwrap();
    }
    assert_eq!(host.kernel.observe(&objects).await.unwrap(), []);
    assert_eq!(fingerprint(), before);
}

/// Not a bound to be proud of but one that tells a grace period of the kernel (15 ms) that crept in.
#[tokio::test]
async fn making_an_attachment_waits_for_no_grace_period() {
    let host = Host::new();
    let (mut inside, mut outside) = (Vec::new(), Vec::new());
    for n in 0..20_u8 {
        let sandbox = host.sandbox(&format!("s{n}"));
        let start = Instant::now();
        host.put(&Object::Attachment(in_sandbox(&format!("s{n}"), n + 2, &sandbox))).await;
        inside.push(start.elapsed());
        let start = Instant::now();
        host.put(&Object::Attachment(here(&format!("h{n}")))).await;
        outside.push(start.elapsed());
    }
    inside.sort();
    outside.sort();
    println!("in the sandbox {:?}, on the host {:?} (medians of 20)", inside[10], outside[10]);
    assert!(inside[10] < Duration::from_millis(10) && outside[10] < Duration::from_millis(10), "{inside:?} {outside:?}");
}

fn links() -> Vec<String> {
    json("ip -j link show").as_array().unwrap().iter().map(|link| link["ifname"].to_string()).collect()
}

fn attachments(count: u8) -> Vec<Key> {
    (0..count).map(|n| Key::Attachment(IfName::of("rsv-", &n.to_string()))).collect()
}

/// The groups are the next after ours, which a deletion of many takes where nobody has them.
#[tokio::test]
async fn many_links_are_deleted_together_and_nobody_s_with_them() {
    let host = Host::new();
    host.put(&Object::Link(bridge())).await;
    run(
        "ip link add theirs type bridge; ip link set theirs group 7500655; ip link add rsv-theirs type bridge; ip link set rsv-theirs group 7500656",
    );
    let before = links();
    for n in 0..200 {
        host.put(&Object::Attachment(here(&n.to_string()))).await;
        host.put(&Object::Port(port(&n.to_string(), true))).await;
    }
    run("ip link set rsv-7 alias ''; ip link del rsv-8");
    let mut keys = attachments(200);
    keys.insert(3, Key::Attachment(name("rsv-theirs")));
    let began = Instant::now();
    let error = host.kernel.delete_all(&keys).await.unwrap_err().to_string();
    println!("{} links: {:?}", keys.len(), began.elapsed());
    assert!(error.contains("link rsv-theirs exists and is not rsnet's"), "{error}");
    assert_eq!(links(), before);
    host.kernel.delete_all(&attachments(200)).await.unwrap();
}

/// Whoever waits for a MAC gives up after two seconds. One after the other these would take three and more.
#[tokio::test]
async fn a_mac_is_free_in_time_however_many_links_go_with_the_one_that_has_it() {
    let host = Host::new();
    uplink();
    let sandbox = host.sandbox("s");
    let numbered = |id: &str, n: u8, place: Place| {
        let kind = child(MacvlanMode::Bridge, Place::Host).kind;
        Object::Attachment(Attachment { kind, mac: mac(n), mtu: None, place, ..here(id) })
    };
    let bare = |path: &Path| {
        let Place::Sandbox { path, name, .. } = in_sandbox("", 0, path).place else { unreachable!() };
        Place::Sandbox { path, name, addresses: vec![], sysctls: vec![], gateways: vec![], routes: vec![] }
    };
    for n in 0..100 {
        host.put(&numbered(&n.to_string(), n, Place::Host)).await;
        run(&format!("ip link set rsv-{n} up"));
    }
    for n in 100..200 {
        host.put(&numbered(&n.to_string(), n, bare(&sandbox))).await;
    }
    let keys = attachments(200);
    let news = [numbered("t", 99, bare(&host.sandbox("t"))), numbered("u", 199, bare(&host.sandbox("u")))];
    let began = Instant::now();
    let (gone, one, other) = tokio::join!(host.kernel.delete_all(&keys), host.kernel.put(&news[0]), host.kernel.put(&news[1]));
    println!("{:?}", began.elapsed());
    gone.and(one).and(other).unwrap();
    assert_eq!(json(&inside(&sandbox, "ip -j link show type macvlan")).as_array().map(Vec::len), Some(0));
    for new in news {
        assert!(new.is_met_by(&host.observed(&new).await.unwrap()), "{new:?}");
    }
}

/// A segment's card and what is at its other end.
fn uplink() {
    run("ip link add uplink type veth peer name segment; ip link set uplink up; ip link set segment up");
}

fn child(mode: MacvlanMode, place: Place) -> Attachment {
    let sources = if mode == MacvlanMode::Source { vec![mac(50), mac(51)] } else { vec![] };
    let kind = AttachmentKind::Macvlan(Macvlan { parent: name("uplink"), mode, sources });
    Attachment { kind, place, mtu: None, ..here("aa") }
}

fn child_in(mode: MacvlanMode, path: &Path) -> Attachment {
    child(mode, in_sandbox("aa", 7, path).place)
}

const MODES: [(MacvlanMode, &str); 5] = [
    (MacvlanMode::Bridge, "bridge"),
    (MacvlanMode::Vepa, "vepa"),
    (MacvlanMode::Private, "private"),
    (MacvlanMode::Passthru, "passthru"),
    (MacvlanMode::Source, "source"),
];

#[tokio::test]
async fn a_macvlan_larger_than_its_parent_is_refused_at_once_with_both_sizes() {
    let host = Host::new();
    uplink();
    let wanted = Object::Attachment(Attachment { mtu: Some(9000), ..child_in(MacvlanMode::Bridge, &host.sandbox("s")) });
    let error = host.kernel.put(&wanted).await.unwrap_err().to_string();
    assert!(error.contains("an MTU of 9000 is more than its parent uplink has, 1500"), "{error}");
}

#[tokio::test]
async fn a_macvlan_of_every_mode_is_made_in_a_sandbox_seen_there_and_gone() {
    let host = Host::new();
    uplink();
    let sandbox = host.sandbox("s");
    let before = fingerprint();
    for (mode, word) in MODES {
        let attachment = child_in(mode, &sandbox);
        let wanted = Object::Attachment(attachment.clone());
        assert_eq!(host.kernel.whereabouts(&attachment), Whereabouts::Nowhere);
        host.put(&wanted).await;
        let shown = &json(&inside(&sandbox, "ip -j -d link show net0"))[0];
        assert_eq!(shown["linkinfo"]["info_data"]["mode"], word, "{shown}");
        assert_eq!((&shown["address"], &shown["ifalias"], &shown["mtu"]), (&mac(7).to_string().into(), &"rsnet:aa".into(), &1500.into()));
        assert!(host.observed(&wanted).await.is_some_and(|seen| wanted.is_met_by(&seen)), "{word}");
        assert_eq!(host.kernel.whereabouts(&attachment), Whereabouts::Away, "{word}");
        host.put(&wanted).await;
        assert_eq!(json(&inside(&sandbox, "ip -j link show type macvlan")).as_array().map(Vec::len), Some(1), "one and no more");
        host.kernel.delete(&wanted.key()).await.unwrap();
        assert_eq!(host.observed(&wanted).await, None);
        poll("the parent to be as it was", || fingerprint() == before);
    }
}

#[tokio::test]
async fn a_parent_that_gets_its_mac_back_tells_its_neighbours() {
    let host = Host::new();
    uplink();
    let (sandbox, lan) = (host.sandbox("s"), host.sandbox("lan"));
    run(&format!("ip addr add 10.9.0.1/24 dev uplink; ip link set segment netns {}", lan.display()));
    run(&inside(&lan, "ip addr add 10.9.0.2/24 dev segment"));
    run(&inside(&lan, "ip link set segment up"));
    let heard = || json(&inside(&lan, "ip -j neigh show 10.9.0.1"))[0]["lladdr"].clone();
    let own = json("ip -j link show uplink")[0]["address"].clone();
    for place in [in_sandbox("aa", 7, &sandbox).place, Place::Host] {
        let wanted = Object::Attachment(child(MacvlanMode::Passthru, place));
        let other = Object::Link(bridge());
        host.put(&other).await;
        for together in [vec![wanted.key()], vec![wanted.key(), other.key()]] {
            host.put(&wanted).await;
            run(&inside(&lan, &format!("ip neigh replace 10.9.0.1 dev segment lladdr {} nud stale", mac(7))));
            host.kernel.delete_all(&together).await.unwrap();
            poll("the neighbour to know the host by its own MAC", || heard() == own);
            assert_eq!(run("cat /proc/sys/net/ipv4/conf/uplink/arp_notify").trim(), "0", "the host's own setting");
        }
    }
}

#[tokio::test]
async fn a_macvlan_that_the_engine_moves_is_found_where_it_is_and_told_when_it_goes() {
    let host = Host::new();
    uplink();
    let sandbox = host.sandbox("s");
    let mut changes = host.kernel.changes();
    let moved = child(MacvlanMode::Bridge, Place::Host);
    host.put(&Object::Attachment(moved.clone())).await;
    assert_eq!(host.kernel.whereabouts(&moved), Whereabouts::Host);
    let wanted = Object::Attachment(child_in(MacvlanMode::Bridge, &sandbox));
    assert!(wanted.is_met_by(&host.observed(&wanted).await.unwrap()), "on its way it is as wanted");
    run(&format!("ip link set rsv-aa netns {} name eth0", sandbox.display()));
    run(&inside(&sandbox, "ip link set eth0 up"));
    assert_eq!(host.kernel.whereabouts(&moved), Whereabouts::Away);
    assert!(wanted.is_met_by(&host.observed(&wanted).await.unwrap()));
    host.put(&wanted).await;
    run(&inside(&sandbox, "ip link show net0 2>&1 | grep 'does not exist'"));
    while let Ok(change) = changes.try_recv() {
        assert_ne!(change, Change::Gone(wanted.key()), "to be moved is not to be gone");
    }
    run(&inside(&sandbox, "ip link del eth0"));
    await_change(&mut changes, |change| *change == Change::Gone(wanted.key())).await;
    assert_eq!(host.observed(&wanted).await, None);
    host.put(&wanted).await;
    assert!(wanted.is_met_by(&host.observed(&wanted).await.unwrap()), "made again, in the sandbox");
    run(&inside(&sandbox, "ip link del net0"));
    await_change(&mut changes, |change| *change == Change::Gone(wanted.key())).await;
}

#[tokio::test]
async fn what_somebody_alters_on_a_macvlan_is_seen_and_put_right() {
    let host = Host::new();
    uplink();
    let sandbox = host.sandbox("s");
    let wanted = Object::Attachment(child_in(MacvlanMode::Source, &sandbox));
    host.put(&wanted).await;
    for damage in ["ip link set net0 mtu 1300", "ip link set net0 type macvlan macaddr del 02:01:02:03:04:32"] {
        run(&inside(&sandbox, damage));
        let seen = host.observed(&wanted).await.expect("it is there");
        assert!(!wanted.is_met_by(&seen), "after `{damage}`: {seen:?}");
        host.put(&wanted).await;
        let seen = host.observed(&wanted).await.expect("it is there");
        assert!(wanted.is_met_by(&seen), "after `{damage}` and a put: {seen:?}");
    }
    run("ip link set uplink mtu 1400; ip link set uplink mtu 1450");
    host.put(&wanted).await;
    assert_eq!(json(&inside(&sandbox, "ip -j link show net0"))[0]["mtu"], 1450);
}

#[tokio::test]
async fn a_macvlan_that_is_down_is_left_to_the_engine_and_brought_up_where_nobody_does() {
    let host = Host::new();
    uplink();
    let sandbox = host.sandbox("s");
    let wanted = Object::Attachment(child_in(MacvlanMode::Bridge, &sandbox));
    host.put(&wanted).await;
    let mut changes = host.kernel.changes();
    run(&inside(&sandbox, "ip link set net0 down"));
    assert!(wanted.is_met_by(&host.observed(&wanted).await.unwrap()), "the engine may be at it");
    host.put(&wanted).await;
    run(&inside(&sandbox, "ip link show net0 | grep 'state DOWN'"));
    await_change(&mut changes, |change| *change == Change::Lost).await;
    assert!(!wanted.is_met_by(&host.observed(&wanted).await.unwrap()));
    host.put(&wanted).await;
    assert!(wanted.is_met_by(&host.observed(&wanted).await.unwrap()));
    run(&inside(&sandbox, "ip link show up | grep net0"));
}

#[tokio::test]
async fn a_macvlan_waits_for_an_old_one_with_its_mac_to_go() {
    let host = Host::new();
    uplink();
    for (mode, word) in [(MacvlanMode::Bridge, "bridge"), (MacvlanMode::Passthru, "passthru")] {
        let (old, new) = (host.sandbox(&format!("old-{word}")), host.sandbox(&format!("new-{word}")));
        run(&format!("ip link add link uplink name eth0 address {} netns {} type macvlan mode {word}", mac(7), old.display()));
        run(&inside(&old, "ip link set eth0 up"));
        let wanted = Object::Attachment(child_in(mode, &new));
        let leaves = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            run(&inside(&old, "ip link del eth0"));
        };
        tokio::join!(host.put(&wanted), leaves);
        assert!(wanted.is_met_by(&host.observed(&wanted).await.unwrap()));
        host.kernel.delete(&wanted.key()).await.unwrap();
    }
}

#[tokio::test]
async fn a_parent_that_is_missing_or_taken_is_named_with_what_has_it() {
    let host = Host::new();
    let sandbox = host.sandbox("s");
    let wanted = Object::Attachment(child_in(MacvlanMode::Bridge, &sandbox));
    let error = host.kernel.put(&wanted).await.unwrap_err().to_string();
    assert!(error.contains("parent uplink does not exist"), "{error}");
    uplink();
    host.put(&Object::Link(bridge())).await;
    run("ip link set uplink master rsb-0123456789");
    let error = host.kernel.put(&wanted).await.unwrap_err().to_string();
    assert!(error.contains("parent uplink is a port of a bridge"), "{error}");
}

#[tokio::test]
async fn a_fresh_process_finds_what_an_earlier_one_left_in_sandboxes() {
    let host = Host::new();
    uplink();
    let sandbox = host.sandbox("s");
    let wanted = Object::Attachment(child_in(MacvlanMode::Bridge, &sandbox));
    host.put(&wanted).await;
    let fresh = Netlink::new(NetlinkConfig { sandboxes: host.directory.path().into(), ..NetlinkConfig::default() }).unwrap();
    let seen = fresh.observe(&[]).await.unwrap();
    assert!(seen.iter().any(|seen| wanted.key() == seen.key()), "{seen:?}");
    fresh.delete(&wanted.key()).await.unwrap();
    assert_eq!(host.observed(&wanted).await, None);
}

#[tokio::test]
async fn a_macvlan_made_in_a_sandbox_where_none_was_moved_is_told_too() {
    let host = Host::new();
    uplink();
    let sandbox = host.sandbox("s");
    let mut changes = host.kernel.changes();
    let wanted = Object::Attachment(child_in(MacvlanMode::Bridge, &sandbox));
    host.put(&wanted).await;
    run(&inside(&sandbox, "ip link del net0"));
    await_change(&mut changes, |change| *change == Change::Gone(wanted.key())).await;
}
