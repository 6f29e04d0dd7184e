//! The raw queues: of completions, and queue pairs. Whoever posts promises what the device may not know.

#![expect(unsafe_code, reason = "calls libibverbs")]

use std::ffi::c_int;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use rdma_sys as ffi;
use rdma_sys::{ibv_access_flags as Flag, ibv_qp_attr_mask as Mask};

use super::device::Path;
use super::library::{Context, Domain, EIO, check, errno};
use crate::transport::rdma::VerbsError;
use crate::transport::rdma::endpoint::{Agreed, Endpoint};
use crate::transport::rdma::gid::LinkLayer;
use crate::transport::rdma::reason::{Operation, WorkStatus};

/// Completions that one call takes at the most: as many as one doorbell usually has rung for.
const POLL_BATCH: usize = 16;
/// Bytes sent along with the request itself, which saves the device one read of this host's memory.
pub const INLINE_BYTES: usize = 64;
/// How long an acknowledgement is waited for: 4.096 µs × 2^14, 67 ms, of which devices make up to four times as much.
const ACK_TIMEOUT: u8 = 14;
/// How often something is sent again. 7 would be the most, and Soft-RoCE never gives up at 7.
const RETRIES: u8 = 6;
/// How often a receiver that is not ready is tried again; here, too, 7 means for ever.
const NOT_READY_RETRIES: u8 = 6;
/// How long it asks for before it is tried again: code 12 of the specification's table, 0.64 ms.
const NOT_READY_TIMER: u8 = 12;
/// Routers on the way at the most.
const HOPS_MAX: u8 = 64;

/// A completion queue, and the channel by which it wakes whoever waits for it.
pub(super) struct RawCompletions {
    raw: NonNull<ffi::ibv_cq>,
    channel: NonNull<ffi::ibv_comp_channel>,
    context: Arc<Context>,
}

// SAFETY: libibverbs' objects may be used from any thread, several at a time.
unsafe impl Send for RawCompletions {}
// SAFETY: as for Send.
unsafe impl Sync for RawCompletions {}

/// How one work request ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Completion {
    pub(super) id: u64,
    pub(super) result: Result<(), WorkStatus>,
    /// Bytes that a receive got.
    pub(super) bytes: u32,
    pub(super) immediate: Option<u32>,
}

impl RawCompletions {
    pub(super) fn new(context: &Arc<Context>, capacity: u32) -> Result<Self, VerbsError> {
        let fault = |errno| context.fault(Operation::Create, errno);
        let call = &context.library.call;
        // SAFETY: an open context.
        let channel = unsafe { (call.ibv_create_comp_channel)(context.raw.as_ptr()) };
        let channel = NonNull::new(channel).ok_or_else(|| fault(errno()))?;
        let capacity = c_int::try_from(capacity).unwrap_or(c_int::MAX);
        // SAFETY: an open context and a channel of it; no context of ours, and the first interrupt vector.
        let raw = unsafe {
            (call.ibv_create_cq)(context.raw.as_ptr(), capacity, ptr::null_mut(), channel.as_ptr(), 0)
        };
        let Some(raw) = NonNull::new(raw) else {
            let errno = errno();
            // SAFETY: the channel that was just made, with no queue on it.
            unsafe { (call.ibv_destroy_comp_channel)(channel.as_ptr()) };
            return Err(fault(errno));
        };
        Ok(Self { raw, channel, context: Arc::clone(context) })
    }

