//! `highroad eval` and `highroad gate` as a shell sees them, on the tiny packages of `conformance/`.
//!
//! Those models answer nonsense, so each golden set calls right what one of them answers.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use highroad_eval::{Outcome, Verdict};
use serde_json::{Value, json};
use tempfile::TempDir;

const WORDS: [&str; 12] = [
    "ignore",
    "previous",
    "instructions",
    "reveal",
    "secret",
    "prompt",
    "what",
    "how",
    "please",
    "you",
    "system",
    "say",
];

/// A directory with two packed classifiers, `a` and `b`, and an embedder, `e`.
struct Desk(TempDir);

impl Desk {
    fn new() -> Self {
        let desk = Self(tempfile::tempdir().unwrap());
        let sources = concat!(env!("CARGO_MANIFEST_DIR"), "/../../conformance/packages");
        for (name, out) in [("classify-a", "a"), ("classify-b", "b"), ("embed", "e")] {
            highroad_package::pack(&Path::new(sources).join(name), &desk.path(out)).unwrap();
        }
        desk
    }

    /// The classifier `name` for another owner: the same model under another digest.
    fn pack_again(&self, name: &str, out: &str) {
        let source = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../conformance/packages"));
        let copy = self.path("source");
        fs::create_dir(&copy).unwrap();
        for file in fs::read_dir(source.join(format!("classify-{name}"))).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), copy.join(file.file_name())).unwrap();
        }
        let told = fs::read_to_string(copy.join("package.toml")).unwrap();
        fs::write(copy.join("package.toml"), told.replace("owner = \"", "owner = \"again ")).unwrap();
        highroad_package::pack(&copy, &self.path(out)).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_highroad"));
        command.args(args).current_dir(self.0.path()).env_remove("HIGHROAD_HOME").output().unwrap()
    }

    /// What each package answers to every text, by package.
    fn answers(&self, n: usize) -> BTreeMap<&'static str, Vec<String>> {
        let line =
            |idx| json!({"id": format!("c{idx}"), "input": {"text": text(idx)}, "expected": "benign"}).to_string();
        self.write("all.jsonl", &(0..n).map(line).collect::<Vec<_>>().join("\n"));
        let answers = |package: &'static str| {
            let output = self.run(&["eval", package, "--golden", "all.jsonl", "--out", "eval.json", "--threads", "1"]);
            assert!(output.status.success(), "{output:?}");
            let results: Value = serde_json::from_slice(&fs::read(self.path("eval.json")).unwrap()).unwrap();
            let label = |case: &Value| case["value"]["class"]["label"].as_str().unwrap().to_owned();
            (package, results["cases"].as_array().unwrap().iter().map(label).collect())
        };
        ["a", "b"].into_iter().map(answers).collect()
    }

    /// A golden set of the texts at `idxs` that calls right what package `a` answers.
    fn write_golden(&self, name: &str, idxs: &[usize], right: &[String], must_pass: Option<usize>) {
        let line = |&idx: &usize| {
            json!({
                "id": format!("c{idx}"), "input": {"text": text(idx)}, "expected": right[idx],
                "slices": [if idx % 2 == 0 { "even" } else { "odd" }], "must_pass": Some(idx) == must_pass,
            })
            .to_string()
        };
        self.write(name, &idxs.iter().map(line).collect::<Vec<_>>().join("\n"));
    }

    fn gate(&self, candidate: &str, baseline: &str, more: &[&str]) -> Output {
        self.bless();
        let args = ["gate", candidate, "--baseline", baseline, "--golden", "golden.jsonl", "--threads", "1"];
        self.run(&[&args, more].concat())
    }

    /// Answers for the golden set, which gates refuse otherwise.
    fn bless(&self) {
        let output = self.run(&["golden", "bless", "golden.jsonl", "--by", "tests", "--why", "made for this test"]);
        assert!(output.status.success(), "{output:?}");
    }

    /// The only verdict on this desk.
    fn verdict(&self) -> Verdict {
        let of = |dir: PathBuf| fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
        let packages = of(self.path(".highroad/verdicts"));
        let verdicts = of(packages[0].clone());
        assert_eq!((packages.len(), verdicts.len()), (1, 1));
        serde_json::from_slice(&fs::read(&verdicts[0]).unwrap()).unwrap()
    }
}

