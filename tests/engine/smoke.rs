//! The lab itself: without rsnet, hosts do what real hosts do.

use crate::lab::{Engine, HostSpec, Lab, PATIENCE, asks, wait_until};

pub fn a_host_runs_a_container_on_dockers_own_bridge(engine: Engine) {
    let lab = Lab::new();
    let lan = lab.segment(["10.77.0.0/24", "fd77::/64"]);
    let host = lab.host("h1", engine, &[&lan]);
    let version = host.docker("version -f {{.Server.Version}}").ok().to_string();
    assert!(version.starts_with(engine.version()), "the engine of {engine:?} says it is {version}");
    host.docker("run --rm box true").ok();
}

pub fn a_station_reaches_a_port_published_by_docker(engine: Engine) {
    let lab = Lab::new();
    let lan = lab.segment(["10.77.0.0/24"]);
    let host = lab.host("h1", engine, &[&lan]);
    let station = lab.station("s1", &[&lan]);
    host.docker("run -d --name web -p 8080:80 box sh -c 'echo hello >index.html; httpd -f -p 80'").ok();
    let ask = asks("GET / HTTP/1.0", &format!("{}:8080", host.ipv4()));
    let page = || {
        let seen = station.sh(&ask);
        if seen.stdout.ends_with("hello\n") { Ok(()) } else { Err(seen.to_string()) }
    };
    wait_until("the station to see the page", PATIENCE, page);
    host.in_container("web", "ss -Hltn sport = :80").says(":80");
}

pub fn a_rebooted_host_has_its_disk_and_nothing_else(engine: Engine) {
    let lab = Lab::new();
    let mut host = lab.make(&HostSpec::new("h1").engine(engine));
    host.sh("mkdir -p /var/lib/rsnet; echo kept >/var/lib/rsnet/state; echo lost >/run/lost").ok();
    host.docker("run -d --name on --restart always box sleep 1000").ok();
    host.reboot();
    host.sh("cat /var/lib/rsnet/state").says("kept");
    host.sh("cat /run/lost").fails();
    host.sh("ip link show docker0").fails();
    host.start_dockerd();
    host.docker("inspect -f {{.State.Running}} on").says("true");
}

pub fn a_paused_host_answers_again_when_resumed(engine: Engine) {
    let lab = Lab::new();
    let host = lab.make(&HostSpec::new("h1").engine(engine));
    host.pause();
    let socket = host.path("/run/docker.sock");
    let (tell, told) = std::sync::mpsc::channel();
    let asking = std::thread::spawn(move || {
        let mut stream = std::os::unix::net::UnixStream::connect(socket).expect("the socket stands while the engine is paused");
        std::io::Write::write_all(&mut stream, b"GET /_ping HTTP/1.0\r\n\r\n").expect("the kernel takes the request");
        let mut answer = String::new();
        std::io::Read::read_to_string(&mut stream, &mut answer).expect("an answer comes");
        tell.send(answer).expect("the test waits");
    });
    let paused = told.recv_timeout(std::time::Duration::from_millis(500));
    assert!(paused.is_err(), "a paused engine answered: {paused:?}");
    host.resume();
    let answer = told.recv_timeout(PATIENCE).expect("the engine answers after resume");
    assert!(answer.contains("200 OK"), "{answer}");
    asking.join().expect("the asking thread ended well");
}

pub fn a_cut_host_is_reached_again_when_mended(_: Engine) {
    let lab = Lab::new();
    let lan = lab.segment(["10.77.0.0/24", "fd77::/64"]);
    let spec = HostSpec::new("h1").on(&[&lan]).second_address();
    let (host, station) = (lab.make(&spec), lab.station("s1", &[&lan]));
    let all_reached = |count: &str| {
        for address in host.addresses() {
            let ping = station.sh(&format!("ping -c{count} -i0.2 -W1 {address}"));
            if !ping.succeeded() {
                return Err(ping.to_string());
            }
        }
        Ok(())
    };
    assert_eq!(host.addresses().len(), 4);
    wait_until("all four addresses to answer", PATIENCE, || all_reached("1"));
    host.cut();
    station.sh(&format!("ping -c2 -i0.2 -W1 {}", host.ipv4())).fails();
    host.mend();
    wait_until("all four addresses to answer again", PATIENCE, || all_reached("1"));
}

pub fn two_segments_are_joined_by_a_router(_: Engine) {
    let lab = Lab::new();
    let (left, right) = (lab.segment(["10.77.1.0/24", "fd77:1::/64"]), lab.segment(["10.77.2.0/24", "fd77:2::/64"]));
    let _router = lab.router("r1", &[&left, &right]);
    let (here, there) = (lab.station("s1", &[&left]), lab.station("s2", &[&right]));
    for address in there.addresses() {
        let reached = || {
            let ping = here.sh(&format!("ping -c1 -W1 {address}"));
            if ping.succeeded() { Ok(()) } else { Err(ping.to_string()) }
        };
        wait_until(&format!("{address} to answer through the router"), PATIENCE, reached);
    }
}
