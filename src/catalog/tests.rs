//! Containers → services.

use super::*;
use crate::docker::Attachment;

fn container(service: Option<&str>, port: Option<u16>, health: Option<Health>) -> Container {
    let attachment = |address: &str| Attachment {
        endpoint: "ef".parse().unwrap(),
        addresses: vec![address.parse().unwrap(), "fd50::2".parse().unwrap()],
        names: vec!["shop-web-1".to_owned()],
    };
    Container {
        id: "0123456789abcdef".to_owned(),
        name: "shop-web-1".to_owned(),
        service: service.map(str::to_owned),
        port,
        health,
        attached: [("b1", "10.50.0.2"), ("a0", "172.18.0.2")]
            .map(|(network, address)| (network.parse().unwrap(), attachment(address)))
            .into(),
    }
}

fn told(container: Container) -> Vec<(String, Service)> {
    services("h1", &[container], &[("b1".parse().unwrap(), "blue".to_owned())].into()).into_iter().collect()
}

#[test]
fn a_container_is_a_service_on_each_network_that_hosts_share_and_on_no_other() {
    let service = Service {
        name: "web".to_owned(),
        address: "10.50.0.2".parse().unwrap(),
        port: 80,
        tags: vec!["blue".to_owned()],
        passing: true,
        output: "runs".to_owned(),
    };
    assert_eq!(told(container(Some("web"), Some(80), None)), [("rsnet-h1-0123456789-blue".to_owned(), service)]);
    let (_, plain) = told(container(None, None, None)).remove(0);
    assert_eq!((plain.name.as_str(), plain.port), ("shop-web-1", 0));
}

#[test]
fn only_what_docker_does_not_call_ill_is_passing() {
    let seen = [Health::Starting, Health::Healthy, Health::Unhealthy].map(|health| {
        let (_, service) = told(container(None, None, Some(health))).remove(0);
        (service.passing, service.output)
    });
    assert_eq!(seen, [(false, "starting".to_owned()), (true, "healthy".to_owned()), (false, "unhealthy".to_owned())]);
}

#[test]
fn hosts_that_are_dead_or_forgotten_for_a_while_are_gone_and_others_are_not() {
    let view = |hosts: &[(&str, bool)]| {
        let host = |(name, alive): &(&str, bool)| crate::cluster::Host {
            name: (*name).to_owned(),
            vtep: "192.0.2.1".parse().unwrap(),
            alive: *alive,
            gone_since: None,
        };
        View { hosts: hosts.iter().map(host).collect(), ..View::default() }
    };
    let (mut memory, start) = (Memory::default(), Instant::now());
    let mut gone = |hosts: &[(&str, bool)], seconds| memory.gone(&view(hosts), "h1", start + Duration::from_secs(seconds));
    assert!(gone(&[("h1", false), ("h2", true), ("h3", true), ("h4", false)], 0).is_empty());
    assert_eq!(gone(&[("h1", false), ("h2", true), ("h3", false), ("h4", false)], 10), ["h4".to_owned()].into());
    assert!(gone(&[("h1", true), ("h3", false), ("h4", true)], 11).is_empty());
    assert_eq!(gone(&[("h1", true), ("h3", false), ("h4", true)], 21), ["h2".to_owned(), "h3".to_owned()].into());
}
