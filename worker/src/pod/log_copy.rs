//! Copies the ranks' logs to the container's standard output, line by line, each with its rank in front: what
//! `kubectl logs` shows. The files stay what a rank's end is judged by.
//!
//! A log that grew too long is cut in place after its contents were moved ([`crate::agent`], `rotate`): what had not been
//! copied by then is found in the older file at the same offset.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::files::previous_log;
use crate::supervisor::Launch;
use crate::units::Rank;

/// How often logs are looked at: soon enough for people, rarely enough to cost nothing.
const INTERVAL: Duration = Duration::from_millis(100);
/// Bytes that are read at once.
const READ_BYTES: usize = 64 << 10;
/// Bytes of a line at the most; a longer one is shown in pieces. Container runtimes cut at 16 KiB themselves.
const LINE_BYTES_MAX: usize = 16 << 10;
/// Orders that wait: one per rank, and the thread takes them at once unless nobody reads our output.
const ORDERS_MAX: usize = 1_024;

enum Order {
    /// A generation begins: ranks, their logs, and where those end now.
    Follow(Vec<Follower>),
    /// A rank has ended: show what is left, also a line without its end.
    Ended(Rank),
    /// Show what is left of all.
    Close,
}

/// The copying thread.
#[derive(Debug)]
pub(super) struct LogCopy {
    orders: SyncSender<Order>,
    thread: JoinHandle<()>,
}

impl LogCopy {
    /// Copies to `output` until it is closed.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub(super) fn start(output: impl Write + Send + 'static) -> io::Result<Self> {
        let (orders, inbox) = sync_channel(ORDERS_MAX);
        let thread = std::thread::Builder::new().name("logs".into()).spawn(move || copy(&inbox, output))?;
        Ok(Self { orders, thread })
    }

    /// Follows the logs of ranks that are about to be executed, from their present ends on.
    pub(super) fn follow(&self, launch: &Launch) {
        let follower = |(rank, log): (Rank, &Path)| Follower::from_end(rank, log.to_owned());
        let logs = launch.ranks.iter().map(|process| (process.rank, process.log.as_path()));
        self.order(Order::Follow(logs.map(follower).collect()));
    }

    /// A rank has ended.
    pub(super) fn ended(&self, rank: Rank) {
        self.order(Order::Ended(rank));
    }

    /// Copies what is left; how long that takes depends on who reads our output.
    pub(super) fn close(self) {
        self.order(Order::Close);
        // A panic in the thread has been printed there.
        let _ = self.thread.join();
    }

    fn order(&self, order: Order) {
        if self.orders.try_send(order).is_err() {
            tracing::warn!("nobody reads this container's output: some lines of the ranks will not be shown");
        }
    }
}

fn copy(inbox: &Receiver<Order>, mut output: impl Write) {
    let mut followers: Vec<Follower> = Vec::new();
    loop {
        let order = inbox.recv_timeout(INTERVAL);
        let is_over = matches!(order, Ok(Order::Close) | Err(RecvTimeoutError::Disconnected));
        let ended = if let Ok(Order::Ended(rank)) = order { Some(rank) } else { None };
        for follower in &mut followers {
            let is_last = is_over || ended == Some(follower.rank) || matches!(order, Ok(Order::Follow(_)));
            // Who reads our output is gone, or the log is: neither is a reason to end the ranks.
            let _ = follower.step(is_last, &mut output);
        }
        let _ = output.flush();
        match order {
            Ok(Order::Follow(next)) => followers = next,
            _ if is_over => return,
            _ => {}
        }
    }
}

/// One rank's log.
#[derive(Debug)]
struct Follower {
    rank: Rank,
    path: PathBuf,
    offset: u64,
    /// The beginning of a line.
    pending: Vec<u8>,
}

impl Follower {
    fn from_end(rank: Rank, path: PathBuf) -> Self {
        let offset = std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
        Self { rank, path, offset, pending: Vec::new() }
    }

    /// Copies what is new. The last time it also shows a line that has no end.
    fn step(&mut self, is_last: bool, output: &mut impl Write) -> io::Result<()> {
        let bytes = std::fs::metadata(&self.path).map_or(0, |metadata| metadata.len());
        if bytes < self.offset {
            let previous = previous_log(&self.path);
            self.read(&previous, output)?;
            self.offset = 0;
        }
        if bytes > self.offset {
            let path = self.path.clone();
            self.read(&path, output)?;
        }
        if is_last && !self.pending.is_empty() {
            let line = std::mem::take(&mut self.pending);
            show(self.rank, &line, output)?;
        }
        Ok(())
    }

