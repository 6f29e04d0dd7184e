//! Starting a process that lives on without us: the only file of this crate with `unsafe`.

use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::setsid;

/// Starts a process in a session of its own, so that no terminal's end or Ctrl-C reaches it, without any open file but
/// its standard streams: a pipe that it inherited by accident would keep its reader waiting.
///
/// # Errors
/// When it cannot be started.
pub(crate) fn spawn_detached(command: &mut Command) -> io::Result<Child> {
    // Files that are opened from here on are closed on exec anyhow: the standard library opens them so.
    let inherited = open_files()?;
    let between = move || {
        setsid()?;
        inherited.iter().for_each(|file| close_on_exec(*file));
        Ok(())
    };
    #[expect(unsafe_code, reason = "work between fork and exec")]
    // SAFETY: the closure runs in the forked child of a process with threads, so it may only make async-signal-safe
    // calls: it makes system calls without libc state (rustix's raw back end), allocates nothing, takes no lock, and
    // reads only the list that it owns.
    unsafe {
        command.pre_exec(between);
    }
    command.spawn()
}

/// Descriptors above the standard streams.
fn open_files() -> io::Result<Vec<RawFd>> {
    let entries = std::fs::read_dir("/proc/self/fd")?;
    let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    Ok(numbers.filter(|number| *number > 2).collect())
}

fn close_on_exec(file: RawFd) {
    #[expect(unsafe_code, reason = "descriptors that others opened have no owner here")]
    // SAFETY: the number is not -1, and the borrow ends with this call. If it has been closed since it was listed, the
    // kernel answers EBADF; setting a flag can do no harm to a file that was opened under the number since.
    let file = unsafe { BorrowedFd::borrow_raw(file) };
    // Fails when it is closed already, which is as good.
    let _ = fcntl_setfd(file, FdFlags::CLOEXEC);
}
