//! Every kernel and every firewall call of a network's whole life fails once, with its effect and without. The call that met the fault is
//! refused, or takes away all the same; after one converge the host is as if the refused calls had never been; a second one changes nothing.

use std::time::Duration;

use rsnet::kernel::fake::{Call, Effect};
use rsnet::model::Key;
use serde_json::{Value, json};

use crate::world::*;

/// Every call of a network's life; where it publishes nothing, without those of ports.
pub fn life(options: &Value) -> Vec<(&'static str, Value)> {
    let ports = json!([port(8080, 80), port(8081, 81)]);
    let mut life = vec![
        ("NetworkDriver.CreateNetwork", create_network_with(options.clone())),
        ("NetworkDriver.CreateEndpoint", create_endpoint_on(options)),
        ("NetworkDriver.Join", join()),
        ("NetworkDriver.ProgramExternalConnectivity", program(ports)),
        ("NetworkDriver.RevokeExternalConnectivity", endpoint()),
        ("NetworkDriver.Leave", endpoint()),
        ("NetworkDriver.DeleteEndpoint", endpoint()),
        ("NetworkDriver.DeleteNetwork", json!({ "NetworkID": NETWORK })),
    ];
    if options["mode"] == "macvlan" {
        life.drain(3..5);
    }
    life
}

/// As many calls as make a network with a container that runs.
pub fn running(options: &Value) -> usize {
    if options["mode"] == "macvlan" { 3 } else { 4 }
}

/// The host after each step of a life without faults.
async fn undisturbed(options: &Value) -> Vec<String> {
    let world = World::new().await;
    let mut hosts = vec![world.host().await];
    for (call, body) in life(options) {
        world.ok(call, body).await;
        hosts.push(world.host().await);
    }
    hosts
}

/// Lives up to and with step `last`, with a fault set before it by `break_it`; whether the fault was hit.
async fn live(options: &Value, last: usize, expected: &[String], break_it: impl FnOnce(&World), heal: impl FnOnce(&World) -> bool) -> bool {
    let world = World::new().await;
    let steps = life(options);
    for (call, body) in &steps[..last] {
        world.ok(call, body.clone()).await;
    }
    world.host().await;
    break_it(&world);
    let (call, body) = &steps[last];
    let (status, answer) = world.send(call, body).await;
    world.host().await;
    let hit = heal(&world);
    if !hit {
        return false;
    }
    let done = status == 200;
    assert!(done || answer["Err"].is_string(), "{call}: {answer}");
    let takes_away = ["Revoke", "Leave", "Delete"].iter().any(|word| call.contains(word));
    assert!(done || !takes_away, "{call} must take away whatever happens: {answer}");
    world.converge().await;
    let reached = if done { last + 1 } else { last };
    assert_eq!(world.host().await, expected[reached], "{call} with a fault, answered {status} {answer}");
    assert_eq!(world.converge().await, [], "a second converge");
    let world = world.restart().await;
    assert_eq!(world.converge().await, [], "a converge after a restart");
    true
}

#[tokio::test]
async fn every_kernel_call_may_fail() {
    let mut hits = 0;
    for options in networks() {
        let expected = undisturbed(&options).await;
        for last in 0..life(&options).len() {
            for effect in [Effect::None, Effect::Done] {
                for n in 0.. {
                    if !live(&options, last, &expected, |world| world.kernel.fail_nth(n, effect), |world| world.kernel.heal() > 0).await {
                        break;
                    }
                    hits += 1;
                }
            }
        }
    }
    assert!(hits > 30, "only {hits} faults were hit");
}

#[tokio::test]
async fn every_firewall_call_may_fail() {
    let mut hits = 0;
    for options in networks() {
        let expected = undisturbed(&options).await;
        for last in 0..life(&options).len() {
            let calls = |world: &World| world.firewall.log().len();
            let before = std::cell::Cell::new(0);
            let broken = live(
                &options,
                last,
                &expected,
                |world| {
                    before.set(calls(world));
                    world.firewall.fail(calls(world));
                },
                |world| calls(world) > before.get(),
            );
            hits += usize::from(broken.await);
        }
    }
    assert!(hits >= 4, "only {hits} faults were hit");
}

#[tokio::test]
async fn what_the_disk_refuses_is_refused_and_has_not_happened() {
    let mut refused = 0;
    for options in networks() {
        let expected = undisturbed(&options).await;
        for last in 0..life(&options).len() {
            for n in 0.. {
                if !refuse_on_disk(&options, last, n, &expected).await {
                    break; // as many as the call commits, none for one that declares nothing new
                }
                refused += 1;
            }
        }
    }
    assert!(refused > 6, "only {refused} calls met the fault");
}

