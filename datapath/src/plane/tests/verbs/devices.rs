//! Devices that are taken away from the kernel while planes have them open.
//!
//! A driver that can cut programs off ends their contexts at once and says that the device is broken. Soft-RoCE of the rig's kernel
//! cannot: there the removal waits, unkillable, until no process has the device open any more, and until then the device serves.
//! So what can be shown here is that nothing is lost while that lasts, that planes let go when they close, and that new planes
//! find the device that comes next.

use std::path::Path;
use std::process::{Command, Stdio};

use tokio::time::{Instant, sleep};

use super::fabric::Mended;
use super::fed::Fed;
use super::*;

/// For how long the planes go on after the removal was asked for.
const MEANWHILE: Duration = Duration::from_secs(1);
/// A removal has ended so soon after nobody has the device open any more.
const REMOVED_MAX: Duration = Duration::from_secs(5);

/// Takes something away by a command of the system's, which waits for the planes; then a device of that name is gone, and comes again.
async fn removed_and_added(device: &str, command: &str, reasons: &[&str]) {
    let group = start_served(TransportPolicy::PreferRdma).await;
    let fed = Fed::begin(group, large()).await;
    fed.ready().await;
    let before = fed.asker().counters();
    let mended = Mended;
    let mut words = command.split_whitespace();
    let mut removal = Command::new(words.next().unwrap()).args(words).stdin(Stdio::null()).spawn().unwrap();
    sleep(MEANWHILE).await;
    let has_waited = removal.try_wait().unwrap().is_none();
    let (longest, counters) = (fed.longest_gap(), fed.asker().counters());
    let (told, batches) = (Warnings::reasons(), fed.end().await);
    let closed = Instant::now();
    let status = loop {
        if let Some(status) = removal.try_wait().unwrap() {
            break status;
        }
        assert!(closed.elapsed() < REMOVED_MAX, "{device} is still open, though its planes have closed");
        sleep(Duration::from_millis(10)).await;
    };
    let took = closed.elapsed();
    assert!(status.success() && !Path::new("/sys/class/infiniband").join(device).exists());
    // Puts the device back.
    drop(mended);
    let group = start_served(TransportPolicy::RequireRdma).await;
    let fed = Fed::begin(group, large()).await;
    fed.ready().await;
    fed.end().await;
    println!(
        "cell removed ({command}): it waited for the planes: {has_waited}; longest gap meanwhile {:.2} s, {} bytes by QUIC, {batches} batches, gone {:.2} s after the planes had closed, and used again after it was added, reasons {told:?}",
        longest.as_secs_f64(),
        counters.quic_in_bytes - before.quic_in_bytes,
        took.as_secs_f64()
    );
    assert!(told.iter().all(|reason| reasons.contains(&reason.as_str())), "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_owners_device_is_taken_away() {
    if has_devices() {
        removed_and_added("rxe_b", "rdma link del rxe_b", &["device_fatal", "no_device"]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_askers_device_is_taken_away() {
    if has_devices() {
        removed_and_added("rxe_a", "rdma link del rxe_a", &["device_fatal", "no_device"]).await;
    }
}

/// As a virtual function that is taken back: its link goes first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_interface_of_the_askers_device_is_taken_away() {
    if has_devices() {
        let reasons = ["port_down", "gid_missing", "device_fatal", "no_device"];
        removed_and_added("rxe_a", "ip link del va", &reasons).await;
    }
}
