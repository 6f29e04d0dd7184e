//! What a job may leave behind: nothing but its folder. Processes are found by the cookie that every one of them
//! carries in its environment, sockets and memory by what the kernel lists.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::program::User;

/// Leftovers are looked for until none is there, no longer than this: an orphan may need a moment to be reaped.
const PATIENCE: Duration = Duration::from_secs(10);

/// Fails the story if anything of this user's jobs is still there.
pub fn assert_none(user: &User) {
    let deadline = now() + PATIENCE;
    loop {
        let found = find(user);
        if found.is_empty() {
            return;
        }
        assert!(now() < deadline, "left behind after {PATIENCE:?}:\n{}", found.join("\n"));
        pause();
    }
}

/// Each leftover, one line.
#[must_use]
pub fn find(user: &User) -> Vec<String> {
    let mut found = processes(user);
    if let Ok(folder) = std::fs::read_dir(user.tmp()) {
        found.extend(folder.flatten().map(|entry| format!("temporary file {}", entry.path().display())));
    }
    found.extend(sockets_with_a_path(user));
    found.extend(unfinished_files(user));
    found
}

/// What workers keep among the logs while they live: hidden files, and folders that nothing was put into.
fn unfinished_files(user: &User) -> Vec<String> {
    let list = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found = Vec::new();
    for job in list(&user.state().join("jobs")) {
        for entry in list(&job.path().join("logs")) {
            let path = entry.path();
            let is_hidden = entry.file_name().to_string_lossy().starts_with('.');
            if is_hidden || path.is_dir() && list(&path).next().is_none() {
                found.push(format!("left among the logs: {}", path.display()));
            }
        }
    }
    found
}

/// Unix sockets that are bound to a path of this user's: ours are abstract, so there is none at any time.
fn sockets_with_a_path(user: &User) -> Vec<String> {
    let home = user.state().display().to_string();
    let listed = std::fs::read_to_string("/proc/net/unix").unwrap();
    listed.lines().filter(|line| line.contains(&home)).map(|line| format!("socket {line}")).collect()
}

/// Processes whose environment names this user's state folder.
#[must_use]
pub fn processes(user: &User) -> Vec<String> {
    let home = format!("SLIPWAY_HOME={}", user.state().display());
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let path = entry.path();
        let Ok(environment) = std::fs::read(path.join("environ")) else { continue };
        if environment.split(|byte| *byte == 0).any(|variable| variable == home.as_bytes())
            && !is_zombie(&path)
        {
            let command = std::fs::read(path.join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            found.push(format!("process {} {command}", entry.file_name().to_string_lossy()));
        }
    }
    found
}

/// Process ids among this user's whose program (its last path component) and first argument begin so.
#[must_use]
pub fn pids(user: &User, command: &str) -> Vec<u32> {
    let lines = processes(user);
    let mut pids: Vec<u32> = Vec::new();
    for line in &lines {
        let mut words = line.splitn(3, ' ').skip(1);
        let (Some(pid), Some(shown)) = (words.next(), words.next()) else { continue };
        let (program, rest) = shown.split_once(' ').unwrap_or((shown, ""));
        let program = program.rsplit('/').next().unwrap_or(program);
        if format!("{program} {rest}").starts_with(command) {
            pids.extend(pid.parse::<u32>());
        }
    }
    pids
}

fn is_zombie(process: &Path) -> bool {
    let stat = std::fs::read_to_string(process.join("stat")).unwrap_or_default();
    // The state is the field after the command's closing parenthesis (proc_pid_stat(5)).
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z') || rest.starts_with('X'))
}

/// The harness's clock.
#[expect(clippy::disallowed_methods, reason = "a harness watches real processes in real time")]
#[must_use]
pub fn now() -> Instant {
    Instant::now()
}

/// Between two looks.
#[expect(clippy::disallowed_methods, reason = "processes of others are polled; there is nothing to wait on")]
pub fn pause() {
    std::thread::sleep(Duration::from_millis(5));
}
