//! Stories: each drives the built program as a user would and looks at what comes out.
//!
//! `cargo test --workspace --test stories [NAME]`. Each is a plain function that panics when it fails; the list below
//! is the table of contents.

#![expect(clippy::unwrap_used, reason = "a story fails by panicking")]

mod bad_input;
mod chaos;
mod elastic;
mod faults;
mod order;
mod ranks;
mod servers;
mod shell;
mod train;

use libtest_mimic::Arguments;
use tests::story::{Story, trials};

fn main() -> std::process::ExitCode {
    let mut arguments = Arguments::from_args();
    // A story is several processes already; two at a time keep a small machine busy and not drowned.
    arguments.test_threads = Some(arguments.test_threads.unwrap_or(2));
    let stories: &[&[Story]] = &[
        train::STORIES,
        order::STORIES,
        faults::STORIES,
        elastic::STORIES,
        servers::STORIES,
        chaos::STORIES,
        shell::STORIES,
        ranks::STORIES,
        bad_input::STORIES,
    ];
    libtest_mimic::run(&arguments, trials(stories)).exit_code()
}
