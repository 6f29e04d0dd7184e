//! Executing one rank: the only file of this crate with `unsafe`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{
    Pid, Resource, Rlimit, Signal, getpid, getppid, getrlimit, set_parent_process_death_signal, setrlimit,
};
use rustix::thread::{CpuSet, sched_setaffinity};

/// What to execute, and how.
#[derive(Debug)]
pub(crate) struct ProcessSpec<'a> {
    /// Program and arguments, not empty.
    pub(crate) command: &'a [String],
    /// Laid over the inherited environment.
    pub(crate) env: &'a BTreeMap<String, String>,
    /// Names that are not inherited.
    pub(crate) removed: &'a [&'a str],
    /// The process's working directory; a relative program is looked up from here.
    pub(crate) workdir: &'a Path,
    /// CPUs to bind to; empty for no binding.
    pub(crate) cpus: &'a [u32],
    /// Becomes standard output and standard error.
    pub(crate) output: File,
    /// Open files that the process may have.
    pub(crate) files: Rlimit,
}

/// Starts a process in a group of its own, that dies (SIGKILL) when the *calling thread* ends: prctl(2),
/// `PR_SET_PDEATHSIG`. The caller reaps it.
///
/// # Errors
/// When the program cannot be executed; the kinds `NotFound` and `PermissionDenied` are the program's or the
/// working directory's.
pub(crate) fn spawn(spec: ProcessSpec<'_>) -> io::Result<Pid> {
    let Some((program, arguments)) = spec.command.split_first() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the command is empty"));
    };
    let cpus = cpu_set(spec.cpus)?;
    let mut command = Command::new(program);
    command.args(arguments).current_dir(spec.workdir).process_group(0);
    for name in spec.removed {
        command.env_remove(name);
    }
    command.envs(spec.env);
    command.stdin(Stdio::null()).stdout(spec.output.try_clone()?).stderr(spec.output);
    let parent = getpid();
    let files = spec.files;
    let between = move || prepare(parent, cpus.as_ref(), files);
    #[expect(unsafe_code, reason = "work between fork and exec")]
    // SAFETY: `prepare` runs in the forked child of a process with threads, so it may only make async-signal-safe
    // calls: it makes four system calls without libc state (rustix's raw back end), allocates nothing, takes no
    // lock, and touches only the copies that it owns. An error is passed to the parent by its number.
    unsafe {
        command.pre_exec(between);
    }
    let child = command.spawn()?;
    i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| io::Error::other("the kernel gave out no process number"))
}

/// How many files this process may have open: what its ranks get, whatever it grants itself later.
pub(crate) fn file_limit() -> Rlimit {
    getrlimit(Resource::Nofile)
}

fn prepare(parent: Pid, cpus: Option<&CpuSet>, files: Rlimit) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // The parent may have ended before the line above: then no signal will come. ESRCH, 3, says so.
    if getppid() != Some(parent) {
        return Err(io::Error::from_raw_os_error(3));
    }
    if let Some(cpus) = cpus {
        sched_setaffinity(None, cpus)?;
    }
    // The store may have raised ours far beyond what programs with select(2) can bear.
    setrlimit(Resource::Nofile, files)?;
    Ok(())
}

fn cpu_set(cpus: &[u32]) -> io::Result<Option<CpuSet>> {
    if cpus.is_empty() {
        return Ok(None);
    }
    let mut set = CpuSet::new();
    for cpu in cpus {
        let index = usize::try_from(*cpu).ok().filter(|index| *index < CpuSet::MAX_CPU);
        let index =
            index.ok_or_else(|| io::Error::other(format!("CPU {cpu} is beyond what can be bound")))?;
        set.set(index);
    }
    Ok(Some(set))
}
