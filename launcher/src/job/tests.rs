//! What is said of bad job files, word by word, and what becomes of good ones.

use std::fmt::Write as _;
use std::path::Path;

use proptest::prelude::{Strategy, any, prop, prop_assert, proptest};

use super::faults::{FAULTS_MAX, Faults};
use super::overlay::Override;
use super::spec::{DataSpec, RestartsSpec, ShuffleSpec};
use super::*;

const BASE: &str = include_str!("testdata/base.yaml");

fn origin() -> Origin {
    Origin { name: "job.yaml".to_owned(), folder: PathBuf::from("/jobs/digits") }
}

fn edited(base: &str, edits: &[(&str, &str)]) -> String {
    let mut text = base.to_owned();
    for (old, new) in edits {
        assert!(text.contains(old), "{old:?} is not in the base");
        text = text.replacen(old, new, 1);
    }
    text
}

fn parse_base(edits: &[(&str, &str)]) -> Result<Job, Faults> {
    parse(&edited(BASE, edits), &origin())
}

fn parse_for_cluster(text: &str) -> Result<Job, Faults> {
    let (root, faults) = source::read(text);
    check_for_cluster(&root.unwrap(), faults, "job.yaml")
}

/// Runs the cases of a file in testdata, and compares what is said with what the file says.
fn run_table(file: &str, cases_min: usize, base: &str, parse: impl Fn(&str) -> Result<Job, Faults>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/job/testdata").join(file);
    let table = std::fs::read_to_string(&path).unwrap();
    let (intro, cases) = table.split_once("=== ").unwrap();
    let mut said = intro.to_owned();
    let mut count = 0;
    for case in cases.split("\n=== ").map(|case| case.strip_prefix("=== ").unwrap_or(case)) {
        let (title, rest) = case.split_once('\n').unwrap();
        let (input, _) = rest.split_once("---\n").filter(|_| !rest.starts_with("---")).unwrap_or(("", ""));
        let result = if input.starts_with("@ ") {
            let unescaped = input.replace("\\n", "\n").replace("\\t", "\t").replace("\n@ ", "\u{1}");
            let edits: Vec<_> = unescaped[2..].trim_end_matches('\n').split('\u{1}').collect();
            let edits: Vec<_> = edits.iter().map(|edit| edit.split_once(" => ").unwrap()).collect();
            parse(&edited(base, &edits))
        } else {
            parse(input)
        };
        let faults = result.expect_err(title);
        assert!(!faults.list().is_empty());
        write!(said, "=== {title}\n{input}---\n{faults}\n").unwrap();
        count += 1;
    }
    said.truncate(said.trim_end().len());
    said.push('\n');
    if std::env::var_os("SLIPWAY_BLESS").is_some() {
        std::fs::write(&path, &said).unwrap();
        return;
    }
    assert!(count >= cases_min, "only {count} cases");
    assert_eq!(said, table, "run with SLIPWAY_BLESS=1 if this is meant");
}

#[test]
fn bad_files_are_told_every_fault() {
    run_table("bad.txt", 60, BASE, |text| parse(text, &origin()));
}

#[test]
fn what_no_cluster_can_run_is_told() {
    let base = include_str!("testdata/cluster.yaml");
    let job = parse_for_cluster(base).unwrap();
    assert_eq!(job.run.workdir, Path::new("/app"));
    run_table("cluster.txt", 40, base, parse_for_cluster);
}

/// Without a folder there is nothing that a path could be relative to, and the image's own working folder is used.
#[test]
fn paths_on_a_cluster_begin_in_the_folder_of_the_pod() {
    let base = include_str!("testdata/cluster.yaml");
    let without = edited(base, &[("    workdir: /app\n", "")]);
    assert_eq!(parse_for_cluster(&without).unwrap().run.workdir, Path::new(""));
    let edits = [
        ("    workdir: /app\n", ""),
        ("/data/shards", "shards"),
        ("    check", "    folder: /app\n    check"),
    ];
    let job = parse_for_cluster(&edited(base, &edits)).unwrap();
    assert_eq!(job.run.workdir, Path::new("/app"));
    assert_eq!(job.data.unwrap().source, "/app/shards");
}

