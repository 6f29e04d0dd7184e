//! Queue pairs: work is handed over, and what it touches is kept until it has ended.
//!
//! **What keeps this sound.** A device reads and writes memory in its own time, whatever becomes of the future that waits for
//! it. So a work request's owner and registration are moved into the queue pair when it is posted. They leave it in two ways
//! only: the request, or a later one of the same queue, was polled for (a queue's requests end in their order); or the
//! queue pair was taken down, after which its device touches nothing of it. A future that is dropped therefore
//! stops waiting, and nothing else. When the system refuses to take a queue pair down, what it holds is leaked.

#![expect(unsafe_code, reason = "hands memory to a device")]

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};

use super::chain::{Bytes, Chain, Planned, place};
use super::completion::{CompletionQueue, Place};
use super::keep::{Ended, FLUSHED, Failure, Keeping, Kind, Posted, Queue, Receiving, id};
use super::library::{Context, Domain};
use super::queue::{Completion, RawPair, Request, Verb};
use super::{MemoryRegion, Path};
use crate::memory::span::Exclusive;
use crate::transport::rdma::VerbsError;
use crate::transport::rdma::endpoint::{Endpoint, PSN_MASK};
use crate::transport::rdma::reason::{Operation, Reason, Way};

/// Of a queue's requests that are not the last of a chain, each one of this many tells that it has ended: room comes back in the
/// middle of a long chain, and most requests cost no completion.
pub const SIGNAL_EVERY: usize = 16;
/// Requests of one queue at the most: what adapters take for sure.
pub const QUEUE_MAX: u32 = 4096;
/// How long flushed requests are waited for. Devices take microseconds; one that takes this long is taken down as it is.
pub const DRAIN_MAX: Duration = Duration::from_secs(1);
/// How many requests may be under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Reads, writes and messages.
    pub sends: u32,
    /// Receives.
    pub receives: u32,
}

/// Why a chain was not taken.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// No room now: so many requests are under way.
    #[error("the queue is full")]
    Full,
    /// There will never be room for so many requests at once, or for none.
    #[error("a chain of {len} requests does not fit a queue of {room}")]
    Unfit {
        /// Its requests.
        len: usize,
        /// The queue's room.
        room: u32,
    },
    /// A request is larger than the port takes, or its memory is of another domain, or unfit for it.
    #[error("a request is not for this queue pair")]
    Stranger,
    /// The queue pair has failed.
    #[error(transparent)]
    Broken(Failure),
    /// The driver did not take it.
    #[error(transparent)]
    Driver(VerbsError),
}

/// Work that was not taken, given back.
#[derive(Debug)]
pub struct Refused<T> {
    /// The work.
    pub work: T,
    /// Why.
    pub why: Refusal,
}

pub(super) struct Shared {
    state: Mutex<State>,
    /// Room among the sends.
    room: Semaphore,
    /// Told when nothing is under way any more.
    drained: Notify,
    sizes: Sizes,
    path: Path,
    context: Arc<Context>,
    domain: Arc<Domain>,
    place: Place,
    queue: Arc<CompletionQueue>,
}

struct State {
    /// None when it has been taken down.
    raw: Option<RawPair>,
    sends: Queue,
    receives: Queue,
    cause: Option<Failure>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether no failure is known, or only such as have a cause that may come by another queue, and later.
    fn wants_cause(&self) -> bool {
        self.lock().cause.is_none_or(|known| known.reason == Reason::Flushed && known.status.is_some())
    }

    /// How its port is now.
    fn way(&self) -> Way {
        if !self.context.port(self.path.port).is_ok_and(|port| port.is_up) {
            return Way::PortDown;
        }
        match self.context.gid(self.path.port, self.path.gid.index) {
            Ok(gid) if gid == self.path.gid.gid => Way::Open,
            Ok(gid) if !gid.is_zero() => Way::GidChanged,
            _ => Way::GidMissing,
        }
    }

    /// A request has ended, and with it all before it in its queue.
    pub(super) fn complete(
        &self,
        kind: Kind,
        sequence: u32,
        completion: &Completion,
        ended: &mut Vec<Ended>,
    ) {
        // Asked before the lock is taken, and only of what may be a first cause: these are system calls.
        let cause = completion
            .result
            .err()
            .filter(|_| self.wants_cause())
            .map(|status| Failure { reason: status.reason(self.way()), status: Some(status) });
        let mut state = self.lock();
        if cause.is_some_and(|cause| state.cause.is_none() || cause.reason != Reason::Flushed) {
            state.cause = cause;
        }
        let cause = state.cause;
        let queue = if kind == Kind::Send { &mut state.sends } else { &mut state.receives };
        let Some(taken) = queue.take(sequence) else { return };
        let count = taken.len();
        for (at, kept) in taken.into_iter().enumerate() {
            let Some(kept) = kept else { continue };
            // Those before it did not say that they ended: so they went well.
            let result = match (at + 1 == count, completion.result, cause) {
                (true, Err(_), cause) => Err(cause.unwrap_or(FLUSHED)),
                _ => Ok((completion.bytes, completion.immediate)),
            };
            ended.push((kept, result));
        }
        if kind == Kind::Send {
            self.room.add_permits(count);
        }
        if state.sends.is_empty() && state.receives.is_empty() {
            self.drained.notify_one();
        }
    }

