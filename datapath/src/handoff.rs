//! Passing batches to the trainer: a unix socket of type SEQPACKET under an abstract name, one packet a message.
//!
//! Nothing but the socket ties the two together: the ring travels over it as a file descriptor, so when either side
//! ends, by whatever means, the kernel frees everything. Only processes of this user (or root) are answered.

pub mod message;

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType,
};
use tokio::io::unix::AsyncFd;

use message::PACKET_BYTES_MAX;

/// Connections that wait to be accepted: one trainer, and the odd one too many.
const BACKLOG: i32 = 8;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
#[error("listen for the trainer on the abstract socket {name}")]
pub struct ListenError {
    /// The socket's name.
    pub name: String,
    /// The cause.
    #[source]
    pub source: io::Error,
}

/// Where a trainer connects to.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: AsyncFd<OwnedFd>,
}

impl Listener {
    /// Listens under an abstract name (without its leading NUL).
    pub(crate) fn bind(name: &str) -> Result<Self, ListenError> {
        let listen = || -> io::Result<AsyncFd<OwnedFd>> {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
            rustix::net::bind(&socket, &SocketAddrUnix::new_abstract_name(name.as_bytes())?)?;
            rustix::net::listen(&socket, BACKLOG)?;
            AsyncFd::register(socket)
        };
        Ok(Self { socket: listen().map_err(|source| ListenError { name: name.to_owned(), source })? })
    }

    /// The next connection of a process of this user.
    pub(crate) async fn accept(&self) -> io::Result<Client> {
        loop {
            let mut ready = self.socket.readable().await?;
            let accepted = ready.try_io(|socket| {
                let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
                rustix::net::accept_with(socket, flags).map_err(io::Error::from)
            });
            let Ok(socket) = accepted else { continue };
            let socket = socket?;
            let theirs = rustix::net::sockopt::socket_peercred(&socket)?.uid;
            if theirs != rustix::process::geteuid() && !theirs.is_root() {
                tracing::warn!(uid = theirs.as_raw(), "a process of another user asked for batches: refused");
                continue;
            }
            return Ok(Client { socket: AsyncFd::register(socket)? });
        }
    }
}

/// A connected trainer.
#[derive(Debug)]
pub(crate) struct Client {
    socket: AsyncFd<OwnedFd>,
}

impl Client {
    /// The next packet; its length, 0 at the connection's end.
    pub(crate) async fn receive(&self, packet: &mut [u8; PACKET_BYTES_MAX]) -> io::Result<usize> {
        loop {
            let mut ready = self.socket.readable().await?;
            // TRUNC makes the kernel tell the packet's real length.
            let received = ready.try_io(|socket| {
                let (_, length) = rustix::net::recv(socket, &mut packet[..], RecvFlags::TRUNC)?;
                Ok(length)
            });
            match received {
                Ok(Ok(length)) if length > PACKET_BYTES_MAX => {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "the packet is too long"));
                }
                Ok(received) => return received,
                Err(_) => {}
            }
        }
    }

    /// Sends one packet.
    pub(crate) async fn send(&self, packet: &[u8]) -> io::Result<()> {
        self.write(|socket| {
            rustix::net::send(socket, packet, SendFlags::NOSIGNAL).map(drop).map_err(io::Error::from)
        })
        .await
    }

    /// Sends one packet together with a file descriptor.
    pub(crate) async fn send_with_fd(&self, packet: &[u8], fd: BorrowedFd<'_>) -> io::Result<()> {
        let fds = [fd];
        self.write(|socket| {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            let fits = ancillary.push(SendAncillaryMessage::ScmRights(&fds));
            debug_assert!(fits, "the space is for one descriptor");
            rustix::net::sendmsg(socket, &[IoSlice::new(packet)], &mut ancillary, SendFlags::NOSIGNAL)
                .map(drop)
                .map_err(io::Error::from)
        })
        .await
    }

    async fn write(&self, mut send: impl FnMut(&OwnedFd) -> io::Result<()>) -> io::Result<()> {
        // First try: between two batches there is always room.
        match send(self.socket.get_ref()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            sent => return sent,
        }
        loop {
            let mut ready = self.socket.writable().await?;
            if let Ok(sent) = ready.try_io(|socket| send(socket.get_ref())) {
                return sent;
            }
        }
    }
}
