//! What other processes of the tests do: this program, started again with a role.
//!
//! A peer speaks over its standard input and output, a line of JSON each way: what two workers tell each other over their own
//! connection.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;

use datapath::memory::Block;
use datapath::transport::rdma::endpoint::Endpoint;
use datapath::transport::rdma::verbs::{Access, Device, QueuePair, Remote};
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::fabric::{SIZES, Side, run};

/// The variable that names a role.
pub(crate) const ROLE: &str = "SLIPWAY_VERBS_ROLE";
/// What a peer has to be read.
const BYTES: usize = 64 << 10;
/// A user without rights.
const USER: u32 = 1000;
const MEMLOCK: u64 = 64 << 10;

pub(crate) fn play(role: &str) -> ExitCode {
    match role {
        "peer" => run(peer()),
        "list" => println!("{}", Device::list().map_or_else(|error| error.reason.word(), |_| "none")),
        "memlock" => memlock(),
        _ => return ExitCode::FAILURE,
    }
    ExitCode::SUCCESS
}

#[expect(clippy::unused_async, reason = "a completion queue needs a runtime")]
async fn peer() {
    let b = Side::b();
    let source = b.source(BYTES);
    let half = b.domain.queue_pair(&b.queue, &b.path, SIZES).unwrap();
    println!("{}", serde_json::to_string(&(half.endpoint(), source.remote(0))).unwrap());
    let mut lines = std::io::stdin().lines();
    let other: Endpoint = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    let _pair = half.connect(&other).unwrap();
    println!("connected");
    // Until it is killed, or whoever started it has ended.
    assert!(lines.next().is_none(), "there is nothing more to say");
}

fn memlock() {
    let limit = Rlimit { current: Some(MEMLOCK), maximum: Some(MEMLOCK) };
    setrlimit(Resource::Memlock, limit).unwrap();
    let domain = Device::open("rxe_a").unwrap().protection_domain().unwrap();
    let register = |bytes| domain.register(Arc::new(Block::with_len(bytes)), Access::default());
    register(4096).unwrap();
    println!("{}", register(1 << 20).map_or_else(|error| error.reason.word(), |_| "none"));
}

/// This program in that role, as a user without rights.
pub(crate) fn as_user(role: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(ROLE, role).stdin(Stdio::null()).uid(USER).gid(USER);
    command
}

/// The last word that a role says.
pub(crate) fn reason_of(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Another process, which can be read from.
pub(crate) struct Peer {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Peer {
    pub(crate) fn start() -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env(ROLE, "peer").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, output }
    }

    /// A queue pair to it, and what can be read there.
    pub(crate) fn connect(&mut self, side: &Side) -> (QueuePair, Remote) {
        let (endpoint, remote): (Endpoint, Remote) = serde_json::from_str(&self.line()).unwrap();
        let half = side.domain.queue_pair(&side.queue, &side.path, SIZES).unwrap();
        let own = serde_json::to_string(&half.endpoint()).unwrap();
        writeln!(self.child.stdin.as_mut().unwrap(), "{own}").unwrap();
        let pair = half.connect(&endpoint).unwrap();
        assert_eq!(self.line().trim(), "connected");
        (pair, remote)
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line
    }

    pub(crate) fn signal(&self, signal: &str) {
        crate::fabric::system(&format!("kill -{signal} {}", self.child.id()));
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have been killed by its test.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
