//! The bound of a rank's log. The file is the rank's own standard output, so it cannot be exchanged under it: what is
//! in it is copied to `rank-<r>.log.1` and the file is cut to nothing. The rank writes at the end (`O_APPEND`),
//! wherever that is.
//!
//! The last 64 to 128 MiB of output stay. What a rank writes in the microseconds between the end of the copy and the
//! cut is lost; a rank's end is never near, because nothing is cut after it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::files::previous_log;

/// Bytes of a rank's log from which on it is rotated: half a million lines, and what an editor still opens. It is
/// looked at with every heartbeat, so a rank that writes fast may exceed it by what it writes in one.
pub(super) const RANK_LOG_BYTES_MAX: u64 = 64 << 20;
/// How often the copy looks for what was written meanwhile before it cuts: each look is much shorter than the last,
/// unless the rank writes faster than we copy.
const CATCH_UP_MAX: u32 = 8;

/// Rotates a log that is longer than `limit` by way of the file `rotating`. Whether it did.
pub(super) fn rotate_if_long(log: &Path, rotating: &Path, limit: u64) -> io::Result<bool> {
    let mut source = match OpenOptions::new().read(true).write(true).open(log) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        source => source?,
    };
    if source.metadata()?.len() <= limit {
        return Ok(false);
    }
    let mut copy = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(rotating)?;
    copy_once(&mut source, &mut copy)?;
    // Before the cut: who is killed in between leaves something twice rather than nowhere.
    fs::rename(rotating, previous_log(log))?;
    for _ in 0..CATCH_UP_MAX {
        if copy_once(&mut source, &mut copy)? == 0 {
            break;
        }
    }
    source.set_len(0)?;
    Ok(true)
}

/// Copies what is there now from where the last copy ended. How much that was.
fn copy_once(source: &mut File, copy: &mut File) -> io::Result<u64> {
    let there = source.metadata()?.len();
    io::copy(&mut source.take(there), copy)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_long_log_moves_on_and_its_writer_does_not_notice() {
        let folder = tempfile::tempdir().unwrap();
        let (log, rotating) = (folder.path().join("rank-0.log"), folder.path().join(".rotating-0-0"));
        assert!(!rotate_if_long(&log, &rotating, 4).unwrap(), "no log, nothing to do");
        let mut writer = OpenOptions::new().append(true).create(true).open(&log).unwrap();
        writer.write_all(b"one\n").unwrap();
        assert!(!rotate_if_long(&log, &rotating, 4).unwrap());
        writer.write_all(b"two\nthr").unwrap();
        assert!(rotate_if_long(&log, &rotating, 4).unwrap());
        writer.write_all(b"ee\n").unwrap();
        assert_eq!(fs::read_to_string(previous_log(&log)).unwrap(), "one\ntwo\nthr");
        assert_eq!(fs::read_to_string(&log).unwrap(), "ee\n", "no hole where the old output was");
        writer.write_all(b"four\n").unwrap();
        assert!(rotate_if_long(&log, &rotating, 4).unwrap());
        assert_eq!(fs::read_to_string(previous_log(&log)).unwrap(), "ee\nfour\n");
        assert!(!rotating.exists());
    }
}