#[test]
fn the_least_that_a_job_needs() {
    let job = parse(
        "apiVersion: slipway.dev/v1alpha1\nkind: TrainingJob\nmetadata: {name: x}\n\
         spec: {workers: {count: 2}, run: {command: [a]}}",
        &origin(),
    )
    .unwrap();
    assert_eq!(job.ranks().get(), 2);
    assert_eq!(job.workers.min, job.workers.count);
    assert_eq!(job.run.workdir, Path::new("/jobs/digits"));
    assert_eq!(job.data, None);
    assert_eq!(job.hang_timeout, None);
    assert_eq!((job.restarts.max, job.restarts.window), (3, Duration::from_secs(3600)));
}

#[test]
fn every_field_arrives() {
    let job = parse(include_str!("testdata/full.yaml"), &origin()).unwrap();
    insta::assert_snapshot!("every_field_arrives", serde_json::to_string_pretty(&job).unwrap());
}

#[test]
fn json_is_yaml_also_with_tabs() {
    let yaml = parse_base(&[]).unwrap();
    let (node, _) = source::read(BASE);
    let json = serde_json::to_string_pretty(&node.unwrap().to_json()).unwrap().replace("  ", "\t");
    assert_eq!(parse(&json, &origin()).unwrap(), yaml);
}

#[test]
fn paths_are_relative_to_the_file() {
    let job = parse_base(&[
        ("source: shards", "source: ../data"),
        ("    ranksPer", "    workdir: src\n    ranksPer"),
    ]);
    let job = job.unwrap();
    assert_eq!(job.run.workdir, Path::new("/jobs/digits/src"));
    assert_eq!(job.data.unwrap().source, "/jobs/digits/../data");
    let url = parse_base(&[("source: shards", "source: s3://bucket/data")]).unwrap();
    assert_eq!(url.data.unwrap().source, "s3://bucket/data");
}

#[test]
fn the_defaults_in_the_rules_are_those_of_the_type() {
    assert_eq!(RestartsSpec::default().max, 3);
    assert_eq!(RestartsSpec::default().window.parse().unwrap().as_millis(), 3_600_000);
    assert_eq!(RestartsSpec::default().backoff.parse().unwrap().as_millis(), 1000);
    assert_eq!(ShuffleSpec::default().chunks, None);
}

#[test]
fn the_names_of_types_are_those_of_the_schema() {
    for dtype in DtypeSpec::ALL {
        assert_eq!(serde_json::to_value(dtype).unwrap(), dtype.name());
        assert_eq!(datapath::dataset::Dtype::from(dtype).to_string(), dtype.name());
    }
}

/// Texts that a parser with recursion, or with work beyond the text's length, would choke on.
#[test]
fn hostile_texts_are_refused_in_no_time() {
    let n = source::SOURCE_BYTES_MAX / 8;
    for unit in [
        "[", "{", "{a: ", "- ", "? ", "a: &a ", "- *a\n", "!x ", "\"\\", "'", "|\n", "%", "---\n", "x,",
        "x\n",
    ] {
        let text = unit.repeat(n / unit.len());
        let faults = parse(&text, &origin()).unwrap_err();
        assert!(!faults.list().is_empty());
    }
}

#[test]
fn an_object_without_lines_is_checked_the_same() {
    let (node, _) = source::read(BASE);
    let mut document: TrainingJob = serde_json::from_value(node.unwrap().to_json()).unwrap();
    assert_eq!(validate(&document, &origin()).unwrap(), parse_base(&[]).unwrap());
    document.spec.data = document.spec.data.map(|data| DataSpec { global_batch: 7, ..data });
    let faults = validate(&document, &origin()).unwrap_err();
    assert_eq!(
        faults.to_string(),
        "job.yaml: spec.data.globalBatch: 7 samples a step are fewer than the job's 8 ranks \
         (every rank needs one: at least 8, or use fewer ranks)\n"
    );
}

#[test]
fn flags_lie_over_the_file() {
    let (node, faults) = source::read(BASE);
    let mut node = node.unwrap();
    assert!(faults.is_empty());
    let fields = [
        Override::new("--workers", "spec.workers.count", source::Value::Integer(2)),
        Override::parse("spec.data.globalBatch=3").unwrap(),
        Override::parse("spec.run.env.N=1").unwrap(),
        Override::parse("metadata.labels[\"a.b/c\"]=d").unwrap(),
        Override::parse("spec.placement.exclude=[a, B]").unwrap(),
    ];
    assert_eq!(overlay::apply(&mut node, &fields), []);
    let faults = check(&node, Vec::new(), &origin()).unwrap_err();
    assert_eq!(
        faults.to_string(),
        "--set spec.data.globalBatch: spec.data.globalBatch: 3 samples a step are fewer than the job's 4 ranks \
         (every rank needs one: at least 4, or use fewer ranks)\n\
         --set spec.placement.exclude: spec.placement.exclude[1]: \"B\" is no name of a host\n"
    );
    let last = [fields[0].clone(), Override::parse("metadata.name.x=1").unwrap()];
    assert_eq!(overlay::apply(&mut node, &last).len(), 1);
}

