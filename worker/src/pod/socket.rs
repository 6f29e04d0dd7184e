//! The abstract unix socket between the containers of a pod, and frames on it.
//!
//! The containers of a pod share its network namespace, and abstract sockets live in that (unix(7)): no file is shared
//! for it, and none is left. Each end answers only to its own user, or root.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::SocketAddr;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::{UnixListener, UnixStream};

use crate::rendezvous::message::{body_length, decode, encode};

/// Root may look at everything anyway.
const ROOT_UID: u32 = 0;

/// The socket's name, without the leading NUL.
fn name(pod_uid: &str) -> String {
    format!("slipway-ranks-{pod_uid}")
}

/// Listens for the ranks' container of this pod. Needs a runtime.
pub(crate) fn listen(pod_uid: &str) -> io::Result<UnixListener> {
    let address = SocketAddr::from_abstract_name(name(pod_uid))?;
    let listener = std::os::unix::net::UnixListener::bind_addr(&address)?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// Connects to the sidecar of this pod.
pub(crate) fn connect(pod_uid: &str) -> io::Result<UnixStream> {
    let address = SocketAddr::from_abstract_name(name(pod_uid))?;
    // It does not wait: the other end is this host, and a full backlog is an error.
    let stream = std::os::unix::net::UnixStream::connect_addr(&address)?;
    stream.set_nonblocking(true)?;
    let stream = UnixStream::from_std(stream)?;
    is_ours(&stream).then_some(stream).ok_or_else(|| {
        io::Error::new(io::ErrorKind::PermissionDenied, "another user listens on the sidecar's socket")
    })
}

/// Whether the other end is a process of this user, or root's.
pub(crate) fn is_ours(stream: &UnixStream) -> bool {
    let me = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == me || peer.uid() == ROOT_UID)
}

/// The next frame. Not to be cancelled: what was read of a frame would be lost.
pub(crate) async fn read<T: DeserializeOwned>(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<T> {
    let mut prefix = [0; 4];
    stream.read_exact(&mut prefix).await?;
    let mut body = vec![0; body_length(prefix).map_err(io::Error::other)?];
    stream.read_exact(&mut body).await?;
    decode(&body).map_err(io::Error::other)
}

/// A message as bytes to be written.
pub(crate) fn frame<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    encode(message).map_err(io::Error::other)
}
