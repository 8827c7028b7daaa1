//! Options: any network that can be stored is opened or refused, and one that is opened has a plan.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rsnet::drivers;
use rsnet::model::Network;

fuzz_target!(|lines: Vec<(String, String)>| {
    let mut network = base();
    network.options.extend(lines);
    if let Ok(mode) = drivers::open(&network) {
        mode.network();
    }
});

fn base() -> Network {
    let text = r#"{"id":"0123456789abcdef","options":{},"ipv4":true,"ipv6":true,"internal":false,"host_mtu":1500,
        "host_without_ipv6":false,"host_way":"engine","pools":[
        {"subnet":"172.18.0.0/16","gateway":"172.18.0.1","auxiliary":{}},{"subnet":"fd00::/64","gateway":"fd00::1","auxiliary":{}}]}"#;
    serde_json::from_str(text).expect("a network")
}