    /// The completion queue is broken: nothing would be heard of any more, so the queue pair is taken down.
    pub(super) fn give_up(&self, reason: Reason) {
        self.lock().cause.get_or_insert(Failure { reason, status: None });
        // What could not be taken down has been told and leaked.
        drop(self.take_down());
    }

    /// Whatever is under way ends, flushed, if it has not failed already.
    fn fail(&self, failure: Failure) -> Result<(), VerbsError> {
        let mut state = self.lock();
        state.cause.get_or_insert(failure);
        state.raw.as_ref().map_or(Ok(()), RawPair::fail)
    }

    /// Hands over a chain for which there is room.
    fn post<K: Send + 'static>(&self, chain: Chain<K>) -> Result<Posted<K>, Refused<Chain<K>>> {
        let mut state = self.lock();
        let State { raw, sends, cause, .. } = &mut *state;
        let count = chain.len();
        let refused = |work, why| {
            self.room.add_permits(count);
            Err(Refused { work, why })
        };
        let raw = match (raw, *cause) {
            (Some(raw), None) => raw,
            (_, cause) => return refused(chain, Refusal::Broken(cause.unwrap_or(FLUSHED))),
        };
        let first = sends.next();
        let requests = chain.requests.iter().enumerate().map(|(at, planned)| Request {
            id: id(self.place.number(), Kind::Send, first.wrapping_add(u32::try_from(at).unwrap_or(0))),
            verb: planned.verb,
            local: planned.local(),
            is_signalled: (at + 1).is_multiple_of(SIGNAL_EVERY) || at + 1 == count,
        });
        let requests: Vec<_> = requests.collect();
        // SAFETY: the registration and the owner go into the queue below, with nothing in between that could fail, and stay
        // there as this file says at its top. Reads go to memory of an owner that is `Exclusive` (see `Chain::read`), which
        // nobody reaches while it is in the queue.
        let posted = unsafe { raw.send(&requests) };
        drop(requests);
        let (taken, error) = match posted {
            Ok(()) => (count, None),
            Err((0, error)) => return refused(chain, Refusal::Driver(error)),
            Err((taken, error)) => (taken, Some(error)),
        };
        let (kept, answer) = Keeping::new(chain.owner, chain.memory);
        sends.push(taken, kept);
        if let Some(error) = error {
            // Half a chain: what was taken ends, flushed, and is given back.
            self.room.add_permits(count - taken);
            *cause = Some(Failure { reason: error.reason, status: None });
            if let Err(error) = raw.fail() {
                tracing::debug!(%error, "a queue pair that took half a chain does not fail");
            }
        }
        Ok(Posted(answer))
    }

    /// Whether a chain could ever be taken.
    fn check<K>(&self, chain: &Chain<K>) -> Result<u32, Refusal> {
        let is_mine =
            chain.memory.as_ref().is_none_or(|memory| Arc::ptr_eq(&memory.registration.domain, &self.domain));
        let fits = |planned: &Planned| match planned.bytes {
            Bytes::Registered { len, .. } => len <= self.path.message_bytes_max,
            Bytes::Inline(_) => true,
        };
        if !is_mine || !chain.requests.iter().all(fits) {
            return Err(Refusal::Stranger);
        }
        let len = u32::try_from(chain.len()).unwrap_or(u32::MAX);
        if len == 0 || len > self.sizes.sends {
            return Err(Refusal::Unfit { len: chain.len(), room: self.sizes.sends });
        }
        Ok(len)
    }

    fn receive<K: Send + 'static>(
        &self,
        memory: Option<(&MemoryRegion, Bytes)>,
        owner: K,
    ) -> Result<Receiving<K>, Refused<K>> {
        let mut state = self.lock();
        let State { raw, receives, cause, .. } = &mut *state;
        let raw = match (raw, *cause) {
            (Some(raw), None) => raw,
            (_, cause) => {
                return Err(Refused { work: owner, why: Refusal::Broken(cause.unwrap_or(FLUSHED)) });
            }
        };
        if receives.len() >= usize::try_from(self.sizes.receives).unwrap_or(usize::MAX) {
            return Err(Refused { work: owner, why: Refusal::Full });
        }
        let (memory, planned) = memory.map_or((None, None), |(memory, bytes)| {
            (Some(memory.clone()), Some(Planned { verb: Verb::Send, bytes }))
        });
        let id = id(self.place.number(), Kind::Receive, receives.next());
        // SAFETY: as in `post`; the memory's owner is `Exclusive`, see `receive_into`.
        if let Err(error) = unsafe { raw.receive(id, planned.as_ref().map(Planned::local)) } {
            return Err(Refused { work: owner, why: Refusal::Driver(error) });
        }
        let (kept, answer) = Keeping::new(owner, memory);
        receives.push(1, kept);
        Ok(Receiving(answer))
    }

    fn receive_into<K: Exclusive>(
        &self,
        memory: &MemoryRegion,
        mut owner: K,
    ) -> Result<Receiving<K>, Refused<K>> {
        let is_mine = Arc::ptr_eq(&memory.registration.domain, &self.domain);
        match place(memory, owner.span()) {
            Ok(bytes) if is_mine => self.receive(Some((memory, bytes)), owner),
            _ => Err(Refused { work: owner, why: Refusal::Stranger }),
        }
    }

    /// Ends the device's access to all that is kept, and gives it back.
    fn take_down(&self) -> Result<(), VerbsError> {
        self.room.close();
        let mut state = self.lock();
        let Some(mut raw) = state.raw.take() else { return Ok(()) };
        let failure = *state.cause.get_or_insert(FLUSHED);
        let result = raw.destroy();
        let kept = [state.sends.clear(), state.receives.clear()].into_iter().flatten();
        drop(state);
        if result.is_err() {
            tracing::error!(
                device = self.context.name,
                "a queue pair stays, and what it may still write to is never freed"
            );
            kept.for_each(|kept| kept.leak(failure));
            Box::leak(Box::new(raw));
        } else {
            kept.for_each(|kept| kept.end(Err(failure)));
        }
        // What is left of it among the completions must not take room that others reserve next.
        self.queue.sweep();
        result
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // What could not be taken down has been told and leaked.
        drop(self.take_down());
    }
}

