//! The suite on real Docker Engines: every test is a function of an engine, and runs on each of them under that engine's name.
//!
//! `engine_20_10::…` is the oldest, `engine_28_5::…` the newest; `make test ENGINE="26.1"` runs it on another.

#[path = "../lab/mod.rs"]
mod lab;

mod beside;
mod smoke;

/// Makes of each `module::function(Engine)` one test per engine.
macro_rules! on_every_engine {
    ($($module:ident::$test:ident,)*) => {
        mod engine_20_10 { $(#[test] fn $test() { crate::$module::$test(crate::lab::Engine::V20_10) })* }
        mod engine_26_1 { $(#[test] fn $test() { crate::$module::$test(crate::lab::Engine::V26_1) })* }
        mod engine_28_5 { $(#[test] fn $test() { crate::$module::$test(crate::lab::Engine::V28_5) })* }
    };
}

on_every_engine! {
    beside::all_stands_beside_docker_where_bridges_are_filtered,
    beside::all_stands_beside_docker_on_legacy_iptables,
    smoke::a_host_runs_a_container_on_dockers_own_bridge,
    smoke::a_station_reaches_a_port_published_by_docker,
    smoke::a_rebooted_host_has_its_disk_and_nothing_else,
    smoke::a_paused_host_answers_again_when_resumed,
    smoke::a_cut_host_is_reached_again_when_mended,
    smoke::two_segments_are_joined_by_a_router,
}
