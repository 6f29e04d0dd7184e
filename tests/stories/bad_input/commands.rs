//! Flags, programs, hosts and jobs that are not what the command line needs.

use tests::dataset;

use super::{
    CANNOT_CREATE, Case, INVALID_JOB, JOB_FAILED, NOT_FOUND, UNAVAILABLE, USAGE, file, indexed, strings,
};

pub(super) const FLAGS: &[Case] = &[
    Case {
        name: "an unknown verb",
        prepare: |_| strings(&["job", "sumbit"]),
        code: USAGE,
        says: &["submit"],
    },
    Case {
        name: "an unknown flag",
        prepare: |_| strings(&["job", "submit", "--wrokers", "2", "--", "true"]),
        code: USAGE,
        says: &["--workers"],
    },
    Case {
        name: "neither file nor command",
        prepare: |_| strings(&["job", "submit"]),
        code: USAGE,
        says: &["FILE"],
    },
    Case {
        name: "file and command",
        prepare: |user| {
            let mut args = file(user, "workers: {count: 1}\nrun: {command: [\"true\"]}");
            args.extend(strings(&["--", "false"]));
            args
        },
        code: USAGE,
        says: &["FILE"],
    },
    Case {
        name: "workers is a word",
        prepare: |_| strings(&["job", "submit", "--workers", "many", "--", "true"]),
        code: USAGE,
        says: &["many"],
    },
    Case {
        name: "an unknown backend",
        prepare: |_| strings(&["job", "submit", "--on", "mars", "--workers", "1", "--", "true"]),
        code: USAGE,
        says: &["local"],
    },
    Case {
        name: "a bad output format",
        prepare: |_| strings(&["job", "list", "--output", "xml"]),
        code: USAGE,
        says: &["json"],
    },
    Case {
        name: "a bad shuffle",
        prepare: |user| {
            let data = dataset::tokens(user, "d", 1, 10, 4);
            strings(&[
                "data",
                "order",
                data.to_str().unwrap(),
                "--record",
                "u16:4",
                "--workers",
                "1",
                "--global-batch",
                "2",
                "--shuffle",
                "window:zero",
            ])
        },
        code: USAGE,
        says: &["window"],
    },
    Case {
        name: "a bad record",
        prepare: |user| {
            let data = dataset::tokens(user, "d", 1, 10, 4);
            strings(&["data", "index", data.to_str().unwrap(), "--record", "u17:4"])
        },
        code: USAGE,
        says: &["u17"],
    },
    Case {
        name: "no batch size",
        prepare: |user| {
            let data = dataset::tokens(user, "d", 1, 10, 4);
            strings(&["data", "order", data.to_str().unwrap(), "--workers", "1"])
        },
        code: USAGE,
        says: &["--global-batch"],
    },
    Case {
        name: "a state folder that is a file",
        prepare: |user| {
            std::fs::remove_dir(user.state()).unwrap();
            std::fs::write(user.state(), "").unwrap();
            strings(&["job", "submit", "--workers", "1", "--", "true"])
        },
        code: CANNOT_CREATE,
        says: &["state"],
    },
];

pub(super) const PROGRAMS: &[Case] = &[
    Case {
        name: "command not found",
        prepare: |_| strings(&["job", "submit", "--workers", "2", "--", "no-such-program"]),
        code: NOT_FOUND,
        says: &["no-such-program", "PATH"],
    },
    Case {
        name: "not executable",
        prepare: |user| {
            let path = user.write("script", "echo hi");
            strings(&["job", "submit", "--workers", "1", "--", path.to_str().unwrap()])
        },
        code: NOT_FOUND,
        says: &["script", "executable"],
    },
    Case {
        name: "no such workdir",
        prepare: |_| strings(&["job", "submit", "--workers", "1", "--workdir", "absent", "--", "true"]),
        code: NOT_FOUND,
        says: &["absent"],
    },
    Case {
        name: "a trainer without data asks for some",
        prepare: |_| {
            strings(&[
                "job",
                "submit",
                "--workers",
                "1",
                "--max-restarts",
                "0",
                "--",
                "python3",
                "-c",
                "import slipway; slipway.loader()",
            ])
        },
        code: JOB_FAILED,
        says: &["rank 0", "--data"],
    },
    Case {
        name: "more memory than the host has",
        prepare: |user| {
            file(user, "workers: {count: 2}\nrun: {command: [\"true\"]}\nresources: {memory: 500Ti}")
        },
        code: UNAVAILABLE,
        says: &["memory"],
    },
    Case {
        name: "GPUs that are not here",
        prepare: |user| file(user, "workers: {count: 1}\nrun: {command: [\"true\"]}\nresources: {gpus: 64}"),
        code: UNAVAILABLE,
        says: &["GPU"],
    },
    Case {
        name: "RDMA that this build has not",
        prepare: |user| {
            indexed(user);
            strings(&[
                "job",
                "submit",
                "--workers",
                "1",
                "--data",
                "d",
                "--global-batch",
                "2",
                "--transport",
                "require-rdma",
                "--",
                "true",
            ])
        },
        code: UNAVAILABLE,
        says: &["rdma"],
    },
    Case {
        name: "a job for a cluster that names no image",
        prepare: |_| strings(&["job", "submit", "--on", "kubernetes", "--workers", "1", "--", "true"]),
        code: INVALID_JOB,
        says: &["spec.pod.image"],
    },
    Case {
        name: "a cluster that nothing tells of",
        prepare: |_| strings(&["job", "list", "--on", "kubernetes", "--kubeconfig", "absent"]),
        code: NOT_FOUND,
        says: &["absent", "hint:"],
    },
];

pub(super) const JOBS: &[Case] = &[
    Case {
        name: "status of no job",
        prepare: |_| strings(&["job", "status", "nobody"]),
        code: NOT_FOUND,
        says: &["nobody", "job list"],
    },
    Case {
        name: "logs of no job",
        prepare: |_| strings(&["job", "logs", "nobody"]),
        code: NOT_FOUND,
        says: &["nobody"],
    },
    Case {
        name: "cancel of no job",
        prepare: |_| strings(&["job", "cancel", "nobody"]),
        code: NOT_FOUND,
        says: &["nobody"],
    },
    Case {
        name: "resume of no job",
        prepare: |_| strings(&["job", "resume", "nobody"]),
        code: NOT_FOUND,
        says: &["nobody"],
    },
    Case {
        name: "a name that climbs out",
        prepare: |_| strings(&["job", "status", "../../etc"]),
        code: NOT_FOUND,
        says: &["../../etc"],
    },
];
