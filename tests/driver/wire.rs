//! The protocol's rules, one by one, with bodies as engines send them.

use serde_json::{Value, json};

use crate::world::*;

async fn running() -> World {
    let world = World::new().await;
    world.ok("NetworkDriver.CreateNetwork", create_network()).await;
    world.ok("NetworkDriver.CreateEndpoint", create_endpoint()).await;
    world
}

#[tokio::test]
async fn activation_and_capabilities_need_no_body_and_nothing_else() {
    let world = World::new().await;
    let (status, activation) = world.send("Plugin.Activate", "").await;
    assert_eq!((status, activation), (200, json!({ "Implements": ["NetworkDriver", "IpamDriver"] })));
    let (_, capabilities) = world.send("NetworkDriver.GetCapabilities", "").await;
    assert_eq!(capabilities["Scope"], "local");
    assert_eq!(capabilities["GwAllocChecker"], true);
    let (status, capabilities) = world.send("IpamDriver.GetCapabilities", "").await;
    assert_eq!((status, &capabilities["RequiresRequestReplay"]), (200, &json!(false)));
    assert_eq!(world.send("IpamDriver.GetDefaultAddressSpaces", "").await.0, 200);
}

#[tokio::test]
async fn a_retry_that_lost_its_body_is_refused_where_a_body_is_needed() {
    let world = World::new().await;
    for call in CALLS {
        let (status, answer) = world.send(call, "").await;
        assert!(status >= 400 && answer["Err"].as_str().unwrap().contains("no body"), "{call}: {status} {answer}");
    }
    assert_eq!(world.host().await, World::new().await.host().await);
}

#[tokio::test]
async fn an_unknown_call_is_404_so_that_optional_calls_are_tolerated() {
    assert_eq!(World::new().await.send("NetworkDriver.NotYetInvented", "{}").await.0, 404);
}

#[tokio::test]
async fn what_is_taken_away_may_be_unknown_or_taken_away_before() {
    let world = World::new().await;
    for call in ["Leave", "DeleteEndpoint", "RevokeExternalConnectivity", "DeleteNetwork", "EndpointOperInfo", "DiscoverNew", "FreeNetwork"]
    {
        assert_eq!(world.ok(&format!("NetworkDriver.{call}"), endpoint()).await.as_object().map(|_| ()), Some(()), "{call}");
    }
    world.ok("IpamDriver.ReleasePool", json!({ "PoolID": "10.0.0.0/8" })).await;
    world.ok("IpamDriver.ReleaseAddress", json!({ "PoolID": "10.0.0.0/8", "Address": "10.0.0.1" })).await;
}

#[tokio::test]
async fn only_what_the_engine_left_empty_is_answered() {
    let world = World::new().await;
    world.ok("NetworkDriver.CreateNetwork", create_network()).await;
    assert_eq!(world.ok("NetworkDriver.CreateEndpoint", create_endpoint()).await, json!({}));
    let mut without = create_endpoint();
    without["Interface"]["MacAddress"] = json!("");
    let answer = world.ok("NetworkDriver.CreateEndpoint", without).await;
    let mac = answer["Interface"]["MacAddress"].as_str().unwrap();
    assert!(mac.parse::<rsnet::model::Mac>().is_ok());
    assert_eq!(answer, json!({ "Interface": { "MacAddress": mac } }));
}

#[tokio::test]
async fn join_names_the_link_to_move_and_both_gateways() {
    let world = running().await;
    let answer = world.ok("NetworkDriver.Join", join()).await;
    assert_eq!(
        answer,
        json!({
            "InterfaceName": { "SrcName": "rsc-fedcba9876", "DstPrefix": "eth" },
            "Gateway": "172.18.0.1",
            "GatewayIPv6": "fd00:18::1",
            "DisableGatewayService": true,
        })
    );
}

#[tokio::test]
async fn a_wanted_interface_name_is_passed_on() {
    let world = World::new().await;
    world.ok("NetworkDriver.CreateNetwork", create_network()).await;
    let mut named = create_endpoint();
    named["Options"]["com.docker.network.endpoint.ifname"] = json!("lan0");
    world.ok("NetworkDriver.CreateEndpoint", named).await;
    assert_eq!(world.ok("NetworkDriver.Join", join()).await["InterfaceName"]["DstName"], "lan0");
}

