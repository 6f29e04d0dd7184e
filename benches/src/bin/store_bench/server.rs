//! The servers' processes and their CPU time.

use std::error::Error;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

/// Torch's server asks the resolver for the name of every client, in its only thread. With a resolver that loses
/// packets that takes seconds for each burst; here names come from files only, which favours torch.
const WITHOUT_NAME_SERVICE: &str = "printf 'hosts: files\\n' >\"$1\" && mount --bind \"$1\" /etc/nsswitch.conf \
     && rm \"$1\" && shift && exec \"$@\"";

/// A server's process. It ends with its standard input.
#[derive(Debug)]
pub(crate) struct Process {
    name: &'static str,
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Process {
    /// This program's own `serve`.
    pub(crate) fn ours() -> Result<Self, Box<dyn Error>> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("serve");
        Self::start("slipway", command)
    }

    /// Torch's server in a mount namespace of its own, which takes root or user namespaces.
    pub(crate) fn torch(python: &str, script: &str) -> Result<Self, Box<dyn Error>> {
        let mut command = Command::new("unshare");
        if !rustix::process::geteuid().is_root() {
            command.arg("--map-root-user");
        }
        let switch = std::env::temp_dir().join(format!("store-bench-nsswitch-{}", std::process::id()));
        command
            .args(["--mount", "sh", "-euc", WITHOUT_NAME_SERVICE, "sh"])
            .arg(switch)
            .args([python, script]);
        Self::start("torch", command)
    }

    fn start(name: &'static str, mut command: Command) -> Result<Self, Box<dyn Error>> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().ok_or("no standard output")?);
        Ok(Self { name, child, input, output })
    }

    /// Which server this is.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// Where its next, fresh store listens.
    pub(crate) fn fresh(&mut self) -> Result<SocketAddr, Box<dyn Error>> {
        let input = self.input.as_mut().ok_or("closed")?;
        writeln!(input)?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        let port = line.trim().parse().map_err(|_| format!("the {} server has ended", self.name))?;
        Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
    }

    /// CPU time of all its threads so far.
    pub(crate) fn cpu(&self) -> Result<Duration, Box<dyn Error>> {
        cpu(Path::new(&format!("/proc/{}/task", self.child.id())))
    }

    /// Of that, the part outside of the kernel (field 14 of `/proc/<pid>/stat`, in ticks).
    pub(crate) fn user_cpu(&self) -> Result<Duration, Box<dyn Error>> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The second field is a name that may have spaces, in parentheses.
        let after = stat.rsplit_once(')').ok_or("no name in stat")?.1;
        let ticks: u64 = after.split_whitespace().nth(11).ok_or("no field 14 in stat")?.parse()?;
        Ok(Duration::from_secs(ticks) / u32::try_from(rustix::param::clock_ticks_per_second())?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.input.take());
        // It ends by itself; a second opinion is not needed for a bench.
        let _ = self.child.wait();
    }
}

/// This process's CPU time so far.
pub(crate) fn own_cpu() -> Result<Duration, Box<dyn Error>> {
    cpu(Path::new("/proc/self/task"))
}

/// Sum of what the scheduler counted for each thread, in nanoseconds (`/proc/<pid>/stat` has it in steps of 10 ms).
fn cpu(tasks: &Path) -> Result<Duration, Box<dyn Error>> {
    let mut sum = 0;
    for task in fs::read_dir(tasks)? {
        // A thread may have ended since.
        let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
        sum += text.split_whitespace().next().map_or(Ok(0), str::parse::<u64>)?;
    }
    Ok(Duration::from_nanos(sum))
}
