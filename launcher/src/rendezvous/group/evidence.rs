//! From everything that was seen around a failure to its first cause, and from the cause to what happens next (pure).
//!
//! Kinds that name a thing by themselves (a broken device, memory, data, a program that is not there) win over
//! others, in [`CauseKind`]'s order. An exception, a signal and a lost worker are ways to die: of those the earliest
//! is the cause, because each makes peers die of the others ("connection reset by peer" is an exception, too).
//! What we ended ourselves is never a cause.

use serde::{Deserialize, Serialize};
use worker::rendezvous::message::{CauseKind, Evidence, ExitStatus, PreflightFault};
use worker::units::{Generation, Rank, Step, WorkerId};

use crate::backend::CauseCode;

/// Observations kept per generation: with all ranks of a big job failing at once, the first ones are what counts.
pub(super) const EVIDENCE_MAX: usize = 4096;

/// One observation and the worker it came from or is about.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Observed {
    /// The worker.
    pub worker: WorkerId,
    /// What was seen.
    pub evidence: Evidence,
}

/// Why a generation, or the job, ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cause {
    /// What kind.
    pub code: CauseCode,
    /// The generation in which it happened.
    pub generation: Generation,
    /// The worker; none when it is about the job as a whole.
    pub worker: Option<WorkerId>,
    /// The rank; none when it is about a worker.
    pub rank: Option<Rank>,
    /// The last step that every rank had acknowledged; none without data.
    pub step: Option<Step>,
    /// When: nanoseconds since the Unix epoch on the observing host.
    pub seen_unix_ns: u64,
    /// One or two lines for people.
    pub message: String,
    /// What to do about it.
    pub hint: String,
    /// How the rank's process ended, if it did.
    pub exit: Option<ExitStatus>,
    /// The end of the rank's log.
    pub log_tail: Vec<String>,
}

impl Cause {
    /// A cause without a rank or a log.
    pub fn plain(code: CauseCode, generation: Generation, message: impl Into<String>) -> Self {
        Self {
            code,
            generation,
            worker: None,
            rank: None,
            step: None,
            seen_unix_ns: 0,
            message: message.into(),
            hint: String::new(),
            exit: None,
            log_tail: Vec::new(),
        }
    }

    /// Every fault that pre-flight found, as one cause; identical faults of several workers are one line.
    #[must_use]
    pub fn preflight(generation: Generation, faults: &[(WorkerId, PreflightFault)]) -> Self {
        let mut by_fault: Vec<(&PreflightFault, Vec<WorkerId>)> = Vec::new();
        for (worker, fault) in faults {
            match by_fault.iter_mut().find(|(known, _)| *known == fault) {
                Some((_, workers)) => workers.push(*worker),
                None => by_fault.push((fault, vec![*worker])),
            }
        }
        let lines: Vec<String> = by_fault
            .iter()
            .map(|(fault, workers)| {
                let workers: Vec<String> = workers.iter().map(ToString::to_string).collect();
                format!("{} [{}] (worker {})", fault.message, fault.code, workers.join(", "))
            })
            .collect();
        let mut cause = Self::plain(CauseCode::Preflight, generation, lines.join("\n"));
        if let Some((first, workers)) = by_fault.first() {
            cause.hint.clone_from(&first.hint);
            cause.worker = workers.first().copied();
        }
        cause
    }

    /// Whether `self` is the user's own error, seen before in just the same way.
    #[must_use]
    pub fn repeats(&self, earlier: &Self) -> bool {
        self.code == CauseCode::Exception
            && self.code == earlier.code
            && self.step.is_some()
            && self.step == earlier.step
            && self.message == earlier.message
    }
}

/// What follows a cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Another generation, if the budget allows.
    Restart,
    /// Another generation would fail in the same way.
    Fatal,
}

/// What follows `cause`, when `previous` was the cause before it.
#[must_use]
pub(super) fn verdict(cause: &Cause, previous: Option<&Cause>) -> Verdict {
    match cause.code {
        CauseCode::Data | CauseCode::NotStarted | CauseCode::Preflight => Verdict::Fatal,
        CauseCode::Exception if previous.is_some_and(|earlier| cause.repeats(earlier)) => Verdict::Fatal,
        _ => Verdict::Restart,
    }
}

/// The first cause among `observed`; none if there is nothing but our own doing.
#[must_use]
pub fn first_cause(observed: &[Observed]) -> Option<&Observed> {
    observed
        .iter()
        .filter(|one| one.evidence.cause != CauseKind::KilledByUs)
        .min_by_key(|one| (strength(one.evidence.cause), one.evidence.seen_unix_ns, one.evidence.cause))
}

