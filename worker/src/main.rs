//! The `worker` command, for images that carry no launcher.

use std::path::Path;
use std::process::ExitCode;

/// What the command understands.
const USAGE: &str = "usage: worker agent   (configuration: one line of JSON on standard input)
       worker pod     (the sidecar of a pod: configuration from its environment and volumes)
       worker serve   (a data server: a pod without ranks, configured in the same way)
       worker exec    (the first process of a pod's ranks' container)
       worker probe   [--output table|json] [--root FOLDER]   (what this container has, and on which NUMA node)
       worker --version
";
/// `EX_USAGE`, as clap has it in the launcher.
const EXIT_USAGE: u8 = 2;
/// `EX_SOFTWARE`, as sysexits.h has it.
const EXIT_FAILED: u8 = 70;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    match arguments.iter().map(|argument| argument.to_str()).collect::<Vec<_>>().as_slice() {
        [Some("agent")] => worker::agent::main(),
        [Some("pod")] => worker::pod::sidecar::main(),
        [Some("serve")] => worker::pod::sidecar::serve(),
        [Some("exec")] => worker::pod::exec::main(),
        [Some("probe"), options @ ..] => probe(options),
        [Some("--version" | "-V")] => {
            say(&mut std::io::stdout(), &format!("worker {}\n", env!("CARGO_PKG_VERSION")), 0)
        }
        [Some("--help" | "-h")] => say(&mut std::io::stdout(), USAGE, 0),
        _ => say(&mut std::io::stderr(), USAGE, EXIT_USAGE),
    }
}

/// Shows what is here. FOLDER stands for the root of the file system, for hosts that are looked at from outside.
fn probe(options: &[Option<&str>]) -> ExitCode {
    let (mut json, mut root) = (false, Path::new("/"));
    for option in options.chunks(2) {
        match option {
            [Some("--output" | "-o"), Some("json")] => json = true,
            [Some("--output" | "-o"), Some("table")] => json = false,
            [Some("--root"), Some(folder)] => root = Path::new(folder),
            _ => return say(&mut std::io::stderr(), USAGE, EXIT_USAGE),
        }
    }
    let env = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let found = worker::host::probe::read(root, &env);
    if json {
        match serde_json::to_string_pretty(&found) {
            Ok(text) => say(&mut std::io::stdout(), &(text + "\n"), 0),
            Err(error) => say(&mut std::io::stderr(), &format!("cannot write JSON: {error}\n"), EXIT_FAILED),
        }
    } else {
        say(&mut std::io::stdout(), &worker::host::probe::table(&found), 0)
    }
}

/// A reader that went away is no reason to panic.
fn say(output: &mut impl std::io::Write, text: &str, code: u8) -> ExitCode {
    let _ = output.write_all(text.as_bytes());
    ExitCode::from(code)
}
