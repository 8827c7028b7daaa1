//! No body, however hostile, panics, hangs or half-applies.

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::world::*;

/// JSON of any shape, with the protocol's own words in it.
fn anything() -> impl Strategy<Value = Value> {
    let words =
        ["NetworkID", "EndpointID", "Options", "com.docker.network.generic", "com.docker.network.portmap", "Interface", "Pool", "PoolID"];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,40}".prop_map(Value::from),
        prop::sample::select(vec![NETWORK, ENDPOINT, SANDBOX, "172.18.0.0/16", "../../etc", "0.0.0.0/0", "::/0", "%n"])
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 64, 8, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((prop::sample::select(words.to_vec()), inner), 0..6)
                .prop_map(|pairs| Value::Object(pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_json_is_answered_and_refusals_change_nothing(
        options in prop::sample::select(networks()),
        call in prop::sample::select(CALLS.to_vec()),
        body in anything(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let world = World::new().await;
            world.ok("NetworkDriver.CreateNetwork", create_network_with(options.clone())).await;
            world.ok("NetworkDriver.CreateEndpoint", create_endpoint_on(&options)).await;
            world.ok("NetworkDriver.Join", join()).await;
            let before = world.host().await;
            let (status, answer) = world.send(call, &body).await;
            assert!([200, 400, 500].contains(&status), "{status} {answer}");
            assert!(!answer.to_string().contains("defect"), "{call} {body} → {answer}");
            if status != 200 {
                assert_eq!(world.host().await, before);
            }
            assert_eq!(world.converge().await, [], "{call} {body} left something undone");
        });
    }
}

#[tokio::test]
async fn wrong_types_garbage_and_huge_bodies_are_refused() {
    for options in networks() {
        let world = World::new().await;
        world.ok("NetworkDriver.CreateNetwork", create_network_with(options)).await;
        garbage_is_refused(&world).await;
    }
}

async fn garbage_is_refused(world: &World) {
    for body in [
        "null",
        "[]",
        "{",
        "\u{0}",
        "{\"NetworkID\":1,\"Pool\":1,\"PoolID\":1,\"Options\":1}",
        "\"x\"",
        &"[".repeat(100_000),
        &format!("\"{}\"", "x".repeat(9 << 20)),
    ] {
        for call in CALLS {
            let (status, answer) = world.send(call, body).await;
            assert!(
                status == 400 || status == 413 || status == 500 || (*call == "NetworkDriver.GwAllocCheck" && status == 200),
                "{call}: {status} {answer}"
            );
        }
    }
}

#[tokio::test]
async fn ids_that_are_paths_never_reach_the_store() {
    let world = World::new().await;
    for id in ["../x", "a/b", "", ".", "a\u{0}b", &"f".repeat(1000)] {
        let mut network = create_network();
        network["NetworkID"] = json!(id);
        let (status, answer) = world.send("NetworkDriver.CreateNetwork", network).await;
        assert_eq!(status, 400, "{id:?}: {answer}");
    }
}