/// Lives up to and with step `last`, of which the n-th commit fails; whether there is one.
async fn refuse_on_disk(options: &Value, last: usize, n: i64, expected: &[String]) -> bool {
    let world = World::new().await;
    let steps = life(options);
    for (call, body) in &steps[..last] {
        world.ok(call, body.clone()).await;
    }
    let (call, body) = &steps[last];
    world.disk.fail_nth(n);
    let (status, answer) = world.send(call, body).await;
    if world.disk.heal() {
        return false;
    }
    assert!(status != 200 && answer["Err"].as_str().unwrap().contains("no space left"), "{call}: {status} {answer}");
    world.converge().await;
    assert_eq!(world.host().await, expected[last], "after {call} was refused");
    world.ok(call, body.clone()).await;
    assert_eq!(world.host().await, expected[last + 1], "{call} again");
    let world = world.restart().await;
    assert_eq!(world.converge().await, [], "a converge after a restart");
    true
}

#[tokio::test]
async fn what_is_damaged_by_hand_is_mended_and_nothing_else_is_touched() {
    for options in networks() {
        let expected = undisturbed(&options).await;
        let world = World::new().await;
        for (call, body) in &life(&options)[..running(&options)] {
            world.ok(call, body.clone()).await;
        }
        let objects = world.kernel.objects();
        for key in objects.keys() {
            world.kernel.vanish(key);
            world.converge().await;
            assert_eq!(world.host().await, expected[running(&options)], "after {key:?} vanished");
        }
        assert_eq!(world.converge().await, []);
    }
}

#[tokio::test]
async fn a_restart_at_any_point_finds_all_as_it_was() {
    for options in networks() {
        let expected = undisturbed(&options).await;
        for (last, host) in expected.iter().enumerate() {
            let mut world = World::new().await;
            for (call, body) in &life(&options)[..last] {
                world.ok(call, body.clone()).await;
            }
            world = world.restart().await;
            assert_eq!(world.converge().await, [], "after step {last}");
            assert_eq!(world.host().await, *host);
        }
    }
}

#[tokio::test]
async fn after_a_reboot_networks_stand_again_and_dead_endpoints_are_forgotten() {
    for options in networks() {
        let expected = undisturbed(&options).await;
        let world = World::new().await;
        for (call, body) in &life(&options)[..running(&options)] {
            world.ok(call, body.clone()).await;
        }
        for key in world.kernel.objects().keys() {
            world.kernel.vanish(key);
        }
        world.kernel.remove_sandbox(std::path::Path::new(SANDBOX));
        world.firewall.disturb(|entries| entries.clear());
        let world = world.restart().await;
        world.converge().await;
        assert_eq!(world.host().await, expected[1]);
    }
}

#[tokio::test]
async fn news_of_damage_is_acted_upon_and_news_of_our_own_work_is_not() {
    let world = World::new().await;
    let reconciler = world.reconciler.clone();
    tokio::spawn(async move { reconciler.watch().await });
    for (call, body) in &life(&json!({}))[..4] {
        world.ok(call, body.clone()).await;
    }
    let whole = world.host().await;
    // not earlier: a paused clock leaps while the disk writes
    tokio::time::pause();
    let looks = || world.kernel.take_calls().into_iter().filter(|call| *call == Call::Observe).count();
    tokio::time::sleep(Duration::from_secs(1)).await;
    looks();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(looks(), 0, "nothing happened, and the host was looked at");
    for key in world.kernel.objects().keys().filter(|key| !matches!(key, Key::HostSysctl(_))) {
        world.kernel.vanish(key);
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(world.host().await, whole, "half a second after {key:?} vanished");
    }
    world.kernel.lose_events();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(looks() > 0, "events were lost, and nobody looked");
}

/// The engine takes a `DeleteNetwork` that was under way when rsnet died for done, and gives its subnet away.
#[tokio::test]
async fn a_network_that_the_engine_has_forgotten_makes_way_for_the_next_one_on_its_subnet() {
    let expected = undisturbed(&json!({})).await;
    let world = World::new().await;
    world.ok("NetworkDriver.CreateNetwork", create_network()).await;
    let mut next = create_network();
    next["NetworkID"] = json!("89abcdef0123456789abcdef0123456789abcdef0123456789abcdef01234567");
    let refusal = world.refused("NetworkDriver.CreateNetwork", next.clone()).await;
    assert!(refusal.contains("overlaps"), "what this process has made stays: {refusal}");
    let world = world.restart().await;
    world.converge().await;
    assert_eq!(world.host().await, expected[1]);
    world.ok("NetworkDriver.CreateNetwork", next.clone()).await;
    let host = world.host().await;
    assert!(host.contains("rsb-89abcdef01") && !host.contains("rsb-0123456789"), "{host}");
    // nobody has spoken of the new one since the start, but its own subnet is from elsewhere
    let world = world.restart().await;
    let mut elsewhere = create_network();
    elsewhere["IPv4Data"][0]["AddressSpace"] = json!("rsnet-local");
    elsewhere["IPv6Data"][0]["AddressSpace"] = json!("rsnet-local");
    world.refused("NetworkDriver.CreateNetwork", elsewhere).await;
}
