//! Passing batches to the trainer: a unix socket of type SEQPACKET under an abstract name, one packet a message.
//!
//! Nothing but the socket ties the two together: the ring travels over it as a file descriptor, so when either side
//! ends, by whatever means, the kernel frees everything. Only processes of this user (or root) are answered.

pub mod message;

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;

use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType,
};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};

use message::PACKET_BYTES_MAX;

/// Connections that wait to be accepted: one trainer, and the odd one too many.
const BACKLOG: i32 = 8;
/// Root may look at everything anyway.
const ROOT_UID: u32 = 0;

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
    socket: UnixListener,
}

impl Listener {
    /// Listens under an abstract name (without its leading NUL).
    pub(crate) fn bind(name: &str) -> Result<Self, ListenError> {
        let listen = || -> io::Result<UnixListener> {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
            rustix::net::bind(&socket, &SocketAddrUnix::new_abstract_name(name.as_bytes())?)?;
            rustix::net::listen(&socket, BACKLOG)?;
            // tokio only waits and accepts here, which is the same for packets as for streams.
            UnixListener::from_std(socket.into())
        };
        Ok(Self { socket: listen().map_err(|source| ListenError { name: name.to_owned(), source })? })
    }

    /// The next connection of a process of this user.
    pub(crate) async fn accept(&self) -> io::Result<Client> {
        loop {
            let (socket, _) = self.socket.accept().await?;
            let theirs = socket.peer_cred()?.uid();
            if theirs == rustix::process::geteuid().as_raw() || theirs == ROOT_UID {
                return Ok(Client { socket });
            }
            tracing::warn!(uid = theirs, "a process of another user asked for batches: refused");
        }
    }
}

/// A connected trainer.
#[derive(Debug)]
pub(crate) struct Client {
    /// Only waited for by tokio: the calls are those for packets.
    socket: UnixStream,
}

impl Client {
    /// The next packet; its length, 0 at the connection's end.
    pub(crate) async fn receive(&self, packet: &mut [u8; PACKET_BYTES_MAX]) -> io::Result<usize> {
        loop {
            self.socket.readable().await?;
            let received = self.socket.try_io(Interest::READABLE, || {
                // TRUNC makes the kernel tell the packet's real length.
                let (_, length) = rustix::net::recv(&self.socket, &mut packet[..], RecvFlags::TRUNC)?;
                Ok(length)
            });
            match received {
                Ok(length) if length > PACKET_BYTES_MAX => {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "the packet is too long"));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                received => return received,
            }
        }
    }

    /// A packet that is there already, also when the trainer has closed its end since.
    pub(crate) fn left_over(&self, packet: &mut [u8; PACKET_BYTES_MAX]) -> Option<usize> {
        // A close with unread packets shows as one error in front of what is still to be read.
        let mut receive =
            || rustix::net::recv(&self.socket, &mut packet[..], RecvFlags::TRUNC).map(|(_, length)| length);
        let length = receive().or_else(|_| receive()).ok()?;
        (1..=PACKET_BYTES_MAX).contains(&length).then_some(length)
    }

    /// Sends one packet.
    pub(crate) async fn send(&self, packet: &[u8]) -> io::Result<()> {
        self.write(|socket| {
            rustix::net::send(socket, packet, SendFlags::NOSIGNAL)?;
            Ok(())
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
            rustix::net::sendmsg(socket, &[IoSlice::new(packet)], &mut ancillary, SendFlags::NOSIGNAL)?;
            Ok(())
        })
        .await
    }

    async fn write(&self, send: impl Fn(&UnixStream) -> io::Result<()>) -> io::Result<()> {
        loop {
            self.socket.writable().await?;
            match self.socket.try_io(Interest::WRITABLE, || send(&self.socket)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => return sent,
            }
        }
    }
}