#[tokio::test]
async fn an_internal_network_has_no_gateway_and_wants_no_service() {
    let world = World::new().await;
    let mut internal = create_network();
    internal["Options"]["com.docker.network.internal"] = json!(true);
    world.ok("NetworkDriver.CreateNetwork", internal).await;
    world.ok("NetworkDriver.CreateEndpoint", create_endpoint()).await;
    let answer = world.ok("NetworkDriver.Join", join()).await;
    assert_eq!((&answer["Gateway"], &answer["GatewayIPv6"], &answer["DisableGatewayService"]), (&json!(""), &json!(""), &json!(true)));
}

#[tokio::test]
async fn none_gives_no_link_and_needs_no_gateway() {
    let world = World::new().await;
    let options = json!({ "Options": { "com.docker.network.generic": { "mode": "none" } } });
    assert_eq!(world.ok("NetworkDriver.GwAllocCheck", options).await, json!({ "SkipIPv4": true, "SkipIPv6": true }));
    world.ok("NetworkDriver.CreateNetwork", create_network_with(json!({ "mode": "none" }))).await;
    world.ok("NetworkDriver.CreateEndpoint", create_endpoint()).await;
    let answer = world.ok("NetworkDriver.Join", join()).await;
    assert_eq!((&answer["InterfaceName"], &answer["DisableGatewayService"]), (&Value::Null, &json!(true)));
    assert!(world.kernel.objects().is_empty());
}

#[tokio::test]
async fn a_direct_network_makes_the_link_in_the_sandbox_and_names_none() {
    let world = World::new().await;
    world.ok("NetworkDriver.CreateNetwork", create_network_with(json!({ "attach": "direct" }))).await;
    world.ok("NetworkDriver.CreateEndpoint", create_endpoint()).await;
    let answer = world.ok("NetworkDriver.Join", join()).await;
    assert_eq!((&answer["InterfaceName"], &answer["Gateway"]), (&Value::Null, &json!("172.18.0.1")));
}

#[tokio::test]
async fn a_direct_network_falls_back_to_the_engine_where_there_is_no_sandbox_yet() {
    let world = World::new().await;
    world.ok("NetworkDriver.CreateNetwork", create_network_with(json!({ "attach": "direct" }))).await;
    world.ok("NetworkDriver.CreateEndpoint", create_endpoint()).await;
    let mut early = join();
    early["SandboxKey"] = json!("/var/run/docker/netns/not-yet");
    assert_eq!(world.ok("NetworkDriver.Join", early).await["InterfaceName"]["SrcName"], "rsc-fedcba9876");
}

#[tokio::test]
async fn engines_before_28_say_less_and_are_understood() {
    let world = World::new().await;
    let old = json!({
        "NetworkID": NETWORK,
        "Options": { "com.docker.network.enable_ipv6": false, "com.docker.network.generic": null },
        "IPv4Data": [{ "AddressSpace": "LocalDefault", "Pool": "172.18.0.0/16", "Gateway": "172.18.0.1/16" }],
        "IPv6Data": null,
    });
    world.ok("NetworkDriver.CreateNetwork", old).await;
    world
        .ok(
            "NetworkDriver.CreateEndpoint",
            json!({
                "NetworkID": NETWORK, "EndpointID": ENDPOINT, "Options": null,
                "Interface": { "Address": "172.18.0.2/16", "AddressIPv6": "", "MacAddress": "" },
            }),
        )
        .await;
    assert_eq!(world.ok("NetworkDriver.Join", join()).await["GatewayIPv6"], "");
}

#[tokio::test]
async fn publishing_again_replaces_and_leave_frees_without_revoke() {
    let world = running().await;
    world.ok("NetworkDriver.Join", join()).await;
    let before = world.host().await;
    world.ok("NetworkDriver.ProgramExternalConnectivity", program(json!([port(8080, 80)]))).await;
    let once = world.host().await;
    assert!(once.contains("8080"), "{once}");
    world.ok("NetworkDriver.ProgramExternalConnectivity", program(json!([port(8080, 80)]))).await;
    assert_eq!(world.host().await, once);
    world.ok("NetworkDriver.ProgramExternalConnectivity", program(json!([port(8081, 80)]))).await;
    let twice = world.host().await;
    assert!(twice.contains("8081") && !twice.contains("8080"), "{twice}");
    world.ok("NetworkDriver.Leave", endpoint()).await;
    assert_eq!(world.host().await, before);
}

