//! Single flight, eviction, release and suspicion, on a directory.

use super::*;
use crate::testing::{Dataset, Size};

const CHUNK: u64 = 4096;

fn dataset() -> Dataset {
    Dataset::records(Size { samples: 64, sample_bytes: 1024, samples_per_chunk: 4, chunks_per_shard: 4 })
}

/// 128 of them.
fn many_chunks() -> Dataset {
    Dataset::records(Size { samples: 512, sample_bytes: 1024, samples_per_chunk: 4, chunks_per_shard: 16 })
}

fn cache(dataset: &Dataset, chunks: u64) -> (Cache, Arc<Counting>) {
    cache_for(dataset, chunks, Shuffle::Window { chunks: NonZeroU32::new(16).unwrap() })
}

fn cache_for(dataset: &Dataset, chunks: u64, shuffle: Shuffle) -> (Cache, Arc<Counting>) {
    let counters = Arc::new(Counting::default());
    let cache = Cache::new(
        Arc::clone(&dataset.manifest),
        dataset.store(),
        None,
        shuffle,
        chunks * CHUNK,
        Arc::clone(&counters),
    );
    (cache, counters)
}

#[tokio::test]
async fn many_who_ask_at_once_cause_one_read() {
    let dataset = dataset();
    let (cache, counters) = cache(&dataset, 4);
    let asking: Vec<_> = (0..50)
        .map(|_| {
            let cache = cache.clone();
            tokio::spawn(async move { cache.get(ChunkId(3), 0).await.unwrap().to_vec() })
        })
        .collect();
    for asked in asking {
        assert_eq!(asked.await.unwrap(), dataset.samples[12..16].concat());
    }
    assert_eq!((counters.read().store_reads, counters.read().store_bytes), (1, CHUNK));
    assert_eq!(cache.bytes(), CHUNK);
}

#[tokio::test]
async fn the_released_go_first_then_the_least_recently_used() {
    let dataset = dataset();
    let (cache, counters) = cache(&dataset, 3);
    for (chunk, until) in [(0, 9), (1, 5), (2, 9)] {
        drop(cache.get(ChunkId(chunk), until).await.unwrap());
    }
    cache.advance(6);
    drop(cache.get(ChunkId(0), 9).await.unwrap());
    drop(cache.get(ChunkId(3), 9).await.unwrap());
    assert_eq!(counters.read().cache_evictions, 0, "chunk 1 was released");
    drop(cache.get(ChunkId(4), 9).await.unwrap());
    assert_eq!(counters.read().cache_evictions, 1);
    let reads = counters.read().store_reads;
    drop(cache.get(ChunkId(0), 9).await.unwrap());
    assert_eq!(counters.read().store_reads, reads, "chunk 0 was used after chunk 2, which went");
    assert_eq!(cache.bytes(), 3 * CHUNK);
}

#[tokio::test]
async fn what_is_in_use_stays_and_a_load_waits_for_room() {
    let dataset = dataset();
    let (cache, _) = cache(&dataset, 2);
    let held = [cache.get(ChunkId(0), 9).await.unwrap(), cache.get(ChunkId(1), 9).await.unwrap()];
    let waiting = tokio::spawn({
        let cache = cache.clone();
        async move { cache.get(ChunkId(2), 9).await.unwrap().to_vec() }
    });
    tokio::task::yield_now().await;
    assert_eq!(cache.bytes(), 2 * CHUNK);
    assert_eq!(&held[0][..], dataset.samples[0..4].concat());
    drop(held);
    assert_eq!(waiting.await.unwrap(), dataset.samples[8..12].concat());
    assert_eq!(cache.bytes(), 2 * CHUNK);
}

#[tokio::test]
async fn a_prefetch_takes_only_room_that_nothing_needs() {
    let dataset = dataset();
    let (cache, counters) = cache(&dataset, 2);
    assert!(cache.prefetch(ChunkId(0), 3));
    assert!(cache.prefetch(ChunkId(1), 3));
    assert!(cache.prefetch(ChunkId(1), 3));
    assert!(!cache.prefetch(ChunkId(2), 9), "both are on their way");
    drop(cache.get(ChunkId(0), 3).await.unwrap());
    drop(cache.get(ChunkId(1), 3).await.unwrap());
    assert!(!cache.prefetch(ChunkId(2), 9), "both are still needed");
    cache.advance(4);
    assert!(cache.prefetch(ChunkId(2), 9));
    drop(cache.get(ChunkId(2), 9).await.unwrap());
    assert_eq!(counters.read().store_reads, 3);
}

#[tokio::test]
async fn a_bad_copy_is_read_anew_and_a_bad_store_is_named() {
    let dataset = dataset();
    let (cache, counters) = cache(&dataset, 2);
    dataset.corrupt(1, 100);
    drop(cache.get(ChunkId(1), 0).await.unwrap());
    let error = cache.get_verified(ChunkId(1), 0).await.unwrap_err();
    assert_eq!((error.chunk, error.reason), (1, fault::CRC_MISMATCH));
    assert_eq!(counters.read().store_reads, 2);
    drop(cache.get(ChunkId(1), 0).await.unwrap());
    dataset.corrupt(1, 100);
    let good = cache.get_verified(ChunkId(1), 0).await.unwrap();
    assert_eq!(&good[..], dataset.samples[4..8].concat());
}

