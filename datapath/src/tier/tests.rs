//! What comes back, what is not believed, and what happens when the disk does not want.

use super::*;
use crate::testing::{Dataset, Size};

const CHUNK: u64 = 4096;

fn dataset() -> Dataset {
    Dataset::records(Size { samples: 64, sample_bytes: 1024, samples_per_chunk: 4, chunks_per_shard: 4 })
}

struct Disk {
    folder: tempfile::TempDir,
    dataset: Dataset,
    counters: Arc<Counting>,
}

impl Disk {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), dataset: dataset(), counters: Arc::default() }
    }

    fn config(&self, chunks: u64) -> TierConfig {
        let folder = self.folder.path().to_owned();
        TierConfig { folder, worker: 3, bytes: chunks * CHUNK, free_percent: 0 }
    }

    fn open(&self, chunks: u64) -> Tier {
        let manifest = Arc::clone(&self.dataset.manifest);
        Tier::open(&self.config(chunks), manifest, Arc::clone(&self.counters)).unwrap()
    }

    fn chunk(&self, chunk: u32) -> Vec<u8> {
        let at = usize::try_from(chunk).unwrap() * 4;
        self.dataset.samples[at..at + 4].concat()
    }

    async fn keep(&self, tier: &Tier, chunk: u32) {
        tier.keep(ChunkId(chunk), self.chunk(chunk));
        let all = u32::try_from(WRITES_MAX).unwrap();
        drop(tier.shared.writes.acquire_many(all).await.unwrap());
    }

    /// Whether the chunk is there, and what was indexed.
    async fn has(&self, tier: &Tier, chunk: u32) -> bool {
        let read = tier.read(ChunkId(chunk), Block::with_len(4096)).await;
        read.is_ok_and(|block| {
            assert_eq!(&block[..], self.chunk(chunk));
            true
        })
    }
}

#[tokio::test]
async fn what_was_kept_is_there_again_for_the_next_plane() {
    let disk = Disk::new();
    let tier = disk.open(2);
    for chunk in [5, 7, 9] {
        assert!(!disk.has(&tier, chunk).await);
        disk.keep(&tier, chunk).await;
    }
    assert!(disk.has(&tier, 5).await && disk.has(&tier, 7).await && !disk.has(&tier, 9).await);
    drop(tier);
    let own = disk.folder.path().join("worker-3").join(disk.dataset.manifest.digest().to_string());
    fs::write(own.join("11.part"), "begun").unwrap();
    fs::write(own.join("12"), "too short").unwrap();
    let tier = disk.open(2);
    assert!(disk.has(&tier, 5).await && disk.has(&tier, 7).await);
    assert!(!own.join("11.part").exists() && !own.join("12").exists());
    drop(tier);
    assert_eq!(disk.open(1).shared.shelf().chunks(), 1, "the budget is smaller now");
    assert_eq!(files(&own).len(), 1);
}

#[tokio::test]
async fn what_is_not_what_was_indexed_is_neither_kept_nor_believed() {
    let disk = Disk::new();
    let tier = disk.open(16);
    tier.keep(ChunkId(1), vec![0; 4096]);
    disk.keep(&tier, 2).await;
    assert!(!disk.has(&tier, 1).await && disk.has(&tier, 2).await);
    let file = chunk_file(&tier.shared.folder, ChunkId(2));
    for bad in [vec![1; 4096], vec![1; 5]] {
        fs::write(&file, bad).unwrap();
        assert!(!disk.has(&tier, 2).await && !file.exists());
        disk.keep(&tier, 2).await;
        assert!(disk.has(&tier, 2).await, "it is kept anew");
    }
    assert_eq!(disk.counters.read().tier_faults, 2);
    fs::remove_dir_all(disk.folder.path().join("worker-3")).unwrap();
    assert!(!disk.has(&tier, 2).await);
    assert_eq!(disk.counters.read().tier_faults, 2, "to delete it is no fault");
    disk.keep(&tier, 2).await;
    assert!(!disk.has(&tier, 2).await && !tier.shared.own.exists(), "what comes there next is another's");
}

