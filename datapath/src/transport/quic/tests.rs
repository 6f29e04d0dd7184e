//! Bulk data over live connections on 127.0.0.1, at the packet sizes of real networks. A stall is a failure, and so is
//! a connection that quietly stays with small packets.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::time::timeout;

use super::*;
use crate::testing::Authority;

const LOCALHOST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
/// Sent each time; the tail of it with packets of the size that was found out.
const BULK_BYTES: usize = 48 << 20;
/// No byte for this long is a stall: packets that the kernel refuses are repeated in vain for as long as one waits.
const STALL: Duration = Duration::from_secs(3);

/// A socket that notes what it hands to the kernel.
#[derive(Debug)]
struct Watched {
    inner: Arc<dyn AsyncUdpSocket>,
    largest_send: AtomicUsize,
    largest_segment: AtomicUsize,
    most_segments: AtomicUsize,
}

impl AsyncUdpSocket for Watched {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let segment = transmit.segment_size.unwrap_or(transmit.contents.len());
        self.largest_send.fetch_max(transmit.contents.len(), Ordering::Relaxed);
        self.largest_segment.fetch_max(segment, Ordering::Relaxed);
        self.most_segments.fetch_max(transmit.contents.len().div_ceil(segment.max(1)), Ordering::Relaxed);
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [io::IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.inner.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

fn lane(authority: &Authority, name: &str, mtu_limit: u32) -> (QuicLane, Arc<Watched>) {
    let (socket, receive_buffer) = tuning::socket(LOCALHOST).unwrap();
    let watched = Arc::new(Watched {
        inner: quinn::Runtime::wrap_udp_socket(&TokioRuntime, socket).unwrap(),
        largest_send: AtomicUsize::new(0),
        largest_segment: AtomicUsize::new(0),
        most_segments: AtomicUsize::new(0),
    });
    let socket = Arc::clone(&watched) as Arc<dyn AsyncUdpSocket>;
    let lane = QuicLane::over(&authority.identity(name), LOCALHOST, socket, receive_buffer, mtu_limit);
    (lane.unwrap(), watched)
}

/// A probe of a larger packet that a loaded machine delays counts as lost, and discovery settles below it: so many
/// connections have the chance to find what is possible.
const TRIES: usize = 4;

/// The bulk over connections of this MTU, until one finds packets of about `expected` bytes.
async fn bulk_that_finds(mtu: u32, expected: usize) -> (usize, Arc<Watched>) {
    let mut found = Vec::new();
    for _ in 0..TRIES {
        let (packet, watched) = bulk(mtu).await;
        let largest = watched.largest_send.load(Ordering::Relaxed);
        assert!(largest <= udp::SEND_BYTES_MAX, "MTU {mtu}: the kernel refuses a send of {largest} bytes");
        assert!(packet <= expected, "MTU {mtu}: packets of {packet} bytes, more than {expected}");
        // Discovery stops when the next step is not worth it.
        if packet * 100 >= expected * 95 {
            return (packet, watched);
        }
        found.push(packet);
    }
    panic!("MTU {mtu}: {TRIES} connections found packets of {found:?} bytes, of {expected} possible");
}

/// Sends the bulk over a connection of this MTU. The sender's packet size at the end, and its socket.
async fn bulk(mtu: u32) -> (usize, Arc<Watched>) {
    let authority = Authority::new();
    let (sender, watched) = lane(&authority, "sender", mtu);
    let (receiver, _) = lane(&authority, "receiver", mtu);
    let sending = tokio::spawn({
        let config = sender.server_config(receiver.local_addr(), 1);
        let endpoint = sender.endpoint.clone();
        async move {
            let connection = endpoint.accept().await.unwrap().accept_with(config).unwrap().await.unwrap();
            let (mut send, _) = connection.accept_bi().await.unwrap();
            let block = bytes::Bytes::from(vec![7; 1 << 20]);
            for _ in 0..BULK_BYTES >> 20 {
                send.write_chunk(block.clone()).await.unwrap();
            }
            send.finish().unwrap();
            connection.closed().await;
            usize::from(connection.stats().path.current_mtu)
        }
    });
    let config = receiver.client_config(sender.local_addr(), 1);
    let connection = receiver.endpoint.connect_with(config, sender.local_addr(), "sender").unwrap();
    let connection = timeout(STALL, connection).await.expect("the handshake does not stall").unwrap();
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    send.write_all(b"go").await.unwrap();
    let mut received = 0;
    while let Some(chunk) =
        timeout(STALL, receive.read_chunk(1 << 20, true)).await.expect("no stall").unwrap()
    {
        received += chunk.bytes.len();
    }
    assert_eq!(received, BULK_BYTES);
    connection.close(0_u32.into(), b"done");
    (sending.await.unwrap(), watched)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_data_flows_at_every_mtu_and_no_send_exceeds_the_kernels_limit() {
    for (mtu, segments) in [(1500, 10), (9000, 7), (65_535, 1)] {
        let route = usize::try_from(mtu - 48).unwrap();
        let (packet, watched) = bulk_that_finds(mtu, route.min(65_400)).await;
        assert!(watched.largest_segment.load(Ordering::Relaxed) >= packet);
        if segments > 1 {
            let most = watched.most_segments.load(Ordering::Relaxed);
            assert!((2..=10).contains(&most), "MTU {mtu}: {most} segments in a send");
            assert!(packet * segments <= udp::SEND_BYTES_MAX);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_on_loopback_finds_its_mtu_and_clamps_its_segments() {
    let route = tuning::route_mtu(SocketAddr::new(LOCALHOST, 9));
    bulk_that_finds(u32::MAX, usize::try_from(route.min(65_448)).unwrap() - 48).await;
}
