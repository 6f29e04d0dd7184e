//! The store on a real Ceph: what cannot be seen through `launcher`. Runs where `SLIPWAY_CEPH=1` says that there is one to start
//! (`tests/run ceph`).

#![cfg(feature = "ceph")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use datapath::memory::{Block, BlockPool};
use datapath::store::Store;
use tokio::time::{sleep, timeout};

/// Longer than anything that is waited for here takes.
const PATIENCE: Duration = Duration::from_secs(20);
const BYTES: usize = 4 << 20;

/// A cluster that ends with its test.
struct Ceph(PathBuf);

impl Ceph {
    /// None where there is none to start, which is said.
    fn start(name: &str) -> Option<Self> {
        #[expect(clippy::disallowed_methods, reason = "the switch of a test that needs Ceph")]
        let (wanted, ci) = (std::env::var("SLIPWAY_CEPH"), std::env::var("CI"));
        if wanted.as_deref() != Ok("1") {
            assert!(ci.as_deref() != Ok("true"), "cannot run: SLIPWAY_CEPH=1 is not set");
            return None;
        }
        let folder = PathBuf::from(format!("{}-{name}-{}", env!("CARGO_TARGET_TMPDIR"), std::process::id()));
        let ceph = Self(folder);
        ceph.rig(&["start", ceph.0.to_str().unwrap()]);
        Some(ceph)
    }

    fn rig(&self, args: &[&str]) {
        let rig = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/rig/ceph/ceph-rig");
        // Daemons inherit what it writes to, so it writes nowhere.
        let status = Command::new(rig).args(args).stdin(Stdio::null()).stdout(Stdio::null()).status();
        assert!(status.unwrap().success(), "ceph-rig {args:?}");
    }

    fn signal(&self, signal: &str) {
        self.rig(&["signal", self.0.to_str().unwrap(), "osd.0", signal]);
    }

    async fn store(&self) -> Store {
        self.store_of("writer").await
    }

    async fn store_of(&self, user: &str) -> Store {
        let folder = self.0.display();
        let url = format!("rados://shards/t?conf={folder}/ceph.conf&credentials={folder}/secret/{user}");
        timeout(PATIENCE, Store::open(&url)).await.unwrap().unwrap()
    }

