//! The suite on real Docker Engines: every test is a function of an engine, and runs on each of them under that engine's name.
//!
//! `engine_20_10::…` is the oldest, `engine_28_5::…` the newest; `make test ENGINE="26.1"` runs it on another.

#[path = "../lab/mod.rs"]
mod lab;

mod crash;
mod drift;
mod flow;
mod hostile;
mod restart;
mod smoke;
mod standing;

/// Makes of each `module::function(Engine)` one test per engine.
macro_rules! on_every_engine {
    ($($module:ident::$test:ident,)*) => {
        mod engine_20_10 { $(#[test] fn $test() { crate::$module::$test(crate::lab::Engine::V20_10) })* }
        mod engine_26_1 { $(#[test] fn $test() { crate::$module::$test(crate::lab::Engine::V26_1) })* }
        mod engine_28_5 { $(#[test] fn $test() { crate::$module::$test(crate::lab::Engine::V28_5) })* }
    };
}

on_every_engine! {
    smoke::a_host_runs_a_container_on_dockers_own_bridge,
    smoke::a_station_reaches_a_port_published_by_docker,
    smoke::a_rebooted_host_has_its_disk_and_nothing_else,
    smoke::a_paused_host_answers_again_when_resumed,
    smoke::a_cut_host_is_reached_again_when_mended,
    smoke::two_segments_are_joined_by_a_router,
    crash::fifty_kills_cost_running_containers_no_packet,
    crash::kills_amid_calls_leave_nothing_behind,
    crash::kills_amid_calls_leave_nothing_behind_in_sandboxes,
    hostile::ten_thousand_connections_do_not_keep_the_engine_out,
    hostile::half_requests_huge_bodies_and_path_tricks_are_refused,
    restart::sigterm_leaves_the_network_and_a_start_answers_within_a_second,
    restart::containers_come_back_after_a_restart_of_the_engine,
    restart::containers_come_back_after_a_crash_of_the_engine,
    restart::containers_run_on_through_a_restart_with_live_restore,
    restart::containers_come_back_after_a_reboot_with_the_plugin_first,
    restart::containers_come_back_after_a_reboot_with_the_engine_first,
    drift::what_is_deleted_or_altered_by_hand_is_back_within_a_second,
}
