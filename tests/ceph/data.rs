//! `launcher data` on a cluster: put, list and verify, what Ceph's own tools think of the result, and what is refused.

use serde_json::Value;
use tests::ceph::Ceph;
use tests::dataset;
use tests::program::{User, root};

use crate::Story;

pub(crate) const STORIES: &[Story] = &[
    ("data_put_is_verified_goes_on_and_keeps_what_is_intact", put),
    ("data_that_ceph_striped_is_read_and_ours_is_read_by_ceph", interchange),
    ("data_refusals_name_their_reason", refusals),
];

/// Shards of 9.6 MB: three objects each.
fn tokens(user: &User) -> String {
    dataset::tokens(user, "tokens", 3, 9_375, 512).to_str().unwrap().to_owned()
}

fn put() {
    let ceph = Ceph::start("put", &[("RGW", "1")]);
    let user = User::new();
    let source = tokens(&user);
    ceph.tool("radosgw-admin", ["user", "list"]).code(0);
    ceph.make_bucket("datasets", None);
    for target in [ceph.url("writer", "team/tokens"), ceph.s3_url("datasets", "team/tokens")] {
        let args = ["data", "put", &source, &target, "--record", "u16:512", "--output", "json"];
        let first = user.run(args).code(0).json();
        assert_eq!(first["copied_bytes"], 3 * 9_600_000, "{first}");
        assert_eq!((first["kept"].as_u64(), first["shards"].as_u64()), (Some(0), Some(3)), "{first}");
        let again = user.run(args).code(0).json();
        assert_eq!((again["kept"].as_u64(), again["copied_bytes"].as_u64()), (Some(3), Some(0)), "{again}");
        user.run(["data", "put", &target, &target]).code(2).says("same_place");

        let here =
            user.run(["data", "ls", &source, "--record", "u16:512", "--output", "json"]).code(0).json();
        let there = user.run(["data", "ls", &target, "--output", "json"]).code(0).json();
        assert_eq!(here, there);
        user.run(["data", "verify", &target]).code(0).prints("28125 samples");
        // Another data set beside it, of which the first is no part.
        user.run(["data", "ls", &target.replace("team/tokens", "team/token")]).code(65).says("no shards");
    }

    // An upload that was cut off: the first shard is whole, the second has objects and no size, the third is not there.
    for object in listed(&ceph, "team/tokens/tokens-002.bin") {
        ceph.tool("rados", ["-p", "shards", "rm", &object]).code(0);
    }
    let half = "team/tokens/tokens-001.bin.0000000000000000";
    ceph.tool("rados", ["-p", "shards", "rmxattr", half, "striper.size"]).code(0);
    let target = ceph.url("writer", "team/tokens");
    user.run(["data", "ls", &target]).code(65).says("tokens-001.bin").says("tokens-002.bin");
    let args = ["data", "put", &source, &target, "--record", "u16:512", "--output", "json"];
    let rest = user.run(args).code(0).json();
    assert_eq!((rest["kept"].as_u64(), rest["copied_bytes"].as_u64()), (Some(1), Some(19_200_000)), "{rest}");
    user.run(["data", "verify", &target]).code(0);
}

fn interchange() {
    let ceph = Ceph::start("interchange", &[]);
    let user = User::new();
    let source = tokens(&user);
    let shard = std::path::Path::new(&source).join("tokens-000.bin");
    let shard = shard.to_str().unwrap();

    // Theirs: striped by libradosstriper, and one plain object; no manifest.
    ceph.tool("rados", ["-p", "shards", "--striper", "put", "theirs/tokens-000.bin", shard]).code(0);
    ceph.tool("rados", ["-p", "shards", "put", "theirs/tokens-001.bin", shard]).code(0);
    let (theirs, record) = (ceph.url("reader", "theirs"), ["--record", "u16:512", "--output", "json"]);
    let found = user.run([&["data", "ls", &theirs][..], &record].concat()).code(0).json();
    let digest = |value: &Value| value["digest"].as_str().unwrap().to_owned();
    let two = user.work().join("two");
    std::fs::create_dir(&two).unwrap();
    for name in ["tokens-000.bin", "tokens-001.bin"] {
        std::fs::copy(shard, two.join(name)).unwrap();
    }
    let here = user.run([&["data", "ls", two.to_str().unwrap()][..], &record].concat()).code(0).json();
    assert_eq!(digest(&found), digest(&here));

    // Ours: read back by their tool, byte for byte.
    let ours = ceph.url("writer", "ours");
    user.run(["data", "put", &source, &ours, "--record", "u16:512"]).code(0);
    let back = user.work().join("back");
    let back = back.to_str().unwrap();
    ceph.tool("rados", ["-p", "shards", "--striper", "get", "ours/tokens-000.bin", back]).code(0);
    assert!(std::fs::read(back).unwrap() == std::fs::read(shard).unwrap());

    // A namespace is a place of its own.
    let apart = ours.replace("rados://shards/", "rados://shards:apart/");
    user.run(["data", "ls", &apart]).code(65).says("no shards");
}

fn refusals() {
    let ceph = Ceph::start("refusals", &[]);
    let user = User::new();
    let digits = root().join("examples/digits/shards");
    let digits = digits.to_str().unwrap();
    let conf = ceph.conf();
    let conf = conf.display();
    user.run(["data", "put", digits, &ceph.url("writer", "digits")]).code(0);

    // A key that may only read its pool.
    let reader = ceph.url("reader", "digits");
    user.run(["data", "verify", &reader]).code(0);
    user.run(["data", "put", digits, &ceph.url("reader", "new")])
        .code(73)
        .says("does not allow it to client.reader");
    user.run(["data", "ls", &reader.replace("//shards/", "//other/")]).code(65).says("does not allow it");

    // No key, a wrong key, no pool, no configuration, no credentials.
    user.run(["data", "ls", &format!("rados://stranger@shards/digits?conf={conf}")])
        .code(69)
        .says("there is no key for client.stranger");
    let wrong = user.work().join("wrong");
    std::fs::create_dir(&wrong).unwrap();
    std::fs::write(wrong.join("userID"), "reader").unwrap();
    // A key of the right form, of nobody.
    let made = ceph.tool("ceph-authtool", ["--gen-print-key"]).code(0).stdout;
    std::fs::write(wrong.join("userKey"), made.trim()).unwrap();
    let options = format!("conf={conf}&credentials={}", wrong.display());
    let refused = user.run(["data", "ls", &format!("rados://shards/digits?{options}")]);
    let refused = refused.code(69).says("does not know client.reader by this key");
    assert!(!refused.stderr.contains(made.trim()), "no key is shown");
    user.run(["data", "ls", &reader.replace("//shards/", "//shard/")])
        .code(69)
        .says("there is no pool shard");
    user.run(["data", "ls", "rados://shards/digits?conf=/nowhere/ceph.conf"])
        .code(69)
        .says("/nowhere/ceph.conf");
    user.run(["data", "ls", "rados://shards/digits?credentials=/nowhere"]).code(69).says("/nowhere");
    user.run(["data", "ls", "rados://shards/digits?key=AQ"]).code(65).says("credentials=FOLDER");
    user.run(["data", "ls", &ceph.url("reader", "gone")]).code(65).says("no shards");
}

/// Names of the pool's objects that begin so.
fn listed(ceph: &Ceph, prefix: &str) -> Vec<String> {
    let all = ceph.tool("rados", ["-p", "shards", "ls"]).code(0).stdout;
    all.lines().filter(|name| name.starts_with(prefix)).map(str::to_owned).collect()
}
