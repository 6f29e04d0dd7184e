//! A job trains, and says what it did.

use tests::leftovers;
use tests::program::{User, root};

use crate::Story;

pub(crate) const STORIES: &[Story] = &[("train::the_digits_reach_their_accuracy", digits)];

fn digits() {
    let user = User::new();
    let job = root().join("examples/digits/job.yaml");
    let run = user.run(["job", "submit", job.to_str().unwrap(), "--output", "json"]).code(0);
    let summary = run.json();
    assert!(summary["metrics"]["accuracy"].as_f64().unwrap() >= 0.92, "{summary:#}");
    leftovers::assert_none(&user);
}