/// Half of a queue pair that does not know its peer yet: nothing can be sent by it.
pub struct Unconnected {
    shared: Arc<Shared>,
    endpoint: Endpoint,
}

impl Unconnected {
    pub(super) fn new(
        domain: &Arc<Domain>,
        queue: &Arc<CompletionQueue>,
        path: &Path,
        sizes: Sizes,
    ) -> Result<Self, VerbsError> {
        let context = &domain.context;
        let fault = |reason, what: &str| VerbsError::saying(Operation::Create, &context.name, reason, what);
        if sizes.sends == 0 || sizes.sends > QUEUE_MAX || sizes.receives > QUEUE_MAX {
            return Err(fault(Reason::Misuse, "a queue has no room, or more than adapters have"));
        }
        // The kernel takes an index whose address has gone, and then nothing ever arrives.
        let gid = context.gid(path.port, path.gid.index)?;
        if gid.is_zero() {
            return Err(fault(Reason::GidMissing, "the address that was chosen is gone"));
        }
        if gid != path.gid.gid {
            return Err(fault(Reason::GidChanged, "the address that was chosen is another one now"));
        }
        let place = queue.reserve(context, sizes.sends + sizes.receives)?;
        let raw = RawPair::new(domain, queue.raw(), sizes.sends, sizes.receives)?;
        raw.initialise(path.port)?;
        let mut random = [0; 4];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
            .map_err(|errno| VerbsError::of(Operation::Create, context.name.clone(), errno.raw_os_error()))?;
        let endpoint = Endpoint {
            qpn: raw.number(),
            psn: u32::from_le_bytes(random) & PSN_MASK,
            gid,
            lid: path.lid,
            mtu: path.mtu,
            reads: context.reads_max()?,
        };
        let state =
            State { raw: Some(raw), sends: Queue::default(), receives: Queue::default(), cause: None };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            room: Semaphore::new(usize::try_from(sizes.sends).unwrap_or(0)),
            drained: Notify::new(),
            sizes,
            path: path.clone(),
            context: Arc::clone(context),
            domain: Arc::clone(domain),
            place,
            queue: Arc::clone(queue),
        });
        shared.place.occupy(Arc::downgrade(&shared));
        Ok(Self { shared, endpoint })
    }

    /// What the peer must know to connect to it.
    #[must_use]
    pub fn endpoint(&self) -> Endpoint {
        self.endpoint
    }

    /// As [`QueuePair::receive_into`]: what is given before the peer is told is there when the peer begins.
    ///
    /// # Errors
    /// As there.
    pub fn receive_into<K: Exclusive>(
        &self,
        memory: &MemoryRegion,
        owner: K,
    ) -> Result<Receiving<K>, Refused<K>> {
        self.shared.receive_into(memory, owner)
    }

    /// As [`QueuePair::receive_number`].
    ///
    /// # Errors
    /// As there.
    pub fn receive_number(&self) -> Result<Receiving<()>, Refused<()>> {
        self.shared.receive(None, ())
    }

    /// Connects it to the peer's half. Neither side notices the other by that: a peer that is not there is noticed when something
    /// is sent.
    ///
    /// # Errors
    /// When the kernel finds no way there, or the driver refuses.
    pub fn connect(self, peer: &Endpoint) -> Result<QueuePair, VerbsError> {
        let agreed = self.endpoint.agree(peer);
        let state = self.shared.lock();
        if let Some(raw) = &state.raw {
            raw.connect(&self.shared.path, &self.endpoint, peer, agreed)?;
        }
        drop(state);
        Ok(QueuePair { shared: self.shared })
    }
}

