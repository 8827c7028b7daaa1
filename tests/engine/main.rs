//! The suite on real Docker Engines: every test is a function of an engine, and runs on each of them under that engine's name.
//!
//! `engine_20_10::…` is the oldest, `engine_28_5::…` the newest; `make test ENGINE="26.1"` runs it on another.

#[path = "../lab/mod.rs"]
mod lab;

mod compose;
mod docs;
mod packaging;
mod plugin;
mod run;
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
    compose::the_bridge_example_does_what_dockers_bridge_does,
    compose::the_none_example_runs_where_nothing_is_reached,
    packaging::two_capabilities_are_enough,
    plugin::a_plugin_from_a_registry_carries_a_network,
    plugin::an_upgrade_interrupts_nobody_and_forgets_nothing,
    plugin::links_made_straight_in_the_sandbox_work_through_the_plugin,
    plugin::a_plugin_with_a_wrong_setting_says_which,
    smoke::a_host_runs_a_container_on_dockers_own_bridge,
    smoke::a_station_reaches_a_port_published_by_docker,
    smoke::a_rebooted_host_has_its_disk_and_nothing_else,
    smoke::a_paused_host_answers_again_when_resumed,
    smoke::a_cut_host_is_reached_again_when_mended,
    smoke::two_segments_are_joined_by_a_router,
}
