//! An operation's life: started, called back once or cancelled. Whatever it touches is owned by its callback.

#![expect(unsafe_code, reason = "calls librados, and is called back by it")]

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::Arc;

use ceph::rados;
use tokio::sync::oneshot;

use super::Pool;

thread_local! {
    /// Whether this thread is librados' own, at work on a callback.
    static IN_CALLBACK: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is one of librados', inside a callback.
pub(super) fn in_callback() -> bool {
    IN_CALLBACK.get()
}

impl Pool {
    /// Starts an operation. `done` is called once with its result, by a thread of librados or, when it could not be started,
    /// by this one; it owns all memory that the operation touches.
    pub(super) fn submit(
        self: &Arc<Self>,
        done: impl FnOnce(c_int) + Send + 'static,
        operate: impl FnOnce(rados::rados_completion_t) -> c_int,
    ) -> Operation {
        let pool = Arc::clone(self);
        let callback: Callback = Box::new(move |value| {
            // Before anybody is woken: a user's thread, and not this one, is then the last to let go of the pool.
            drop(pool);
            done(value);
        });
        let callback = Box::into_raw(Box::new(callback));
        let mut completion = ptr::null_mut();
        // SAFETY: the completion is written on success; `completed` takes the callback back, once.
        let created = unsafe {
            rados::rados_aio_create_completion(callback.cast(), Some(completed), None, &raw mut completion)
        };
        let started = if created < 0 { created } else { operate(completion) };
        if started < 0 {
            // SAFETY: librados did not take the operation, so it will not call back: the box is ours again.
            let callback = unsafe { Box::from_raw(callback) };
            callback(started);
        }
        Operation { completion, pool: Arc::clone(self), is_open: started >= 0 }
    }
}

/// What an operation does at its end.
type Callback = Box<dyn FnOnce(c_int) + Send>;

extern "C" fn completed(completion: rados::rados_completion_t, callback: *mut c_void) {
    // SAFETY: `submit` made it with `Box::into_raw`, and librados calls back once for each operation that it took.
    let callback = unsafe { Box::from_raw(callback.cast::<Callback>()) };
    // SAFETY: librados holds the completion during its callback.
    let value = unsafe { rados::rados_aio_get_return_value(completion) };
    IN_CALLBACK.set(true);
    callback(value);
    IN_CALLBACK.set(false);
}

/// An operation that was started. Dropped before it has ended, it is cancelled; its memory stays with its callback.
pub(super) struct Operation {
    // Null when it could not be made.
    completion: rados::rados_completion_t,
    pool: Arc<Pool>,
    is_open: bool,
}

// SAFETY: a completion may be used from any thread (librados counts its references and locks it).
unsafe impl Send for Operation {}
// SAFETY: it has no method that takes a shared reference.
unsafe impl Sync for Operation {}

impl Operation {
    /// It has called back.
    pub(super) fn finish(mut self) {
        self.is_open = false;
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        if self.completion.is_null() {
            return;
        }
        if self.is_open {
            // SAFETY: a live context and a completion that is not released yet. When the operation has just ended, nothing
            // is found to cancel, which is as good.
            unsafe { rados::rados_aio_cancel(self.pool.io, self.completion) };
        }
        // SAFETY: our reference, given up once; librados keeps its own until it has called back.
        unsafe { rados::rados_aio_release(self.completion) };
    }
}

/// An operation and where its answer comes.
pub(super) struct Started<T> {
    pub(super) operation: Operation,
    pub(super) answer: oneshot::Receiver<T>,
}

impl<T> Started<T> {
    /// None when the operation was lost, which librados does not do.
    pub(super) async fn wait(self) -> Option<T> {
        let answer = self.answer.await.ok();
        self.operation.finish();
        answer
    }
}