#[tokio::test]
async fn a_port_in_use_is_refused_with_its_holder_and_nothing_stays() {
    let world = running().await;
    world.ok("NetworkDriver.Join", join()).await;
    let before = world.host().await;
    world.kernel.take_port(rsnet::model::Protocol::Tcp, 8080);
    let refusal = world.refused("NetworkDriver.ProgramExternalConnectivity", program(json!([port(8000, 80), port(8080, 80)]))).await;
    assert!(refusal.contains("8080") && refusal.contains("in use"), "{refusal}");
    assert_eq!(world.host().await, before);
}

#[tokio::test]
async fn a_port_that_another_container_publishes_is_refused_with_that_container() {
    let world = running().await;
    world.ok("NetworkDriver.Join", join()).await;
    world.ok("NetworkDriver.ProgramExternalConnectivity", program(json!([port(8080, 80)]))).await;
    let other = |mut body: Value| {
        body["EndpointID"] = json!("abcabcabcabc");
        body["Interface"]["Address"] = json!("172.18.0.3/16");
        body
    };
    world.ok("NetworkDriver.CreateEndpoint", other(create_endpoint())).await;
    world.ok("NetworkDriver.Join", other(join())).await;
    let refusal = world.refused("NetworkDriver.ProgramExternalConnectivity", other(program(json!([port(8080, 81)])))).await;
    assert!(refusal.contains("8080/tcp is published already") && refusal.contains("172.18.0.2"), "{refusal}");
    // a sandbox that rsnet cannot see is no proof that the container is gone
    world.kernel.remove_sandbox(std::path::Path::new(SANDBOX));
    world.refused("NetworkDriver.ProgramExternalConnectivity", other(program(json!([port(8080, 81)])))).await;
    // its container goes without a word, and its link with it: the port is free
    world.kernel.vanish(&rsnet::model::Key::Attachment("rsv-fedcba9876".parse().unwrap()));
    world.ok("NetworkDriver.ProgramExternalConnectivity", other(program(json!([port(8080, 81)])))).await;
}

#[tokio::test]
async fn a_free_host_port_is_chosen_where_the_user_names_none_or_a_range() {
    let world = running().await;
    world.ok("NetworkDriver.Join", join()).await;
    world.kernel.take_port(rsnet::model::Protocol::Tcp, 9000);
    let range = json!({ "Proto": 6, "Port": 80, "HostIP": "127.0.0.1", "HostPort": 9000, "HostPortEnd": 9001 });
    let any = json!({ "Proto": 17, "Port": 53, "HostIP": "", "HostPort": 0, "HostPortEnd": 0 });
    world.ok("NetworkDriver.ProgramExternalConnectivity", program(json!([range, any]))).await;
    let host = world.host().await;
    assert!(host.contains("9001") && !host.contains("9000"), "{host}");
    assert!(host.contains("Udp"), "{host}");
}

#[tokio::test]
async fn an_address_is_free_whose_container_ended_while_rsnet_was_not_there() {
    let world = World::new().await;
    let pool = world.ok("IpamDriver.RequestPool", json!({ "AddressSpace": "rsnet-local", "Pool": "172.18.0.0/16", "V6": false })).await;
    let wanted = json!({ "PoolID": pool["PoolID"], "Address": "172.18.0.2" });
    world.ok("IpamDriver.RequestAddress", wanted.clone()).await;
    world.ok("NetworkDriver.CreateNetwork", create_network()).await;
    world.ok("NetworkDriver.CreateEndpoint", create_endpoint()).await;
    world.ok("NetworkDriver.Join", join()).await;
    world.refused("IpamDriver.RequestAddress", wanted.clone()).await;
    let world = world.restart().await;
    world.refused("IpamDriver.RequestAddress", wanted.clone()).await;
    // the engine takes the link out of a container that ends, and tells a plugin that is there
    world.kernel.move_back(std::path::Path::new(SANDBOX), "rsv-fedcba9876".parse().unwrap());
    world.ok("IpamDriver.RequestAddress", wanted).await;
}

