//! The `launcher` command.
fn main() {}
