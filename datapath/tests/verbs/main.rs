//! Verbs on real devices: two of them on a cable, in the emulated machine of `tests/rig/rdma`, which sets `SLIPWAY_RDMA=1`
//! (`tests/run rdma`). Elsewhere nothing of it can run, and it says so.
//!
//! One at a time, since what one does to the cable all of them feel.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "measured times are shown, and roles speak by their output"
)]

mod fabric;
mod faults;
mod roles;
mod transfers;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

type Test = (&'static str, fn());

const TESTS: &[Test] = &[
    ("every_byte_arrives_by_read_write_and_message", transfers::every_byte_arrives),
    ("chains_longer_than_the_queue_wait_and_lose_nothing", transfers::a_full_queue),
    ("mistakes_are_refused_before_a_device_sees_them", transfers::mistakes),
    ("a_dropped_future_keeps_its_memory_until_the_device_is_done", transfers::a_dropped_future),
    ("what_comes_after_giving_up_lands_nowhere", transfers::giving_up),
    ("closing_gives_back_what_waits", transfers::closing),
    ("large_pages_are_used_where_some_are_set_apart", transfers::large_pages),
    ("memory_of_other_devices_is_detected_by_trying", transfers::dmabuf),
    ("a_wrong_key_is_fatal", faults::wrong_key),
    ("a_killed_peer_is_dead_within_the_bound", faults::killed_peer),
    ("a_stopped_peer_still_answers_reads", faults::stopped_peer),
    ("a_link_that_goes_down_is_named_and_one_that_comes_back_serves", faults::link_down),
    ("a_peer_that_is_never_ready_is_as_good_as_dead", faults::unready_peer),
    ("ports_of_unequal_mtu_agree_on_the_smaller", faults::unequal_mtu),
    ("lost_packets_are_a_dead_peer", faults::black_hole),
    ("an_address_that_goes_is_missed", faults::gid_gone),
    ("little_locked_memory_is_named", faults::memlock),
    ("a_missing_node_and_a_missing_library_are_named", faults::nothing_there),
];

fn main() -> ExitCode {
    if let Some(role) = variable(roles::ROLE) {
        return roles::play(&role);
    }
    let has_devices = variable("SLIPWAY_RDMA").as_deref() == Some("1");
    if !has_devices && variable("CI").as_deref() == Some("true") {
        eprintln!("cannot run: SLIPWAY_RDMA=1 is not set");
        return ExitCode::FAILURE;
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let trials = TESTS.iter().map(|&(name, test)| {
        let trial = Trial::test(name, move || {
            test();
            Ok(())
        });
        trial.with_ignored_flag(!has_devices)
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

#[expect(clippy::disallowed_methods, reason = "the switches of a test")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}
