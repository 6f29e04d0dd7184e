//! Finding and killing every process of a generation by the cookie in its environment.
//!
//! A descendant may leave its process group and its parent, but it keeps the environment that it was executed
//! with, and that stays readable in `/proc/<pid>/environ` (proc(5)). A process that wipes its environment escapes;
//! the supervisor, which is a child subreaper, catches those as its own descendants.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};
use std::{fs, io};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal};

use crate::units::{Generation, WorkerId};

/// The environment variable that carries the cookie.
pub const COOKIE_VARIABLE: &str = "SLIPWAY_RANK_COOKIE";
/// Rounds of looking and killing: a process that forks faster than it is found needs a second and a third one.
const ROUNDS_MAX: u32 = 50;
/// How long one round waits for what it killed: a process in the kernel's hands (a slow disk) takes its time.
const ROUND_WAIT: Duration = Duration::from_secs(2);

/// The cookie of one worker's ranks of one generation: `<job uid>.<generation>.<worker>`. Every prefix up to a dot
/// is a cookie too, of all that starts with it.
#[must_use]
pub fn cookie(job_uid: &str, generation: Generation, worker: WorkerId) -> String {
    format!("{job_uid}.{generation}.{worker}")
}

/// Living processes whose cookie is `cookie` or starts with `cookie` and a dot, in the order of their numbers,
/// this process excepted. Processes of other users are not seen.
///
/// # Errors
/// When `/proc` cannot be listed.
pub fn find(cookie: &str) -> io::Result<Vec<Pid>> {
    let me = getpid();
    let mut found: Vec<Pid> = processes()?.filter(|pid| *pid != me && carries(*pid, cookie)).collect();
    found.sort_by_key(|pid| pid.as_raw_nonzero());
    Ok(found)
}

/// Kills (SIGKILL) all that [`find`] finds, again and again until there is none, and waits for their end.
/// Returns how many it killed.
///
/// # Errors
/// When `/proc` cannot be read, or processes are left after a bounded number of rounds.
pub fn kill_all(cookie: &str) -> io::Result<usize> {
    kill_all_of(|| find(cookie), |pid| carries(pid, cookie))
}

/// The same for all descendants of this process, whatever their environment says.
pub(crate) fn kill_descendants() -> io::Result<usize> {
    kill_all_of(descendants, |pid| descendants().is_ok_and(|all| all.contains(&pid)))
}

fn kill_all_of(list: impl Fn() -> io::Result<Vec<Pid>>, still: impl Fn(Pid) -> bool) -> io::Result<usize> {
    let mut killed = 0;
    for _ in 0..ROUNDS_MAX {
        let found = list()?;
        if found.is_empty() {
            return Ok(killed);
        }
        // Opened first and looked at again afterwards: a number that was given to another process in between is
        // left alone.
        let opened: Vec<OwnedFd> = found
            .into_iter()
            .filter_map(|pid| Some((pid, pidfd_open(pid, PidfdFlags::empty()).ok()?)))
            .filter(|(pid, _)| still(*pid))
            .map(|(_, process)| process)
            .collect();
        for process in &opened {
            if pidfd_send_signal(process, Signal::KILL).is_ok() {
                killed += 1;
            }
        }
        wait_for_end(&opened, ROUND_WAIT);
    }
    Err(io::Error::other("processes are left after all rounds of SIGKILL"))
}

/// Waits until every one of `processes` has ended (reaped or not) or `limit` has passed.
fn wait_for_end(processes: &[OwnedFd], limit: Duration) {
    #[expect(clippy::disallowed_methods, reason = "a shell: it waits for the kernel")]
    let end = Instant::now() + limit;
    for process in processes {
        #[expect(clippy::disallowed_methods, reason = "a shell: it waits for the kernel")]
        let left = end.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 0, tv_nsec: 0 });
        // A signal that cuts this short costs one more round, nothing else.
        let _ = rustix::event::poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&left));
    }
}

fn processes() -> io::Result<impl Iterator<Item = Pid>> {
    Ok(fs::read_dir("/proc")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(Pid::from_raw))
}

fn carries(pid: Pid, cookie: &str) -> bool {
    let path = format!("/proc/{}/environ", pid.as_raw_nonzero());
    // Gone, a zombie, or another user's: not ours to kill.
    fs::read(path).is_ok_and(|environment| environment_carries(&environment, cookie))
}

fn environment_carries(environment: &[u8], cookie: &str) -> bool {
    environment.split(|byte| *byte == 0).any(|entry| {
        let value = entry
            .strip_prefix(COOKIE_VARIABLE.as_bytes())
            .and_then(|rest| rest.strip_prefix(b"="))
            .and_then(|value| value.strip_prefix(cookie.as_bytes()));
        value.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"."))
    })
}

/// Living processes below this one, its own threads' children included.
fn descendants() -> io::Result<Vec<Pid>> {
    let parents: Vec<(i32, i32)> = processes()?
        .map(|pid| pid.as_raw_nonzero().get())
        .filter_map(|pid| Some((pid, living_parent(Path::new(&format!("/proc/{pid}/stat")))?)))
        .collect();
    let mut family = vec![getpid().as_raw_nonzero().get()];
    let mut next = 0;
    while let Some(parent) = family.get(next).copied() {
        family.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    Ok(family.into_iter().skip(1).filter_map(Pid::from_raw).collect())
}

/// The parent in a `stat` file (proc(5)); none for a zombie. The name in parentheses may hold anything.
fn living_parent(stat: &Path) -> Option<i32> {
    let text = fs::read(stat).ok()?;
    let after_name = text.iter().rposition(|byte| *byte == b')')? + 1;
    let rest = OsStr::from_bytes(&text[after_name..]).to_str()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_cookie_is_matched_whole_or_up_to_a_dot() {
        let environment = b"A=1\0SLIPWAY_RANK_COOKIE=u1.12.3\0B=2\0";
        for matching in ["u1", "u1.12", "u1.12.3"] {
            assert!(environment_carries(environment, matching), "{matching}");
        }
        for other in ["u", "u1.1", "u1.12.30", "u1.12.3.4", "2"] {
            assert!(!environment_carries(environment, other), "{other}");
        }
        assert!(!environment_carries(b"XSLIPWAY_RANK_COOKIE=u1\0", "u1"));
    }

    #[test]
    fn finds_and_kills_what_left_its_group() {
        let mine = format!("sweep-test-{}", std::process::id());
        let mut child = Command::new("setsid")
            .args(["sh", "-c", "sleep 100 & sleep 100"])
            .env(COOKIE_VARIABLE, format!("{mine}.1.0"))
            .spawn()
            .unwrap();
        // The shell and its first sleep exist once `find` sees two; bounded by the test runner's own limit.
        while find(&mine).unwrap().len() < 3 {
            std::thread::yield_now();
        }
        assert!(find(&format!("{mine}.2")).unwrap().is_empty());
        assert!(kill_all(&mine).unwrap() >= 3);
        assert!(find(&mine).unwrap().is_empty());
        assert!(!child.wait().unwrap().success());
        assert_eq!(kill_all(&mine).unwrap(), 0);
    }
}
