//! The server over real sockets, with raw clients.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::time::Duration;

use proptest::prelude::*;

use super::{Limits, Server, Stats};
use crate::torch_store::{Command, CommandLimits, MAGIC, Query, Waiting};

const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Longer than anything here takes; a test that hangs fails by it.
const PATIENCE: Duration = Duration::from_secs(20);

fn open() -> Server {
    Server::open(LOCAL, Limits::default()).unwrap()
}

/// Asks until it is so. There is no sleep: each question is answered by the thread that serves the sockets.
fn until(server: &Server, so: impl Fn(&Stats) -> bool) -> Stats {
    for _ in 0..1_000_000 {
        let stats = server.stats().unwrap();
        if so(&stats) {
            return stats;
        }
        std::thread::yield_now();
    }
    panic!("it never was so: {:?}", server.stats());
}

fn hello(pid: u32) -> Vec<u8> {
    let mut bytes = Command::new(Query::Validate).word(MAGIC).into_bytes();
    bytes.extend(Command::new(Query::Ping).word(pid).into_bytes());
    bytes
}

struct Client(TcpStream);

impl Client {
    fn connect(server: &Server) -> Self {
        let mut client = Self::stranger(server);
        client.send(&hello(7));
        assert_eq!(client.take(4), 7_u32.to_le_bytes());
        client
    }

