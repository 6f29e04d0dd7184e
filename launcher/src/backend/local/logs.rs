//! Reading a job's logs, once or for as long as it runs. A rank's log that grew too long has its older part in a file
//! beside it, which comes first; when that happens under a reader's eyes, what was not read yet is read from there.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::mpsc;
use worker::files::previous_log;
use worker::units::Rank;

use super::folder::Folder;
use super::state;
use crate::backend::{LogLine, LogRequest};
use crate::error::{ExitCode, Failure};

/// How often a followed log is looked at.
const POLL: Duration = Duration::from_millis(100);
/// Bytes of one line; longer ones are cut into several.
const LINE_BYTES_MAX: usize = 64 << 10;
/// Lines that `--tail` can keep per log.
const TAIL_LINES_MAX: usize = 1 << 20;

/// Sends the lines that were asked for.
pub(super) async fn send(
    folder: &Folder,
    request: &LogRequest,
    lines: &mpsc::Sender<LogLine>,
) -> Result<(), Failure> {
    let failed =
        |error: io::Error| Failure::new(ExitCode::NotFound, "failed to read the job's logs").because(&error);
    let mut logs: Vec<Log> = Vec::new();
    loop {
        // Before the files: what is written before a job is over is read before the end.
        let is_over = !request.follow || state::read(folder)?.phase.is_over();
        for path in find(folder, request).map_err(failed)? {
            if !logs.iter().any(|log| log.path == path) {
                logs.push(Log::open(path, request.tail).map_err(failed)?);
            }
        }
        for log in &mut logs {
            while let Some(line) = log.next(is_over).map_err(failed)? {
                if lines.send(line).await.is_err() {
                    return Ok(());
                }
            }
        }
        if is_over {
            return missing(folder, request, &logs);
        }
        tokio::select! {
            () = tokio::time::sleep(POLL) => {}
            () = lines.closed() => return Ok(()),
        }
    }
}

fn missing(folder: &Folder, request: &LogRequest, logs: &[Log]) -> Result<(), Failure> {
    let Some(rank) = request.rank else { return Ok(()) };
    if !logs.is_empty() {
        return Ok(());
    }
    let ranks = state::read(folder)?.ranks;
    Err(Failure::new(ExitCode::NotFound, format!("failed to find a log of rank {rank} of {}", folder.id()))
        .hint(format!("the job has {ranks} ranks, from 0; one that never ran has no log")))
}

/// The files that were asked for, ranks in the order of their numbers.
fn find(folder: &Folder, request: &LogRequest) -> io::Result<Vec<PathBuf>> {
    if let (Some(rank), false) = (request.rank, request.system) {
        let path = folder.rank_log(rank);
        return Ok(if path.exists() { vec![path] } else { Vec::new() });
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(folder.logs())? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "log")
            && rank_of(&path).is_none() == request.system
        {
            found.push(path);
        }
    }
    found.sort_by_key(|path| (rank_of(path), path.clone()));
    Ok(found)
}

fn rank_of(path: &Path) -> Option<Rank> {
    path.file_stem()?.to_str()?.strip_prefix("rank-")?.parse().ok().map(Rank)
}

/// One log and how far it was read.
struct Log {
    path: PathBuf,
    rank: Option<Rank>,
    name: String,
    /// The older part, until it is read.
    previous: Option<BufReader<File>>,
    file: BufReader<File>,
    /// How far `file` was read, in bytes.
    position: u64,
    /// The beginning of a line that is not complete.
    partial: Vec<u8>,
    /// Lines that are read and not sent.
    ready: VecDeque<String>,
}

impl Log {
    fn open(path: PathBuf, tail: Option<u64>) -> io::Result<Self> {
        let file = BufReader::new(File::open(&path)?);
        let previous = File::open(previous_log(&path)).ok().map(BufReader::new);
        let name = path.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let rank = rank_of(&path);
        let mut log = Self {
            path,
            rank,
            name,
            previous,
            file,
            position: 0,
            partial: Vec::new(),
            ready: VecDeque::new(),
        };
        if let Some(tail) = tail {
            let keep = usize::try_from(tail).unwrap_or(TAIL_LINES_MAX).min(TAIL_LINES_MAX);
            while let Some(line) = log.read_line(false)? {
                log.ready.push_back(line);
                if log.ready.len() > keep {
                    log.ready.pop_front();
                }
            }
        }
        Ok(log)
    }

    /// The next complete line; at the end also one that is not complete.
    fn next(&mut self, is_over: bool) -> io::Result<Option<LogLine>> {
        let line = match self.ready.pop_front() {
            Some(line) => Some(line),
            None => self.read_line(is_over)?,
        };
        Ok(line.map(|text| LogLine { log: self.name.clone(), rank: self.rank, text }))
    }

