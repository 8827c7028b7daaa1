//! The suite on real Docker Engines: every test is a function of an engine, and runs on each of them under that engine's name.
//!
//! `engine_20_10::…` is the oldest of Debian's, `engine_28_5::…` the newest; `make test ENGINE="26.1"` runs it on another.

#[path = "../lab/mod.rs"]
mod lab;
#[path = "../store/proxy.rs"]
#[allow(dead_code)]
mod proxy;

mod beside;
mod compose;
mod crash;
mod docs;
mod drift;
mod explain;
mod flow;
mod front;
mod hostile;
mod macvlan;
mod matrix;
use macvlan::live as macvlan_live;
use macvlan::overlap as macvlan_overlap;
use macvlan::shared as macvlan_shared;
mod none;
mod ops;
mod options;
mod overlay;
mod packaging;
mod plugin;
mod publish;
mod restart;
mod run;
mod sctp;
mod smoke;
mod standing;
mod traffic;

/// Makes of each `module::function(Engine)` one test per engine.
macro_rules! on_every_engine {
    ($($module:ident::$test:ident,)*) => {
        mod engine_20_10 { $(#[test] fn $test() { crate::$module::$test(crate::lab::Engine::V20_10) })* }
        mod engine_26_1 { $(#[test] fn $test() { crate::$module::$test(crate::lab::Engine::V26_1) })* }
        mod engine_28_5 { $(#[test] fn $test() { crate::$module::$test(crate::lab::Engine::V28_5) })* }
        mod engine_29_7 { $(#[test] fn $test() { crate::$module::$test(crate::lab::Engine::V29_7) })* }
        mod engine_29_7_nftables { $(#[test] fn $test() { crate::$module::$test(crate::lab::Engine::V29_7Nftables) })* }
    };
}

on_every_engine! {
    compose::the_bridge_example_does_what_dockers_bridge_does,
    compose::the_none_example_runs_where_nothing_is_reached,
    compose::the_isolated_job_hands_its_result_to_who_may_show_it,
    packaging::two_capabilities_are_enough,
    plugin::a_plugin_from_a_registry_carries_a_network,
    plugin::an_upgrade_interrupts_nobody_and_forgets_nothing,
    plugin::links_made_straight_in_the_sandbox_work_through_the_plugin,
    plugin::a_plugin_hears_the_engine_again_that_it_outlived,
    plugin::a_macvlan_network_works_through_the_plugin,
    plugin::two_machines_share_a_network_as_the_readme_says,
    plugin::a_plugin_with_a_wrong_setting_says_which,
    plugin::a_plugin_reaches_a_consul_with_a_token_below_data,
    beside::all_stands_beside_docker_where_bridges_are_filtered,
    beside::all_stands_beside_docker_on_legacy_iptables,
    ops::each_fault_of_a_host_is_one_finding_and_a_healthy_one_has_none,
    none::containers_have_loopback_only_and_no_question_of_theirs_gets_out,
    none::no_address_is_wasted_where_the_engine_asks,
    beside::networks_that_come_and_go_cost_no_packet,
    beside::networks_that_come_and_go_cost_no_packet_on_legacy_iptables,
    smoke::a_host_runs_a_container_on_dockers_own_bridge,
    smoke::a_station_reaches_a_port_published_by_docker,
    smoke::a_rebooted_host_has_its_disk_and_nothing_else,
    smoke::a_paused_host_answers_again_when_resumed,
    smoke::a_cut_host_is_reached_again_when_mended,
    smoke::two_segments_are_joined_by_a_router,
    overlay::what_containers_are_called_is_known_on_the_other_hosts,
    overlay::names_of_all_hosts_are_resolved_in_containers_and_all_else_by_docker,
    overlay::containers_on_three_hosts_reach_each_other,
    overlay::the_compose_example_talks_across_three_hosts,
    overlay::the_web_server_of_one_host_finds_the_database_of_the_other,
    overlay::hosts_and_containers_of_all_hosts_see_each_others_true_addresses,
    overlay::the_way_out_is_the_hosts_and_published_ports_lead_in,
    overlay::networks_are_walled_off_from_each_other_on_all_hosts,
    overlay::packets_pass_as_they_are_between_hosts_of_one_segment,
    overlay::a_host_takes_another_way_to_its_peers_without_a_break,
    overlay::large_transfers_pass_whatever_the_underlays_mtu,
    overlay::without_consul_traffic_goes_on_and_containers_start,
    overlay::a_wiped_consul_is_rebuilt_from_the_hosts,
    overlay::kills_and_reboots_of_a_host_lose_no_network,
    overlay::what_is_deleted_or_altered_of_an_overlay_is_back_within_a_second,
    overlay::a_host_that_will_not_come_back_is_forgotten,
    overlay::a_host_for_which_there_is_no_block_takes_part_all_the_same,
    overlay::what_hosts_do_not_agree_on_is_refused_with_both_sides,
    overlay::addresses_are_those_of_the_host_unless_a_user_names_one,
    overlay::dockers_own_ipam_is_refused_with_a_word,
    overlay::no_row_ever_leads_to_a_host_that_does_not_hold_the_address,
    overlay::first_packets_arrive_and_nothing_is_written_for_a_container,
    overlay::each_of_many_hosts_reaches_each_other_at_once,
    overlay::an_outage_of_consul_is_not_noticed_and_over_at_once,
    overlay::a_slow_consul_holds_up_nobody,
    overlay::the_loss_of_consuls_leader_is_not_noticed,
    overlay::a_consul_that_comes_up_after_everything_else_finds_all_at_work,
    overlay::in_no_partition_an_address_is_held_twice,
    overlay::a_host_that_only_consul_does_not_hear_uses_nothing_any_more_that_was_given_away,
    overlay::tunnels_leave_by_the_address_that_was_announced,
    overlay::an_underlay_of_ipv6_carries_both_families,
    overlay::a_network_of_one_host_appears_on_all_and_goes_when_nobody_uses_it,
    overlay::a_name_that_another_network_has_is_told_and_left_alone,
    overlay::a_router_that_says_nothing_is_no_hindrance_at_any_mtu,
    matrix::the_default_network,
    matrix::an_internal_network,
    matrix::a_network_without_icc,
    publish::a_published_port_is_reached_from_everywhere_and_the_segments_address_is_kept,
    publish::ranges_and_ports_left_to_rsnet_are_found_by_rsnet_ports,
    publish::a_binding_to_loopback_is_reached_from_the_host_and_from_nowhere_else,
    publish::a_binding_to_one_address_of_the_host_is_reached_by_that_one_only,
    publish::a_port_that_is_taken_is_refused_with_who_has_it,
    publish::a_port_is_free_after_disconnect_and_removal_and_kept_over_a_restart,
    publish::without_icc_neighbours_meet_by_published_ports_only,
    sctp::an_sctp_association_passes_a_published_port,
    publish::publish_engine_shows_ports_in_docker_ps_and_they_answer,
    publish::published_ports_move_with_the_containers_gateway,
    publish::a_container_on_rsnet_and_dockers_bridge_publishes_by_its_gateway,
    options::a_container_has_the_mtu_and_the_interface_names_asked_for,
    options::the_segment_sees_the_source_that_the_options_say,
    options::a_gateway_mode_opens_what_it_says_per_family,
    options::an_isolated_network_has_no_address_of_the_host,
    options::the_bridge_is_named_as_asked_and_has_no_ipv4_if_inhibited,
    options::a_trusted_interface_enters_and_host_binding_binds,
    options::bad_options_are_refused_by_name_with_the_nearest_valid_one,
    options::overlaps_and_foreign_bridges_are_refused_and_not_touched,
    options::links_moved_by_the_engine_pass_the_core_tests,
    options::links_made_directly_pass_the_core_tests,
    options::links_made_directly_by_default_pass_the_core_tests,
    options::addresses_come_from_dockers_ipam_as_for_its_own_bridge,
    options::addresses_come_from_rsnets_ipam_and_are_reused_last,
    options::without_ipam_containers_have_a_link_and_no_address,
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
    macvlan::in_mode_bridge_neighbours_meet_on_the_parent,
    macvlan::in_mode_vepa_neighbours_do_not_meet_without_a_relay,
    macvlan::in_mode_vepa_neighbours_meet_by_a_reflective_relay,
    macvlan::in_mode_private_neighbours_never_meet,
    macvlan::in_mode_passthru_one_container_has_the_parent_for_itself,
    macvlan::in_mode_source_only_listed_stations_are_heard,
    macvlan::what_will_not_work_is_said,
    macvlan::the_host_and_its_containers_reach_each_other_with_host_access,
    macvlan::restarts_with_a_fixed_mac_and_address_never_fail,
    macvlan::a_stranger_who_answers_late_is_told_in_the_log,
    macvlan::a_mac_is_one_container_s_on_a_parent,
    macvlan::publishing_is_refused_or_explained,
    macvlan_live::router_advertisements_are_heeded_where_asked_for_and_nowhere_else,
    macvlan_overlap::one_subnet_may_be_behind_two_parents_with_rsnets_ipam,
    macvlan_shared::a_mac_that_a_user_chose_is_one_host_s_of_a_lan,
    macvlan_shared::three_hosts_never_give_one_address_of_a_lan_twice,
    macvlan_live::whom_containers_hear_in_mode_source_changes_at_once_and_for_good,
    macvlan::a_lost_child_or_parent_comes_back_into_the_container,
    compose::the_macvlan_example_is_reached_from_the_lan,
    explain::faults_on_one_host_are_named_and_healthy_pairs_raise_no_alarm,
    explain::faults_between_hosts_are_named_and_healthy_pairs_raise_no_alarm,
    explain::faults_on_other_ways_between_hosts_are_named_and_healthy_pairs_raise_no_alarm,
    drift::what_is_deleted_or_altered_by_hand_is_back_within_a_second,
    drift::what_is_altered_by_hand_on_a_macvlan_network_is_back_within_a_second,
    drift::what_is_deleted_by_hand_is_back_within_a_second_where_rsnet_made_the_links,
}