#[test]
fn a_path_that_is_none_is_refused() {
    for argument in
        ["", "=1", "a", "a..b=1", "a.=1", ".a=1", "a[0]=1", "spec.workers.count=", "spec.workers={"]
    {
        assert!(Override::parse(argument).is_err(), "{argument}");
    }
}

#[test]
fn limits_hold() {
    let large = vec![b'#'; source::SOURCE_BYTES_MAX + 1];
    assert!(source::decode(&large).unwrap_err().message.contains("limit"));
    let fault = source::decode(b"a: b\nc: \xff").unwrap_err();
    assert_eq!(fault.place, Place::Line { line: 2, column: 4 });
    let keys: String = (0..500).map(|n| format!("k{n}: 1\n")).collect();
    let faults = parse(&keys, &origin()).unwrap_err();
    assert_eq!(faults.list().len(), FAULTS_MAX);
    assert!(faults.to_string().ends_with("more\n"));
    let keys: String = (0..100_000).map(|n| format!("k{n}: 1\n")).collect();
    assert!(parse(&keys, &origin()).is_err());
}

/// The committed schema is the type's. `launcher schema > deploy/trainingjob.schema.json` writes it.
#[test]
fn the_committed_schema_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/trainingjob.schema.json");
    let current = format!("{:#}\n", *schema::SCHEMA);
    if std::env::var_os("SLIPWAY_BLESS").is_some() {
        std::fs::write(&path, &current).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap_or_default(), current, "run with SLIPWAY_BLESS=1");
}

#[test]
fn every_field_of_the_schema_is_described() {
    fn walk(schema: &serde_json::Value, path: &str) {
        for (name, child) in schema["properties"].as_object().into_iter().flatten() {
            assert!(child["description"].is_string(), "{path}.{name} has no description");
            walk(child, &format!("{path}.{name}"));
        }
    }
    walk(&schema::SCHEMA, "");
}

/// Pieces of job files, so that random text gets past the first character.
fn fragments() -> impl Strategy<Value = String> {
    let words = prop::sample::select(vec![
        "apiVersion: slipway.dev/v1alpha1\n",
        "kind: TrainingJob\n",
        "metadata:\n  name: x\n",
        "spec:\n",
        "  workers:\n",
        "    count: 2\n",
        "  run:\n    command: [a]\n",
        "  data: {globalBatch: 0x10}\n",
        "- ",
        ": ",
        "? ",
        "*a",
        "&a ",
        "!!x ",
        "\"",
        "'",
        "|\n",
        ">-\n",
        "{",
        "}",
        "[",
        "]",
        "\t",
        "\n",
        "---\n",
        "...\n",
        "#",
        "%YAML 1.2\n",
        "~",
        "\\",
        "\u{feff}",
        "\u{0}",
        "é",
        "  ",
        "1e999",
        "-0",
        "0x",
        "<<: ",
    ]);
    prop::collection::vec(words, 0..40).prop_map(|words| words.concat())
}

proptest! {
    #[test]
    fn no_text_panics_the_parser(text in any::<String>()) {
        let _ = parse(&text, &origin());
    }

    #[test]
    fn no_fragments_panic_the_parser(text in fragments()) {
        if let Err(faults) = parse(&text, &origin()) {
            prop_assert!(!faults.list().is_empty());
        }
    }

    #[test]
    fn no_change_of_one_place_panics_or_is_silently_another_job(at in 0..BASE.len(), with in "\\PC{0,3}") {
        let mut text = BASE.to_owned();
        text.replace_range(at..=at, &with);
        match parse(&text, &origin()) {
            Ok(job) => prop_assert!(job.data.is_none_or(|data| u64::from(data.order.global_batch.get()) >= 1)),
            Err(faults) => prop_assert!(!faults.list().is_empty()),
        }
    }

    #[test]
    fn no_override_panics(argument in "[a-z.\\[\\]\"=0-9]{0,20}") {
        if let Ok(field) = Override::parse(&argument) {
            let mut node = overlay::skeleton();
            let faults = overlay::apply(&mut node, &[field]);
            let _ = check(&node, faults, &origin());
        }
    }
}
