//! The `worker` command, for images that carry no launcher.

use std::process::ExitCode;

/// What the command understands; `serve` and `probe` come with the pods that need them.
const USAGE: &str = "usage: worker agent   (configuration: one line of JSON on standard input)
       worker --version
";
/// `EX_USAGE`, as clap has it in the launcher.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    match arguments.iter().map(|argument| argument.to_str()).collect::<Vec<_>>().as_slice() {
        [Some("agent")] => worker::agent::main(),
        [Some("--version" | "-V")] => {
            say(&mut std::io::stdout(), &format!("worker {}\n", env!("CARGO_PKG_VERSION")), 0)
        }
        [Some("--help" | "-h")] => say(&mut std::io::stdout(), USAGE, 0),
        _ => say(&mut std::io::stderr(), USAGE, EXIT_USAGE),
    }
}

/// A reader that went away is no reason to panic.
fn say(output: &mut impl std::io::Write, text: &str, code: u8) -> ExitCode {
    let _ = output.write_all(text.as_bytes());
    ExitCode::from(code)
}
