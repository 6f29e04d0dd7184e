//! From how a process ended to why (pure).
//!
//! What a host can know: the wait status, the error file that torch's `@record` writes
//! (torch/distributed/elastic/multiprocessing/errors/error_handler.py), the end of the log, and whether the kernel
//! counted an out-of-memory kill. The launcher ranks what all hosts say ([`CauseKind`]'s order).

use serde_json::Value;

use crate::rendezvous::message::{
    CauseKind, Evidence, ExitStatus, LOG_TAIL_BYTES_MAX, LOG_TAIL_LINES_MAX, PreflightFault,
};
use crate::units::Rank;

/// Characters of a message at the most: two lines of a wide terminal.
const MESSAGE_CHARS_MAX: usize = 400;
/// SIGABRT, SIGKILL, SIGBUS, SIGSEGV, SIGTERM: signal(7).
const ABORT: i32 = 6;
const BUS: i32 = 7;
const KILL: i32 = 9;
const SEGMENT: i32 = 11;
const TERM: i32 = 15;
/// A shell's code for a program that a signal ended is this plus the signal.
const SHELL_SIGNAL_BASE: i32 = 128;

/// What gloo, NCCL and torch's store say when the other end went away or never came. Matched against the
/// exception, not against the whole log, where a survivor may have printed them before it failed of its own.
const PEER_SIGNS: [&str; 16] = [
    "Connection reset by peer",
    "Connection closed by peer",
    "Broken pipe",
    "Application timeout caused pair closure",
    "DistNetworkError",
    "DistStoreError",
    "NCCL communicator was aborted",
    "Watchdog caught collective operation timeout",
    "failed to recv, got 0 bytes",
    "ncclRemoteError",
    "recvValue failed",
    "remote process exited or there was a network error",
    "sendBytes failed",
    "Socket closed",
    "Timed out waiting",
    "Connection timed out",
];

/// For a rank that failed while the kernel killed something else in its control group.
const CHILD_OOM: &str =
    "meanwhile the kernel killed a process here for want of memory, perhaps one of this rank's";

/// All that was seen of one rank's end.
#[derive(Clone, Debug)]
pub struct Observation<'a> {
    /// The rank.
    pub rank: Rank,
    /// How it ended.
    pub status: ExitStatus,
    /// Whether we had signalled it before.
    pub stopped_by_us: bool,
    /// Whether the kernel counted an out-of-memory kill in our control group meanwhile.
    pub oom_counted: bool,
    /// The contents of its error file.
    pub error_file: Option<&'a str>,
    /// The end of its log, of this generation only.
    pub log: &'a str,
    /// Nanoseconds since the Unix epoch.
    pub seen_unix_ns: u64,
}

/// Why the rank ended; none for success.
#[must_use]
pub fn judge(seen: &Observation<'_>) -> Option<Evidence> {
    if seen.status.is_success() {
        return None;
    }
    let raised = seen.error_file.and_then(error_file_message).or_else(|| last_exception(seen.log));
    let (cause, message, hint) = if seen.stopped_by_us {
        (CauseKind::KilledByUs, format!("ended after it was told to stop ({})", describe(seen.status)), "")
    } else {
        cause_of(seen, raised.as_deref())
    };
    // A data loader's process, say: the rank itself lived to complain.
    let hint =
        if hint.is_empty() && seen.oom_counted && cause == CauseKind::Exception { CHILD_OOM } else { hint };
    // What the program itself advises is closer to the matter than what we can guess.
    let hint =
        Some(hint).filter(|_| cause != CauseKind::Exception).or_else(|| own_hint(seen.log)).unwrap_or(hint);
    Some(Evidence {
        rank: Some(seen.rank),
        cause,
        seen_unix_ns: seen.seen_unix_ns,
        message: shorten(&message),
        hint: hint.to_owned(),
        log_tail: tail(seen.log),
    })
}

