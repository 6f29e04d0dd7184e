//! From the command line to one function per verb, and from its failure to the exit code.

use std::ffi::OsString;
use std::future::Future;
use std::process::ExitCode as ProcessExitCode;

use clap::{CommandFactory, Parser};

use crate::cli::{Cli, Command};
use crate::config::Config;
use crate::error::{ExitCode, Failure};
use crate::output::{Printer, table};

pub mod cluster;
pub mod crd;
pub mod data;
pub mod doctor;
pub mod job;
pub mod order;
pub mod submit;

/// The whole program: parses, runs, tells a failure once.
#[must_use]
pub fn main(args: impl IntoIterator<Item = OsString>, config: &Config) -> ProcessExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(error) => return not_understood(&error, &args),
    };
    if matches!(cli.command, Command::WorkerAgent) {
        return worker::agent::main();
    }
    log_to_standard_error(config);
    let printer = Printer::new(&cli.global, config);
    let code = run(cli.command, printer, config).unwrap_or_else(|failure| {
        if failure.code != ExitCode::Ok {
            printer.failure(&failure);
        }
        failure.code
    });
    ProcessExitCode::from(code.number())
}

/// Help and version go to standard output with code 0, everything else to standard error with code 2; to those who
/// read JSON also as a document.
fn not_understood(error: &clap::Error, args: &[OsString]) -> ProcessExitCode {
    error.print().ok();
    let ours = args.split(|arg| arg == "--").next().unwrap_or_default();
    let wants_json = ours.iter().any(|arg| arg == "--output=json")
        || ours.windows(2).any(|pair| pair[0] == "--output" && pair[1] == "json");
    if error.use_stderr() && wants_json {
        let shown = error.render().to_string();
        let mut lines = shown.lines().filter(|line| !line.is_empty());
        let message = lines.next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        let failure = Failure::new(ExitCode::Usage, message).hint("`launcher help` explains every command");
        // A reader that is gone needs no document.
        crate::output::error_document(&failure).ok();
    }
    ProcessExitCode::from(u8::try_from(error.exit_code()).unwrap_or_else(|_| ExitCode::Usage.number()))
}

fn log_to_standard_error(config: &Config) {
    let filter = tracing_subscriber::EnvFilter::try_new(&config.log).unwrap_or_default();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    // Fails only when there is a log already, which then serves as well.
    log.try_init().ok();
}

/// Runs one command.
///
/// # Errors
/// When it failed; a job that failed is a code, since it has been told by then.
pub fn run(command: Command, printer: Printer, config: &Config) -> Result<ExitCode, Failure> {
    match command {
        Command::Job(command) => block_on(job::run(command, printer, config))?,
        Command::Data(command) => block_on(data::run(command, printer))?,
        Command::Serve(options) => block_on(crate::serve::run(*options))?,
        Command::Doctor(flags) => block_on(doctor::run(&flags, printer))?,
        Command::Schema => printer.json(&*crate::job::schema::SCHEMA).map(|()| ExitCode::Ok),
        Command::Crd => crd::run(printer),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "launcher", &mut script);
            printer.text(&String::from_utf8_lossy(&script)).map(|()| ExitCode::Ok)
        }
        Command::ExitCodes => exit_codes(printer),
        Command::JobController { folder } => {
            let status = block_on(crate::backend::local::control(&folder))??;
            Ok(crate::output::job::exit_code(&status))
        }
        Command::WorkerAgent => Ok(ExitCode::Internal),
    }
}

fn exit_codes(printer: Printer) -> Result<ExitCode, Failure> {
    let rows = ExitCode::ALL.map(
        |code| serde_json::json!({ "code": code.number(), "name": code.word(), "meaning": code.meaning() }),
    );
    printer.data(&rows, |_| {
        let mut lines = vec![["CODE", "NAME", "MEANING"].map(str::to_owned).to_vec()];
        lines.extend(
            ExitCode::ALL.map(|code| {
                vec![code.number().to_string(), code.word().to_owned(), code.meaning().to_owned()]
            }),
        );
        table(&lines)
    })?;
    Ok(ExitCode::Ok)
}

fn block_on<T>(future: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime
        .map_err(|error| Failure::new(ExitCode::Temporary, "failed to start threads").because(&error))?;
    Ok(runtime.block_on(future))
}