    fn read_line(&mut self, is_over: bool) -> io::Result<Option<String>> {
        while self.read_part()? {}
        let is_complete = self.partial.last() == Some(&b'\n');
        let is_full = self.partial.len() >= LINE_BYTES_MAX;
        if !(is_complete || is_full || is_over && !self.partial.is_empty()) {
            return Ok(None);
        }
        if is_complete {
            self.partial.pop();
        }
        let text = String::from_utf8_lossy(&self.partial).into_owned();
        self.partial.clear();
        Ok(Some(text))
    }

    /// Goes on with the line. Whether there may be more of it: the file ended, and another one follows.
    fn read_part(&mut self) -> io::Result<bool> {
        let room = LINE_BYTES_MAX.saturating_sub(self.partial.len());
        let room = u64::try_from(room).unwrap_or(u64::MAX);
        if let Some(previous) = &mut self.previous {
            let read = io::Read::take(previous, room).read_until(b'\n', &mut self.partial)?;
            let has_ended = read == 0 && room > 0;
            if has_ended {
                self.previous = None;
            }
            return Ok(has_ended || read > 0 && self.line_is_open());
        }
        let read = io::Read::take(&mut self.file, room).read_until(b'\n', &mut self.partial)?;
        self.position += u64::try_from(read).unwrap_or(u64::MAX);
        if read > 0 || room == 0 || self.file.get_ref().metadata()?.len() >= self.position {
            return Ok(false);
        }
        // It was cut; what was in it lies at the same place of the older part now.
        if let Ok(previous) = File::open(previous_log(&self.path)) {
            let mut previous = BufReader::new(previous);
            previous.seek(SeekFrom::Start(self.position))?;
            self.previous = Some(previous);
        }
        self.file.rewind()?;
        self.position = 0;
        Ok(true)
    }

    fn line_is_open(&self) -> bool {
        self.partial.last() != Some(&b'\n') && self.partial.len() < LINE_BYTES_MAX
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn log(text: &str, tail: Option<u64>) -> (tempfile::TempDir, Log) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rank-3.log");
        fs::write(&path, text).unwrap();
        let log = Log::open(path, tail).unwrap();
        (folder, log)
    }

    fn all(log: &mut Log, is_over: bool) -> Vec<String> {
        std::iter::from_fn(|| log.next(is_over).unwrap().map(|line| line.text)).collect()
    }

    #[test]
    fn an_incomplete_line_waits_for_its_end_or_the_jobs() {
        let (_folder, mut log) = log("a\nb", None);
        assert_eq!(log.rank, Some(Rank(3)));
        assert_eq!(all(&mut log, false), ["a"]);
        let mut file = fs::OpenOptions::new().append(true).open(&log.path).unwrap();
        file.write_all(b"c\nd").unwrap();
        assert_eq!(all(&mut log, false), ["bc"]);
        assert_eq!(all(&mut log, true), ["d"]);
    }

    #[test]
    fn the_older_part_of_a_log_comes_first_and_a_line_may_lie_in_both() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rank-3.log");
        fs::write(previous_log(&path), "a\nb").unwrap();
        fs::write(&path, "c\nd\n").unwrap();
        let open = |tail| Log::open(path.clone(), tail).unwrap();
        assert_eq!(all(&mut open(None), true), ["a", "bc", "d"]);
        assert_eq!(all(&mut open(Some(2)), true), ["bc", "d"]);
    }

    #[test]
    fn a_log_that_is_cut_while_it_is_followed_is_read_on_from_its_older_part() {
        let (_folder, mut log) = log("a\nb\nc", None);
        assert_eq!(all(&mut log, false), ["a", "b"]);
        fs::write(previous_log(&log.path), "a\nb\ncd\ne\nf").unwrap();
        let mut file = fs::OpenOptions::new().write(true).truncate(true).open(&log.path).unwrap();
        assert_eq!(all(&mut log, false), ["cd", "e"]);
        file.write_all(b"g\nh\n").unwrap();
        assert_eq!(all(&mut log, false), ["fg", "h"]);
    }

    #[test]
    fn the_tail_is_the_last_lines() {
        let (_folder, mut log) = log("a\nb\nc\nd", Some(2));
        assert_eq!(
            all(&mut log, true),
            ["b", "c", "d"],
            "two whole lines, and the one that is being written"
        );
        let (_folder, mut log) = self::log("a\nb\n", Some(0));
        assert_eq!(all(&mut log, true), Vec::<String>::new());
    }
}