    pub(super) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Takes what has ended, a batch of it. Nothing is left when none came.
    pub(super) fn poll(&self, completions: &mut Vec<Completion>) -> Result<usize, VerbsError> {
        let mut batch = [const { MaybeUninit::<ffi::ibv_wc>::zeroed() }; POLL_BATCH];
        // SAFETY: a live context.
        let poll = unsafe { self.context.raw.as_ref() }.ops.poll_cq;
        let fault = |errno| self.context.fault(Operation::Wait, errno);
        // A driver without it does not exist; a table without it is not called.
        let poll = poll.ok_or_else(|| fault(0))?;
        let room = c_int::try_from(POLL_BATCH).unwrap_or(0);
        // SAFETY: a live queue, and room for that many.
        let count = unsafe { poll(self.raw.as_ptr(), room, batch.as_mut_ptr().cast()) };
        let count = usize::try_from(count).map_err(|_| fault(count.abs()))?;
        for completion in batch.iter().take(count) {
            // SAFETY: plain numbers, zeroed, and the first `count` written.
            let raw = unsafe { completion.assume_init_ref() };
            let is_ok = raw.status == ffi::ibv_wc_status::IBV_WC_SUCCESS;
            let has_immediate = is_ok && raw.wc_flags & ffi::ibv_wc_flags::IBV_WC_WITH_IMM.0 != 0;
            // SAFETY: both fields of the union are four bytes, which are a number whatever they mean.
            let immediate = unsafe { raw.imm_data_invalidated_rkey_union.imm_data };
            completions.push(Completion {
                id: raw.wr_id,
                result: if is_ok { Ok(()) } else { Err(WorkStatus(raw.status)) },
                bytes: if is_ok { raw.byte_len } else { 0 },
                immediate: has_immediate.then(|| u32::from_be(immediate)),
            });
        }
        Ok(count)
    }

    /// From now on the next completion wakes. What came before does not: it has to be polled for once more.
    pub(super) fn arm(&self) -> Result<(), VerbsError> {
        // SAFETY: a live context.
        let notify = unsafe { self.context.raw.as_ref() }.ops.req_notify_cq;
        let fault = |errno| self.context.fault(Operation::Wait, errno);
        let notify = notify.ok_or_else(|| fault(0))?;
        // SAFETY: a live queue; 0: of any completion.
        check(unsafe { notify(self.raw.as_ptr(), 0) }).map_err(fault)
    }

    /// Takes one wake-up from the channel, whose descriptor does not block.
    pub(super) fn take_wakeup(&self) -> io::Result<()> {
        let call = &self.context.library.call;
        let (mut queue, mut unused) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: a live channel; both are written on success.
        let result =
            unsafe { (call.ibv_get_cq_event)(self.channel.as_ptr(), &raw mut queue, &raw mut unused) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        // At once, as taking the queue down waits for it.
        // SAFETY: the channel's only queue, which is alive.
        unsafe { (call.ibv_ack_cq_events)(queue, 1) };
        Ok(())
    }
}

impl AsFd for RawCompletions {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: a live channel.
        let number = unsafe { self.channel.as_ref() }.fd;
        // SAFETY: the channel's own descriptor, open as long as it is.
        unsafe { BorrowedFd::borrow_raw(number) }
    }
}

impl Drop for RawCompletions {
    fn drop(&mut self) {
        let call = &self.context.library.call;
        // SAFETY: the last use: queue pairs own their completion queue. Each wake-up was acknowledged.
        let queue = unsafe { (call.ibv_destroy_cq)(self.raw.as_ptr()) };
        // SAFETY: the last use; its queue is gone.
        let channel = unsafe { (call.ibv_destroy_comp_channel)(self.channel.as_ptr()) };
        // EIO is what the kernel says of a device that is gone.
        debug_assert!(matches!(queue, 0 | EIO) && channel == 0, "a queue goes when nothing uses it");
    }
}

/// A reliable connected queue pair, and what it was made from.
pub(super) struct RawPair {
    raw: NonNull<ffi::ibv_qp>,
    domain: Arc<Domain>,
    _completions: Arc<RawCompletions>,
    is_gone: bool,
}

// SAFETY: as for RawCompletions.
unsafe impl Send for RawPair {}
// SAFETY: as for RawCompletions.
unsafe impl Sync for RawPair {}

/// What of a work request depends on its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Read { address: u64, rkey: u32 },
    Write { address: u64, rkey: u32, immediate: Option<u32> },
    Send,
}

