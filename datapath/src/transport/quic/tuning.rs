//! The numbers of a data connection, and where each comes from.
//!
//! Measured on one host over loopback (1 GiB, one thread each side, CPU-seconds per GB of both sides together):
//! quinn as it comes 1.73; MTU 8952 with 10 segments a send: stalls; with clamped segments, a fixed window of
//! 2 MiB and an ACK every 40 packets 0.57–0.70 without a lost packet. Cubic with a window beyond the socket's buffer
//! lost 1–3 % of the packets, BBR 17 %.

use std::any::Any;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::congestion::{Controller, ControllerFactory, CubicConfig};
use quinn::{AckFrequencyConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use rustix::net::sockopt;

use crate::select::Congestion;

/// Socket buffers asked for, each way; the kernel grants no more than `net.core.{r,w}mem_max` (4 MiB is common).
const SOCKET_BUFFER_BYTES: usize = 4 << 20;
/// Bytes in flight of one connection at the most: half of such a buffer. More only queues, and then drops.
const WINDOW_BYTES_MAX: u64 = 2 << 20;
/// And at the least, however many peers send to one socket: some large packets must fit.
const WINDOW_BYTES_MIN: u64 = 256 << 10;
/// A window that losses made smaller grows by this with every acknowledgement: back from one half within some
/// tens of round trips.
const REGROWTH_BYTES: u64 = 16 << 10;
/// Packets that may be received without an acknowledgement, if the window is large enough.
const ACK_EVERY_PACKETS: u64 = 40;
/// At least four acknowledgements a window: with fewer the sender waits for [`ACK_DELAY`] (then throughput is
/// exactly window / delay: 0.21 GB/s was measured).
const ACKS_PER_WINDOW: u64 = 4;
/// An acknowledgement is late by this at the most.
const ACK_DELAY: Duration = Duration::from_millis(5);
/// The first packets are this large: every path carries it (RFC 9000, section 14), and from 16,384 on a handshake's
/// packets cannot be written.
const INITIAL_MTU: u16 = 1200;
/// Headers of IPv6 and UDP, which an interface's MTU counts and QUIC's does not.
const IP_UDP_HEADER_BYTES: u32 = 48;
/// Upper bound of the packet size when nobody knows the route's: an Ethernet without jumbo frames.
const FALLBACK_ROUTE_MTU: u32 = 1500;
/// The largest packet: one UDP send, less some room for what a path may add.
const PACKET_BYTES_MAX: u32 = 65_400;
/// Bytes that may lie unread in one connection: requests only ask for free slots, so this only smooths.
const RECEIVE_WINDOW_BYTES: u32 = 8 << 20;
/// Bytes that may lie unread in one stream: half, so that one slow request cannot stop the others.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// Bytes handed to a connection and not acknowledged: they keep chunks from being dropped.
const SEND_WINDOW_BYTES: u64 = 8 << 20;
/// Requests under way on one connection: slots of all ranks of a worker, several times over.
pub(crate) const STREAMS_MAX: u32 = 1024;
/// A peer that is silent this long is gone, killed or stopped: a live one answers pings at once, whatever its store
/// does. Its requests are asked elsewhere then.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_millis(1500);
/// Several pings fit into the idle timeout.
const KEEP_ALIVE: Duration = Duration::from_millis(300);
/// First guess of the round trip, within a data centre; the default of 333 ms is for the Internet.
const INITIAL_RTT: Duration = Duration::from_millis(20);

/// A socket on an interface's address, with large buffers; and how many bytes it can hold unread.
pub(crate) fn socket(bind: IpAddr) -> io::Result<(UdpSocket, u64)> {
    let socket = UdpSocket::bind(SocketAddr::new(bind, 0))?;
    sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER_BYTES)?;
    sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER_BYTES)?;
    // The kernel doubles the number for its own bookkeeping (socket(7), SO_RCVBUF).
    let granted = sockopt::socket_recv_buffer_size(&socket)? / 2;
    Ok((socket, u64::try_from(granted).unwrap_or(u64::MAX)))
}

/// Bytes in flight towards a peer: all of its senders together must fit into half of its socket's buffer, which is
/// taken to be like ours.
pub(crate) fn window(receive_buffer: u64, senders: usize) -> u64 {
    let senders = u64::try_from(senders.max(1)).unwrap_or(u64::MAX);
    (receive_buffer / 2)
        .min(WINDOW_BYTES_MAX * senders)
        .checked_div(senders)
        .unwrap_or(0)
        .max(WINDOW_BYTES_MIN)
}