#[tokio::test]
async fn a_missing_or_short_shard_is_named_and_leaves_no_trace() {
    let dataset = dataset();
    let (cache, _) = cache(&dataset, 2);
    std::fs::write(dataset.folder.path().join("shard-001.bin"), [0; 100]).unwrap();
    std::fs::remove_file(dataset.folder.path().join("shard-002.bin")).unwrap();
    let (short, gone) = (cache.get(ChunkId(4), 0).await, cache.get(ChunkId(8), 0).await);
    assert_eq!(short.unwrap_err().reason, fault::SHORT_READ);
    assert_eq!(gone.unwrap_err().reason, fault::NOT_FOUND);
    assert_eq!(cache.bytes(), 0);
}

/// Lets every other task run until it waits.
async fn settle(cache: &Cache, counters: &Counting, bytes: u64) {
    while counters.read().store_bytes < bytes {
        tokio::task::yield_now().await;
    }
    drop(cache.shared.lock());
}

#[tokio::test]
async fn a_wait_that_is_given_up_makes_room_for_another() {
    let dataset = dataset();
    let (cache, counters) = cache(&dataset, 2);
    let held = cache.get(ChunkId(0), 9).await.unwrap();
    let mut given_up = Box::pin(cache.get(ChunkId(1), 9));
    let started = std::future::poll_fn(|cx| std::task::Poll::Ready(given_up.as_mut().poll(cx).is_pending()));
    assert!(started.await);
    settle(&cache, &counters, 2 * CHUNK).await;
    let waiting = tokio::spawn({
        let cache = cache.clone();
        async move { cache.get(ChunkId(2), 9).await.unwrap().to_vec() }
    });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    drop(given_up);
    let read = tokio::time::timeout(std::time::Duration::from_secs(5), waiting).await;
    assert_eq!(read.expect("there is room now").unwrap(), dataset.samples[8..12].concat());
    drop(held);
}

#[tokio::test]
async fn a_cache_below_its_window_goes_on_and_counts_what_it_reads_again() {
    let dataset = dataset();
    let (cache, counters) = cache(&dataset, 2);
    for _ in 0..3 {
        for chunk in 0..4 {
            drop(cache.get(ChunkId(chunk), 9).await.unwrap());
        }
    }
    let counted = counters.read();
    assert_eq!((counted.store_reads, counted.cache_rereads), (12, 8));
    assert!(cache.shared.lock().warned);
    // Once released, a chunk that comes again is another epoch's.
    cache.advance(10);
    drop(cache.get(ChunkId(0), 20).await.unwrap());
    assert_eq!(counters.read().cache_rereads, 8);
}

#[test]
fn the_need_is_a_share_of_the_window() {
    let dataset = dataset();
    let need_of = |chunks: u32, workers: u32| {
        let shuffle = Shuffle::Window { chunks: NonZeroU32::new(chunks).unwrap() };
        need(&dataset.manifest, shuffle, NonZeroU32::new(workers).unwrap())
    };
    assert_eq!(need_of(4, 1), Need { once: 4 * CHUNK, ahead: 16 * CHUNK });
    assert_eq!(need_of(64, 1), Need { once: 16 * CHUNK, ahead: 16 * CHUNK });
    assert_eq!(need_of(4, 2).once, 4 * CHUNK, "small windows may fall to one owner");
    assert!(need_of(16, 8).once < 16 * CHUNK);
    assert_eq!(need(&dataset.manifest, Shuffle::None, NonZeroU32::MIN).once, 2 * CHUNK);
}

#[tokio::test]
async fn of_the_released_the_last_one_used_goes_first_for_the_next_epoch_needs_it_the_latest() {
    let dataset = dataset();
    let (cache, counters) = cache(&dataset, 4);
    for epoch in 0..3 {
        for chunk in 0..16 {
            let step = u64::from(16 * epoch + chunk);
            drop(cache.get(ChunkId(chunk), step).await.unwrap());
            cache.advance(step + 1);
        }
    }
    // Each epoch but the first finds four of sixteen here, where the oldest going first would find none.
    assert_eq!(counters.read().store_reads, 16 + 12 + 12);
    assert_eq!(counters.read().cache_evictions, 0);
}

#[tokio::test]
async fn without_a_shuffle_no_more_is_read_ahead_than_a_latency_takes() {
    let dataset = many_chunks();
    let (cache, _) = cache_for(&dataset, 24, Shuffle::None);
    let ahead = u32::try_from(ahead(depth::READS_START)).unwrap();
    assert!((0..ahead).all(|chunk| cache.prefetch(ChunkId(chunk), chunk.into())));
    assert!(!cache.prefetch(ChunkId(ahead), 99));
    drop(cache.get(ChunkId(0), 0).await.unwrap());
    assert!(cache.prefetch(ChunkId(ahead), 99), "one was asked for");
    // Chunks that a membership had foreseen and another one does not ask for do not count for ever.
    cache.restart(0, 1);
    assert!(cache.prefetch(ChunkId(ahead + 1), 99));
}

#[tokio::test]
async fn a_small_part_of_what_is_owned_is_not_kept_for_the_next_epoch() {
    let dataset = many_chunks();
    // Fewer than after which another number of reads at once is tried.
    let gets = 15;
    for (owners, kept) in [(1, 2 + ahead(depth::READS_START)), (2, 15)] {
        let (cache, _) = cache_for(&dataset, 24, Shuffle::None);
        cache.restart(0, owners);
        for chunk in 0..gets {
            drop(cache.get(ChunkId(chunk), chunk.into()).await.unwrap());
            cache.advance(u64::from(chunk) + 1);
        }
        // 24 of 128 chunks are less than a quarter, of 64 they are more.
        assert_eq!(cache.bytes(), u64::try_from(kept).unwrap() * CHUNK, "{owners} owners");
    }
}