    /// Ceph's own tool, on the pool.
    fn rados(&self, args: &[&str]) -> String {
        let conf = self.0.join("ceph.conf");
        let output =
            Command::new("rados").arg("--conf").arg(conf).args(["-p", "shards"]).args(args).output().unwrap();
        assert!(output.status.success(), "rados {args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Ceph {
    fn drop(&mut self) {
        self.rig(&["stop", self.0.to_str().unwrap()]);
    }
}

#[tokio::test]
async fn memory_of_a_read_that_was_given_up_is_used_again_only_after_its_end() {
    let Some(ceph) = Ceph::start("cancel") else { return };
    let store = ceph.store().await;
    store.write("a.bin", vec![7; BYTES]).await.unwrap();
    let pool = BlockPool::new(1, BYTES);
    let (block, read) = store.read("a.bin", 0, pool.take(BYTES)).await;
    read.unwrap();
    assert!(block.iter().all(|byte| *byte == 7));
    let address = block.as_ptr();

    // The OSD holds the answer back; the read is given up meanwhile.
    ceph.signal("STOP");
    let reading = tokio::spawn({
        let store = store.clone();
        async move { store.read("a.bin", 0, block).await.1 }
    });
    sleep(Duration::from_millis(300)).await;
    let other = pool.take(BYTES);
    assert_ne!(other.as_ptr(), address, "the block is with the read");
    reading.abort();
    drop(other);
    // It is cancelled, so its memory comes back while the OSD is still silent.
    let mut strangers = Vec::new();
    let mut again = timeout(PATIENCE, async {
        loop {
            // The pool keeps one block: whichever came back last.
            let block = pool.take(BYTES);
            if block.as_ptr() == address {
                return block;
            }
            // Kept out of the pool, else it would be found again and again.
            strangers.push(block);
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("a read that is given up is cancelled");
    again.fill(1);
    ceph.signal("CONT");
    // The answer to the cancelled read comes before that of this one.
    let (fresh, read) = timeout(PATIENCE, store.read("a.bin", 0, Block::with_len(BYTES))).await.unwrap();
    read.unwrap();
    assert!(fresh.iter().all(|byte| *byte == 7));
    assert!(again.iter().all(|byte| *byte == 1), "nothing wrote into memory that is used again");
}

#[tokio::test]
async fn reads_say_where_an_object_ends_and_what_is_missing() {
    let Some(ceph) = Ceph::start("ends") else { return };
    let store = ceph.store().await;
    store.write("a.bin", vec![7; 1000]).await.unwrap();
    let (_, short) = store.read("a.bin", 900, Block::with_len(200)).await;
    assert_eq!(short.unwrap_err().to_string(), "read t/a.bin: it ends at byte 1000, before byte 1100");
    let (_, beyond) = store.read("a.bin", 5000, Block::with_len(1)).await;
    assert_eq!(beyond.unwrap_err().code(), "short_read");
    assert_eq!(store.read("b.bin", 0, Block::with_len(1)).await.1.unwrap_err().code(), "not_found");
    assert_eq!(store.read("../b", 0, Block::with_len(1)).await.1.unwrap_err().code(), "bad_name");
    store.read("a.bin", 1000, Block::with_len(0)).await.1.unwrap();
    // A store that is given up in the middle of a read ends nothing that is still at work.
    let read = tokio::spawn(async move { store.read("a.bin", 0, Block::with_len(1000)).await.1 });
    read.await.unwrap().unwrap();
}

/// What an interrupted copy or removal leaves is removed with the next copy, and nothing of it is ever read.
#[tokio::test]
async fn nothing_is_left_of_a_shard_that_was_given_up() {
    let Some(ceph) = Ceph::start("left") else { return };
    let store = ceph.store().await;
    let folder = tempfile::tempdir().unwrap();
    let from = Store::open(folder.path().to_str().unwrap()).await.unwrap();
    let shard = |bytes: u64| {
        std::fs::File::create(folder.path().join("a.bin")).unwrap().set_len(bytes).unwrap();
        bytes
    };
    let object = |number: u32| format!("t/a.bin.{number:016x}");
    let (large, small) = (BYTES as u64 * 40, 1000);
    for gone in [30..40, 0..1, 0..40] {
        store.copy_from("a.bin", shard(large), &from).await.unwrap();
        assert_eq!(store.list().await.unwrap()[0].bytes, large);
        if gone.start > 0 {
            ceph.rados(&["rmxattr", &object(0), "striper.size"]);
        }
        gone.for_each(|number| drop(ceph.rados(&["rm", &object(number)])));
        assert!(ceph.store().await.list().await.unwrap().is_empty(), "it is not complete");
        store.copy_from("a.bin", shard(small), &from).await.unwrap();
        assert_eq!(ceph.rados(&["ls"]), "t/a.bin\n");
        assert_eq!(store.list().await.unwrap()[0].bytes, small);
    }
    std::fs::remove_file(folder.path().join("a.bin")).unwrap();
    let gone = Store::open(folder.path().to_str().unwrap()).await.unwrap();
    assert_eq!(store.copy_from("a.bin", small, &gone).await.unwrap_err().code(), "not_found");
    assert_eq!(store.list().await.unwrap()[0].bytes, small, "what cannot be read replaces nothing");
}

#[tokio::test]
async fn a_manifest_may_be_larger_than_an_object() {
    let Some(ceph) = Ceph::start("manifest") else { return };
    let (writer, reader) = (ceph.store().await, ceph.store_of("reader").await);
    assert!(writer.is_same_place(&reader), "whoever looks");
    for bytes in [100, 100 << 20, 101 << 20, 200] {
        let content: Vec<u8> = (0..bytes).map(|at: usize| (at >> 12).to_le_bytes()[0] ^ 0x5a).collect();
        writer.write("m.json", content.clone()).await.unwrap();
        let listed = reader.list().await.unwrap();
        assert_eq!((listed.len(), listed[0].bytes), (1, bytes as u64));
        let (block, read) = reader.read("m.json", 0, Block::with_len(bytes)).await;
        read.unwrap();
        assert!(*block == content[..], "{bytes} bytes");
    }
    assert_eq!(ceph.rados(&["ls"]), "t/m.json\n");
}