/// A rank that could not be executed.
#[must_use]
pub fn not_started(rank: Rank, command: &str, error: &std::io::Error, seen_unix_ns: u64) -> Evidence {
    let hint = match error.kind() {
        std::io::ErrorKind::NotFound => "check the command, its interpreter (#!) and the working directory",
        std::io::ErrorKind::PermissionDenied => "is the program executable, and the folder accessible?",
        _ => "",
    };
    Evidence {
        rank: Some(rank),
        cause: CauseKind::NotStarted,
        seen_unix_ns,
        message: shorten(&format!("cannot execute {command}: {error}")),
        hint: hint.to_owned(),
        log_tail: Vec::new(),
    }
}

/// A rank whose container ended, with whatever ran in it.
#[must_use]
pub fn container_gone(rank: Rank, log: &str, seen_unix_ns: u64) -> Evidence {
    Evidence {
        rank: Some(rank),
        cause: CauseKind::WorkerLost,
        seen_unix_ns,
        message: "the ranks' container ended, and this rank with it".to_owned(),
        hint: "the pod's status says how (kubectl describe pod): OOMKilled means that the limit on its memory is too \
               low"
            .to_owned(),
        log_tail: tail(log),
    }
}

/// A worker whose container was told to stop by somebody else than the launcher.
#[must_use]
pub fn container_told_to_stop(seen_unix_ns: u64) -> Evidence {
    Evidence {
        rank: None,
        cause: CauseKind::WorkerLost,
        seen_unix_ns,
        message: "the ranks' container was told to stop (SIGTERM)".to_owned(),
        hint: "the pod was deleted, evicted or drained: its events and those of its node say by whom"
            .to_owned(),
        log_tail: Vec::new(),
    }
}

/// A worker that cannot do its part of a generation, after it had said that it could.
#[must_use]
pub fn of_fault(fault: &PreflightFault, seen_unix_ns: u64) -> Evidence {
    Evidence {
        rank: None,
        cause: CauseKind::NotStarted,
        seen_unix_ns,
        message: shorten(&fault.message),
        hint: fault.hint.clone(),
        log_tail: Vec::new(),
    }
}

/// The end of a log, within the bounds of what travels.
#[must_use]
pub fn tail(log: &str) -> Vec<String> {
    let mut bytes = 0;
    let mut lines: Vec<String> = log
        .lines()
        .rev()
        .take(LOG_TAIL_LINES_MAX)
        .take_while(|line| {
            bytes += line.len() + 1;
            bytes <= LOG_TAIL_BYTES_MAX
        })
        .map(str::to_owned)
        .collect();
    lines.reverse();
    lines
}

fn cause_of(seen: &Observation<'_>, raised: Option<&str>) -> (CauseKind, String, &'static str) {
    let by_peer = |text: &str| PEER_SIGNS.iter().any(|sign| text.contains(sign));
    match seen.status {
        ExitStatus::Signal { signal } => {
            by_signal(seen, signal, by_peer(&seen.log[last_line_start(seen.log)..]))
        }
        ExitStatus::Code { code } => match raised {
            Some(text) if by_peer(text) => (CauseKind::PeerInduced, text.to_owned(), ""),
            Some(text) => (CauseKind::Exception, text.to_owned(), exception_hint(text)),
            None if matches!(code, 126 | 127) => (
                CauseKind::NotStarted,
                last_words(seen.log, &format!("exit code {code}")),
                "a shell uses this code for a program that is missing (127) or not executable (126)",
            ),
            None if (SHELL_SIGNAL_BASE + 1..SHELL_SIGNAL_BASE + 65).contains(&code) => {
                by_signal(seen, code - SHELL_SIGNAL_BASE, false)
            }
            None => (CauseKind::Exception, last_words(seen.log, &format!("exit code {code}")), ""),
        },
    }
}

