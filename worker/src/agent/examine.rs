//! Reading what a rank left: the end of its log, its error file, the kernel's count of out-of-memory kills.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// Bytes of a log that are looked through for a traceback: a deep one with long lines fits.
const LOG_LOOK_BYTES: u64 = 64 << 10;
/// Bytes of an error file that are read: torch writes a traceback into it.
const ERROR_FILE_BYTES_MAX: u64 = 1 << 20;

/// The end of a log, from `start` at the earliest. Empty if there is none.
pub(super) fn log_end(path: &Path, start: u64) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut log = File::open(path)?;
        let bytes = log.metadata()?.len();
        let from = start.max(bytes.saturating_sub(LOG_LOOK_BYTES));
        log.seek(SeekFrom::Start(from))?;
        let mut end = Vec::new();
        log.take(LOG_LOOK_BYTES).read_to_end(&mut end)?;
        Ok(end)
    };
    read().map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// What a rank wrote into its error file, if it did.
pub(super) fn error_file(path: &Path) -> Option<String> {
    let mut text = String::new();
    File::open(path).ok()?.take(ERROR_FILE_BYTES_MAX).read_to_string(&mut text).ok()?;
    Some(text)
}

/// How often the kernel killed in this process's control group for want of memory (cgroup-v2, `memory.events`);
/// 0 where that cannot be read.
pub(super) fn oom_kills(root: &Path) -> u64 {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let events = root.join("sys/fs/cgroup").join(group).join("memory.events");
    let events = fs::read_to_string(events).unwrap_or_default();
    events.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_logs_end_begins_with_its_generation_and_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rank-0.log");
        assert_eq!(log_end(&path, 0), "");
        fs::write(&path, b"old\nnew\xff").unwrap();
        assert_eq!(log_end(&path, 4), "new\u{fffd}");
        assert_eq!(log_end(&path, 400), "");
        fs::write(&path, "x".repeat(1 << 20)).unwrap();
        assert_eq!(log_end(&path, 0).len(), 64 << 10);
    }

    #[test]
    fn out_of_memory_kills_are_counted_in_our_group() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(oom_kills(root.path()), 0);
        for (path, text) in [
            ("proc/self/cgroup", "0::/pod/x\n"),
            ("sys/fs/cgroup/pod/x/memory.events", "oom 3\noom_kill 2\n"),
        ] {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        assert_eq!(oom_kills(root.path()), 2);
    }
}
