//! The `launcher` program as a user has it: built once, run with a state folder of its own.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use tempfile::TempDir;

/// One run of the program takes no longer than this, or the story fails: a stuck job must not eat the hour.
pub const RUN_LIMIT: Duration = Duration::from_secs(180);

/// The repository's root.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Path of the built program. `SLIPWAY_LAUNCHER` names one that is built already; else cargo builds it, in the
/// profile that the stories were built in.
pub fn launcher() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        #[expect(clippy::disallowed_methods, reason = "the harness's one setting")]
        if let Ok(path) = std::env::var("SLIPWAY_LAUNCHER") {
            return PathBuf::from(path);
        }
        // target/<profile>/deps/stories-… is this program.
        let folder = std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().to_owned();
        let mut cargo = Command::new(env!("CARGO"));
        // Of the whole workspace, as tests are built: with other features every dependency would be built once more.
        cargo.args(["build", "--quiet", "--workspace", "--bin", "launcher"]).current_dir(root());
        cargo.env("CARGO_TARGET_DIR", folder.parent().unwrap());
        if folder.ends_with("release") {
            cargo.arg("--release");
        }
        assert!(cargo.status().unwrap().success(), "the launcher does not build");
        folder.join("launcher")
    })
}

/// A user with an empty home: state folder, temporary folder and working folder are new and watched.
#[derive(Debug)]
pub struct User {
    folder: TempDir,
    extra: Vec<(String, String)>,
}

impl Default for User {
    fn default() -> Self {
        Self::new()
    }
}

impl User {
    /// A new one.
    #[must_use]
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("slipway-story-").tempdir().unwrap();
        for name in ["state", "tmp", "work"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        Self { folder, extra: Vec::new() }
    }

    /// Adds an environment variable to all that this user runs.
    #[must_use]
    pub fn with_env(mut self, name: &str, value: &str) -> Self {
        self.extra.push((name.to_owned(), value.to_owned()));
        self
    }

    /// `SLIPWAY_HOME`.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// `TMPDIR`: must be empty after a job.
    #[must_use]
    pub fn tmp(&self) -> PathBuf {
        self.folder.path().join("tmp")
    }

    /// Where the user stands and keeps files.
    #[must_use]
    pub fn work(&self) -> PathBuf {
        self.folder.path().join("work")
    }

    /// Writes a file into the user's folder.
    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.work().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    /// The program with these arguments, not started yet.
    #[must_use]
    pub fn command<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(launcher());
        command.args(args).current_dir(self.work()).stdin(Stdio::null());
        command.env("SLIPWAY_HOME", self.state()).env("TMPDIR", self.tmp()).env("NO_COLOR", "1");
        command.envs(self.extra.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs it to its end.
    pub fn run<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Finished {
        let mut command = self.command(args);
        let shown = format!("{command:?}");
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        Finished::new(shown, &wait(child))
    }

    /// Names of the jobs in the state folder.
    #[must_use]
    pub fn jobs(&self) -> Vec<String> {
        let Ok(folder) = std::fs::read_dir(self.state().join("jobs")) else { return Vec::new() };
        let mut names: Vec<_> =
            folder.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// Says why a story cannot run here; where `CI=true`, it fails instead.
///
/// # Panics
/// Where `CI=true`.
#[expect(clippy::print_stderr, clippy::disallowed_methods, reason = "nobody is to take it for a pass")]
pub fn cannot_run(reason: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "cannot run: {reason}");
    eprintln!("not run: {reason}");
}

/// Waits within [`RUN_LIMIT`]; a process over it is killed and the story fails.
pub fn wait(child: std::process::Child) -> Output {
    wait_within(child, RUN_LIMIT)
}

/// Waits no longer than this; a process over it is killed and the story fails.
pub fn wait_within(child: std::process::Child, limit: Duration) -> Output {
    let pid = child.id();
    let (send, receive) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || send.send(child.wait_with_output()));
    let output = receive.recv_timeout(limit);
    if output.is_err() {
        let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
    }
    thread.join().ok();
    output.expect("the program ends within the story's limit").unwrap()
}

/// What a run gave.
#[derive(Debug)]
pub struct Finished {
    /// The command line.
    pub command: String,
    /// Exit code; -1 for a signal.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Finished {
    /// Of a process that has ended.
    #[must_use]
    pub fn new(command: String, output: &Output) -> Self {
        Self {
            command,
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Fails the story, showing everything, unless the exit code is this.
    pub fn code(self, expected: i32) -> Self {
        assert_eq!(
            self.code, expected,
            "exit code of {}\n--- stdout\n{}\n--- stderr\n{}",
            self.command, self.stdout, self.stderr
        );
        self
    }

    /// Checks that standard output contains this.
    pub fn prints(self, text: &str) -> Self {
        assert!(
            self.stdout.contains(text),
            "{} does not print {text:?}\n--- stdout\n{}\n--- stderr\n{}",
            self.command,
            self.stdout,
            self.stderr
        );
        self
    }

    /// Fails the story unless standard error contains this.
    pub fn says(self, text: &str) -> Self {
        assert!(
            self.stderr.contains(text),
            "{} does not say {text:?}\n--- stdout\n{}\n--- stderr\n{}",
            self.command,
            self.stdout,
            self.stderr
        );
        self
    }

    /// Standard output as one JSON document.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| {
            panic!(
                "{}: no JSON on stdout: {error}\n{}\n--- stderr\n{}",
                self.command, self.stdout, self.stderr
            )
        })
    }
}