    /// From the offset to the end of a file.
    fn read(&mut self, path: &Path, output: &mut impl Write) -> io::Result<()> {
        let mut file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            file => file?,
        };
        file.seek(SeekFrom::Start(self.offset))?;
        let mut piece = vec![0; READ_BYTES];
        loop {
            let length = file.read(&mut piece)?;
            if length == 0 {
                return Ok(());
            }
            self.offset += u64::try_from(length).unwrap_or(u64::MAX);
            self.lines(&piece[..length], output)?;
        }
    }

    fn lines(&mut self, bytes: &[u8], output: &mut impl Write) -> io::Result<()> {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let mut rest = part;
            while self.pending.len() + rest.len() > LINE_BYTES_MAX {
                let (fits, more) = rest.split_at(LINE_BYTES_MAX - self.pending.len());
                self.pending.extend_from_slice(fits);
                let line = std::mem::take(&mut self.pending);
                show(self.rank, &line, output)?;
                rest = more;
            }
            self.pending.extend_from_slice(rest);
            if self.pending.last() == Some(&b'\n') {
                let line = std::mem::take(&mut self.pending);
                show(self.rank, &line, output)?;
            }
        }
        Ok(())
    }
}

fn show(rank: Rank, line: &[u8], output: &mut impl Write) -> io::Result<()> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let mut whole = format!("[rank {rank}] ").into_bytes();
    whole.extend_from_slice(line);
    whole.push(b'\n');
    output.write_all(&whole)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};

    use proptest::prelude::*;

    use super::*;

    fn append(path: &Path, text: &str) {
        let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    #[test]
    fn lines_are_shown_when_they_are_whole_and_the_rest_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("rank-4.log");
        append(&log, "of another generation\n");
        let mut follower = Follower::from_end(Rank(4), log.clone());
        let mut output = Vec::new();
        append(&log, "one\ntw");
        follower.step(false, &mut output).unwrap();
        assert_eq!(String::from_utf8(std::mem::take(&mut output)).unwrap(), "[rank 4] one\n");
        append(&log, "o\nlast words");
        follower.step(true, &mut output).unwrap();
        assert_eq!(String::from_utf8(output).unwrap(), "[rank 4] two\n[rank 4] last words\n");
    }

    #[test]
    fn a_log_that_was_moved_away_is_read_to_its_end_there() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("rank-0.log");
        let mut follower = Follower::from_end(Rank(0), log.clone());
        let mut output = Vec::new();
        append(&log, "one\n");
        follower.step(false, &mut output).unwrap();
        append(&log, "two\nthr");
        fs::copy(&log, previous_log(&log)).unwrap();
        fs::write(&log, "ee\n").unwrap();
        follower.step(false, &mut output).unwrap();
        assert_eq!(String::from_utf8(output).unwrap(), "[rank 0] one\n[rank 0] two\n[rank 0] three\n");
    }

    #[test]
    fn a_log_that_never_comes_or_goes_is_nothing() {
        let mut follower = Follower::from_end(Rank(0), "/nonexistent/rank-0.log".into());
        let mut output = Vec::new();
        follower.step(true, &mut output).unwrap();
        assert!(output.is_empty());
    }

    proptest! {
        #[test]
        fn nothing_is_lost_or_changed_however_it_is_cut(
            pieces in proptest::collection::vec("[a-c\n]{0,20}", 0..20),
            long in 0_usize..3,
        ) {
            let mut follower = Follower { rank: Rank(1), path: PathBuf::new(), offset: 0, pending: Vec::new() };
            let mut output = Vec::new();
            let mut whole = "x".repeat(long * LINE_BYTES_MAX);
            follower.lines(whole.as_bytes(), &mut output).unwrap();
            for piece in &pieces {
                whole.push_str(piece);
                follower.lines(piece.as_bytes(), &mut output).unwrap();
            }
            let rest = std::mem::take(&mut follower.pending);
            let shown = String::from_utf8(output).unwrap();
            let mut lines = shown.lines().map(|line| line.strip_prefix("[rank 1] ").unwrap());
            prop_assert!(shown.lines().all(|line| line.len() <= LINE_BYTES_MAX + 9));
            // Pieces of a long line are joined again: what is shown is what was written.
            let mut joined: String = lines.by_ref().collect();
            joined.push_str(&String::from_utf8(rest).unwrap());
            prop_assert_eq!(joined, whole.replace('\n', ""));
        }
    }
}
