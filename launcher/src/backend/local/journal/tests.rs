//! Whatever happens to a journal's tail, what was whole before it is still known.

use datapath::order::OrderDigest;
use proptest::prelude::*;
use worker::units::Step;

use super::*;
use crate::rendezvous::group::{GroupSummary, Outcome, Settled, Totals};

fn record(index: u64) -> Record {
    match index % 3 {
        0 => Record::Generation { generation: Generation(index / 3 + 1) },
        1 => Record::Commit {
            generation: Generation(index / 3 + 1),
            committed: Step(index),
            settled: Settled {
                totals: Totals { steps: index, samples: 3, bytes: 9, digest: OrderDigest(u128::MAX - 1) },
                epochs: [(index, OrderDigest(7))].into(),
            },
            work: Default::default(),
        },
        _ => Record::Fence { generation: Generation(index / 3 + 1), cause: None, restart: true },
    }
}

fn write(count: u64) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let mut journal = Journal::open(&path).unwrap();
    journal.append(1, &Entry::Created { uid: "u".to_owned() }, true).unwrap();
    for index in 0..count {
        journal
            .append(index + 2, &Entry::Group(Box::new(record(index))), record(index).is_durable())
            .unwrap();
    }
    std::fs::read(path).unwrap()
}

#[test]
fn what_is_written_is_read() {
    let story = Story::parse(&write(7));
    assert_eq!((story.lines.len(), story.damaged), (8, 0));
    assert_eq!((story.uid().as_deref(), story.created()), (Some("u"), 1));
    let memory = story.memory();
    assert_eq!((memory.generation, memory.fenced), (Generation(3), Generation(2)));
    assert_eq!((memory.committed, memory.restarts), (Step(4), 2));
}

/// Epochs are numbered, metrics are fractions: neither may be lost between two launchers.
#[test]
fn an_end_is_read_as_it_was_written() {
    let summary = GroupSummary {
        epochs: [(0, OrderDigest(1)), (11, OrderDigest(2))].into(),
        reported: [("loss".to_owned(), 0.1 + 0.2), ("tiny".to_owned(), 4.9e-324)].into(),
        ..GroupSummary::default()
    };
    let end = Record::End { outcome: Outcome::Succeeded, summary: Box::new(summary) };
    let entry = Entry::Group(Box::new(end));
    let text = Line::encode(1, &entry).unwrap();
    assert_eq!(Line::decode(&text).unwrap().entry, entry);
    assert!(Line::decode(&text[..text.len() - 3]).is_none());
}

#[test]
fn a_torn_line_does_not_swallow_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let mut bytes = write(3);
    bytes.truncate(bytes.len() - 5);
    std::fs::write(&path, &bytes).unwrap();
    let mut journal = Journal::open(&path).unwrap();
    journal.append(9, &Entry::Group(Box::new(record(3))), true).unwrap();
    let story = Story::read(&path).unwrap();
    assert_eq!((story.lines.len(), story.damaged), (4, 1));
    assert_eq!(story.memory().generation, Generation(2));
}

/// A year of commits, every second: bounded, and nothing is forgotten.
#[test]
fn a_journal_that_grows_is_replaced_by_what_it_says() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.jsonl");
    let mut journal = Journal::open(&path).unwrap();
    journal.append(1, &Entry::Created { uid: "u".to_owned() }, false).unwrap();
    // What a launcher left that was killed while it did the same.
    std::fs::write(path.with_extension("new"), b"half a li").unwrap();
    let mut expected = Memory::default();
    let mut largest = 0;
    for index in 0..20_000 {
        let record = record(index);
        expected.take(&record);
        let entry = Entry::Group(Box::new(record));
        journal.append(index + 2, &entry, false).unwrap();
        largest = largest.max(std::fs::metadata(&path).unwrap().len());
    }
    assert!(largest < 2 * COMPACT_BYTES, "{largest} bytes");
    let story = Story::read(&path).unwrap();
    assert_eq!(story.damaged, 0);
    assert_eq!((story.uid().as_deref(), story.created(), story.ended()), (Some("u"), 1, 20_001));
    assert_eq!(story.memory(), expected);
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn the_writer_tells_what_is_safe_and_why_no_more_will_be() {
    use super::writer::{Order, Writer};
    use crate::rendezvous::group::RecordId;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.jsonl");
    let order =
        |id: u64| Order { at: id, entry: Entry::Group(Box::new(record(id))), record: Some(RecordId(id)) };
    let (writer, mut written) = Writer::start(Journal::open(&path).unwrap()).unwrap();
    for id in 1..=40 {
        assert!(writer.append(order(id)).await);
    }
    written.wait_for(|told| *told.as_ref().unwrap() == RecordId(40)).await.unwrap();
    assert_eq!(Story::read(&path).unwrap().lines.len(), 40);
    writer.close().await;

    let full = Journal::open(Path::new("/dev/full")).unwrap();
    let (writer, mut written) = Writer::start(full).unwrap();
    assert!(writer.append(order(1)).await);
    let told = written.wait_for(Result::is_err).await.unwrap().clone();
    assert_eq!(told.unwrap_err().kind(), io::ErrorKind::StorageFull);
    writer.close().await;
}

proptest! {
    #[test]
    fn a_cut_loses_only_what_is_behind_it(count in 0_u64..12, cut in any::<prop::sample::Index>()) {
        let bytes = write(count);
        let cut = cut.index(bytes.len() + 1);
        let whole = bytes[..cut].iter().filter(|byte| **byte == b'\n').count();
        let story = Story::parse(&bytes[..cut]);
        // A cut just before the end of a line leaves all of its JSON.
        prop_assert!(story.lines.len() == whole || story.lines.len() == whole + 1);
        prop_assert_eq!(&story.lines[..], &Story::parse(&bytes).lines[..story.lines.len()]);
    }

    #[test]
    fn damage_is_found_and_never_believed(
        count in 1_u64..12,
        hits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let original = write(count);
        let mut bytes = original.clone();
        for (at, value) in hits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let truth = Story::parse(&original);
        let story = Story::parse(&bytes);
        for line in &story.lines {
            prop_assert!(truth.lines.contains(line), "{line:?}");
        }
    }
}
