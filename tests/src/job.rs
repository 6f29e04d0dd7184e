//! A job in the background, watched through what a user can see.

use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::leftovers::{now, pause};
use crate::program::{Finished, User, wait};

/// A state is waited for no longer than this.
const PATIENCE: Duration = Duration::from_secs(60);

/// An attached `launcher job submit` that still runs.
#[derive(Debug)]
pub struct Running<'user> {
    user: &'user User,
    child: Option<Child>,
}

impl<'user> Running<'user> {
    /// Starts `launcher ARGS…` with JSON output.
    pub fn start<A: AsRef<std::ffi::OsStr>>(user: &'user User, args: &[A]) -> Self {
        let mut command = user.command(args);
        // Files, not pipes: a pipe that nobody reads would stop the job.
        let out = std::fs::File::create(user.work().join("stdout.json")).unwrap();
        let err = std::fs::File::create(user.work().join("stderr.txt")).unwrap();
        let child = command.stdout(out).stderr(err).stdin(Stdio::null()).spawn().unwrap();
        Self { user, child: Some(child) }
    }

    /// The launcher's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// Waits until the only job's journal satisfies this, and returns the job's id.
    pub fn wait_for(&mut self, what: &str, holds: impl Fn(&str) -> bool) -> String {
        let deadline = now() + PATIENCE;
        loop {
            if let Some(id) = self.user.jobs().pop() {
                let journal = self.user.state().join("jobs").join(&id).join("journal.jsonl");
                if std::fs::read_to_string(journal).is_ok_and(|text| holds(&text)) {
                    return id;
                }
            }
            if let Some(status) = self.child.as_mut().unwrap().try_wait().unwrap() {
                panic!("the job ended ({status}) before {what}\n{}", self.stderr());
            }
            assert!(now() < deadline, "waited {PATIENCE:?} for {what}\n{}", self.stderr());
            pause();
        }
    }

    /// Whether it has ended.
    pub fn is_over(&mut self) -> bool {
        self.child.as_mut().unwrap().try_wait().unwrap().is_some()
    }

    /// Waits for its end, however it ends.
    pub fn await_end(&mut self) {
        let deadline = now() + crate::program::RUN_LIMIT;
        while !self.is_over() {
            assert!(now() < deadline, "the job does not end\n{}", self.stderr());
            pause();
        }
    }

    /// Waits for its end.
    pub fn finish(mut self) -> Finished {
        let output = wait(self.child.take().unwrap());
        Finished {
            command: "launcher job submit".to_owned(),
            code: output.status.code().unwrap_or(-1),
            stdout: std::fs::read_to_string(self.user.work().join("stdout.json")).unwrap(),
            stderr: self.stderr(),
        }
    }

    /// What it wrote to standard error so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        std::fs::read_to_string(self.user.work().join("stderr.txt")).unwrap_or_default()
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// Sends a signal to a process that is known by its id.
pub fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).ok();
}

/// `launcher job status ID --output json`.
#[must_use]
pub fn status(user: &User, id: &str) -> Value {
    user.run(["job", "status", id, "--output", "json"]).code(0).json()
}
