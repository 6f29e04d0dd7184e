//! What is kept for work under way, and the futures that wait for it.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::sync::oneshot;

use super::MemoryRegion;
use crate::transport::rdma::reason::{Reason, WorkStatus};

/// Sequence numbers of requests have 31 bits: with the queue's kind, and the queue pair's number, they are a request's name.
const SEQUENCE_MASK: u32 = 0x7fff_ffff;

/// Why work ended without success.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a queue pair failed: {reason}{}", .status.map(|status| format!(", {status}")).unwrap_or_default())]
pub struct Failure {
    /// The first cause, also for work that was only flushed by it.
    pub reason: Reason,
    /// What the device said, if it was the device.
    pub status: Option<WorkStatus>,
}

/// Work that has ended without success.
#[derive(Debug)]
pub struct Broken<K> {
    /// Why.
    pub failure: Failure,
    /// The owner, which the device will touch no more. None where the system cannot promise that: then it is leaked.
    pub owner: Option<K>,
}

/// What a receive got.
#[derive(Debug)]
pub struct Received<K> {
    /// The owner of the memory.
    pub owner: K,
    /// How many bytes of it were written.
    pub bytes: usize,
    /// The number that came with a write.
    pub number: Option<u32>,
}

/// Bytes received and the number that came along; or why nothing did.
pub(super) type Arrived = Result<(u32, Option<u32>), Failure>;

/// What is kept for a request, or a chain of them, that is under way.
pub(super) trait Kept: Send {
    fn end(self: Box<Self>, result: Arrived);
    /// The device may touch it for ever.
    fn leak(self: Box<Self>, failure: Failure);
}

pub(super) struct Keeping<K> {
    owner: K,
    memory: Option<MemoryRegion>,
    done: oneshot::Sender<Result<Received<K>, Broken<K>>>,
}

impl<K> Keeping<K> {
    /// What is kept, and where its end is told.
    pub(super) fn new(owner: K, memory: Option<MemoryRegion>) -> (Box<Self>, Answer<K>) {
        let (done, answer) = oneshot::channel();
        (Box::new(Self { owner, memory, done }), Answer(answer))
    }
}

impl<K: Send + 'static> Kept for Keeping<K> {
    fn end(self: Box<Self>, result: Arrived) {
        let Self { owner, memory, done } = *self;
        drop(memory);
        let answer = match result {
            Ok((bytes, number)) => Ok(Received { owner, bytes: usize::try_from(bytes).unwrap_or(0), number }),
            Err(failure) => Err(Broken { failure, owner: Some(owner) }),
        };
        // The future may be gone: then the owner is dropped here, now that it may.
        drop(done.send(answer));
    }

    fn leak(self: Box<Self>, failure: Failure) {
        let Self { owner, memory, done } = *self;
        Box::leak(Box::new((owner, memory)));
        drop(done.send(Err(Broken { failure, owner: None })));
    }
}

/// Which of a pair's two queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Send,
    Receive,
}

/// A request's name: the queue pair's number in its completion queue (which, unlike the device's, is never used again),
/// its queue, and its place there.
pub(super) fn id(number: u32, kind: Kind, sequence: u32) -> u64 {
    let kind = if kind == Kind::Receive { !SEQUENCE_MASK } else { 0 };
    u64::from(number) << 32 | u64::from(kind | sequence & SEQUENCE_MASK)
}

pub(super) fn of_id(id: u64) -> (u32, Kind, u32) {
    let low = u32::try_from(id & u64::from(u32::MAX)).unwrap_or(0);
    let kind = if low & !SEQUENCE_MASK == 0 { Kind::Send } else { Kind::Receive };
    (u32::try_from(id >> 32).unwrap_or(0), kind, low & SEQUENCE_MASK)
}

/// Requests under way, in their order; of a chain the last has what is kept for all of it.
#[derive(Default)]
pub(super) struct Queue {
    first: u32,
    kept: VecDeque<Option<Box<dyn Kept>>>,
}

