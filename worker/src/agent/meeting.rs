//! Where the ranks of a generation meet: PyTorch's store, which we serve, or a port that is kept for rank 0.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use datapath::fault::in_full;
use rustix::net::sockopt::set_socket_reuseaddr;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, ipproto, socket_with};

use super::preflight::fault;
use crate::config::Framework;
use crate::rendezvous::message::PreflightFault;
use crate::torch_store::{Limits, Server};

/// An open meeting point.
#[derive(Debug)]
pub(super) enum Meeting {
    /// PyTorch's store.
    Store(Server),
    /// A port that rank 0 will serve itself.
    Port(ReservedPort),
}

/// A TCP port that the kernel gives to nobody who did not ask for it by number. It is bound and does not listen, so
/// a server that allows the reuse of addresses, as gRPC's and most do, may open it all the same; that way nobody can
/// take it between its choice and its use, nor while rank 0 starts.
#[derive(Debug)]
pub(super) struct ReservedPort {
    address: SocketAddr,
    _socket: OwnedFd,
}

impl Meeting {
    /// Opens one at the interface `bind`, for ranks that join with `framework`.
    pub(super) fn open(framework: Framework, bind: IpAddr, world_size: u32) -> Result<Self, PreflightFault> {
        if framework == Framework::Jax {
            return ReservedPort::open(bind).map(Self::Port).map_err(|error| {
                let message = format!("cannot reserve a port of {bind} for rank 0: {error}");
                fault("port_failed", message, "are its ports used up?")
            });
        }
        let mut server = Server::open(bind, Limits::default()).map_err(|error| {
            fault("store_failed", format!("cannot open the store: {}", in_full(&error)), "")
        })?;
        server.world(world_size);
        Ok(Self::Store(server))
    }

    pub(super) fn address(&self) -> SocketAddr {
        match self {
            Self::Store(server) => server.local_addr(),
            Self::Port(port) => port.address,
        }
    }

    pub(super) fn close(self) {
        if let Self::Store(server) = self {
            server.close();
        }
    }
}

impl ReservedPort {
    fn open(ip: IpAddr) -> io::Result<Self> {
        let family = if ip.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, Some(ipproto::TCP))?;
        set_socket_reuseaddr(&socket, true)?;
        bind(&socket, &SocketAddr::new(ip, 0))?;
        let address = SocketAddr::try_from(getsockname(&socket)?)?;
        Ok(Self { address, _socket: socket })
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_reserved_port_is_rank_0s_and_nobody_elses() {
        let meeting = Meeting::open(Framework::Jax, Ipv4Addr::LOCALHOST.into(), 2).unwrap();
        let address = meeting.address();
        assert!(TcpStream::connect(address).is_err(), "nobody listens yet");
        let other = Meeting::open(Framework::Jax, Ipv4Addr::LOCALHOST.into(), 2).unwrap();
        assert_ne!(other.address(), address);
        // The standard library's listener allows the reuse of addresses, as gRPC's does.
        let listener = TcpListener::bind(address).unwrap();
        let _stream = TcpStream::connect(address).unwrap();
        listener.accept().unwrap();
        meeting.close();
    }
}