/// One work request: this host's bytes, and what is to be done with them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request<'bytes> {
    pub(super) id: u64,
    pub(super) verb: Verb,
    pub(super) local: Local<'bytes>,
    pub(super) is_signalled: bool,
}

/// The bytes here that one is about.
#[derive(Clone, Copy, Debug)]
pub(super) enum Local<'bytes> {
    Registered {
        address: u64,
        len: u32,
        lkey: u32,
    },
    /// Copied when it is posted.
    Inline(&'bytes [u8]),
}

impl RawPair {
    pub(super) fn new(
        domain: &Arc<Domain>,
        completions: &Arc<RawCompletions>,
        sends: u32,
        receives: u32,
    ) -> Result<Self, VerbsError> {
        let context = &domain.context;
        let inline = u32::try_from(INLINE_BYTES).unwrap_or(0);
        let mut wanted = MaybeUninit::<ffi::ibv_qp_init_attr>::zeroed();
        // SAFETY: numbers and pointers, for which zeros are a value.
        let init = unsafe { wanted.assume_init_mut() };
        init.send_cq = completions.raw.as_ptr();
        init.recv_cq = completions.raw.as_ptr();
        init.qp_type = ffi::ibv_qp_type::IBV_QPT_RC;
        init.cap.max_send_wr = sends;
        init.cap.max_recv_wr = receives;
        (init.cap.max_send_sge, init.cap.max_recv_sge, init.cap.max_inline_data) = (1, 1, inline);
        // SAFETY: a live domain and a live completion queue, which are owned from here on.
        let raw = unsafe { (context.library.call.ibv_create_qp)(domain.raw.as_ptr(), init) };
        let raw = NonNull::new(raw).ok_or_else(|| context.fault(Operation::Create, errno()))?;
        Ok(Self { raw, domain: Arc::clone(domain), _completions: Arc::clone(completions), is_gone: false })
    }

    /// The number that the peer must know.
    pub(super) fn number(&self) -> u32 {
        // SAFETY: a live queue pair, whose number is never changed.
        unsafe { self.raw.as_ref() }.qp_num
    }

    /// RESET to INIT: it has a port, and may be given receives.
    pub(super) fn initialise(&self, port: u8) -> Result<(), VerbsError> {
        self.modify(Mask::IBV_QP_PKEY_INDEX | Mask::IBV_QP_PORT | Mask::IBV_QP_ACCESS_FLAGS, |to| {
            to.qp_state = ffi::ibv_qp_state::IBV_QPS_INIT;
            to.port_num = port;
            // What a peer may really do, each registration says.
            to.qp_access_flags = (Flag::IBV_ACCESS_REMOTE_READ | Flag::IBV_ACCESS_REMOTE_WRITE).0;
        })
    }

    /// INIT to RTR to RTS: it receives, and then sends.
    pub(super) fn connect(
        &self,
        path: &Path,
        own: &Endpoint,
        peer: &Endpoint,
        agreed: Agreed,
    ) -> Result<(), VerbsError> {
        let receive = Mask::IBV_QP_AV
            | Mask::IBV_QP_PATH_MTU
            | Mask::IBV_QP_DEST_QPN
            | Mask::IBV_QP_RQ_PSN
            | Mask::IBV_QP_MAX_DEST_RD_ATOMIC
            | Mask::IBV_QP_MIN_RNR_TIMER;
        self.modify(receive, |to| {
            to.qp_state = ffi::ibv_qp_state::IBV_QPS_RTR;
            to.path_mtu = agreed.mtu.number();
            to.dest_qp_num = peer.qpn;
            to.rq_psn = peer.psn;
            to.max_dest_rd_atomic = agreed.answers;
            to.min_rnr_timer = NOT_READY_TIMER;
            to.ah_attr.port_num = path.port;
            to.ah_attr.dlid = peer.lid;
            to.ah_attr.is_global = u8::from(path.layer == LinkLayer::Ethernet);
            to.ah_attr.grh.dgid = ffi::ibv_gid { raw: peer.gid.0 };
            to.ah_attr.grh.sgid_index = path.gid.index;
            to.ah_attr.grh.hop_limit = HOPS_MAX;
        })?;
        let send = Mask::IBV_QP_TIMEOUT
            | Mask::IBV_QP_RETRY_CNT
            | Mask::IBV_QP_RNR_RETRY
            | Mask::IBV_QP_SQ_PSN
            | Mask::IBV_QP_MAX_QP_RD_ATOMIC;
        self.modify(send, |to| {
            to.qp_state = ffi::ibv_qp_state::IBV_QPS_RTS;
            to.timeout = ACK_TIMEOUT;
            to.retry_cnt = RETRIES;
            to.rnr_retry = NOT_READY_RETRIES;
            to.sq_psn = own.psn;
            to.max_rd_atomic = agreed.asks;
        })
    }

