//! A UDP socket that never offers the kernel more than one datagram's worth of segments.
//!
//! quinn hands up to 10 segments to one `sendmsg` (UDP GSO), and the kernel takes at most 65,507 bytes at once. With
//! packets larger than 6,550 bytes — any network with MTU 9000 — it answers EMSGSIZE, which quinn-udp takes for a
//! failed MTU probe and drops without a word (quinn issues 1457 and 2199): the connection stalls, or falls back to
//! 1,200-byte packets at three to four times the CPU. So this socket watches how large segments are, says how many
//! fit (7 at MTU 9000), and cuts what is too long in the moment between the two.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

/// Payload of one UDP send over IPv4: 65,535 less 20 bytes of IP and 8 of UDP header.
pub(crate) const SEND_BYTES_MAX: usize = 65_507;

/// Wraps quinn's own socket.
#[derive(Debug)]
pub(crate) struct ClampedSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    /// The largest segment that was part of a batch.
    largest_segment: AtomicUsize,
}

impl ClampedSocket {
    pub(crate) fn new(inner: Arc<dyn AsyncUdpSocket>) -> Self {
        Self { inner, largest_segment: AtomicUsize::new(1) }
    }
}

impl AsyncUdpSocket for ClampedSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let Some(segment) = transmit.segment_size.filter(|&segment| segment > 0) else {
            return self.inner.try_send(transmit);
        };
        self.largest_segment.fetch_max(segment, Ordering::Relaxed);
        let fits = (SEND_BYTES_MAX / segment).max(1) * segment;
        for (number, contents) in transmit.contents.chunks(fits).enumerate() {
            let sent = self.inner.try_send(&Transmit {
                destination: transmit.destination,
                ecn: transmit.ecn,
                contents,
                segment_size: (contents.len() > segment).then_some(segment),
                src_ip: transmit.src_ip,
            });
            match sent {
                Ok(()) => {}
                // The first part is out, so the whole cannot be sent again; QUIC repeats what is lost. This can only
                // happen in the batch or two after a raised MTU.
                Err(error) if number > 0 && error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.inner.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        let fit = SEND_BYTES_MAX / self.largest_segment.load(Ordering::Relaxed);
        self.inner.max_transmit_segments().min(fit.max(1))
    }

    fn max_receive_segments(&self) -> usize {
        // quinn sizes each of 32 receive buffers as this many times the largest payload. That payload is already as
        // large as the kernel's largest coalesced read (64 KiB), so more would only be 134 MB of memory.
        1
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Debug, Default)]
    struct Recorder {
        sent: Mutex<Vec<(usize, Option<usize>)>>,
        block_after: Option<usize>,
    }

    impl AsyncUdpSocket for Recorder {
        fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
            unreachable!()
        }

        fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
            let mut sent = self.sent.lock().unwrap();
            if self.block_after == Some(sent.len()) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            sent.push((transmit.contents.len(), transmit.segment_size));
            Ok(())
        }

        fn poll_recv(
            &self,
            _: &mut Context<'_>,
            _: &mut [IoSliceMut<'_>],
            _: &mut [RecvMeta],
        ) -> Poll<io::Result<usize>> {
            Poll::Pending
        }

        fn local_addr(&self) -> io::Result<SocketAddr> {
            Ok(SocketAddr::from(([127, 0, 0, 1], 1)))
        }

        fn max_transmit_segments(&self) -> usize {
            10
        }
    }

    fn transmit(contents: &[u8], segment_size: Option<usize>) -> Transmit<'_> {
        let destination = SocketAddr::from(([127, 0, 0, 1], 2));
        Transmit { destination, ecn: None, contents, segment_size, src_ip: None }
    }

    #[test]
    fn segments_are_clamped_to_what_the_kernel_takes() {
        for (segment, expected) in [(1200, 10), (6550, 10), (8952, 7), (32_000, 2), (65_000, 1)] {
            let socket = ClampedSocket::new(Arc::new(Recorder::default()));
            assert_eq!(socket.max_transmit_segments(), 10);
            socket.try_send(&transmit(&vec![0; 2 * segment.min(1200)], Some(segment.min(1200)))).unwrap();
            socket.try_send(&transmit(&vec![0; segment + 1], Some(segment))).unwrap();
            assert_eq!(socket.max_transmit_segments(), expected, "{segment}");
        }
    }

    #[test]
    fn a_probe_alone_changes_nothing() {
        let socket = ClampedSocket::new(Arc::new(Recorder::default()));
        socket.try_send(&transmit(&[0; 65_000], None)).unwrap();
        assert_eq!(socket.max_transmit_segments(), 10);
    }

    #[test]
    fn what_is_too_long_is_cut_at_segments() {
        let recorder = Arc::new(Recorder::default());
        let socket = ClampedSocket::new(Arc::clone(&recorder) as _);
        socket.try_send(&transmit(&[0; 10 * 8952 - 100], Some(8952))).unwrap();
        assert_eq!(*recorder.sent.lock().unwrap(), [(7 * 8952, Some(8952)), (3 * 8952 - 100, Some(8952))]);
        socket.try_send(&transmit(&[0; 7 * 8952 + 5], Some(8952))).unwrap();
        assert_eq!(recorder.sent.lock().unwrap()[3], (5, None));
    }

    #[test]
    fn blocking_at_once_is_told_and_later_is_a_loss() {
        for (block_after, is_ok) in [(0, false), (1, true)] {
            let recorder = Recorder { block_after: Some(block_after), ..Recorder::default() };
            let socket = ClampedSocket::new(Arc::new(recorder));
            assert_eq!(socket.try_send(&transmit(&[0; 90_000], Some(9000))).is_ok(), is_ok);
        }
    }
}
