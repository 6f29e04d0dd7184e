//! Job files that are refused.

use tests::dataset;

use super::{Case, INVALID_JOB, NOT_FOUND, file, strings, submit};

pub(super) const JOB_FILES: &[Case] = &[
    Case {
        name: "no such file",
        prepare: |_| strings(&["job", "submit", "absent.yaml"]),
        code: NOT_FOUND,
        says: &["absent.yaml"],
    },
    Case {
        name: "a folder",
        prepare: |user| strings(&["job", "submit", user.work().to_str().unwrap()]),
        code: NOT_FOUND,
        says: &["folder"],
    },
    Case { name: "empty", prepare: |user| submit(user, ""), code: INVALID_JOB, says: &["job.yaml:1"] },
    Case {
        name: "no YAML",
        prepare: |user| submit(user, "a: [1, 2\nb: }"),
        code: INVALID_JOB,
        says: &["job.yaml:2"],
    },
    Case {
        name: "a list",
        prepare: |user| submit(user, "- 1\n- 2\n"),
        code: INVALID_JOB,
        says: &["job.yaml:1"],
    },
    Case {
        name: "binary",
        prepare: |user| {
            let path = user.work().join("job.yaml");
            std::fs::write(&path, [0u8, 255, 254, 1]).unwrap();
            strings(&["job", "submit", path.to_str().unwrap()])
        },
        code: INVALID_JOB,
        says: &["UTF-8"],
    },
    Case {
        name: "another kind",
        prepare: |user| submit(user, "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {}\n"),
        code: INVALID_JOB,
        says: &["apiVersion", "kind", "TrainingJob"],
    },
    Case {
        name: "unknown key",
        prepare: |user| file(user, "workers: {count: 2}\nrun: {comand: [true]}"),
        code: INVALID_JOB,
        says: &["spec.run.comand", "command", "job.yaml:6"],
    },
    Case {
        name: "missing command",
        prepare: |user| file(user, "workers: {count: 2}\nrun: {}"),
        code: INVALID_JOB,
        says: &["spec.run", "command"],
    },
    Case {
        name: "empty command",
        prepare: |user| file(user, "workers: {count: 2}\nrun: {command: []}"),
        code: INVALID_JOB,
        says: &["spec.run.command"],
    },
    Case {
        name: "a word for a number",
        prepare: |user| file(user, "workers: {count: two}\nrun: {command: [\"true\"]}"),
        code: INVALID_JOB,
        says: &["spec.workers.count", "two"],
    },
    Case {
        name: "no worker",
        prepare: |user| file(user, "workers: {count: 0}\nrun: {command: [\"true\"]}"),
        code: INVALID_JOB,
        says: &["spec.workers.count"],
    },
    Case {
        name: "min above count",
        prepare: |user| file(user, "workers: {count: 2, min: 3}\nrun: {command: [\"true\"]}"),
        code: INVALID_JOB,
        says: &["spec.workers.min"],
    },
    Case {
        name: "a bad unit",
        prepare: |user| {
            file(user, "workers: {count: 1}\nrun: {command: [\"true\"]}\nresources: {memory: 8Gx}")
        },
        code: INVALID_JOB,
        says: &["spec.resources.memory", "8Gx"],
    },
    Case {
        name: "a bad duration",
        prepare: |user| file(user, "workers: {count: 1}\nrun: {command: [\"true\"]}\nhang: {timeout: fast}"),
        code: INVALID_JOB,
        says: &["spec.hang.timeout", "fast"],
    },
    Case {
        name: "a duplicate key",
        prepare: |user| file(user, "workers: {count: 1}\nworkers: {count: 2}\nrun: {command: [\"true\"]}"),
        code: INVALID_JOB,
        says: &["workers"],
    },
    Case {
        name: "a batch smaller than the world",
        prepare: |user| {
            dataset::tokens(user, "d", 1, 10, 4);
            file(
                user,
                "workers: {count: 8}\nrun: {command: [\"true\"]}\ndata: {source: d, globalBatch: 4, record: {dtype: u16, items: 4}}",
            )
        },
        code: INVALID_JOB,
        says: &["spec.data.globalBatch", "8"],
    },
    Case {
        name: "no epoch",
        prepare: |user| {
            dataset::tokens(user, "d", 1, 10, 4);
            file(
                user,
                "workers: {count: 1}\nrun: {command: [\"true\"]}\ndata: {source: d, globalBatch: 4, epochs: 0}",
            )
        },
        code: INVALID_JOB,
        says: &["spec.data.epochs"],
    },
    Case {
        name: "an unknown transport",
        prepare: |user| {
            file(
                user,
                "workers: {count: 1}\nrun: {command: [\"true\"]}\ndata: {source: d, globalBatch: 4, transport: tcp}",
            )
        },
        code: INVALID_JOB,
        says: &["spec.data.transport", "quic"],
    },
    Case {
        name: "a bad name",
        prepare: |user| {
            submit(
                user,
                "apiVersion: slipway.dev/v1alpha1\nkind: TrainingJob\nmetadata: {name: Über Job}\nspec: {workers: {count: 1}, run: {command: [\"true\"]}}\n",
            )
        },
        code: INVALID_JOB,
        says: &["metadata.name"],
    },
    Case {
        name: "a variable that is ours",
        prepare: |user| {
            file(user, "workers: {count: 1}\nrun: {command: [\"true\"], env: {MASTER_PORT: \"1234\"}}")
        },
        code: INVALID_JOB,
        says: &["MASTER_PORT"],
    },
    Case {
        name: "two documents",
        prepare: |user| submit(user, "a: 1\n---\nb: 2\n"),
        code: INVALID_JOB,
        says: &["document"],
    },
    Case {
        name: "GPU memory without GPUs",
        prepare: |user| {
            dataset::tokens(user, "d", 1, 10, 4);
            file(
                user,
                "workers: {count: 1}\nrun: {command: [\"true\"]}\ndata: {source: d, globalBatch: 4, memory: gpu}",
            )
        },
        code: INVALID_JOB,
        says: &["spec.data.memory"],
    },
];
