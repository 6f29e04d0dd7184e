//! The server over real sockets, with raw clients.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::time::Duration;

use super::{Limits, Server};
use crate::torch_store::{Command, MAGIC, Query};

const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Longer than anything here takes; a test that hangs fails by it.
const PATIENCE: Duration = Duration::from_secs(20);

fn open() -> Server {
    Server::open(LOCAL, Limits::default()).unwrap()
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
