//! The `launcher` command: everything is in the library.

use std::process::ExitCode;

use launcher::config::{Config, ProcessEnvironment};

fn main() -> ExitCode {
    launcher::commands::main(std::env::args_os(), &Config::read(&ProcessEnvironment))
}
