//! Messages survive their way, and strangers are told apart.

use super::*;

#[test]
fn what_is_said_is_heard() {
    let host = HostFacts { numa: BTreeMap::from([(1, vec![2, 3])]), ..HostFacts::default() };
    let (worker, incarnation) = (WorkerId(1), Incarnation(u64::MAX));
    let registration = Registration {
        worker,
        incarnation,
        pid: 7,
        host,
        data_address: None,
        running: Some(Generation(2)),
        data: None,
    };
    let step =
        ConsumedStep { step: Step(9), samples: 4, bytes: 5, digest: datapath::order::OrderDigest(u128::MAX) };
    let progress = RankProgress {
        rank: Rank(3),
        consumed: vec![step],
        committed: Some(Step(9)),
        reported: BTreeMap::from([("loss".to_owned(), 0.5)]),
        ended: true,
    };
    let generation = Generation(2);
    for message in [
        ToLauncher::Register(registration),
        ToLauncher::Started { generation, pids: BTreeMap::from([(Rank(3), 77)]) },
        ToLauncher::Heartbeat {
            generation,
            progress: vec![progress],
            counters: datapath::Counters { batches: 6, ..datapath::Counters::default() },
            roster: 4,
        },
        ToLauncher::Exited {
            generation,
            rank: Rank(3),
            status: ExitStatus::Signal { signal: 9 },
            evidence: None,
        },
    ] {
        let frame = encode(&message).unwrap();
        assert_eq!(body_length(frame[..4].try_into().unwrap()).unwrap(), frame.len() - 4);
        assert_eq!(decode::<ToLauncher>(&frame[4..]).unwrap(), message);
    }
}

#[test]
fn newer_peers_may_add_fields_but_not_speak_another_version() {
    let finish: ToWorker = decode(br#"{"v":1,"new":1,"body":{"kind":"finish","more":2}}"#).unwrap();
    assert_eq!(finish, ToWorker::Finish);
    assert!(matches!(decode::<ToWorker>(br#"{"v":2,"body":7}"#), Err(FrameError::Version { theirs: 2 })));
    assert!(matches!(
        decode::<ToWorker>(br#"{"v":1,"body":{"kind":"dance"}}"#),
        Err(FrameError::Malformed(_))
    ));
    assert!(matches!(body_length([0xff; 4]), Err(FrameError::TooLong { .. })));
}
