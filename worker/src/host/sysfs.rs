//! A host's facts out of `/sys` and `/proc`, below a root that tests make up.
//!
//! Sources: Documentation/ABI/stable/sysfs-devices-node, Documentation/admin-guide/cputopology.rst, proc(5),
//! Documentation/admin-guide/cgroup-v2.rst. A file that is missing leaves its fact empty: a host that says little
//! is placed badly but can be used.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::rendezvous::message::HostFacts;

/// CPUs of one list at the most: four times what Linux can be built for.
const CPUS_MAX: usize = 32_768;

/// Reads all facts below `root`.
#[must_use]
pub fn read(root: &Path) -> HostFacts {
    HostFacts {
        name: line(root, "proc/sys/kernel/hostname"),
        boot_id: line(root, "proc/sys/kernel/random/boot_id"),
        cpus: cpu_list(&line(root, "sys/devices/system/cpu/online")).unwrap_or_default(),
        numa: numa(root),
        memory_bytes: memory_bytes(root),
    }
}

/// A list as the kernel writes it, `0-3,8,10-11`, in its order. None if it is not one.
#[must_use]
pub fn cpu_list(text: &str) -> Option<Vec<u32>> {
    let mut cpus = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        let room = CPUS_MAX - cpus.len();
        if last < first || usize::try_from(last - first).ok()? >= room {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

/// Ascending numbers as such a list, `0-3,8`: what [`cpu_list`] reads back.
#[must_use]
pub fn ranges(numbers: &[u32]) -> String {
    let mut text = String::new();
    let mut rest = numbers;
    while let Some(&first) = rest.first() {
        let run = (first..).zip(rest).take_while(|(expected, number)| expected == *number).count();
        let last = rest[run - 1];
        if !text.is_empty() {
            text.push(',');
        }
        write!(text, "{first}").ok();
        if run > 1 {
            write!(text, "-{last}").ok();
        }
        rest = &rest[run..];
    }
    text
}

/// Nodes that have CPUs; memory-only nodes have none and are left out.
fn numa(root: &Path) -> BTreeMap<u32, Vec<u32>> {
    let Ok(entries) = fs::read_dir(root.join("sys/devices/system/node")) else { return BTreeMap::new() };
    let node = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry.ok()?;
        let number = entry.file_name().to_str()?.strip_prefix("node")?.parse().ok()?;
        let cpus = cpu_list(&line(&entry.path(), "cpulist"))?;
        (!cpus.is_empty()).then_some((number, cpus))
    };
    entries.filter_map(node).collect()
}

/// The host's memory, or the control group's limit where that is smaller.
fn memory_bytes(root: &Path) -> u64 {
    let meminfo = fs::read_to_string(root.join("proc/meminfo")).unwrap_or_default();
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    let total = kib.unwrap_or(0).saturating_mul(1024);
    // In a container the root of the mounted hierarchy is the container's own group. "max" is no number.
    match line(root, "sys/fs/cgroup/memory.max").parse::<u64>() {
        Ok(limit) if total == 0 || limit < total => limit,
        _ => total,
    }
}

/// CPUs' worth of time that the control group gets; none where that is not limited.
#[must_use]
pub fn cpu_quota(root: &Path) -> Option<f64> {
    let text = line(root, "sys/fs/cgroup/cpu.max");
    let (quota, period) = text.split_once(' ')?;
    let (quota, period): (f64, f64) = (quota.parse().ok()?, period.trim().parse().ok()?);
    (period > 0.0).then_some(quota / period)
}

fn line(root: &Path, path: &str) -> String {
    fs::read_to_string(root.join(path)).map(|text| text.trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn a_two_socket_host() {
        let root = tree(&[
            ("proc/sys/kernel/hostname", "gpu-7\n"),
            ("proc/sys/kernel/random/boot_id", "0e1c5b1e-0000-4000-8000-000000000001\n"),
            ("sys/devices/system/cpu/online", "0-7\n"),
            ("sys/devices/system/node/node0/cpulist", "0-1,4-5\n"),
            ("sys/devices/system/node/node1/cpulist", "2-3,6-7\n"),
            ("sys/devices/system/node/node2/cpulist", "\n"),
            ("sys/devices/system/node/possible", "0-2\n"),
            ("proc/meminfo", "MemTotal:       16384 kB\nMemFree: 1 kB\n"),
            ("sys/fs/cgroup/memory.max", "max\n"),
        ]);
        let facts = read(root.path());
        let expected = HostFacts {
            name: "gpu-7".into(),
            boot_id: "0e1c5b1e-0000-4000-8000-000000000001".into(),
            cpus: (0..8).collect(),
            numa: BTreeMap::from([(0, vec![0, 1, 4, 5]), (1, vec![2, 3, 6, 7])]),
            memory_bytes: 16 << 20,
        };
        assert_eq!(facts, expected);
    }

    #[test]
    fn a_container_has_its_limit_and_a_bare_tree_has_nothing() {
        let meminfo = ("proc/meminfo", "MemTotal: 16384 kB\n");
        let limited = tree(&[meminfo, ("sys/fs/cgroup/memory.max", "1048576\n")]);
        assert_eq!(read(limited.path()).memory_bytes, 1 << 20);
        let generous = tree(&[meminfo, ("sys/fs/cgroup/memory.max", "9223372036854771712\n")]);
        assert_eq!(read(generous.path()).memory_bytes, 16 << 20);
        assert_eq!(read(tree(&[]).path()), HostFacts::default());
    }

    #[test]
    fn a_share_of_time_is_a_number_of_cpus() {
        let quota = |text: &str| cpu_quota(tree(&[("sys/fs/cgroup/cpu.max", text)]).path());
        assert_eq!(quota("150000 100000\n"), Some(1.5));
        for unlimited in ["max 100000\n", "", "1 0"] {
            assert_eq!(quota(unlimited), None, "{unlimited}");
        }
    }

    #[test]
    fn lists_are_read_or_refused() {
        assert_eq!(cpu_list("0-2,7\n"), Some(vec![0, 1, 2, 7]));
        assert_eq!(cpu_list(""), Some(vec![]));
        for wrong in ["a", "3-1", "1-", "0-4294967295", "-1"] {
            assert_eq!(cpu_list(wrong), None, "{wrong}");
        }
    }
}
