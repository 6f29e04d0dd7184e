//! Reading what a rank left: the end of its log, its error file, the kernel's count of out-of-memory kills.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use crate::files::previous_log;

/// Bytes of a log that are looked through for a traceback: a deep one with long lines fits.
const LOG_LOOK_BYTES: u64 = 64 << 10;
/// Bytes of an error file that are read: torch writes a traceback into it.
const ERROR_FILE_BYTES_MAX: u64 = 1 << 20;

/// The end of a log, from `start` at the earliest. Empty if there is none. What was moved away because the log grew
/// too long still belongs to it: offsets before the move are offsets there.
pub(super) fn log_end(path: &Path, start: u64) -> String {
    let bytes = |path: &Path| fs::metadata(path).map_or(0, |metadata| metadata.len());
    let mut end = Vec::new();
    let was_moved = bytes(path) < start;
    if was_moved {
        let previous = previous_log(path);
        let start = Some(start).filter(|start| *start <= bytes(&previous)).unwrap_or_default();
        end = read_end(&previous, start).unwrap_or_default();
    }
    end.extend(read_end(path, if was_moved { 0 } else { start }).unwrap_or_default());
    let limit = usize::try_from(LOG_LOOK_BYTES).unwrap_or(usize::MAX);
    end.drain(..end.len().saturating_sub(limit));
    String::from_utf8_lossy(&end).into_owned()
}

fn read_end(path: &Path, start: u64) -> std::io::Result<Vec<u8>> {
    let mut log = File::open(path)?;
    let bytes = log.metadata()?.len();
    log.seek(SeekFrom::Start(start.max(bytes.saturating_sub(LOG_LOOK_BYTES))))?;
    let mut end = Vec::new();
    log.take(LOG_LOOK_BYTES).read_to_end(&mut end)?;
    Ok(end)
}

/// What a rank wrote into its error file, if it did.
pub(super) fn error_file(path: &Path) -> Option<String> {
    let mut text = String::new();
    File::open(path).ok()?.take(ERROR_FILE_BYTES_MAX).read_to_string(&mut text).ok()?;
    Some(text)
}

/// How often the kernel killed for want of memory: in this process's control group where that is counted (cgroup-v2
/// `memory.events`, cgroup-v1 `memory.oom_control`), which also sees ranks in groups below; else on the whole host
/// (/proc/vmstat). 0 where none can be read.
pub(crate) fn oom_kills(root: &Path) -> u64 {
    let read = |path: &Path| fs::read_to_string(root.join(path)).unwrap_or_default();
    let count =
        |text: &str| text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok());
    let groups = read(Path::new("proc/self/cgroup"));
    let group_of = |is_it: &dyn Fn(&str) -> bool| {
        groups.lines().find_map(|line| {
            let (controllers, group) = line.split_once(':')?.1.split_once(':')?;
            is_it(controllers).then(|| group.trim_start_matches('/').to_owned())
        })
    };
    let files = Path::new("sys/fs/cgroup");
    let v1 = group_of(&|controllers| controllers.split(',').any(|name| name == "memory"))
        .map(|group| files.join("memory").join(group).join("memory.oom_control"));
    let v2 = group_of(&str::is_empty).map(|group| files.join(group).join("memory.events"));
    let of_group = [v1, v2].into_iter().flatten().find_map(|path| count(&read(&path)));
    of_group.or_else(|| count(&read(Path::new("proc/vmstat")))).unwrap_or(0)
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
        assert_eq!(log_end(&path, 400), "old\nnew\u{fffd}", "it was cut meanwhile");
        fs::write(previous_log(&path), "of another generation\nbefore ").unwrap();
        assert_eq!(log_end(&path, 22), "before old\nnew\u{fffd}", "the rest is where it was moved to");
        assert_eq!(log_end(&path, 4), "new\u{fffd}", "nothing was moved since");
        fs::write(&path, "x".repeat(1 << 20)).unwrap();
        assert_eq!(log_end(&path, 0).len(), 64 << 10);
    }

    #[test]
    fn out_of_memory_kills_are_counted_in_our_group() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(oom_kills(root.path()), 0);
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("proc/vmstat", "pgfault 1\noom_kill 9\n");
        write("proc/self/cgroup", "0::/pod/x\n");
        assert_eq!(oom_kills(root.path()), 9, "a group without a counter: the root's, or not mounted");
        write("sys/fs/cgroup/pod/x/memory.events", "oom 3\noom_kill 2\n");
        assert_eq!(oom_kills(root.path()), 2);
        write("proc/self/cgroup", "5:cpu,memory:/y\n0::/pod/x\n");
        write("sys/fs/cgroup/memory/y/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n");
        assert_eq!(oom_kills(root.path()), 4);
    }
}