    /// To ERR: whatever is under way ends, flushed. The device writes to no memory of it any more.
    pub(super) fn fail(&self) -> Result<(), VerbsError> {
        self.modify(Mask(0), |to| to.qp_state = ffi::ibv_qp_state::IBV_QPS_ERR)
    }

    fn modify(&self, mask: Mask, change: impl FnOnce(&mut ffi::ibv_qp_attr)) -> Result<(), VerbsError> {
        let mut wanted = MaybeUninit::<ffi::ibv_qp_attr>::zeroed();
        // SAFETY: plain numbers, for which zeros are a value.
        let wanted = unsafe { wanted.assume_init_mut() };
        change(wanted);
        let mask = c_int::try_from((mask | Mask::IBV_QP_STATE).0).unwrap_or(0);
        let context = &self.domain.context;
        // SAFETY: a live queue pair.
        check(unsafe { (context.library.call.ibv_modify_qp)(self.raw.as_ptr(), wanted, mask) })
            .map_err(|errno| context.fault(Operation::Connect, errno))
    }

    /// Hands requests over with one doorbell. What was not taken, from the first on, comes back with the reason.
    ///
    /// # Safety
    /// Registered memory that a request names stays registered until the request has ended (it or a later one of this queue was
    /// polled for, or the queue pair is gone). Where it is read into, no reference to it is used as long.
    pub(super) unsafe fn send(&self, requests: &[Request<'_>]) -> Result<(), (usize, VerbsError)> {
        let mut places: Vec<_> = requests.iter().map(|request| place(request.local)).collect();
        let mut raw: Vec<_> = requests.iter().map(raw_send).collect();
        let (places, first) = (places.as_mut_ptr(), raw.as_mut_ptr());
        for at in 0..requests.len() {
            // SAFETY: inside the vector, which nothing else reaches meanwhile.
            let request = unsafe { &mut *first.wrapping_add(at) };
            request.sg_list = places.wrapping_add(at);
            request.next = if at + 1 < requests.len() { first.wrapping_add(at + 1) } else { ptr::null_mut() };
        }
        if requests.is_empty() {
            return Ok(());
        }
        let mut bad = ptr::null_mut();
        let context = &self.domain.context;
        let fault = |errno| context.fault(Operation::Post, errno);
        // SAFETY: a live context.
        let post = unsafe { context.raw.as_ref() }.ops.post_send.ok_or_else(|| (0, fault(0)))?;
        // SAFETY: a live queue pair; the chain and its places outlive the call, which copies them (and inline bytes). What they
        // name stays as long as the device needs it, as the caller promises.
        check(unsafe { post(self.raw.as_ptr(), first, &raw mut bad) }).map_err(|errno| {
            // Not told where it stopped, it counts as having taken all: then all of the memory is kept.
            let distance =
                bad.addr().checked_sub(first.addr()).map(|bytes| bytes / size_of::<ffi::ibv_send_wr>());
            let taken = distance.filter(|&taken| taken < requests.len()).unwrap_or(requests.len());
            (taken, fault(errno))
        })
    }

    /// Gives the device a place for what the peer sends; none: only for the number that comes with a write.
    ///
    /// # Safety
    /// As for [`RawPair::send`], the place being read into.
    pub(super) unsafe fn receive(&self, id: u64, into: Option<Local<'_>>) -> Result<(), VerbsError> {
        let mut into_place = into.map(place);
        let list = into_place.as_mut().map_or(ptr::null_mut(), ptr::from_mut);
        let count = c_int::from(into.is_some());
        let mut request =
            ffi::ibv_recv_wr { wr_id: id, next: ptr::null_mut(), sg_list: list, num_sge: count };
        let context = &self.domain.context;
        let fault = |errno| context.fault(Operation::Post, errno);
        // SAFETY: a live context.
        let post = unsafe { context.raw.as_ref() }.ops.post_recv.ok_or_else(|| fault(0))?;
        let mut bad = ptr::null_mut();
        // SAFETY: as in `send`.
        check(unsafe { post(self.raw.as_ptr(), &raw mut request, &raw mut bad) }).map_err(fault)
    }

    /// Takes it down. Once that has succeeded the device touches nothing of it any more.
    pub(super) fn destroy(&mut self) -> Result<(), VerbsError> {
        if self.is_gone {
            return Ok(());
        }
        let context = &self.domain.context;
        // SAFETY: a live queue pair, taken down once.
        check(unsafe { (context.library.call.ibv_destroy_qp)(self.raw.as_ptr()) })
            .map_err(|errno| context.fault(Operation::Destroy, errno))?;
        self.is_gone = true;
        Ok(())
    }
}

impl Drop for RawPair {
    fn drop(&mut self) {
        if let Err(error) = self.destroy() {
            tracing::error!(%error, "a queue pair stays");
        }
    }
}

fn place(local: Local<'_>) -> ffi::ibv_sge {
    match local {
        Local::Registered { address, len, lkey } => ffi::ibv_sge { addr: address, length: len, lkey },
        Local::Inline(bytes) => ffi::ibv_sge {
            addr: bytes.as_ptr().expose_provenance() as u64,
            length: u32::try_from(bytes.len()).unwrap_or(0),
            lkey: 0,
        },
    }
}

fn raw_send(request: &Request<'_>) -> ffi::ibv_send_wr {
    use ffi::ibv_wr_opcode::{IBV_WR_RDMA_READ, IBV_WR_RDMA_WRITE, IBV_WR_RDMA_WRITE_WITH_IMM, IBV_WR_SEND};
    // SAFETY: numbers, pointers and unions of numbers, for which zeros are a value.
    let mut raw = unsafe { MaybeUninit::<ffi::ibv_send_wr>::zeroed().assume_init() };
    raw.wr_id = request.id;
    raw.num_sge = 1;
    let mut flags = ffi::ibv_send_flags(0);
    if request.is_signalled {
        flags |= ffi::ibv_send_flags::IBV_SEND_SIGNALED;
    }
    if matches!(request.local, Local::Inline(_)) {
        flags |= ffi::ibv_send_flags::IBV_SEND_INLINE;
    }
    raw.send_flags = flags.0;
    match request.verb {
        Verb::Read { address, rkey } => {
            raw.opcode = IBV_WR_RDMA_READ;
            raw.wr.rdma = ffi::rdma_t { remote_addr: address, rkey };
        }
        Verb::Write { address, rkey, immediate } => {
            raw.opcode = if immediate.is_some() { IBV_WR_RDMA_WRITE_WITH_IMM } else { IBV_WR_RDMA_WRITE };
            raw.imm_data_invalidated_rkey_union.imm_data = immediate.unwrap_or(0).to_be();
            raw.wr.rdma = ffi::rdma_t { remote_addr: address, rkey };
        }
        Verb::Send => raw.opcode = IBV_WR_SEND,
    }
    raw
}