    fn stranger(server: &Server) -> Self {
        let stream = TcpStream::connect(server.local_addr()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(stream)
    }

    fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    fn take(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.0.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// The server closes, having sent nothing.
    fn is_closed(&mut self) -> bool {
        let mut byte = [0];
        match self.0.read(&mut byte) {
            Ok(length) => length == 0,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }

    fn works(&mut self) -> bool {
        self.call(Command::new(Query::Ping).word(9), 4) == 9_u32.to_le_bytes()
    }

    fn call(&mut self, command: Command, length: usize) -> Vec<u8> {
        self.send(&command.into_bytes());
        self.take(length)
    }
}

#[test]
fn a_set_is_read_by_another() {
    let server = open();
    let (mut one, mut two) = (Client::connect(&server), Client::connect(&server));
    two.send(&Command::new(Query::Wait).keys(&["/k"]).into_bytes());
    one.send(&Command::new(Query::Set).bytes(b"/k").bytes(b"v").into_bytes());
    assert_eq!(two.take(1), [0]);
    assert_eq!(two.call(Command::new(Query::Get).bytes(b"/k"), 9), b"\x01\0\0\0\0\0\0\0v");
    server.close();
}

#[test]
fn a_stranger_changes_nothing() {
    // Torch's server took a SET from a client that never sent VALIDATE, if it came in two segments.
    let server = open();
    let mut good = Client::connect(&server);
    let set = Command::new(Query::Set).bytes(b"/evil").bytes(b"1").into_bytes();
    let mut evil = Client::stranger(&server);
    evil.send(&set[..5]);
    until(&server, |stats| stats.accepted == 2);
    // Refused by the first byte or at the end of the command, but never obeyed.
    let _ = evil.0.write_all(&set[5..]);
    assert!(evil.is_closed());
    assert_eq!(good.call(Command::new(Query::CountKeys), 8), [0; 8]);
}

#[test]
fn validate_may_come_in_pieces() {
    let server = open();
    let mut client = Client::stranger(&server);
    for byte in hello(5) {
        client.send(&[byte]);
    }
    assert_eq!(client.take(4), 5_u32.to_le_bytes());
}

#[test]
fn a_wrong_magic_is_closed_at_once() {
    let server = open();
    let mut client = Client::stranger(&server);
    client.send(&Command::new(Query::Validate).word(1).into_bytes());
    assert!(client.is_closed());
    assert_eq!(until(&server, |stats| stats.refused == 1).peers, []);
}

#[test]
fn the_silent_and_the_slow_are_closed_if_they_never_validate() {
    let limits = Limits { validate_within: Duration::from_millis(300), ..Limits::default() };
    let server = Server::open(LOCAL, limits).unwrap();
    let mut good = Client::connect(&server);
    let (mut silent, mut slow) = (Client::stranger(&server), Client::stranger(&server));
    slow.send(&hello(1)[..3]);
    assert!(silent.is_closed() && slow.is_closed());
    assert!(good.works(), "who has validated may be silent");
}

#[test]
fn too_much_ends_one_connection_only() {
    let server = open();
    let mut good = Client::connect(&server);
    let too_much = [
        Command::new(Query::Get).signed((8 << 10) + 1),
        Command::new(Query::Set).bytes(b"/k").signed((8 << 20) + 1),
        Command::new(Query::Wait).signed((128 << 10) + 1),
        Command::new(Query::MultiSet).signed(-1),
    ];
    for command in too_much {
        let mut client = Client::connect(&server);
        client.send(&command.into_bytes());
        assert!(client.is_closed());
    }
    let mut client = Client::connect(&server);
    client.send(&[19]);
    assert!(client.is_closed(), "no such command");
    assert!(good.works());
}

#[test]
fn add_to_text_ends_only_its_own_connection() {
    let server = open();
    let (mut good, mut bad) = (Client::connect(&server), Client::connect(&server));
    good.send(&Command::new(Query::Set).bytes(b"/k").bytes(b"text").into_bytes());
    assert!(good.works());
    bad.send(&Command::new(Query::Add).bytes(b"/k").signed(1).into_bytes());
    assert!(bad.is_closed());
    assert_eq!(good.call(Command::new(Query::Get).bytes(b"/k"), 12), b"\x04\0\0\0\0\0\0\0text");
}

#[test]
fn the_largest_value_goes_in_and_out() {
    let server = open();
    let (mut one, mut two) = (Client::connect(&server), Client::connect(&server));
    let value: Vec<u8> = (0..8 << 20).map(|at: u32| at.to_le_bytes()[1]).collect();
    one.send(&Command::new(Query::Set).bytes(b"/k").bytes(&value).into_bytes());
    two.send(&Command::new(Query::Wait).keys(&["/k"]).into_bytes());
    assert_eq!(two.take(1), [0]);
    // Four of them, so that the socket cannot take the answer at once.
    let answer = two.call(Command::new(Query::MultiGet).keys(&["/k"; 4]), 4 * (8 + value.len()));
    assert!(answer.chunks(8 + value.len()).all(|part| part[8..] == value));
}

#[test]
fn who_does_not_read_is_closed() {
    let limits = Limits { unread_bytes: 10 << 20, ..Limits::default() };
    let server = Server::open(LOCAL, limits).unwrap();
    let (mut good, mut deaf) = (Client::connect(&server), Client::connect(&server));
    good.send(&Command::new(Query::Set).bytes(b"/k").bytes(&vec![1; 8 << 20]).into_bytes());
    assert!(good.works());
    let get = Command::new(Query::Get).bytes(b"/k").into_bytes();
    // The kernel's buffers take some of it, so it takes several; the last may find it closed.
    let refused = (0..64).any(|_| {
        let _ = deaf.0.write_all(&get);
        assert!(good.works());
        server.stats().unwrap().refused == 1
    });
    assert!(refused);
}

#[test]
fn an_answer_that_is_too_long_is_not_even_made() {
    let limits = Limits { unread_bytes: 1 << 20, ..Limits::default() };
    let server = Server::open(LOCAL, limits).unwrap();
    let (mut good, mut greedy) = (Client::connect(&server), Client::connect(&server));
    good.send(&Command::new(Query::Set).bytes(b"/k").bytes(&[1; 16 << 10]).into_bytes());
    assert!(good.works());
    // 2 GiB, from 1.3 MB.
    greedy.send(&Command::new(Query::MultiGet).keys(&vec!["/k"; 128 << 10]).into_bytes());
    assert!(greedy.is_closed());
    assert!(good.works());
}

#[test]
fn what_was_sent_before_closing_is_still_done() {
    let server = open();
    let mut good = Client::connect(&server);
    let mut leaving = Client::connect(&server);
    // More than one turn's reads, and the end right behind it.
    for _ in 0..3 {
        leaving.send(&Command::new(Query::Append).bytes(b"/k").bytes(&vec![1; 1 << 20]).into_bytes());
    }
    drop(leaving);
    let stats = until(&server, |stats| stats.peers.len() == 1);
    assert!(stats.progress.bytes > 3 << 20);
    assert!(good.works());
}

#[test]
fn incomplete_commands_are_bounded() {
    let limits = Limits { input_bytes: 1 << 20, ..Limits::default() };
    let server = Server::open(LOCAL, limits).unwrap();
    let mut good = Client::connect(&server);
    let mut greedy = Client::connect(&server);
    greedy.send(&Command::new(Query::Set).bytes(b"/k").signed(8 << 20).into_bytes());
    let _ = greedy.0.write_all(&vec![0; 4 << 20]);
    assert!(greedy.is_closed());
    assert!(good.works());
}

#[test]
fn one_more_than_allowed_is_turned_away() {
    let server = Server::open(LOCAL, Limits { connections: 2, ..Limits::default() }).unwrap();
    let (mut one, two) = (Client::connect(&server), Client::connect(&server));
    assert!(Client::stranger(&server).is_closed());
    assert!(one.works());
    drop(two);
    until(&server, |stats| stats.peers.len() == 1);
    assert!(Client::connect(&server).works(), "there is room again");
}

#[test]
fn a_waiter_that_dies_leaves_nothing() {
    let server = open();
    let mut good = Client::connect(&server);
    for _ in 0..3 {
        let mut dying = Client::connect(&server);
        dying.send(&Command::new(Query::Wait).keys(&["/never", "/ever"]).into_bytes());
        let waits = |stats: &Stats| stats.progress.clients.iter().any(|client| client.waiting.is_some());
        until(&server, waits);
        drop(dying);
        assert_eq!(until(&server, |stats| !waits(stats) && stats.peers.len() == 1).progress.bytes, 0);
    }
    good.send(&Command::new(Query::Set).bytes(b"/never").bytes(b"").into_bytes());
    assert!(good.works());
}

#[test]
fn a_thousand_join_and_pass_a_barrier_and_stats_name_the_missing() {
    const WORLD: u32 = 1000;
    let mut server = open();
    server.world(WORLD);
    let mut clients: Vec<_> = (0..WORLD).map(|_| Client::stranger(&server)).collect();
    let mut last = clients.pop().unwrap();
    let join = |client: &mut Client, pid: u32| {
        client.send(&hello(pid));
        client.send(&Command::new(Query::Add).bytes(b"init/").signed(1).into_bytes());
        client.send(&Command::new(Query::Barrier).bytes(b"/b").signed(i64::from(WORLD)).into_bytes());
    };
    for (pid, client) in (1..).zip(&mut clients) {
        join(client, pid);
    }
    let stats = until(&server, |stats| {
        stats.progress.barriers.first().is_some_and(|barrier| barrier.arrived.len() == clients.len())
    });
    assert_eq!((stats.missing(), stats.progress.joined), (Some(1), 999));
    let client = &stats.progress.clients[0];
    assert_eq!((client.joined, &client.waiting), (true, &Some(Waiting::Barrier { key: b"/b".to_vec() })));
    join(&mut last, WORLD);
    for client in clients.iter_mut().chain([&mut last]) {
        let answer = client.take(13);
        assert_eq!(answer[12], 0);
    }
    assert_eq!(server.stats().unwrap().missing(), Some(0));
}

#[test]
fn closing_ends_every_connection_and_frees_the_port() {
    let server = open();
    let address = server.local_addr();
    assert_eq!(address.ip(), LOCAL, "one interface, not all");
    let mut client = Client::connect(&server);
    server.close();
    assert!(client.is_closed());
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn a_foreign_address_is_named() {
    let error = Server::open("192.0.2.1".parse().unwrap(), Limits::default()).unwrap_err();
    assert!(error.to_string().contains("192.0.2.1"));
}

#[test]
fn a_command_that_is_too_long_in_all_is_refused() {
    let command = CommandLimits { command_bytes: 1 << 10, ..CommandLimits::default() };
    let server = Server::open(LOCAL, Limits { command, ..Limits::default() }).unwrap();
    let mut client = Client::connect(&server);
    client.send(&Command::new(Query::Set).bytes(b"/k").signed(2 << 10).into_bytes());
    assert!(client.is_closed());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The same stream in any segments gets the same answers.
    #[test]
    fn segments_do_not_matter(
        commands in proptest::collection::vec(crate::torch_store::protocol::tests::command(), 1..20),
        cuts in proptest::collection::vec(any::<usize>(), 0..20),
    ) {
        let mut stream = hello(3);
        stream.extend(commands.concat());
        let answers = |cuts: &[usize]| {
            let server = open();
            let mut client = Client::stranger(&server);
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut % stream.len()).collect();
            cuts.sort_unstable();
            let mut start = 0;
            for end in cuts.into_iter().chain([stream.len()]) {
                // It may have been closed for what it sent.
                let _ = client.0.write_all(&stream[start..end]);
                start = end;
                // Answered by the reactor, so what was sent before has mostly been read alone.
                server.stats().unwrap();
            }
            let _ = client.0.shutdown(std::net::Shutdown::Write);
            let mut answers = Vec::new();
            // A reset after a refusal comes behind what was answered before.
            let _ = client.0.read_to_end(&mut answers);
            (until(&server, |stats| stats.accepted == 1 && stats.peers.is_empty()).commands, answers)
        };
        prop_assert_eq!(answers(&cuts), answers(&[]));
    }
}
