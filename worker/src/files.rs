//! What a worker and its ranks leave in the job's log folder: the names, and the removal of what is not meant to stay.
//!
//! ```text
//! rank-<r>.log              output of a rank, of all generations
//! rank-<r>.log.1            what was in it before it grew too long (`RANK_LOG_BYTES_MAX`)
//! flight-g<g>-w<w>/rank_<r> what torch's flight recorder dumped in generation g; kept, an empty folder is not
//! .errors-<w>/              torch's error files: read when a rank ends, gone with their generation
//! .rotating-<w>-<r>         a log on its way to `.log.1`
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::units::{Generation, Rank, WorkerId};

/// A rank's log.
#[must_use]
pub fn rank_log(log_folder: &Path, rank: Rank) -> PathBuf {
    log_folder.join(format!("rank-{rank}.log"))
}

/// Where the older part of a rank's log is, if it grew too long.
#[must_use]
pub fn previous_log(log: &Path) -> PathBuf {
    let mut name = log.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

/// A log on its way to [`previous_log`].
pub(crate) fn rotating_log(log_folder: &Path, worker: WorkerId, rank: Rank) -> PathBuf {
    log_folder.join(format!(".rotating-{worker}-{rank}"))
}

/// The folder of torch's error files.
pub(crate) fn error_folder(log_folder: &Path, worker: WorkerId) -> PathBuf {
    log_folder.join(format!(".errors-{worker}"))
}

/// The folder of the flight recorder's dumps.
pub(crate) fn flight_folder(log_folder: &Path, generation: Generation, worker: WorkerId) -> PathBuf {
    log_folder.join(format!("flight-g{generation}-w{worker}"))
}

/// Removes everything of a worker that is not meant to stay. Only when nothing of it runs any more; it does so itself
/// at its end, unless it is killed.
///
/// # Errors
/// The first thing that cannot be removed; the rest is tried nevertheless.
pub fn remove_leftovers(log_folder: &Path, worker: WorkerId) -> io::Result<()> {
    let mut results = vec![absent_is_fine(fs::remove_dir_all(error_folder(log_folder, worker)))];
    let entries = match fs::read_dir(log_folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    let (flight_end, rotating_start) = (format!("-w{worker}"), format!(".rotating-{worker}-"));
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if name.starts_with("flight-g") && name.ends_with(&flight_end) {
            results.push(remove_if_empty(&entry.path()));
        } else if name.starts_with(&rotating_start) {
            results.push(absent_is_fine(fs::remove_file(entry.path())));
        }
    }
    results.into_iter().collect()
}

/// Removes a folder that nothing was put into.
fn remove_if_empty(folder: &Path) -> io::Result<()> {
    match fs::remove_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        other => absent_is_fine(other),
    }
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_of_one_worker_go_and_all_else_stays() {
        let folder = tempfile::tempdir().unwrap();
        let logs = folder.path();
        remove_leftovers(&logs.join("missing"), WorkerId(1)).unwrap();
        for name in [".errors-1", ".errors-11", "flight-g1-w1", "flight-g2-w1", "flight-g2-w11"] {
            fs::create_dir(logs.join(name)).unwrap();
        }
        for name in
            [".errors-1/1-0.json", "flight-g2-w1/rank_3", ".rotating-1-3", ".rotating-11-3", "rank-3.log"]
        {
            fs::write(logs.join(name), "x").unwrap();
        }
        remove_leftovers(logs, WorkerId(1)).unwrap();
        let mut left: Vec<_> = fs::read_dir(logs)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, [".errors-11", ".rotating-11-3", "flight-g2-w1", "flight-g2-w11", "rank-3.log"]);
    }
}