impl Queue {
    pub(super) fn next(&self) -> u32 {
        self.first.wrapping_add(u32::try_from(self.kept.len()).unwrap_or(0)) & SEQUENCE_MASK
    }

    /// Takes out all up to this one; none when it is not under way.
    pub(super) fn take(&mut self, sequence: u32) -> Option<Vec<Option<Box<dyn Kept>>>> {
        let before = usize::try_from(sequence.wrapping_sub(self.first) & SEQUENCE_MASK).ok()?;
        if before >= self.kept.len() {
            return None;
        }
        self.first = sequence.wrapping_add(1) & SEQUENCE_MASK;
        Some(self.kept.drain(..=before).collect())
    }
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// A chain of that many requests, and what is kept for it.
    pub(super) fn push(&mut self, requests: usize, kept: Box<dyn Kept>) {
        self.kept.extend((1..requests).map(|_| None));
        self.kept.push_back(Some(kept));
    }

    /// All that is kept.
    pub(super) fn clear(&mut self) -> Vec<Box<dyn Kept>> {
        self.kept.drain(..).flatten().collect()
    }
}

/// What has ended, to be told when no lock is held: an owner's `drop` may do anything.
pub(super) type Ended = (Box<dyn Kept>, Arrived);

/// Taken down before it had failed.
pub(super) const FLUSHED: Failure = Failure { reason: Reason::Flushed, status: None };

/// Where the end of something is told.
pub(super) struct Answer<K>(oneshot::Receiver<Result<Received<K>, Broken<K>>>);

impl<K> Answer<K> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Received<K>, Broken<K>>> {
        let answer = ready!(Pin::new(&mut self.0).poll(cx));
        // It is always told, ended or leaked.
        Poll::Ready(answer.unwrap_or(Err(Broken { failure: FLUSHED, owner: None })))
    }
}

/// A chain under way. Gives its owner back; dropped, it stops waiting, and the owner is dropped when the device is done with it.
///
/// It has no deadline of its own, as a device may go on for long without saying so: whoever waits has one, and then gives the queue
/// pair up ([`QueuePair::fail`](super::QueuePair::fail)), which brings everything back.
#[must_use = "whoever does not wait does not know that it has ended"]
pub struct Posted<K>(pub(super) Answer<K>);

impl<K> Future for Posted<K> {
    type Output = Result<K, Broken<K>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.poll(cx).map(|result| result.map(|received| received.owner))
    }
}

/// A receive that waits for the peer. Dropped, it goes on waiting, and what it gets is lost.
#[must_use = "whoever does not wait does not know what came"]
pub struct Receiving<K>(pub(super) Answer<K>);

impl<K> Future for Receiving<K> {
    type Output = Result<Received<K>, Broken<K>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.poll(cx)
    }
}

impl<K> fmt::Debug for Posted<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Posted")
    }
}

impl<K> fmt::Debug for Receiving<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Receiving")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_requests_name_is_read_back() {
        for (number, kind, sequence) in
            [(0, Kind::Send, 0), (7, Kind::Receive, 9), (u32::MAX, Kind::Send, SEQUENCE_MASK)]
        {
            assert_eq!(of_id(id(number, kind, sequence)), (number, kind, sequence));
        }
    }

    #[test]
    fn a_completion_ends_all_before_it_once_and_the_numbers_wrap() {
        let mut queue = Queue { first: SEQUENCE_MASK - 1, ..Queue::default() };
        let (kept, _answer) = Keeping::new((), None);
        queue.push(3, kept);
        let (kept, _other) = Keeping::new((), None);
        queue.push(1, kept);
        assert_eq!(queue.next(), 2);
        assert!(queue.take(2).is_none(), "not under way yet");
        let taken = queue.take(0).unwrap();
        assert_eq!(taken.iter().map(Option::is_some).collect::<Vec<_>>(), [false, false, true]);
        assert!(queue.take(0).is_none() && queue.take(SEQUENCE_MASK).is_none(), "ended already");
        assert_eq!(queue.take(1).unwrap().len(), 1);
        assert!(queue.is_empty());
    }
}
