//! What would make the job fail on this host, found before anything runs.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use datapath::plane::Role;

use crate::config::WorkerConfig;
use crate::rendezvous::message::PreflightFault;

/// Where a program is looked up when nobody says: what the C library does (execvp(3)).
const PATH_DEFAULT: &str = "/bin:/usr/bin";

/// Everything that is wrong with the program and the folders, at once. Reads and writes the file system. The program is
/// looked for where the environment it will inherit is known: in another container of a pod it cannot be seen, and shows
/// when it is executed.
#[must_use]
pub(super) fn check(
    config: &WorkerConfig,
    inherited: Option<&BTreeMap<String, String>>,
) -> Vec<PreflightFault> {
    let mut faults = Vec::new();
    // A data server runs no program and saves nothing.
    let inherited = inherited.filter(|_| config.role == Role::Worker);
    match inherited {
        Some(inherited) if config.run.workdir.is_dir() => faults.extend(check_command(config, inherited)),
        Some(_) => faults.push(fault(
            "workdir_missing",
            format!("the working directory {} is not a folder", config.run.workdir.display()),
            "name a folder that exists on every host of the job",
        )),
        None => {}
    }
    // Where the ranks are in another container, the folder of checkpoints is theirs: here it may be read-only.
    let checkpoints = inherited.map(|_| ("checkpoint", &config.checkpoint_folder));
    for (what, folder) in [("log", &config.log_folder)].into_iter().chain(checkpoints) {
        if let Err(error) = fs::create_dir_all(folder).and_then(|()| tempfile_in(folder)) {
            faults.push(fault(
                "folder_not_writable",
                format!("cannot write to the {what} folder {}: {error}", folder.display()),
                "check its owner, its mode and the space left on its disk",
            ));
        }
    }
    faults
}

/// A fault with all its words.
pub(super) fn fault(code: &str, message: String, hint: &str) -> PreflightFault {
    PreflightFault { code: code.to_owned(), message, hint: hint.to_owned() }
}

fn check_command(config: &WorkerConfig, inherited: &BTreeMap<String, String>) -> Option<PreflightFault> {
    let program = config.run.command.first()?;
    let path = config.run.env.get("PATH").or_else(|| inherited.get("PATH"));
    match find_program(program, path.map_or(PATH_DEFAULT, String::as_str), &config.run.workdir) {
        Found::Executable => None,
        Found::NotExecutable(path) => Some(fault(
            "command_not_executable",
            format!("{} is not executable", path.display()),
            "set its mode (chmod +x), or name its interpreter in front: python3 train.py",
        )),
        Found::Missing => Some(fault(
            "command_not_found",
            format!("the program {program} is not there"),
            "a name without a slash is looked up in the job's PATH, one with a slash from its working directory",
        )),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Found {
    Executable,
    NotExecutable(PathBuf),
    Missing,
}

fn find_program(program: &str, path: &str, workdir: &Path) -> Found {
    let folders: Vec<&str> = if program.contains('/') { vec![""] } else { path.split(':').collect() };
    let mut best = Found::Missing;
    for folder in folders {
        let candidate = workdir.join(folder).join(program);
        let Ok(metadata) = fs::metadata(&candidate) else { continue };
        if metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 {
            return Found::Executable;
        }
        if metadata.is_file() {
            best = Found::NotExecutable(candidate);
        }
    }
    best
}

/// Writes a file that has no name, so that nothing is left even if this process dies here; where the file system
/// cannot do that, asks for the permission only.
fn tempfile_in(folder: &Path) -> std::io::Result<()> {
    use rustix::fs::{Access, Mode, OFlags, access, open};
    match open(folder, OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR) {
        Ok(file) => rustix::io::write(&file, b"x").map(|_| ()).map_err(Into::into),
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR) => {
            access(folder, Access::WRITE_OK | Access::EXEC_OK).map_err(Into::into)
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_as_the_kernel_would() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, mode| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        let plain = write("bin/plain", 0o644);
        write("bin/tool", 0o755);
        write("train.sh", 0o755);
        let bin = folder.path().join("bin");
        let find = |program: &str| find_program(program, bin.to_str().unwrap(), folder.path());
        assert_eq!(find("tool"), Found::Executable);
        assert_eq!(find("./train.sh"), Found::Executable);
        assert_eq!(find("train.sh"), Found::Missing, "the working directory is not in PATH");
        assert_eq!(find("plain"), Found::NotExecutable(plain));
        assert_eq!(find("./bin"), Found::Missing, "a folder is no program");
        assert_eq!(find("/nonexistent"), Found::Missing);
    }

    #[test]
    fn folders_are_written_to_and_stay_empty() {
        let folder = tempfile::tempdir().unwrap();
        tempfile_in(folder.path()).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        assert!(tempfile_in(&folder.path().join("missing")).is_err());
    }
}