/// Lower is stronger; equal strength is decided by time.
fn strength(kind: CauseKind) -> u8 {
    match kind {
        CauseKind::Hardware => 0,
        CauseKind::OutOfMemory => 1,
        CauseKind::Data => 2,
        CauseKind::NotStarted => 3,
        CauseKind::Exception | CauseKind::Signal | CauseKind::WorkerLost => 4,
        CauseKind::Hang => 5,
        CauseKind::PeerInduced => 6,
        CauseKind::KilledByUs => 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(rank: u32, cause: CauseKind, at: u64) -> Observed {
        Observed {
            worker: WorkerId(rank),
            evidence: Evidence {
                rank: Some(Rank(rank)),
                cause,
                seen_unix_ns: at,
                message: format!("rank {rank}"),
                hint: String::new(),
                log_tail: Vec::new(),
            },
        }
    }

    #[test]
    fn the_first_cause_is_the_strongest_then_the_earliest_and_never_ours() {
        use CauseKind::*;
        // (observations in order of arrival as (rank, kind, time), rank of the first cause)
        type Case<'a> = (&'a [(u32, CauseKind, u64)], Option<u32>);
        let table: &[Case<'_>] = &[
            (&[], None),
            (&[(0, KilledByUs, 1)], None),
            (&[(0, KilledByUs, 1), (1, PeerInduced, 9)], Some(1)),
            (&[(0, Exception, 5), (1, Exception, 3)], Some(1)),
            (&[(0, Exception, 9), (1, Signal, 3)], Some(1)),
            (&[(0, Exception, 2), (1, Signal, 3)], Some(0)),
            (&[(0, Exception, 9), (1, WorkerLost, 3)], Some(1)),
            (&[(0, Signal, 1), (1, OutOfMemory, 3)], Some(1)),
            (&[(0, OutOfMemory, 1), (1, Hardware, 30)], Some(1)),
            (&[(0, Exception, 1), (1, Data, 30)], Some(1)),
            (&[(0, Hang, 1), (1, Exception, 30)], Some(1)),
            (&[(0, PeerInduced, 1), (1, Hang, 30)], Some(1)),
            (&[(0, Hardware, 7), (1, Hardware, 6)], Some(1)),
            (&[(0, NotStarted, 7), (1, Exception, 6)], Some(0)),
            (&[(0, Signal, 5), (1, Exception, 5)], Some(1)),
        ];
        for (observed, expected) in table {
            let observed: Vec<Observed> =
                observed.iter().map(|&(rank, kind, at)| seen(rank, kind, at)).collect();
            let first = first_cause(&observed).and_then(|one| one.evidence.rank).map(|rank| rank.0);
            assert_eq!(first, *expected, "{observed:?}");
            let mut reversed = observed;
            reversed.reverse();
            let first = first_cause(&reversed).and_then(|one| one.evidence.rank).map(|rank| rank.0);
            assert_eq!(first, *expected, "in another order of arrival");
        }
    }

    #[test]
    fn a_user_error_that_repeats_at_the_same_step_is_fatal() {
        let mut cause = Cause::plain(CauseCode::Exception, Generation(1), "ValueError: no");
        cause.step = Some(Step(7));
        let mut again = cause.clone();
        again.generation = Generation(2);
        assert_eq!(verdict(&again, None), Verdict::Restart);
        assert_eq!(verdict(&again, Some(&cause)), Verdict::Fatal);
        again.step = Some(Step(8));
        assert_eq!(verdict(&again, Some(&cause)), Verdict::Restart);
        again.step = None;
        cause.step = None;
        assert_eq!(verdict(&again, Some(&cause)), Verdict::Restart, "without data the step is not known");
        assert_eq!(verdict(&Cause::plain(CauseCode::Data, Generation(1), "crc"), None), Verdict::Fatal);
        assert_eq!(verdict(&Cause::plain(CauseCode::Signal, Generation(1), "9"), None), Verdict::Restart);
    }

    #[test]
    fn a_preflight_cause_names_every_fault_once() {
        let fault = |code: &str| PreflightFault {
            code: code.to_owned(),
            message: format!("no {code}"),
            hint: format!("get {code}"),
        };
        let faults = [(WorkerId(0), fault("a")), (WorkerId(0), fault("b")), (WorkerId(1), fault("a"))];
        let cause = Cause::preflight(Generation(1), &faults);
        assert_eq!(cause.message, "no a [a] (worker 0, 1)\nno b [b] (worker 0)");
        assert_eq!((cause.hint.as_str(), cause.worker), ("get a", Some(WorkerId(0))));
    }
}
