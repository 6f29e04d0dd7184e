//! A trainer of this process, as the handoff describes it: it takes and acknowledges every batch, and looks at no byte.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use rustix::time::ClockId;

use crate::{Failure, cpu};

/// What a trainer has seen.
#[derive(Clone, Copy, Debug)]
pub struct Trained {
    /// CPU time of its thread: the handoff's part of the cost.
    pub cpu: Duration,
    /// From its start to the first batch.
    pub first_batch: Duration,
}

/// Takes and acknowledges batches until the end.
///
/// # Errors
/// When nobody listens at that abstract socket, or what comes is no descriptor.
pub fn train(socket_name: &str) -> Result<Trained, Failure> {
    #[expect(clippy::disallowed_methods, reason = "a bench measures time")]
    let started = Instant::now();
    let mut first = None;
    let socket: OwnedFd =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new_abstract_name(socket_name.as_bytes())?)?;
    rustix::net::send(&socket, br#"{"version":1,"pid":1}"#, SendFlags::NOSIGNAL)?;
    let mut packet = vec![0; 64 << 10];
    rustix::net::recv(&socket, &mut packet[..], RecvFlags::empty())?;
    loop {
        let (_, length) = rustix::net::recv(&socket, &mut packet[..32], RecvFlags::empty())?;
        first.get_or_insert_with(|| started.elapsed());
        match packet[0] {
            1 if length == 32 => {
                packet[24..32].fill(0);
                rustix::net::send(&socket, &packet[..32], SendFlags::NOSIGNAL)?;
            }
            2 if length == 32 => break,
            other => return Err(format!("descriptor kind {other} of {length} bytes").into()),
        }
    }
    Ok(Trained { cpu: cpu(ClockId::ThreadCPUTime), first_batch: first.unwrap_or_default() })
}