#[tokio::test]
async fn overlapping_subnets_are_refused_with_both_named() {
    let world = running().await;
    let mut other = create_network();
    other["NetworkID"] = json!("aaaa");
    other["IPv4Data"][0]["Pool"] = json!("172.16.0.0/12");
    let refusal = world.refused("NetworkDriver.CreateNetwork", other).await;
    assert!(refusal.contains("172.16.0.0/12 overlaps 172.18.0.0/16") && refusal.contains("choose another --subnet"), "{refusal}");
}

#[tokio::test]
async fn an_existing_bridge_of_another_is_refused_and_untouched() {
    let world = World::new().await;
    world.kernel.add_foreign_link("br-lan".parse().unwrap());
    let before = world.host().await;
    let refusal = world.refused("NetworkDriver.CreateNetwork", create_network_with(json!({ "bridge_name": "br-lan" }))).await;
    assert!(refusal.contains("br-lan exists"), "{refusal}");
    assert_eq!(world.host().await, before);
    assert_eq!(world.firewall.log(), [], "what was never added was taken out");
}

#[tokio::test]
async fn pools_and_addresses_survive_a_restart_and_freed_ones_are_given_last() {
    let world = World::new().await;
    let pool = world.ok("IpamDriver.RequestPool", json!({ "AddressSpace": "rsnet-local", "Pool": "10.9.0.0/29", "V6": false })).await;
    assert_eq!(pool["Pool"], "10.9.0.0/29");
    let id = pool["PoolID"].clone();
    let gateway = json!({ "PoolID": id, "Address": "", "Options": { "RequestAddressType": "com.docker.network.gateway" } });
    assert_eq!(world.ok("IpamDriver.RequestAddress", gateway).await["Address"], "10.9.0.1/29");
    let any = json!({ "PoolID": id, "Address": "", "Options": null });
    assert_eq!(world.ok("IpamDriver.RequestAddress", any.clone()).await["Address"], "10.9.0.2/29");
    world.ok("IpamDriver.ReleaseAddress", json!({ "PoolID": id, "Address": "10.9.0.2" })).await;
    let world = world.restart().await;
    assert_eq!(world.ok("IpamDriver.RequestAddress", any.clone()).await["Address"], "10.9.0.3/29");
    let taken = json!({ "PoolID": id, "Address": "10.9.0.3" });
    assert!(world.refused("IpamDriver.RequestAddress", taken).await.contains("already in use"));
    for expected in ["10.9.0.4/29", "10.9.0.5/29", "10.9.0.6/29", "10.9.0.2/29"] {
        assert_eq!(world.ok("IpamDriver.RequestAddress", any.clone()).await["Address"], expected);
    }
    let exhausted = world.refused("IpamDriver.RequestAddress", any).await;
    assert!(exhausted.contains("10.9.0.0/29"), "{exhausted}");
}

#[tokio::test]
async fn who_comes_back_with_the_same_mac_gets_the_same_address() {
    let world = World::new().await;
    world.ok("IpamDriver.RequestPool", json!({ "Pool": "10.9.0.0/24" })).await;
    let request =
        |mac: &str| json!({ "PoolID": "10.9.0.0/24", "Address": "", "Options": { "com.docker.network.endpoint.macaddress": mac } });
    let (one, two) = (request("02:00:00:00:00:01"), request("02:00:00:00:00:02"));
    let address = world.ok("IpamDriver.RequestAddress", one.clone()).await["Address"].clone();
    world.ok("IpamDriver.ReleaseAddress", json!({ "PoolID": "10.9.0.0/24", "Address": "10.9.0.1" })).await;
    assert_eq!(world.ok("IpamDriver.RequestAddress", two).await["Address"], "10.9.0.2/24");
    let world = world.restart().await;
    assert_eq!(world.ok("IpamDriver.RequestAddress", one.clone()).await["Address"], address);
    // while it is held, the same MAC is somebody else
    assert_eq!(world.ok("IpamDriver.RequestAddress", one).await["Address"], "10.9.0.3/24");
}

