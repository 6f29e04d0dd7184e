//! Tables: what was seen, and what must be said of it.

use std::io::{Error, ErrorKind};

use proptest::prelude::*;

use super::*;

const CODE_1: ExitStatus = ExitStatus::Code { code: 1 };

fn seen(status: ExitStatus, log: &str) -> Observation<'_> {
    let (rank, seen_unix_ns) = (Rank(3), 17);
    Observation {
        rank,
        status,
        stopped_by_us: false,
        oom_counted: false,
        error_file: None,
        log,
        seen_unix_ns,
    }
}

/// `cause | message | hint or -`.
fn told(observation: &Observation<'_>) -> String {
    judge(observation).map_or_else(
        || "success".to_owned(),
        |evidence| {
            assert_eq!((evidence.rank, evidence.seen_unix_ns), (Some(Rank(3)), 17));
            let hint = if evidence.hint.is_empty() { "-" } else { "hint" };
            format!("{:?} | {} | {hint}", evidence.cause, evidence.message)
        },
    )
}

#[test]
fn codes() {
    let traceback = "step 3\nTraceback (most recent call last):\n  File \"t.py\", line 3, in <module>\n    main()\n\
                     ValueError: no such label\n";
    let chained = "Traceback (most recent call last):\n  File \"a\"\nKeyError: 1\n\nDuring handling of the above \
                   exception, another exception occurred:\n\nTraceback (most recent call last):\n  File \"b\"\n\
                   \nmy.pkg.Failure: second\nmore text\n";
    let reset = "Traceback (most recent call last):\n  File \"t.py\"\nRuntimeError: \
                 [../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4711\n";
    let store = "Traceback (most recent call last):\n  x\ntorch.distributed.DistNetworkError: failed\n";
    let at_exit = "Traceback (most recent call last):\n  File \"t.py\"\nValueError: real\n\
                   Exception ignored in: <function Pool.__del__ at 0x7f>\nTraceback (most recent call last):\n  File \"p\"\n\
                   ResourceWarning: late\n";
    let cases = [
        (0, "", "success"),
        (1, at_exit, "Exception | ValueError: real | -"),
        (1, traceback, "Exception | ValueError: no such label | -"),
        (1, chained, "Exception | my.pkg.Failure: second | -"),
        (
            1,
            reset,
            "PeerInduced | RuntimeError: [../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4711 | -",
        ),
        (1, store, "PeerInduced | torch.distributed.DistNetworkError: failed | -"),
        (
            1,
            "Traceback (most recent call last):\nModuleNotFoundError: No module named 'torch'",
            "Exception | ModuleNotFoundError: No module named 'torch' | hint",
        ),
        (3, "loading\nbad shape\n\n", "Exception | exit code 3: bad shape | -"),
        (3, "", "Exception | exit code 3 | -"),
        (127, "sh: 1: pyton: not found\n", "NotStarted | exit code 127: sh: 1: pyton: not found | hint"),
        (137, "", "Signal | killed by SIGKILL, which we did not send | hint"),
        // A survivor that mentions a peer's end but dies of its own reason.
        (
            1,
            "warning: Broken pipe\nTraceback (most recent call last):\n  x\nZeroDivisionError: division by zero",
            "Exception | ZeroDivisionError: division by zero | -",
        ),
    ];
    for (code, log, expected) in cases {
        assert_eq!(told(&seen(ExitStatus::Code { code }, log)), expected);
    }
}

#[test]
fn signals() {
    let watchdog = "[rank3] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7)\n";
    let cases = [
        (9, "", "Signal | killed by SIGKILL, which we did not send | hint"),
        (15, "", "Signal | ended by SIGTERM, which we did not send | hint"),
        (11, "", "Signal | killed by SIGSEGV | hint"),
        (7, "", "Signal | killed by SIGBUS | hint"),
        (6, "free(): invalid pointer\n", "Signal | SIGABRT: free(): invalid pointer | hint"),
        (
            6,
            watchdog,
            "PeerInduced | SIGABRT: [rank3] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7) | -",
        ),
        (64, "", "Signal | killed by signal 64 | -"),
    ];
    for (signal, log, expected) in cases {
        assert_eq!(told(&seen(ExitStatus::Signal { signal }, log)), expected);
    }
}

#[test]
fn the_kernels_count_makes_a_kill_an_out_of_memory() {
    let observation = Observation { oom_counted: true, ..seen(ExitStatus::Signal { signal: 9 }, "") };
    assert!(told(&observation).starts_with("OutOfMemory | "));
}

#[test]
fn what_we_ended_is_never_a_cause() {
    for status in [CODE_1, ExitStatus::Signal { signal: 9 }, ExitStatus::Signal { signal: 15 }] {
        let log = "Traceback (most recent call last):\n  x\nKeyboardInterrupt\n";
        let observation = Observation { stopped_by_us: true, oom_counted: true, ..seen(status, log) };
        assert_eq!(judge(&observation).unwrap().cause, CauseKind::KilledByUs);
    }
}

#[test]
fn the_error_file_is_believed_before_the_log() {
    let recorded = r#"{"message":{"message":"RuntimeError: in main","extraInfo":{"timestamp":"1"}}}"#;
    let log = "Traceback (most recent call last):\n  x\ntorch.distributed.elastic.ChildFailedError: \n";
    let observation = Observation { error_file: Some(recorded), ..seen(CODE_1, log) };
    assert_eq!(told(&observation), "Exception | RuntimeError: in main | -");
    for broken in ["", "{", "[]", r#"{"message":7}"#, r#"{"message":""}"#] {
        let observation = Observation { error_file: Some(broken), ..seen(CODE_1, "x\n") };
        assert_eq!(told(&observation), "Exception | exit code 1: x | -", "{broken}");
    }
}

#[test]
fn a_programs_own_hint_goes_before_ours() {
    let log = "hint: old\nTraceback (most recent call last):\n  x\nImportError: no\nhint: install it\n";
    assert_eq!(judge(&seen(CODE_1, log)).unwrap().hint, "install it");
    let log = "hint: old\nTraceback (most recent call last):\n  x\nImportError: no\n";
    assert!(judge(&seen(CODE_1, log)).unwrap().hint.starts_with("is the package installed"));
}

#[test]
fn a_spawn_error_says_what_to_check() {
    let evidence = not_started(Rank(1), "pyton", &Error::from(ErrorKind::NotFound), 5);
    assert_eq!((evidence.cause, evidence.rank), (CauseKind::NotStarted, Some(Rank(1))));
    assert!(evidence.message.starts_with("cannot execute pyton: "), "{}", evidence.message);
    assert!(!evidence.hint.is_empty());
}

proptest! {
    #[test]
    fn nothing_that_a_program_prints_breaks_the_bounds(log in "(\\PC|\n){0,4000}", error in "\\PC{0,900}", code in -1_i32..300) {
        let observation = Observation { error_file: Some(&error), ..seen(ExitStatus::Code { code }, &log) };
        if let Some(evidence) = judge(&observation) {
            prop_assert!(evidence.message.chars().count() <= MESSAGE_CHARS_MAX + 1);
            prop_assert!(evidence.log_tail.len() <= LOG_TAIL_LINES_MAX);
            prop_assert!(evidence.log_tail.iter().map(|line| line.len() + 1).sum::<usize>() <= LOG_TAIL_BYTES_MAX);
            let whole: Vec<&str> = log.lines().collect();
            prop_assert!(whole.ends_with(&evidence.log_tail.iter().map(String::as_str).collect::<Vec<_>>()));
        }
    }
}
