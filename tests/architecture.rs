//! The architecture as a test: which way imports point, what pure files may not touch, and how files look.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

/// Lines of one file at the most, tests included.
const FILE_LINES_MAX: usize = 600;
/// The first words of every file's first line.
const RUST_FILE_DOC: &str = "//!";

/// Files that decide and encode, and never do I/O or read a clock. A folder's entry holds for all below it.
const PURE: &[&str] = &[
    "datapath/src/dataset.rs",
    "datapath/src/dataset/manifest.rs",
    "datapath/src/dataset/manifest/",
    "datapath/src/dataset/records.rs",
    "datapath/src/dataset/tar.rs",
    "datapath/src/integrity.rs",
    "datapath/src/order.rs",
    "datapath/src/order/",
    "datapath/src/select.rs",
    "datapath/src/session.rs",
    "datapath/src/store/address.rs",
    "datapath/src/store/striping.rs",
    "datapath/src/session/",
    "datapath/src/cache/depth.rs",
    "datapath/src/tier/shelf.rs",
    "datapath/src/transport/rdma/choose.rs",
    "datapath/src/transport/rdma/comeback.rs",
    "datapath/src/transport/rdma/endpoint.rs",
    "datapath/src/transport/rdma/gid.rs",
    "datapath/src/transport/rdma/goodput.rs",
    "datapath/src/transport/rdma/reason.rs",
    "datapath/src/transport/rdma/spread.rs",
    "datapath/src/wire.rs",
    "datapath/src/wire/",
    "datapath/src/loader/plan.rs",
    "launcher/src/backend/kubernetes/controller/decide.rs",
    "launcher/src/backend/kubernetes/controller/devices.rs",
    "launcher/src/backend/kubernetes/controller/job/pauses.rs",
    "launcher/src/backend/kubernetes/controller/ledger.rs",
    "launcher/src/backend/kubernetes/controller/pods.rs",
    "launcher/src/backend/kubernetes/crd.rs",
    "launcher/src/backend/kubernetes/crd/",
    "launcher/src/backend/kubernetes/names.rs",
    "launcher/src/backend/kubernetes/objects.rs",
    "launcher/src/backend/kubernetes/objects/",
    "launcher/src/backend/numbers.rs",
    "launcher/src/doctor.rs",
    "launcher/src/doctor/control.rs",
    "launcher/src/doctor/crd.rs",
    "launcher/src/doctor/devices.rs",
    "launcher/src/doctor/hosts.rs",
    "launcher/src/doctor/numa.rs",
    "launcher/src/doctor/text.rs",
    "launcher/src/job.rs",
    "launcher/src/job/",
    "launcher/src/output/yaml.rs",
    "launcher/src/placement.rs",
    "launcher/src/placement/",
    "launcher/src/rendezvous/group.rs",
    "launcher/src/rendezvous/group/",
    "launcher/src/topology.rs",
    "launcher/src/topology/kubernetes.rs",
    "launcher/src/topology/kubernetes/",
    "launcher/src/topology/levels.rs",
    "worker/src/agent/machine.rs",
    "worker/src/agent/machine/",
    "worker/src/environment.rs",
    "worker/src/evidence.rs",
    "worker/src/evidence/",
    "worker/src/pod/identity.rs",
    "worker/src/pod/link/desk.rs",
    "worker/src/pod/message.rs",
    "worker/src/pod/settings.rs",
    "worker/src/rendezvous/message.rs",
    "worker/src/torch_store/protocol.rs",
    "worker/src/torch_store/protocol/",
    "worker/src/torch_store/table.rs",
    "worker/src/torch_store/table/",
    "worker/src/units.rs",
];

/// What a pure file does not name.
const IMPURE: &[&str] = &[
    "tokio::",
    "quinn::",
    "kube::",
    "rustix::",
    "mio::",
    "std::fs",
    "std::process",
    "std::thread",
    "std::env",
    "std::net::Tcp",
    "std::net::Udp",
    "std::os::",
    "Instant::now",
    "SystemTime::now",
    "std::io::stdin",
];

/// The only files with `unsafe`, besides those in memory/: each touches foreign memory or foreign functions.
const UNSAFE: &[&str] = &[
    "datapath/src/memory.rs",
    "datapath/src/memory/",
    "datapath/src/ring.rs",
    "datapath/src/store/rados/aio.rs",
    "datapath/src/store/rados/aio/",
    "datapath/src/transport/rdma/verbs/library.rs",
    "datapath/src/transport/rdma/verbs/queue.rs",
    "datapath/src/transport/rdma/verbs/queue_pair.rs",
    "worker/src/process.rs",
    "launcher/src/process.rs",
];