#[tokio::test]
async fn the_same_subnet_may_be_behind_two_links_and_its_addresses_are_told_apart() {
    let world = World::new().await;
    let behind = |link: &str| json!({ "Pool": "10.9.0.0/24", "SubPool": "10.9.0.8/29", "Options": { "parent": link } });
    let ids = ["10.9.0.0/24@eth0", "10.9.0.0/24@eth1"];
    for (link, id) in ["eth0", "eth1"].into_iter().zip(ids) {
        assert_eq!(world.ok("IpamDriver.RequestPool", behind(link)).await["PoolID"], id);
    }
    world.ok("IpamDriver.RequestPool", json!({ "Pool": "10.9.0.0/24" })).await;
    assert!(world.refused("IpamDriver.RequestPool", behind("eth1")).await.contains("overlaps"));
    let any = |id: &str| json!({ "PoolID": id, "Address": "" });
    world.ok("IpamDriver.RequestAddress", any(ids[0])).await;
    for id in ids {
        world.ok("IpamDriver.RequestAddress", json!({ "PoolID": id, "Address": "10.9.0.10" })).await;
    }
    let world = world.restart().await;
    for (id, next) in [(ids[0], "10.9.0.9/24"), (ids[1], "10.9.0.8/24"), ("10.9.0.0/24", "10.9.0.1/24")] {
        assert_eq!(world.ok("IpamDriver.RequestAddress", any(id)).await["Address"], next);
        world.refused("IpamDriver.RequestAddress", json!({ "PoolID": id, "Address": next.trim_end_matches("/24") })).await;
    }
    world.ok("IpamDriver.ReleasePool", json!({ "PoolID": ids[1] })).await;
    let world = world.restart().await;
    world.ok("IpamDriver.RequestPool", behind("eth1")).await;
    assert_eq!(world.ok("IpamDriver.RequestAddress", any(ids[0])).await["Address"], "10.9.0.11/24");
    for bad in ["eth/1", "", "eth1@eth0"] {
        world.refused("IpamDriver.RequestPool", behind(bad)).await;
    }
    assert!(world.refused("IpamDriver.RequestPool", json!({ "Options": { "parent": "eth0" } })).await.contains("--subnet"));
}

#[tokio::test]
async fn pools_are_chosen_apart_until_there_are_none() {
    let world = World::new().await;
    let any = json!({ "AddressSpace": "rsnet-local", "Pool": "", "SubPool": "", "Options": null, "V6": false });
    let mut seen = std::collections::BTreeSet::new();
    let refusal = loop {
        let (status, answer) = world.send("IpamDriver.RequestPool", &any).await;
        if status != 200 {
            break answer["Error"].as_str().unwrap().to_owned();
        }
        assert!(seen.insert(answer["Pool"].as_str().unwrap().to_owned()), "{answer} twice");
    };
    assert!(seen.len() > 20, "{seen:?}");
    assert!(refusal.contains("--subnet"), "{refusal}");
    let v6 = world.ok("IpamDriver.RequestPool", json!({ "AddressSpace": "rsnet-local", "Pool": "", "V6": true })).await;
    assert!(v6["Pool"].as_str().unwrap().starts_with("fd"), "{v6}");
}

#[tokio::test]
async fn an_address_keeps_its_mac_until_somebody_else_has_that() {
    let world = World::new().await;
    world.ok("NetworkDriver.CreateNetwork", create_network()).await;
    let create = |id: &str, mac: &str| {
        let mut body = create_endpoint();
        (body["EndpointID"], body["Interface"]["MacAddress"]) = (json!(id), json!(mac));
        body
    };
    let delete = |id: &str| json!({ "NetworkID": NETWORK, "EndpointID": id });
    let mac = world.ok("NetworkDriver.CreateEndpoint", create("a", "")).await["Interface"]["MacAddress"].clone();
    world.ok("NetworkDriver.DeleteEndpoint", delete("a")).await;
    assert_eq!(world.ok("NetworkDriver.CreateEndpoint", create("b", "")).await["Interface"]["MacAddress"], mac);
    world.ok("NetworkDriver.DeleteEndpoint", delete("b")).await;
    let mut elsewhere = create("c", mac.as_str().unwrap());
    (elsewhere["Interface"]["Address"], elsewhere["Interface"]["AddressIPv6"]) = (json!("172.18.0.9/16"), json!(""));
    world.ok("NetworkDriver.CreateEndpoint", elsewhere).await;
    assert_ne!(world.ok("NetworkDriver.CreateEndpoint", create("d", "")).await["Interface"]["MacAddress"], mac);
}