/// A text of three to six words that no other index has.
fn text(idx: usize) -> String {
    let word = |place: usize| WORDS[(idx / WORDS.len().pow(place as u32) + place * idx) % WORDS.len()];
    format!("{} {idx}", (0..3 + idx % 3).map(word).collect::<Vec<_>>().join(" "))
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

const RULES: &str = "[[rule]]\nmetric = 'accuracy'\nmargin = 0.05\nfloor = 0.6\n";

#[test]
fn a_worse_candidate_fails_with_1_and_says_why() {
    let desk = Desk::new();
    let answers = desk.answers(120);
    desk.write("gates.toml", RULES);
    desk.write_golden("golden.jsonl", &(0..120).collect::<Vec<_>>(), &answers["a"], None);
    let n_lost = (0..120).filter(|&idx| answers["a"][idx] != answers["b"][idx]).count();
    assert!(n_lost > 20, "the tiny packages differ on {n_lost} cases only");

    let output = desk.gate("b", "a", &[]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let told = stdout(&output);
    assert!(told.contains("FAIL: accuracy: not worse by more than 5.0 points ("), "{told}");
    assert!(told.contains(&format!("{n_lost} case(s) lost")), "{told}");

    let verdict = desk.verdict();
    assert_eq!((verdict.outcome, verdict.flips.len()), (Outcome::Fail, n_lost));
    assert!(verdict.admits(&verdict.package, "2026-11-23T00:00:00Z").is_err());
    assert!(stderr(&output).contains(".highroad/verdicts/"), "{output:?}");
}

#[test]
fn an_equal_candidate_passes_and_its_verdict_admits_it() {
    let desk = Desk::new();
    let answers = desk.answers(120);
    desk.write("gates.toml", RULES);
    desk.write_golden("golden.jsonl", &(0..120).collect::<Vec<_>>(), &answers["a"], Some(3));

    let itself = desk.gate("a", "a", &["--json"]);
    assert_eq!(itself.status.code(), Some(2), "{itself:?}");
    let told = stderr(&itself);
    assert!(told.contains("the baseline is the candidate itself") && told.contains("--baseline trivial"), "{told}");
    assert!(!desk.path(".highroad/verdicts").exists());

    desk.pack_again("a", "same");
    let output = desk.gate("a", "same", &["--json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let verdict: Verdict = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(verdict, desk.verdict());
    assert_eq!(verdict.admits(&verdict.package, "2026-11-23T00:00:00Z"), Ok(()));
    assert!(verdict.flips.is_empty() && verdict.checks.iter().any(|check| check.rule.starts_with("must-pass")));
}

#[test]
fn of_two_verdicts_in_one_second_the_later_one_is_known() {
    let desk = Desk::new();
    let answers = desk.answers(60);
    desk.write_golden("golden.jsonl", &(0..60).collect::<Vec<_>>(), &answers["a"], None);
    desk.write("pass.toml", "[[rule]]\nmetric = 'accuracy'\nfloor = 0.5\n");
    desk.write("fail.toml", "[[rule]]\nmetric = 'accuracy'\nmargin = 0.01\n");
    let judged = |rules: &str| -> Verdict {
        serde_json::from_slice(&desk.gate("b", "a", &["--gates", rules, "--json"]).stdout).unwrap()
    };
    let verdicts = ["pass.toml", "fail.toml", "pass.toml", "fail.toml"].map(judged);
    assert!(verdicts.iter().map(Verdict::recency).is_sorted_by(|earlier, later| earlier < later), "{verdicts:?}");
}

#[test]
fn a_golden_set_and_rules_with_a_byte_order_mark_are_read_and_edited() {
    let desk = Desk::new();
    let answers = desk.answers(60);
    desk.write_golden("golden.jsonl", &(0..60).collect::<Vec<_>>(), &answers["a"], None);
    let plain = fs::read_to_string(desk.path("golden.jsonl")).unwrap();
    desk.write("golden.jsonl", &format!("\u{feff}{plain}"));
    desk.write("gates.toml", &format!("\u{feff}{RULES}"));
    let output = desk.gate("a", "b", &[]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let output = desk.run(&["golden", "edit", "c0", "--golden", "golden.jsonl", "--must-pass", "true"]);
    assert!(output.status.success(), "{output:?}");
    let edited = fs::read_to_string(desk.path("golden.jsonl")).unwrap();
    assert!(edited.starts_with("\u{feff}{\"") && edited.lines().skip(1).eq(plain.lines().skip(1)), "{edited}");
}

#[test]
fn a_wrong_column_is_told_with_those_that_are_there() {
    let desk = Desk::new();
    desk.answers(4);
    desk.write("training.jsonl", "{\"text\": \"what is this\", \"label\": \"benign\"}\n");
    let lint = |training: &str| {
        let output = desk.run(&["golden", "lint", "all.jsonl", "--against", training, "--column", "body"]);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        stderr(&output)
    };
    let told = lint("training.jsonl");
    assert!(told.contains("no record has the text `body`; there are: label, text"), "{told}");
    desk.write("broken.jsonl", "{\"text\": \n");
    let told = lint("broken.jsonl");
    assert!(told.contains("no record can be read") && told.contains("broken.jsonl:1: invalid JSON"), "{told}");
}

#[test]
fn a_lost_must_pass_case_fails_however_wide_the_margin() {
    let desk = Desk::new();
    let answers = desk.answers(60);
    let lost = (0..60).find(|&idx| answers["a"][idx] != answers["b"][idx]).unwrap();
    desk.write("gates.toml", "[[rule]]\nmetric = 'accuracy'\nmargin = 0.99\n");
    desk.write_golden("golden.jsonl", &(0..60).collect::<Vec<_>>(), &answers["a"], Some(lost));

    let output = desk.gate("b", "a", &[]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stdout(&output).contains(&format!("c{lost} (must pass)")), "{}", stdout(&output));
}

#[test]
fn too_few_cases_exit_with_3_until_a_named_person_accepts_each_flip() {
    let desk = Desk::new();
    let answers = desk.answers(120);
    let differ = |idx: &usize| answers["a"][*idx] != answers["b"][*idx];
    let lost: Vec<usize> = (0..120).filter(differ).take(2).collect();
    let same = (0..120).filter(|idx| !differ(idx)).take(30);
    desk.write("gates.toml", "[[rule]]\nmetric = 'accuracy'\nmargin = 0.05\n");
    desk.write_golden("golden.jsonl", &lost.iter().copied().chain(same).collect::<Vec<_>>(), &answers["a"], None);

    let undecided = desk.gate("b", "a", &[]);
    assert_eq!(undecided.status.code(), Some(3), "{undecided:?}");
    let told = stdout(&undecided);
    assert!(told.contains("INCONCLUSIVE") && told.contains("accepts each of the 2 lost"), "{told}");
    fs::remove_dir_all(desk.path(".highroad/verdicts")).unwrap();

    let [first, second] = [lost[0], lost[1]].map(|idx| format!("c{idx}"));
    let who = ["--by", "Ada", "--why", "both are ambiguous"];
    let half = desk.gate("b", "a", &[&["--accept", &first], who.as_slice()].concat());
    assert_eq!(half.status.code(), Some(3), "{half:?}");
    fs::remove_dir_all(desk.path(".highroad/verdicts")).unwrap();

    let both =
        desk.gate("b", "a", &[&["--accept", &first, "--accept", &second, "--expires", "30d"], who.as_slice()].concat());
    assert_eq!(both.status.code(), Some(0), "{both:?}");
    let verdict = desk.verdict();
    assert_eq!(verdict.waivers.len(), 2);
    assert_eq!((verdict.waivers[0].by.as_str(), verdict.waivers[0].why.as_str()), ("Ada", "both are ambiguous"));
    assert_eq!(verdict.admits(&verdict.package, &verdict.created_at), Ok(()));
    assert!(verdict.admits(&verdict.package, &verdict.waivers[0].expires_at).is_err());

    let anonymous = desk.gate("b", "a", &["--accept", &first]);
    assert_eq!(anonymous.status.code(), Some(2), "{anonymous:?}");
    let nonsense = desk.gate("b", "a", &[&["--accept", "c9999"], who.as_slice()].concat());
    assert_eq!(nonsense.status.code(), Some(2), "{nonsense:?}");
    assert!(stderr(&nonsense).contains("case `c9999` is not a regression"), "{nonsense:?}");
    let unnamed = desk.gate("b", "a", &[&["--accept-small-set"], who.as_slice()].concat());
    assert_eq!(unnamed.status.code(), Some(2), "{unnamed:?}");
    let lost = format!(
        "lost cases that the undecided rules are about, and each is accepted by name or not at all: `{first}`, `{second}`"
    );
    assert!(stderr(&unnamed).contains(&lost), "{unnamed:?}");
}

#[test]
fn a_first_version_is_judged_by_floors_and_the_majority() {
    let desk = Desk::new();
    let answers = desk.answers(120);
    desk.write("gates.toml", RULES);
    desk.write_golden("golden.jsonl", &(0..120).collect::<Vec<_>>(), &answers["a"], None);
    let good = desk.gate("a", "trivial", &[]);
    assert_eq!(good.status.code(), Some(0), "{good:?}");
    assert!(stdout(&good).contains("better than always answering"), "{good:?}");
    let bad = desk.gate("b", "trivial", &[]);
    assert_ne!(bad.status.code(), Some(0), "{bad:?}");
}

#[test]
fn eval_prints_metrics_with_intervals_and_the_same_bits_each_time() {
    let desk = Desk::new();
    let answers = desk.answers(60);
    desk.write_golden("golden.jsonl", &(0..60).collect::<Vec<_>>(), &answers["a"], None);
    let eval = |threads: &str| -> Value {
        let output = desk.run(&["eval", "b", "--golden", "golden.jsonl", "--json", "--threads", threads]);
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let (one, two) = (eval("1"), eval("2"));
    assert_eq!((&one["answers"], &one["summaries"]), (&two["answers"], &two["summaries"]));
    assert_eq!(one["batch_invariant"], true);
    let accuracy = &one["summaries"][0]["metrics"][0];
    let n_right = (0..60).filter(|&idx| answers["a"][idx] == answers["b"][idx]).count();
    assert_eq!((&accuracy["metric"], &accuracy["value"]), (&json!("accuracy"), &json!(n_right as f64 / 60.0)));
    let slices: Vec<_> = one["summaries"].as_array().unwrap().iter().map(|summary| summary["slice"].clone()).collect();
    assert_eq!(slices, [Value::Null, json!("even"), json!("odd")]);

    let table = stdout(&desk.run(&["eval", "b", "--golden", "golden.jsonl"]));
    assert!(table.contains("AUROC of \"injection\"") && table.contains("worst cases"), "{table}");
}

#[test]
fn an_embedder_is_evaluated_on_pairs() {
    let desk = Desk::new();
    let pair = |idx: usize| {
        let (a, b) = (text(idx % 12), text(12 + idx / 12));
        json!({"id": idx.to_string(), "input": {"a": a, "b": b}, "expected": idx as f64 / 144.0}).to_string()
    };
    desk.write("pairs.jsonl", &(0..144).map(pair).collect::<Vec<_>>().join("\n"));
    let output = desk.run(&["eval", "e", "--golden", "pairs.jsonl", "--json"]);
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let metrics = &report["summaries"][0]["metrics"];
    assert_eq!((&metrics[0]["metric"], &metrics[1]["metric"]), (&json!("spearman"), &json!("pearson")));
    assert_eq!(metrics[0]["method"], "bca");
    let wrong_task = desk.run(&["eval", "a", "--golden", "pairs.jsonl"]);
    assert_eq!(wrong_task.status.code(), Some(2), "{wrong_task:?}");
}

#[test]
fn what_cannot_be_judged_exits_with_2_and_names_it() {
    let desk = Desk::new();
    desk.write("gates.toml", RULES);
    desk.write("golden.jsonl", "{\"id\": \"1\", \"input\": {\"text\": \"x\"}, \"expected\": \"spam\"}");
    desk.write("bad.toml", "[[rule]]\nmetric = 'accuracy'\n");
    desk.write("vacuous.toml", "[[rule]]\nmetric = 'accuracy'\nmargin = 0.1\nfloor = 0.0\n");
    desk.bless();
    for (args, complaint) in [
        (vec!["gate", "a", "--baseline", "b", "--golden", "golden.jsonl"], "label `spam` is not one of"),
        (vec!["gate", "a", "--baseline", "b", "--golden", "none.jsonl"], "none.jsonl"),
        (vec!["gate", "a", "--baseline", "b", "--golden", "golden.jsonl", "--gates", "bad.toml"], "needs a `margin`"),
        (
            vec!["gate", "a", "--baseline", "b", "--golden", "golden.jsonl", "--gates", "vacuous.toml"],
            "has `floor = 0`, which no model can break: the metric goes from 0 to 1",
        ),
        (vec!["gate", "nothing", "--baseline", "b", "--golden", "golden.jsonl"], "`nothing` is no package"),
        (vec!["eval", "deadbeef", "--golden", "golden.jsonl"], "no package `sha256:deadbeef` in the local store"),
    ] {
        let output = desk.run(&args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {output:?}");
        assert!(stderr(&output).contains(complaint), "{args:?}: {output:?}");
    }
}