#[test]
fn imports_point_from_launcher_to_worker_to_datapath() {
    let mut faults = Vec::new();
    for (path, text) in rust_files() {
        let forbidden: &[&str] = match path.split('/').next().unwrap() {
            "datapath" => &["worker::", "launcher::", "kube::", "k8s_openapi"],
            "worker" => &["launcher::", "kube::", "k8s_openapi"],
            _ => &[],
        };
        for (number, line) in code_lines(&text) {
            for name in forbidden {
                if names(line, name) {
                    faults.push(format!("{path}:{number} names {name}"));
                }
            }
        }
    }
    assert_none("imports point the wrong way", &faults);
}

#[test]
fn pure_files_do_no_io_and_read_no_clock() {
    let files = rust_files();
    for entry in PURE {
        assert!(
            entry.ends_with('/') || files.iter().any(|(path, _)| path == entry),
            "{entry} is listed as pure and is not there"
        );
    }
    let mut faults = Vec::new();
    for (path, text) in &files {
        let is_pure =
            PURE.iter().any(|entry| path == entry || entry.ends_with('/') && path.starts_with(entry));
        if !is_pure || is_test_file(path) {
            continue;
        }
        for (number, line) in code_lines(before_inline_tests(text)) {
            for name in IMPURE {
                if line.contains(name) {
                    faults.push(format!("{path}:{number} names {name}"));
                }
            }
        }
    }
    assert_none("pure files with I/O or a clock", &faults);
}

#[test]
fn every_file_says_what_it_is_for_and_stays_short() {
    let mut faults = Vec::new();
    for (path, text) in rust_files() {
        if !text.starts_with(RUST_FILE_DOC) {
            faults.push(format!("{path}: the first line is no //!"));
        }
        check_length(&path, &text, &mut faults);
    }
    for (path, text) in files_under("", "py") {
        let first = text.lines().find(|line| !line.starts_with('#')).unwrap_or_default();
        if !first.starts_with("\"\"\"") {
            faults.push(format!("{path}: begins with no docstring"));
        }
        check_length(&path, &text, &mut faults);
    }
    assert_none("files", &faults);
}

#[test]
fn unsafe_lives_in_the_named_files() {
    let mut faults = Vec::new();
    for (path, text) in rust_files() {
        let is_named =
            UNSAFE.iter().any(|entry| path == *entry || entry.ends_with('/') && path.starts_with(entry));
        if is_named || path == "tests/architecture.rs" {
            continue;
        }
        let found =
            code_lines(&text).filter(|(_, line)| line.contains("unsafe {") || line.contains("unsafe impl"));
        faults.extend(found.map(|(number, _)| format!("{path}:{number}")));
    }
    assert_none("unsafe outside the files that are named for it", &faults);
}

#[test]
fn nothing_is_left_undone() {
    let mut faults = Vec::new();
    for (path, text) in rust_files() {
        if path == "tests/architecture.rs" {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            for mark in ["todo!(", "unimplemented!(", "TODO", "FIXME", "#[ignore"] {
                if line.contains(mark) {
                    faults.push(format!("{path}:{} {mark}", number + 1));
                }
            }
        }
    }
    assert_none("left undone", &faults);
}

fn check_length(path: &str, text: &str, faults: &mut Vec<String>) {
    let lines = text.lines().count();
    if lines > FILE_LINES_MAX {
        faults.push(format!("{path}: {lines} lines (the limit is {FILE_LINES_MAX}: split it by concept)"));
    }
}

fn assert_none(what: &str, faults: &[String]) {
    assert!(faults.is_empty(), "{what}:\n{}", faults.join("\n"));
}

/// Whether a line names a crate's path, and not merely a word that ends alike.
fn names(line: &str, crate_path: &str) -> bool {
    line.match_indices(crate_path).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|char| char.is_alphanumeric() || char == '_' || char == ':')
    })
}

fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line));
    lines.filter(|(_, line)| !line.trim_start().starts_with("//"))
}

fn before_inline_tests(text: &str) -> &str {
    text.split_once("#[cfg(test)]\nmod ").map_or(text, |(before, _)| before)
}

fn is_test_file(path: &str) -> bool {
    path.ends_with("tests.rs") || path.contains("/tests/") || path.contains("simulation")
}

fn rust_files() -> Vec<(String, String)> {
    files_under("", "rs")
}

fn files_under(folder: &str, extension: &str) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut files = Vec::new();
    collect(&root.join(folder), extension, &mut files);
    files.sort();
    assert!(!files.is_empty(), "no .{extension} file below {}", root.display());
    let texts = files.into_iter().map(|path| {
        let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        (name, std::fs::read_to_string(&path).unwrap())
    });
    texts.collect()
}

fn collect(folder: &Path, extension: &str, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if path.is_dir() {
            if !name.starts_with('.') && name != "target" && name != "__pycache__" && name != "build" {
                collect(&path, extension, files);
            }
        } else if path.extension().is_some_and(|found| found == extension) {
            files.push(path);
        }
    }
}
