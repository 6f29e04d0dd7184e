//! `launcher serve` as a process of its own, to be started, killed and started again beside a running job.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

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
        let folder = tempfile::Builder::new().prefix("slipway-serve-").tempdir().unwrap();
        let log = folder.path().join("log");
        let user = User::new().with_env("KUBECONFIG", kubeconfig.to_str().unwrap());
        let mut command = user.command(["serve"].iter().chain(args));
        let out = File::create(&log).unwrap();
        command.stdout(Stdio::from(out.try_clone().unwrap())).stderr(Stdio::from(out));
        let child = command.spawn().unwrap();
        Serve { child, log, _user: user, _folder: folder }
    }
}

impl Serve {
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

    /// Asks it to stop (SIGTERM, as a kubelet does) and returns its exit code once it has.
    ///
    /// # Panics
    /// When it does not end within the patience of stories.
    pub fn stop(mut self, rig: &Rig) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
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
