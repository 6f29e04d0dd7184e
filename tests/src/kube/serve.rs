//! `launcher serve` as a process of its own, to be started, killed and started again beside a running job.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal};
use tempfile::TempDir;

use super::Rig;
use crate::program::User;

/// A controller; killed when dropped.
#[derive(Debug)]
pub struct Serve {
    child: Child,
    log: PathBuf,
    _user: User,
    _folder: TempDir,
}

impl Rig {
    /// Starts `launcher serve ARGS…` on the host with this kubeconfig. Its output goes to [`Serve::log`].
    pub fn serve(&self, kubeconfig: &Path, args: &[&str]) -> Serve {
        let user = User::new().with_env("KUBECONFIG", kubeconfig.to_str().unwrap());
        Serve::start(user, args)
    }

    /// The same by a clock that is off by so many seconds; what measures time is not.
    pub fn serve_by_clock(&self, kubeconfig: &Path, args: &[&str], seconds: i64) -> Serve {
        let user = User::new().with_env("KUBECONFIG", kubeconfig.to_str().unwrap());
        let user = user.with_env("LD_PRELOAD", self.script(["false-clock"]).stdout.trim());
        let user =
            user.with_env("FAKETIME", &format!("{seconds:+}s")).with_env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        Serve::start(user, args)
    }
}

impl Serve {
    fn start(user: User, args: &[&str]) -> Self {
        let folder = tempfile::Builder::new().prefix("slipway-serve-").tempdir().unwrap();
        let log = folder.path().join("log");
        let mut command = user.command(["serve"].iter().chain(args));
        let out = File::create(&log).unwrap();
        command.stdout(Stdio::from(out.try_clone().unwrap())).stderr(Stdio::from(out));
        let child = command.spawn().unwrap();
        Self { child, log, _user: user, _folder: folder }
    }

    /// What it has written so far.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// `kill -9`, as a node's failure would end it.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        rustix::process::kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Asks it to stop (SIGTERM, as a kubelet does) and returns its exit code once it has.
    ///
    /// # Panics
    /// When it does not end within the patience of stories.
    pub fn stop(self, rig: &Rig) -> Option<i32> {
        self.signal(Signal::TERM);
        self.end(rig)
    }

    /// Its exit code, once it has ended by itself.
    ///
    /// # Panics
    /// When it does not end within the patience of stories.
    pub fn end(mut self, rig: &Rig) -> Option<i32> {
        rig.wait_for("end of launcher serve", || self.child.try_wait().unwrap()).code()
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        show(&self.log());
    }
}

/// A failed story's controller tells more than the story.
#[expect(clippy::print_stderr, reason = "the harness shows what the failed controller said")]
fn show(log: &str) {
    if std::thread::panicking() {
        eprintln!("--- launcher serve\n{log}");
    }
}
