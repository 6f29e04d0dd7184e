//! A story: a name, and what it does.

use libtest_mimic::Trial;

/// A story's name and what it does.
pub type Story = (&'static str, fn());

/// Stories as trials that the test runner can name, filter and count.
#[must_use]
pub fn trials(stories: &[&[Story]]) -> Vec<Trial> {
    let trial = |(name, story): Story| {
        Trial::test(name, move || {
            story();
            Ok(())
        })
    };
    stories.concat().into_iter().map(trial).collect()
}