#[tokio::test]
async fn a_disk_that_fails_again_and_again_is_left_alone() {
    let disk = Disk::new();
    let tier = disk.open(16);
    disk.keep(&tier, 0).await;
    for _ in 0..FAULTS_MAX {
        disk.keep(&tier, 1).await;
        fs::write(chunk_file(&tier.shared.folder, ChunkId(1)), "bad").unwrap();
        assert!(!disk.has(&tier, 1).await);
    }
    assert!(!disk.has(&tier, 0).await, "also what may be good");
    disk.keep(&tier, 1).await;
    assert!(!disk.has(&tier, 1).await);
}

#[tokio::test]
async fn a_disk_that_takes_no_more_keeps_what_it_has() {
    let disk = Disk::new();
    let tier = disk.open(16);
    disk.keep(&tier, 0).await;
    // What is written first cannot be made: something else has its name.
    fs::create_dir(tier.shared.folder.join(format!(".1.{}", std::process::id()))).unwrap();
    disk.keep(&tier, 1).await;
    disk.keep(&tier, 2).await;
    assert!(disk.has(&tier, 0).await && !disk.has(&tier, 1).await && !disk.has(&tier, 2).await);
    assert_eq!(disk.counters.read().tier_kept_bytes, CHUNK);
}

#[tokio::test]
async fn a_worker_goes_where_chunks_of_its_dataset_are() {
    let disk = Disk::new();
    let first = disk.open(4);
    let second = disk.open(4);
    disk.keep(&second, 5).await;
    drop((first, second));
    let alone = disk.open(4);
    assert!(disk.has(&alone, 5).await, "they lie in the second one's folder");
}

#[tokio::test]
async fn nothing_is_kept_beyond_the_part_that_is_to_stay_free() {
    let disk = Disk::new();
    let config = TierConfig { free_percent: 100, ..disk.config(4) };
    let tier = Tier::open(&config, Arc::clone(&disk.dataset.manifest), Arc::clone(&disk.counters)).unwrap();
    disk.keep(&tier, 0).await;
    assert!(!disk.has(&tier, 0).await && disk.counters.read().tier_kept_bytes == 0);
}

#[test]
fn a_part_of_the_disk_stays_free() {
    assert!(is_roomy(20, 100, 2, 18) && !is_roomy(20, 100, 3, 18));
    assert!(is_roomy(0, 100, 3, 0) && !is_roomy(5, 1000, 10, 1));
}

#[test]
fn workers_do_not_share_a_folder_and_other_datasets_make_room() {
    let disk = Disk::new();
    let first = disk.open(4);
    let second = disk.open(4);
    assert_ne!(first.shared.folder, second.shared.folder, "the first is in use");
    let own = first.shared.folder.parent().unwrap().to_owned();
    drop(first);
    let (old, empty) = (own.join("0ld"), own.join("empty"));
    fs::create_dir(&old).unwrap();
    fs::create_dir(&empty).unwrap();
    for chunk in 0..3 {
        fs::write(old.join(chunk.to_string()), [0; 4096]).unwrap();
    }
    let tier = disk.open(2);
    assert_eq!(files(&old).len(), 2, "three were more than the budget");
    assert!(!empty.exists());
    assert_eq!(tier.shared.shelf().admit(ChunkId(0), CHUNK).unwrap().len(), 1);
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let disk = Disk::new();
    let file = disk.folder.path().join("file");
    fs::write(&file, "").unwrap();
    let config = TierConfig { folder: file.join("tier"), worker: 0, bytes: 1, free_percent: 0 };
    let opened = Tier::open(&config, Arc::clone(&disk.dataset.manifest), Arc::default());
    let error = opened.err().unwrap().to_string();
    assert!(error.starts_with("keep chunks in ") && error.contains("file/tier"), "{error}");
}
