//! Many clients in one thread: each sends a command, counts the bytes of its answer, and goes on.

use std::error::Error;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

/// Without an answer to anybody for so long, the bench fails.
const PATIENCE: Duration = Duration::from_secs(60);
const EVENTS: usize = 1024;
const READ_BYTES: usize = 64 << 10;

/// What a client does after an answer.
#[derive(Debug)]
pub(crate) enum Next {
    /// Send this, and expect so many bytes.
    Send(Vec<u8>, usize),
    /// Nothing more in this phase.
    Done,
}

/// Connected clients.
#[derive(Debug)]
pub(crate) struct Clients {
    poll: Poll,
    clients: Vec<Client>,
}

#[derive(Debug)]
struct Client {
    stream: TcpStream,
    /// Bytes of the awaited answer that have come.
    answer: Vec<u8>,
    expected: usize,
    /// What could not be sent yet: the connection is not up.
    unsent: Vec<u8>,
}

impl Clients {
    /// Connects `count` clients at once, each sending `hello` as soon as it can; [`drive`](Self::drive) takes the
    /// answers, of `expected` bytes.
    pub(crate) fn connect(
        server: SocketAddr,
        count: usize,
        hello: impl Fn(usize) -> Vec<u8>,
        expected: usize,
    ) -> io::Result<Self> {
        let poll = Poll::new()?;
        let mut clients = Vec::with_capacity(count);
        for number in 0..count {
            let mut client = Client {
                stream: TcpStream::connect(server)?,
                answer: Vec::with_capacity(256),
                expected,
                unsent: hello(number),
            };
            // On the loopback the connection mostly is up when `connect` returns.
            client.flush()?;
            let interest = Interest::READABLE;
            let interest = if client.unsent.is_empty() { interest } else { interest | Interest::WRITABLE };
            poll.registry().register(&mut client.stream, Token(number), interest)?;
            clients.push(client);
        }
        Ok(Self { poll, clients })
    }

    /// Gives each client its first command of a phase.
    pub(crate) fn start(&mut self, mut first: impl FnMut(usize) -> Next) -> io::Result<()> {
        for (number, client) in self.clients.iter_mut().enumerate() {
            client.go(first(number))?;
        }
        Ok(())
    }

    /// Runs until `pending` clients said [`Next::Done`]; `next` gets the client's number and the whole answer.
    pub(crate) fn drive(
        &mut self,
        mut pending: usize,
        mut next: impl FnMut(usize, &[u8]) -> Next,
    ) -> Result<(), Box<dyn Error>> {
        let mut events = Events::with_capacity(EVENTS);
        let mut buffer = vec![0; READ_BYTES];
        while pending > 0 {
            self.poll.poll(&mut events, Some(PATIENCE))?;
            if events.is_empty() {
                return Err(format!("{pending} clients have no answer after {PATIENCE:?}").into());
            }
            for event in &events {
                let Token(number) = event.token();
                let client = &mut self.clients[number];
                if event.is_writable() {
                    client.flush()?;
                }
                if event.is_readable() && client.receive(&mut buffer)? {
                    let answer = std::mem::take(&mut client.answer);
                    let step = next(number, &answer);
                    client.answer = answer;
                    client.answer.clear();
                    if matches!(step, Next::Done) {
                        pending -= 1;
                    }
                    client.go(step)?;
                }
            }
        }
        Ok(())
    }
}

impl Client {
    fn go(&mut self, next: Next) -> io::Result<()> {
        let Next::Send(bytes, expected) = next else { return Ok(()) };
        self.expected = expected;
        self.unsent = bytes;
        self.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.unsent.is_empty() {
            return Ok(());
        }
        match self.stream.write(&self.unsent) {
            Ok(sent) => drop(self.unsent.drain(..sent)),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected) => {
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Reads once; true when the answer is whole.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        match self.stream.read(buffer) {
            Ok(0) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed")),
            Ok(length) => {
                self.answer.extend_from_slice(&buffer[..length]);
                Ok(self.answer.len() >= self.expected)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// As many descriptors as the hard limit allows, for this process and the servers that it starts.
pub(crate) fn raise_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let wanted = maximum.unwrap_or(1 << 20).max(1 << 16);
    // As root also the hard limit can be raised; what is missing shows as an error of `connect`.
    let raised = Rlimit { current: Some(wanted), maximum: Some(wanted) };
    if setrlimit(Resource::Nofile, raised).is_err() {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    }
}

/// Time and its begin, in one.
pub(crate) fn since(start: Instant) -> Duration {
    Instant::now().duration_since(start)
}