/// A connected queue pair. Dropped, it is taken down at once; what was under way may or may not have been done.
pub struct QueuePair {
    shared: Arc<Shared>,
}

impl QueuePair {
    /// Hands a chain over, now or not at all.
    ///
    /// # Errors
    /// When there is no room now or ever, or the queue pair has failed; the chain comes back.
    pub fn try_post<K: Send + 'static>(&self, chain: Chain<K>) -> Result<Posted<K>, Refused<Chain<K>>> {
        let len = match self.shared.check(&chain) {
            Ok(len) => len,
            Err(why) => return Err(Refused { work: chain, why }),
        };
        match self.shared.room.try_acquire_many(len) {
            Ok(permits) => permits.forget(),
            Err(_) => {
                let why = self.cause().map_or(Refusal::Full, Refusal::Broken);
                return Err(Refused { work: chain, why });
            }
        }
        self.shared.post(chain)
    }

    /// Hands a chain over as soon as there is room; chains go in the order in which they were given.
    ///
    /// # Errors
    /// As for [`QueuePair::try_post`], but never because there is no room now.
    pub async fn post<K: Send + 'static>(&self, chain: Chain<K>) -> Result<Posted<K>, Refused<Chain<K>>> {
        let len = match self.shared.check(&chain) {
            Ok(len) => len,
            Err(why) => return Err(Refused { work: chain, why }),
        };
        match self.shared.room.acquire_many(len).await {
            Ok(permits) => permits.forget(),
            Err(_) => {
                let why = Refusal::Broken(self.cause().unwrap_or(FLUSHED));
                return Err(Refused { work: chain, why });
            }
        }
        self.shared.post(chain)
    }

    /// Takes the peer's next message into this memory.
    ///
    /// # Errors
    /// When as many receives as fit are waiting, the memory is not for that, or the queue pair has failed.
    pub fn receive_into<K: Exclusive>(
        &self,
        memory: &MemoryRegion,
        owner: K,
    ) -> Result<Receiving<K>, Refused<K>> {
        self.shared.receive_into(memory, owner)
    }

    /// Takes the number that comes with the peer's next [`Chain::write_and_tell`].
    ///
    /// # Errors
    /// As for [`QueuePair::receive_into`].
    pub fn receive_number(&self) -> Result<Receiving<()>, Refused<()>> {
        self.shared.receive(None, ())
    }

    /// Why it has failed, if it has.
    #[must_use]
    pub fn cause(&self) -> Option<Failure> {
        self.shared.lock().cause
    }

    /// Gives all up that is under way, which ends, flushed: what is waited for comes back at once, and the memory with it.
    ///
    /// # Errors
    /// When the driver refuses; then dropping it remains.
    pub fn fail(&self) -> Result<(), VerbsError> {
        self.shared.fail(FLUSHED)
    }

    /// Ends it. When this has returned, its device touches none of the memory any more that was handed over.
    ///
    /// # Errors
    /// When the driver refuses; then that memory is never freed.
    pub async fn close(self) -> Result<(), VerbsError> {
        // One that does not fail is taken down without draining, just as one that does not drain.
        if self.fail().is_ok() {
            let drained = async {
                while !self.is_drained() {
                    self.shared.drained.notified().await;
                }
            };
            if tokio::time::timeout(DRAIN_MAX, drained).await.is_err() {
                tracing::debug!(device = self.shared.context.name, "a queue pair does not drain");
            }
        }
        self.shared.take_down()
    }

    fn is_drained(&self) -> bool {
        let state = self.shared.lock();
        state.sends.is_empty() && state.receives.is_empty()
    }
}

impl fmt::Debug for QueuePair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueuePair").field("device", &self.shared.context.name).finish_non_exhaustive()
    }
}

impl fmt::Debug for Unconnected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unconnected").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}
