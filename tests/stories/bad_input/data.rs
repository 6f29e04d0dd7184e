//! Data that is missing, malformed, corrupt or does not match its manifest.

use tests::dataset;

use super::{BAD_DATA, Case, JOB_FAILED, NOT_FOUND, flip, indexed, strings, tar};

pub(super) const DATA: &[Case] = &[
    Case {
        name: "no such folder",
        prepare: |_| strings(&["data", "index", "absent"]),
        code: NOT_FOUND,
        says: &["absent"],
    },
    Case {
        name: "a job without its data",
        prepare: |_| {
            strings(&[
                "job",
                "submit",
                "--workers",
                "1",
                "--data",
                "absent",
                "--global-batch",
                "4",
                "--",
                "true",
            ])
        },
        code: NOT_FOUND,
        says: &["absent"],
    },
    Case {
        name: "an unknown scheme",
        prepare: |_| strings(&["data", "ls", "gopher://x/y"]),
        code: BAD_DATA,
        says: &["gopher"],
    },
    Case {
        name: "an empty folder",
        prepare: |user| {
            std::fs::create_dir(user.work().join("d")).unwrap();
            strings(&["data", "index", "d"])
        },
        code: BAD_DATA,
        says: &[".tar"],
    },
    Case {
        name: "records without their layout",
        prepare: |user| {
            dataset::tokens(user, "d", 1, 10, 4);
            strings(&["data", "index", "d"])
        },
        code: BAD_DATA,
        says: &["--record"],
    },
    Case {
        name: "trailing bytes",
        prepare: |user| {
            user.write("d/a.bin", vec![0u8; 8 * 3 + 5]);
            strings(&["data", "index", "d", "--record", "u16:4"])
        },
        code: BAD_DATA,
        says: &["a.bin", "5"],
    },
    Case {
        name: "a truncated tar",
        prepare: |user| {
            let tar = tar(&[("1.img", b"abc"), ("1.cls", b"7")]);
            user.write("d/s.tar", &tar[..700]);
            strings(&["data", "index", "d"])
        },
        code: BAD_DATA,
        says: &["s.tar", "truncated"],
    },
    Case {
        name: "a flipped header",
        prepare: |user| {
            let mut tar = tar(&[("1.img", b"abc"), ("1.cls", b"7")]);
            tar[3] ^= 0x20;
            user.write("d/s.tar", tar);
            strings(&["data", "index", "d"])
        },
        code: BAD_DATA,
        says: &["s.tar", "checksum"],
    },
    Case {
        name: "a field twice",
        prepare: |user| {
            user.write("d/s.tar", tar(&[("1.img", b"abc"), ("1.img", b"abd")]));
            strings(&["data", "index", "d"])
        },
        code: BAD_DATA,
        says: &["s.tar", "img"],
    },
    Case {
        name: "a sample in two places",
        prepare: |user| {
            user.write("d/s.tar", tar(&[("1.img", b"a"), ("2.img", b"b"), ("1.cls", b"c")]));
            strings(&["data", "index", "d"])
        },
        code: BAD_DATA,
        says: &["s.tar"],
    },
    Case {
        name: "no NumPy file",
        prepare: |user| {
            user.write("d/a.npy", "no numpy here, just text that is long enough");
            strings(&["data", "index", "d"])
        },
        code: BAD_DATA,
        says: &["a.npy"],
    },
    Case {
        name: "tar and records mixed",
        prepare: |user| {
            dataset::tokens(user, "d", 1, 10, 4);
            user.write("d/s.tar", tar(&[("1.img", b"a")]));
            strings(&["data", "index", "d", "--record", "u16:4"])
        },
        code: BAD_DATA,
        says: &["d"],
    },
    Case {
        name: "a garbled manifest",
        prepare: |user| {
            user.write("d/s.tar", tar(&[("1.img", b"a")]));
            user.write("d/slipway.manifest", "garbage");
            strings(&["data", "verify", "d"])
        },
        code: BAD_DATA,
        says: &["slipway.manifest"],
    },
    Case {
        name: "a stale manifest",
        prepare: |user| {
            indexed(user);
            user.write("d/t.tar", tar(&[("9.img", b"zz")]));
            strings(&["data", "ls", "d"])
        },
        code: BAD_DATA,
        says: &["t.tar", "data index"],
    },
    Case {
        name: "a corrupt shard under its manifest",
        prepare: |user| {
            indexed(user);
            flip(&user.work().join("d/s.tar"), 512);
            strings(&["data", "verify", "d"])
        },
        code: BAD_DATA,
        says: &["s.tar"],
    },
    Case {
        name: "a batch larger than the data",
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
                "100",
                "--",
                "true",
            ])
        },
        code: BAD_DATA,
        says: &["100"],
    },
    Case {
        name: "a corrupt shard in a running job",
        prepare: |user| {
            indexed(user);
            flip(&user.work().join("d/s.tar"), 512);
            let trainer = tests::program::root().join("tests/trainers/consume.py");
            strings(&[
                "job",
                "submit",
                "--workers",
                "1",
                "--data",
                "d",
                "--global-batch",
                "2",
                "--",
                "python3",
                trainer.to_str().unwrap(),
            ])
        },
        code: JOB_FAILED,
        says: &["s.tar", "data verify"],
    },
];
