//! A trainer as the handoff describes it, with blocking calls.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType,
};
use serde_json::Value;

use crate::ring::layout::{ABSENT, Header};

/// A connected test trainer.
pub(crate) struct Trainer {
    socket: OwnedFd,
    pub(crate) hello: Value,
    ring: Option<OwnedFd>,
}

/// A descriptor from the sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) kind: u32,
    pub(crate) slot: u32,
    pub(crate) generation: u64,
    pub(crate) step: u64,
    pub(crate) bytes: u64,
}

/// What a slot holds.
#[derive(Debug)]
pub(crate) struct Content {
    pub(crate) header: Header,
    /// Number and bytes (its fields joined) of each sample.
    pub(crate) samples: Vec<(u64, Vec<u8>)>,
}

impl Trainer {
    /// Connects, without a hello.
    pub(crate) fn connect(name: &str) -> Self {
        let flags = SocketFlags::CLOEXEC;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        set_socket_timeout(&socket, Timeout::Recv, Some(super::HANG)).unwrap();
        rustix::net::connect(&socket, &SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap()).unwrap();
        Self { socket, hello: Value::Null, ring: None }
    }

    /// Connects and says hello.
    pub(crate) fn attach(name: &str) -> Self {
        let mut trainer = Self::connect(name);
        trainer.send(br#"{"version":1,"pid":4321}"#);
        trainer.receive_hello();
        trainer
    }

    pub(crate) fn receive_hello(&mut self) {
        let mut packet = vec![0; 64 << 10];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [io::IoSliceMut::new(&mut packet)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = rustix::net::recvmsg(&self.socket, &mut slices, &mut ancillary, flags).unwrap();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(mut fds) = message {
                self.ring = fds.next();
            }
        }
        self.hello = serde_json::from_slice(&packet[..received.bytes]).unwrap();
    }

    pub(crate) fn send(&self, packet: &[u8]) {
        rustix::net::send(&self.socket, packet, SendFlags::NOSIGNAL).unwrap();
    }

    pub(crate) fn say(&self, kind: u32, descriptor: Descriptor) {
        let mut packet = [0; 32];
        packet[0..4].copy_from_slice(&kind.to_le_bytes());
        packet[4..8].copy_from_slice(&descriptor.slot.to_le_bytes());
        packet[8..16].copy_from_slice(&descriptor.generation.to_le_bytes());
        packet[16..24].copy_from_slice(&descriptor.step.to_le_bytes());
        self.send(&packet);
    }

    /// The next packet; empty at the end of the connection.
    pub(crate) fn packet(&self) -> Vec<u8> {
        let mut packet = vec![0; 64 << 10];
        let (_, length) = rustix::net::recv(&self.socket, &mut packet[..], RecvFlags::empty()).unwrap();
        packet.truncate(length);
        packet
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.packet()).unwrap()
    }

    pub(crate) fn descriptor(&self) -> Descriptor {
        let packet = self.packet();
        assert_eq!(packet.len(), 32, "{packet:?}");
        let four = |at: usize| u32::from_le_bytes(packet[at..at + 4].try_into().unwrap());
        let eight = |at: usize| u64::from_le_bytes(packet[at..at + 8].try_into().unwrap());
        Descriptor { kind: four(0), slot: four(4), generation: eight(8), step: eight(16), bytes: eight(24) }
    }

    /// What lies in the descriptor's slot.
    pub(crate) fn content(&self, descriptor: Descriptor) -> Content {
        let slot_bytes = self.hello["slot_bytes"].as_u64().unwrap();
        assert_eq!(slot_bytes % 4096, 0);
        let mut slot = vec![0; usize::try_from(descriptor.bytes).unwrap()];
        let offset = u64::from(descriptor.slot) * slot_bytes;
        let mut done = 0;
        while done < slot.len() {
            let at = offset + u64::try_from(done).unwrap();
            done += rustix::io::pread(self.ring.as_ref().unwrap(), &mut slot[done..], at).unwrap();
        }
        let header = Header::read(&slot).unwrap();
        assert_eq!((header.step, header.slot_generation), (descriptor.step, descriptor.generation));
        let (n, f) = (usize::try_from(header.samples).unwrap(), usize::try_from(header.fields).unwrap());
        let number = |at: usize| u64::from_le_bytes(slot[at..at + 8].try_into().unwrap());
        let sample = |sample: usize| {
            let mut bytes = Vec::new();
            for field in 0..f {
                let entry = 64 + 8 * n + 16 * (sample * f + field);
                let (offset, len) = (number(entry), number(entry + 8));
                if len != ABSENT {
                    let offset = usize::try_from(offset).unwrap();
                    bytes.extend(&slot[offset..offset + usize::try_from(len).unwrap()]);
                }
            }
            (number(64 + 8 * sample), bytes)
        };
        Content { header, samples: (0..n).map(sample).collect() }
    }

    /// Reads and acknowledges everything to the end; the batches in their order.
    pub(crate) fn consume(&self) -> Vec<Content> {
        let mut batches = Vec::new();
        loop {
            let descriptor = self.descriptor();
            if descriptor.kind != 1 {
                assert_eq!(descriptor.kind, 2, "{descriptor:?}: {:?}", self.packet());
                return batches;
            }
            batches.push(self.content(descriptor));
            self.say(1, descriptor);
        }
    }
}