/// Transport parameters for a route of this MTU.
pub(crate) fn transport(mtu: u32, window: u64, congestion: Congestion) -> TransportConfig {
    let largest = mtu.saturating_sub(IP_UDP_HEADER_BYTES).min(PACKET_BYTES_MAX);
    let largest = u16::try_from(largest).unwrap_or(u16::MAX).max(INITIAL_MTU);
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(largest);
    let mut acks = AckFrequencyConfig::default();
    let threshold = (window / (ACKS_PER_WINDOW * u64::from(largest))).clamp(1, ACK_EVERY_PACKETS);
    acks.ack_eliciting_threshold(VarInt::from_u64(threshold).unwrap_or(VarInt::from_u32(1)));
    acks.max_ack_delay(Some(ACK_DELAY));
    let mut transport = TransportConfig::default();
    transport
        .initial_mtu(INITIAL_MTU)
        .min_mtu(INITIAL_MTU)
        .mtu_discovery_config(Some(discovery))
        .ack_frequency_config(Some(acks))
        .congestion_controller_factory(controller(congestion, window))
        .initial_rtt(INITIAL_RTT)
        .receive_window(VarInt::from_u32(RECEIVE_WINDOW_BYTES))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .send_window(SEND_WINDOW_BYTES)
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(IdleTimeout::try_from(IDLE_TIMEOUT).ok())
        .keep_alive_interval(Some(KEEP_ALIVE));
    transport
}

fn controller(congestion: Congestion, window: u64) -> Arc<dyn ControllerFactory + Send + Sync> {
    match congestion {
        Congestion::Fixed => Arc::new(FixedWindow { bytes: window }),
        Congestion::Cubic => Arc::new(CubicConfig::default()),
    }
}

/// The MTU of the route to a peer, as the kernel knows it for a connected socket.
pub(crate) fn route_mtu(peer: SocketAddr) -> u32 {
    let unspecified: IpAddr = if peer.is_ipv4() { [0, 0, 0, 0].into() } else { [0_u16; 8].into() };
    let ask = || -> io::Result<u32> {
        let probe = UdpSocket::bind(SocketAddr::new(unspecified, 0))?;
        // Connecting a UDP socket sends nothing: it only looks the route up.
        probe.connect(peer)?;
        Ok(if peer.is_ipv4() { sockopt::ip_mtu(&probe)? } else { sockopt::ipv6_mtu(&probe)? })
    };
    ask().unwrap_or(FALLBACK_ROUTE_MTU)
}

/// A window that stands: receivers only ask for what they have room for, so on a private network there is nothing
/// to find out. When packets are lost all the same (a switch that is too full) it halves, and grows back with
/// every acknowledgement.
#[derive(Clone, Copy, Debug)]
struct FixedWindow {
    bytes: u64,
}

impl ControllerFactory for FixedWindow {
    fn build(self: Arc<Self>, _now: Instant, _mtu: u16) -> Box<dyn Controller> {
        Box::new(Fixed { most: self.bytes, now: self.bytes, least: WINDOW_BYTES_MIN.min(self.bytes) / 4 })
    }
}

#[derive(Clone, Debug)]
struct Fixed {
    most: u64,
    now: u64,
    least: u64,
}

impl Controller for Fixed {
    fn on_end_acks(&mut self, _: Instant, _: u64, _: bool, _: Option<u64>) {
        self.now = (self.now + REGROWTH_BYTES).min(self.most);
    }

    fn on_congestion_event(&mut self, _: Instant, _: Instant, _: bool, _: u64) {
        self.now = (self.now / 2).max(self.least);
    }

    fn on_mtu_update(&mut self, _: u16) {}

    fn window(&self) -> u64 {
        self.now
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        self.most
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_senders_together_fit_into_half_of_the_buffer() {
        assert_eq!(window(4 << 20, 1), 2 << 20);
        assert_eq!(window(8 << 20, 1), 2 << 20);
        assert_eq!(window(4 << 20, 4), 512 << 10);
        assert_eq!(window(208 << 10, 3), WINDOW_BYTES_MIN);
    }

    #[test]
    fn losses_halve_the_window_and_arrivals_restore_it() {
        let mut controller = Fixed { most: 2 << 20, now: 2 << 20, least: 64 << 10 };
        let moment = {
            #[expect(clippy::disallowed_methods, reason = "an argument that is not looked at")]
            Instant::now()
        };
        for _ in 0..20 {
            controller.on_congestion_event(moment, moment, false, 1);
        }
        assert_eq!(controller.window(), 64 << 10);
        for _ in 0..200 {
            controller.on_end_acks(moment, 0, false, None);
        }
        assert_eq!(controller.window(), 2 << 20);
    }

    #[test]
    fn a_shared_network_is_felt_for_and_a_private_one_is_not() {
        let moment = {
            #[expect(clippy::disallowed_methods, reason = "an argument that is not looked at")]
            Instant::now()
        };
        let first = |congestion| controller(congestion, 2 << 20).build(moment, INITIAL_MTU).window();
        assert_eq!(first(Congestion::Fixed), 2 << 20);
        assert!(first(Congestion::Cubic) < 32 << 10, "ten packets or so (RFC 9002, section 7.2)");
    }

    #[test]
    fn the_route_to_this_host_is_known() {
        assert!(route_mtu(SocketAddr::from(([127, 0, 0, 1], 9))) >= 1500);
    }
}
