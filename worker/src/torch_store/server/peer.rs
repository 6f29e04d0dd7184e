//! One connection: its socket, the part of a command that has come, and the answers that it has not read.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read, Write};
use std::net::SocketAddr;
use std::time::Instant;

use bytes::{Buf, Bytes};
use mio::net::TcpStream;

use crate::torch_store::protocol::{CommandLimits, Decoder, Reply};

/// Pieces of one vectored write. More come with the next.
const WRITE_PIECES: usize = 64;

#[derive(Debug)]
pub(super) struct PeerSocket {
    pub(super) stream: TcpStream,
    pub(super) address: SocketAddr,
    pub(super) opened: Instant,
    pub(super) heard: Instant,
    pub(super) decoder: Decoder,
    /// A command's begin. Empty as long as commands come whole, and then without memory.
    pub(super) input: Vec<u8>,
    unread: VecDeque<Bytes>,
    unread_bytes: usize,
}

/// What a read brought.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Came {
    /// So many bytes.
    Some(usize),
    /// Nothing, for now.
    Nothing,
    /// The other side has closed, or the connection broke.
    End,
}

impl PeerSocket {
    pub(super) fn new(stream: TcpStream, address: SocketAddr, now: Instant, limits: CommandLimits) -> Self {
        let decoder = Decoder::new(limits);
        let (input, unread) = (Vec::new(), VecDeque::new());
        Self { stream, address, opened: now, heard: now, decoder, input, unread, unread_bytes: 0 }
    }

    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Came {
        loop {
            match self.stream.read(buffer) {
                Ok(0) => return Came::End,
                Ok(length) => return Came::Some(length),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Came::Nothing,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Came::End,
            }
        }
    }

    /// Sends an answer, or keeps what the socket does not take. True: nothing is left to send.
    pub(super) fn send(&mut self, reply: &Reply) -> io::Result<bool> {
        if self.unread.is_empty()
            && let Some(bytes) = reply.as_slice()
        {
            return self.send_slice(bytes);
        }
        for piece in reply.pieces() {
            self.keep(piece);
        }
        self.flush()
    }

    /// Sends bytes, or keeps what the socket does not take. True: nothing is left to send.
    pub(super) fn send_slice(&mut self, bytes: &[u8]) -> io::Result<bool> {
        let sent = if self.unread.is_empty() { write(|| self.stream.write(bytes))? } else { 0 };
        if sent < bytes.len() {
            self.keep(Bytes::copy_from_slice(&bytes[sent..]));
        }
        Ok(self.unread.is_empty())
    }

    /// Sends on what was kept. True: nothing is left to send.
    pub(super) fn flush(&mut self) -> io::Result<bool> {
        while !self.unread.is_empty() {
            let pieces: Vec<_> =
                self.unread.iter().take(WRITE_PIECES).map(|piece| IoSlice::new(piece)).collect();
            let mut sent = write(|| self.stream.write_vectored(&pieces))?;
            if sent == 0 {
                return Ok(false);
            }
            self.unread_bytes -= sent;
            while let Some(first) = self.unread.front_mut()
                && sent > 0
            {
                let taken = sent.min(first.len());
                first.advance(taken);
                sent -= taken;
                if first.is_empty() {
                    self.unread.pop_front();
                }
            }
        }
        Ok(true)
    }

    pub(super) fn unread_bytes(&self) -> usize {
        self.unread_bytes
    }

    fn keep(&mut self, piece: Bytes) {
        self.unread_bytes += piece.len();
        self.unread.push_back(piece);
    }
}

/// A write's length; 0 if the socket is full.
fn write(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}