fn by_signal(
    seen: &Observation<'_>,
    signal: i32,
    aborted_for_peer: bool,
) -> (CauseKind, String, &'static str) {
    let name = describe(ExitStatus::Signal { signal });
    match signal {
        KILL if seen.oom_counted => (
            CauseKind::OutOfMemory,
            "killed by the kernel for want of memory".into(),
            "give the worker more memory, or use fewer data loader processes or a smaller batch",
        ),
        KILL => (
            CauseKind::Signal,
            format!("killed by {name}, which we did not send"),
            "the kernel kills like this when memory runs out (see dmesg), an administrator may have too",
        ),
        // NCCL's watchdog and the C++ runtime abort with their reason on the last line.
        ABORT if aborted_for_peer => (CauseKind::PeerInduced, last_words(seen.log, &name), ""),
        ABORT => (CauseKind::Signal, last_words(seen.log, &name), "the program aborted itself"),
        BUS => (
            CauseKind::Signal,
            format!("killed by {name}"),
            "a full /dev/shm or disk under a mapped file does this; so does a file that shrank",
        ),
        SEGMENT => (
            CauseKind::Signal,
            format!("killed by {name}"),
            "a fault in native code; run with PYTHONFAULTHANDLER=1",
        ),
        TERM => (
            CauseKind::Signal,
            format!("ended by {name}, which we did not send"),
            "who else stops processes here?",
        ),
        _ => (CauseKind::Signal, format!("killed by {name}"), ""),
    }
}

/// `{"message":{"message":"Type: text","extraInfo":…}}`, or a plain string under `message`.
fn error_file_message(text: &str) -> Option<String> {
    let document: Value = serde_json::from_str(text).ok()?;
    let message = document.get("message")?;
    let text = message.get("message").unwrap_or(message).as_str()?;
    // Of a nested traceback the first line names the exception.
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// The exception under the last traceback of a Python program: the first line after it that is not indented.
fn last_exception(log: &str) -> Option<String> {
    let start = last_traceback(log)?;
    let mut lines = log[start..].lines().skip(1).skip_while(|line| line.is_empty() || line.starts_with(' '));
    let first = lines.next()?.trim_end();
    Some(first.to_owned())
}

/// Where the last traceback begins that ended something: those of destructors, which the interpreter prints on its way
/// out and goes on, do not count.
fn last_traceback(log: &str) -> Option<usize> {
    let starts = log.rmatch_indices("Traceback (most recent call last):").map(|(start, _)| start);
    let is_ignored = |start: &usize| {
        let before = log[..*start].trim_end_matches('\n');
        before[before.rfind('\n').map_or(0, |at| at + 1)..].starts_with("Exception ignored in")
    };
    starts.into_iter().find(|start| !is_ignored(start))
}

/// The line `hint: …` below the last traceback, as our own package's errors have it.
fn own_hint(log: &str) -> Option<&str> {
    let start = last_traceback(log)?;
    let hint = log[start..].lines().find_map(|line| line.strip_prefix("hint: "))?;
    Some(hint.trim()).filter(|hint| hint.len() <= MESSAGE_CHARS_MAX)
}

fn exception_hint(text: &str) -> &'static str {
    let kind = text.split(':').next().unwrap_or_default();
    match kind.rsplit('.').next().unwrap_or_default() {
        "ModuleNotFoundError" | "ImportError" => {
            "is the package installed for the interpreter that the command names?"
        }
        "OutOfMemoryError" => "the device has too little memory: use a smaller batch",
        "MemoryError" => "the host has too little memory for this process",
        "FileNotFoundError" => "relative paths start at the job's working directory",
        _ => "",
    }
}

fn last_line_start(log: &str) -> usize {
    log.trim_end().rfind('\n').map_or(0, |at| at + 1)
}

/// The last line that says something, after what is certain.
fn last_words(log: &str, certain: &str) -> String {
    match log[last_line_start(log)..].trim() {
        "" => certain.to_owned(),
        line => format!("{certain}: {line}"),
    }
}

fn describe(status: ExitStatus) -> String {
    match status {
        ExitStatus::Code { code } => format!("exit code {code}"),
        ExitStatus::Signal { signal } => {
            let name = match signal {
                1 => "SIGHUP",
                2 => "SIGINT",
                3 => "SIGQUIT",
                4 => "SIGILL",
                ABORT => "SIGABRT",
                BUS => "SIGBUS",
                8 => "SIGFPE",
                KILL => "SIGKILL",
                SEGMENT => "SIGSEGV",
                13 => "SIGPIPE",
                TERM => "SIGTERM",
                _ => return format!("signal {signal}"),
            };
            name.to_owned()
        }
    }
}

fn shorten(text: &str) -> String {
    let mut line: String = text.chars().take(MESSAGE_CHARS_MAX).collect();
    if line.len() < text.len() {
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests;
