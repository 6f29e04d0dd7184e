//! Planes in a process of their own: this program started again, with the name of the test that did and a role in the environment.
//!
//! A line each way, JSON after a mark, since the test harness writes to the same output.

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::task::block_in_place;

use super::*;

/// The variable that names the role.
const ROLE: &str = "SLIPWAY_VERBS_ROLE";
/// In front of what a child says.
const MARK: &str = "SAYS ";
/// A user without rights.
const USER: u32 = 1000;

/// A peer as it is told to another process; at last, whether it is a server.
type Told = (u32, SocketAddr, String, [u8; 32], bool);

/// This process's role, if it has one.
pub(super) fn role() -> Option<String> {
    variable(ROLE)
}

/// A child, as whoever started it knows it.
pub(super) struct Child {
    process: std::process::Child,
    /// None when everything has been said.
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

/// What a child may do.
#[derive(Clone, Copy)]
pub(super) enum Rights {
    /// Everything.
    Root,
    /// No more than a user, who may lock so many bytes.
    User { memlock: u64 },
}

impl Child {
    /// Starts this program again with that test only.
    pub(super) fn start(test: &str, role: &str, rights: Rights) -> Self {
        let own = std::env::current_exe().unwrap();
        let mut command = match rights {
            Rights::Root => Command::new(own),
            Rights::User { memlock } => {
                let mut command = Command::new("prlimit");
                command.arg(format!("--memlock={memlock}:{memlock}"));
                command.args(["setpriv", "--clear-groups"]);
                command.arg(format!("--reuid={USER}")).arg(format!("--regid={USER}")).arg(own);
                command
            }
        };
        command.args(["--exact", &format!("plane::tests::verbs::{test}"), "--nocapture"]);
        command.env(ROLE, role).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let (input, output) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        Self { process, input: Some(input), output: BufReader::new(output) }
    }

    pub(super) fn tell(&mut self, words: &impl Serialize) {
        let input = self.input.as_mut().unwrap();
        writeln!(input, "{}", serde_json::to_string(words).unwrap()).unwrap();
    }

    /// The next thing that it says.
    pub(super) fn hear<T: DeserializeOwned>(&mut self) -> T {
        block_in_place(|| {
            loop {
                let mut line = String::new();
                assert!(self.output.read_line(&mut line).unwrap() > 0, "the child has ended");
                if let Some((_, said)) = line.split_once(MARK) {
                    return serde_json::from_str(said).unwrap();
                }
                print!("child: {line}");
            }
        })
    }

    /// Gives it its identity and makes it known: which peer it is.
    pub(super) fn meet(&mut self, id: u32, authority: &Authority) -> Peer {
        let server_name = format!("worker-{id}");
        let identity = authority.identity(&server_name);
        let fingerprint = fingerprint(&identity.cert_der);
        self.tell(&identity);
        Peer { id: PeerId(id), addr: self.hear(), server_name, fingerprint, role: Role::Worker }
    }

    /// Tells it who all peers are, itself among them; returns when it has entered fence 1.
    pub(super) fn enter(&mut self, me: u32, peers: &[Peer]) {
        let told = |peer: &Peer| {
            let is_server = peer.role == Role::Server;
            (peer.id.0, peer.addr, peer.server_name.clone(), peer.fingerprint, is_server)
        };
        self.tell(&(me, peers.iter().map(told).collect::<Vec<Told>>()));
        self.hear::<()>();
    }

    /// What its plane has counted.
    pub(super) fn counters(&mut self) -> Counters {
        self.tell(&());
        self.hear()
    }

    /// Stops it, or lets it go on.
    pub(super) fn signal(&self, signal: &str) {
        fabric::system(&format!("kill -{signal} {}", self.process.id()));
    }

    /// As by the kernel when memory runs out.
    pub(super) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Waits for its own end, which is a success.
    pub(super) fn end(mut self) {
        drop(self.input.take());
        assert!(block_in_place(|| self.process.wait()).unwrap().success());
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // It may have ended, or have been killed by its test.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// The child's side: what it is told.
pub(super) fn told<T: DeserializeOwned>() -> Option<T> {
    let line = block_in_place(|| std::io::stdin().lines().next())?.unwrap();
    Some(serde_json::from_str(&line).unwrap())
}

/// The child's side: what it says.
pub(super) fn say(words: &impl Serialize) {
    println!("{MARK}{}", serde_json::to_string(words).unwrap());
}

/// A plane in this process, met and entered as [`Child::meet`] and [`Child::enter`] want it.
pub(super) async fn plane(dataset: &Dataset, order: &Order, device: &str) -> Group {
    let identity: Identity = told().unwrap();
    let config = config(identity, dataset, order, TransportPolicy::PreferRdma);
    let plane = Plane::start(with_devices(device, config)).await.unwrap();
    say(&plane.local_addr());
    let (me, told): (u32, Vec<Told>) = told().unwrap();
    let peer = |(id, addr, server_name, fingerprint, is_server): Told| Peer {
        id: PeerId(id),
        addr,
        server_name,
        fingerprint,
        role: if is_server { Role::Server } else { Role::Worker },
    };
    let peers: Vec<Peer> = told.into_iter().map(peer).collect();
    let membership = Membership { fence: 1, me: PeerId(me), peers: peers.clone(), roster: 0 };
    plane.enter(membership).await;
    say(&());
    Group { planes: vec![plane], peers, order: order.clone(), workers: 1 }
}

/// A plane that only owns, until whoever started it has nothing more to say.
pub(super) async fn own(dataset: &Dataset, order: &Order) {
    let group = plane(dataset, order, "rxe_b").await;
    while told::<()>().is_some() {
        say(&group.planes[0].counters());
    }
}
