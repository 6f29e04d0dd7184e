//! What signals ask of a controller.
//!
//! The first SIGINT, SIGTERM or SIGHUP (the terminal was closed) cancels the job, the second does not wait for the
//! ranks. A signal that whoever started us had ignored stays ignored: `nohup`, or a shell's `&`.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::controller::Wish;

/// Wishes that a controller has not looked at: a person's.
const WISHES_MAX: usize = 16;

/// Listens for signals as long as the set lives.
pub(super) fn listen() -> io::Result<(JoinSet<()>, mpsc::Receiver<Wish>)> {
    let (wishes, receiver) = mpsc::channel(WISHES_MAX);
    let mut listeners = JoinSet::new();
    let ignored = ignored();
    let wanted = [
        (SignalKind::interrupt(), Wish::Cancel),
        (SignalKind::terminate(), Wish::Cancel),
        (SignalKind::hangup(), Wish::Cancel),
        (SignalKind::quit(), Wish::CancelNow),
    ];
    for (kind, wish) in wanted {
        if is_in(ignored, kind) {
            continue;
        }
        let mut signals = signal(kind)?;
        let wishes = wishes.clone();
        listeners
            .spawn(async move { while signals.recv().await.is_some() && wishes.send(wish).await.is_ok() {} });
    }
    Ok((listeners, receiver))
}

/// The signals that this process was started with as ignored, as a mask: proc_pid_status(5), `SigIgn`.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// The lowest bit is signal 1.
fn is_in(mask: u64, kind: SignalKind) -> bool {
    u32::try_from(kind.as_raw_value() - 1).is_ok_and(|bit| mask.checked_shr(bit).unwrap_or(0) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_counts_from_one() {
        assert!(is_in(0b1, SignalKind::hangup()));
        assert!(is_in(0b10, SignalKind::interrupt()));
        assert!(!is_in(0b10, SignalKind::hangup()));
        assert!(!is_in(0, SignalKind::terminate()));
    }
}
