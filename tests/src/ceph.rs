//! A Ceph of this story's own: real daemons on loopback, started and hurt through `tests/rig/ceph/ceph-rig`.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::program::{Finished, root, wait_within};

/// A command of Ceph's own tools takes no longer: a stuck one must not eat the hour.
const TOOL_LIMIT: Duration = Duration::from_secs(60);
/// The start of a cluster.
const START_LIMIT: Duration = Duration::from_secs(120);

/// A running cluster; dropped, it is stopped and its folder removed.
#[derive(Debug)]
pub struct Ceph {
    folder: PathBuf,
}

impl Ceph {
    /// Starts one with these settings of `ceph-rig start`, such as `("RGW", "1")`.
    #[must_use]
    pub fn start(name: &str, settings: &[(&str, &str)]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = &format!("{name}-{}-{number}", std::process::id());
        let folder = root().join("tests/.cache/ceph").join(name);
        let ceph = Self { folder };
        let mut command = rig(["start".as_ref(), ceph.folder.as_os_str()]);
        command.envs(settings.iter().copied());
        // Its daemons inherit no pipe: whoever reads that would wait for their end.
        let log = root().join("tests/.cache/ceph");
        std::fs::create_dir_all(&log).unwrap();
        let log = log.join(format!("{name}.start.log"));
        let file = std::fs::File::create(&log).unwrap();
        let child = command.stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
        let output = wait_within(child, START_LIMIT);
        assert!(output.status.success(), "no cluster: {}", std::fs::read_to_string(log).unwrap());
        ceph
    }

    /// `ceph.conf`.
    #[must_use]
    pub fn conf(&self) -> PathBuf {
        self.folder.join("ceph.conf")
    }

    /// A user's credentials, as Kubernetes would mount them: `reader`, `writer` or `s3`.
    #[must_use]
    pub fn secret(&self, user: &str) -> PathBuf {
        self.folder.join("secret").join(user)
    }

    /// The address of a prefix in pool `shards`, as that user.
    #[must_use]
    pub fn url(&self, user: &str, prefix: &str) -> String {
        format!(
            "rados://shards/{prefix}?conf={}&credentials={}",
            self.conf().display(),
            self.secret(user).display()
        )
    }

    /// The address of a prefix in a bucket of the gateway.
    #[must_use]
    pub fn s3_url(&self, bucket: &str, prefix: &str) -> String {
        format!("s3://{bucket}/{prefix}?credentials={}", self.secret("s3").display())
    }

    /// A bucket, by the gateway's own protocol, with the files of a folder under a prefix.
    pub fn make_bucket(&self, name: &str, content: Option<(&Path, &str)>) {
        let (script, secret) = (root().join("tests/rig/ceph/make_bucket.py"), self.secret("s3"));
        let mut args = vec![script.as_os_str(), secret.as_os_str(), name.as_ref()];
        if let Some((folder, prefix)) = content {
            args.extend([folder.as_os_str(), prefix.as_ref()]);
        }
        self.tool("python3", args).code(0);
    }

    /// Sends a signal to a daemon: `mon.a`, `osd.N`, `mgr.x` or `rgw`.
    pub fn signal(&self, daemon: &str, signal: &str) {
        let folder = self.folder.as_os_str();
        tool(rig(["signal".as_ref(), folder, daemon.as_ref(), signal.as_ref()])).code(0);
    }

    /// Starts a daemon again.
    pub fn run(&self, daemon: &str) {
        let mut command = rig(["run".as_ref(), self.folder.as_os_str(), daemon.as_ref()]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        assert!(wait_within(child, TOOL_LIMIT).status.success(), "{daemon} does not start");
    }

    /// Runs `ceph`, `rados` or another tool of Ceph's as its administrator.
    pub fn tool<A: AsRef<OsStr>>(&self, program: &str, args: impl IntoIterator<Item = A>) -> Finished {
        let mut command = Command::new(program);
        command.args(args).env("CEPH_CONF", self.conf());
        tool(command)
    }

    /// Bytes that OSD N has sent to clients that read, by its own count.
    #[must_use]
    pub fn bytes_read(&self, osd: u32) -> u64 {
        let daemon = format!("osd.{osd}");
        // The admin socket is asked, so that nothing needs a manager.
        let found = self.tool("ceph", ["daemon", &daemon, "perf", "dump", "osd"]).code(0);
        let counters: Value = serde_json::from_str(&found.stdout).unwrap();
        counters["osd"]["op_r_out_bytes"].as_u64().unwrap()
    }

    /// The folder of the cluster.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Ceph {
    fn drop(&mut self) {
        let stopped = rig(["stop".as_ref(), self.folder.as_os_str()]).status();
        assert!(
            stopped.is_ok_and(|status| status.success()) || std::thread::panicking(),
            "the cluster stops"
        );
    }
}

fn rig<'arg>(args: impl IntoIterator<Item = &'arg OsStr>) -> Command {
    let mut command = Command::new(root().join("tests/rig/ceph/ceph-rig"));
    command.args(args).stdin(Stdio::null());
    command
}

fn tool(mut command: Command) -> Finished {
    let shown = format!("{command:?}");
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    Finished::new(shown, &wait_within(child, TOOL_LIMIT))
}
