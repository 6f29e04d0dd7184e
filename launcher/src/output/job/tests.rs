//! Jobs as text, word by word.

use datapath::order::OrderDigest;
use worker::units::{Generation, Rank, Step, WorkerId};

use super::*;
use crate::backend::PlannedData;

fn job(phase: Phase) -> JobStatus {
    JobStatus {
        id: "digits-1a2b".to_owned(),
        name: "digits".to_owned(),
        uid: "u".to_owned(),
        backend: "local".to_owned(),
        phase,
        generation: Generation(2),
        restarts: 1,
        restarts_max: 3,
        created_unix_ms: 1_000_000,
        started_unix_ms: Some(1_000_100),
        ended_unix_ms: None,
        workers: 2,
        ranks: 4,
        step: Step(120),
        steps_total: Some(Step(210)),
        committed: Step(100),
        cause: None,
        summary: None,
        rank_status: Vec::new(),
        server_status: Vec::new(),
        controller_pid: Some(77),
        folder: "/state/jobs/digits-1a2b".into(),
    }
}

fn numbers_of_a_run() -> Summary {
    Summary {
        steps: 210,
        epochs: 3,
        samples: 5391,
        sample_bytes: 1 << 20,
        seconds: 12.34,
        samples_per_second: 436.87,
        bytes_per_second: 84_972.0,
        bytes_read: 3 << 20,
        bytes_exchanged: 800 << 10,
        paths: Paths { local: 25, quic: 75, rdma: 0 },
        order_digest: Some(OrderDigest(0xabc)),
        reported: [("accuracy".to_owned(), 0.9433), ("loss".to_owned(), 1e-9)].into(),
        generations: 2,
        restarts: 1,
        ranks: 4,
        ..Summary::default()
    }
}

fn cause() -> Cause {
    Cause {
        code: CauseCode::Exception,
        rank: Some(Rank(2)),
        worker: Some(WorkerId(1)),
        host: Some("node-7".to_owned()),
        generation: Generation(2),
        exit: Some(ExitStatus::Code { code: 1 }),
        message: "ValueError: loss is nan".to_owned(),
        hint: String::new(),
        log_tail: vec!["about to fail".to_owned(), "ValueError: loss is nan".to_owned()],
        seen_unix_ms: 0,
    }
}

#[test]
fn a_success_in_numbers() {
    let done = JobStatus { summary: Some(numbers_of_a_run()), ..job(Phase::Succeeded) };
    assert_eq!(exit_code(&done), ExitCode::Ok);
    insta::assert_snapshot!("a_success_in_numbers", summary(&done));
}

#[test]
fn a_failure_says_who_why_and_what_to_do() {
    let failed = JobStatus { cause: Some(cause()), ..job(Phase::Failed) };
    assert_eq!(exit_code(&failed), ExitCode::JobFailed);
    insta::assert_snapshot!("a_failure_says_who_why_and_what_to_do", failure(&failed, &cause()));
    let hang = Cause { code: CauseCode::Hang, rank: None, exit: None, log_tail: Vec::new(), ..cause() };
    let hung = JobStatus { cause: Some(hang), ..job(Phase::Failed) };
    assert_eq!(exit_code(&hung), ExitCode::Hang);
    assert_eq!(exit_code(&job(Phase::Cancelled)), ExitCode::Cancelled);
}

#[test]
fn a_status_has_its_ranks() {
    let rank = |rank, pid, exit| RankStatus {
        rank: Rank(rank),
        worker: WorkerId(rank / 2),
        host: "node-7".to_owned(),
        pid,
        exit,
        step: Step(120),
        committed: Step(100),
        log: "/x".into(),
    };
    let running = JobStatus {
        rank_status: vec![
            rank(0, Some(4242), None),
            rank(1, None, Some(ExitStatus::Signal { signal: 9 })),
            rank(2, None, None),
        ],
        ..job(Phase::Running)
    };
    insta::assert_snapshot!("a_status_has_its_ranks", status(&running));
}

#[test]
fn a_status_names_data_servers_and_what_is_wrong_with_them() {
    let server = |server, pid, phase, message: &str| ServerStatus {
        server,
        worker: WorkerId(4 + server),
        host: if server == 2 { String::new() } else { "here".to_owned() },
        pid,
        phase,
        message: message.to_owned(),
    };
    let running = JobStatus {
        summary: Some(Summary { bytes_read_by_servers: 2 << 20, ..numbers_of_a_run() }),
        server_status: vec![
            server(0, Some(4300), ServerPhase::Serving, ""),
            server(1, None, ServerPhase::Lost, "its process ended (signal: 9 (SIGKILL))"),
            server(2, None, ServerPhase::Starting, ""),
        ],
        ..job(Phase::Running)
    };
    insta::assert_snapshot!("a_status_names_data_servers_and_what_is_wrong_with_them", status(&running));
    let ends = [ServerPhase::Starting, ServerPhase::Serving].map(ServerPhase::at_the_end);
    assert_eq!(ends, [ServerPhase::Lost, ServerPhase::Served], "nothing serves, or starts, when all is over");
}

#[test]
fn a_list_has_a_line_per_job() {
    let failed = JobStatus { cause: Some(cause()), steps_total: None, ..job(Phase::Failed) };
    insta::assert_snapshot!(
        "a_list_has_a_line_per_job",
        list(&[job(Phase::Running), failed], 1_000_000 + 192_000)
    );
}

#[test]
fn a_plan_says_where_everything_goes() {
    let worker = |worker, ranks: &[u32], cpus: &[u32]| PlannedWorker {
        worker: WorkerId(worker),
        host: "here".to_owned(),
        ranks: ranks.iter().map(|rank| Rank(*rank)).collect(),
        cpus: cpus.to_vec(),
        serves: worker == 3,
        numa_node: (worker == 0).then_some(0),
        gpus: Vec::new(),
        chunks_owned: 3,
        bytes_owned: 12 << 20,
    };
    let planned = Plan {
        name: "digits".to_owned(),
        backend: "local".to_owned(),
        ranks: 4,
        command: vec!["python3".to_owned(), "train.py".to_owned()],
        workdir: "/jobs".into(),
        workers: vec![
            worker(0, &[0, 1], &[0, 1, 2, 5]),
            worker(1, &[2, 3], &[]),
            worker(2, &[], &[]),
            worker(3, &[], &[]),
        ],
        data: Some(PlannedData {
            source: "/jobs/shards".to_owned(),
            digest: "d".to_owned(),
            shards: 2,
            chunks: 6,
            samples: 100,
            bytes: 24 << 20,
            steps_per_epoch: 10,
            epochs: 3,
            global_batch: 10,
            samples_per_rank: vec![3, 3, 2, 2],
        }),
        notes: vec!["no huge pages are free: batches lie in small ones".to_owned()],
    };
    insta::assert_snapshot!("a_plan_says_where_everything_goes", plan(&planned));
}

#[test]
fn phases_are_those_of_json() {
    for one in [Phase::Pending, Phase::Preflight, Phase::Joining, Phase::Cancelled] {
        assert_eq!(serde_json::to_value(one).unwrap(), phase(one));
    }
}
