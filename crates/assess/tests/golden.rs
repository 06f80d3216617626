//! What a golden set may hold.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use highroad_assess::{Changes, Fact, GoldenInput, GoldenKind, GoldenSet, Lock, LockError, Message};
use highroad_eval::{Expected, Tolerance};
use highroad_package::Digest;
use highroad_task::Input;

fn parse(text: &str) -> Result<GoldenSet, String> {
    GoldenSet::parse(text.as_bytes(), Path::new("golden/slabs.jsonl")).map_err(|error| error.to_string())
}

#[track_caller]
fn refused(text: &str, complaint: &str) {
    let error = parse(text).unwrap_err();
    assert!(error.contains(complaint), "{error}");
}

const A: &str = r#"{"id": "a", "input": {"text": "hi"}, "expected": "benign", "slices": ["short"], "must_pass": true}"#;
const B: &str = r#"{"id": "b", "input": {"tokens": [101, 102]}, "expected": "injection"}"#;
const PAIR: &str = r#"{"id": "p", "input": {"a": "x", "b": "y"}, "expected": 0.73}"#;

const RANKING: &str =
    r#"{"id": "r", "input": {"query": "x", "documents": ["y", "z"]}, "expected": [0, 2], "must_pass": true}"#;

const NUMBER: &str = r#"{"id": "n", "input": {"text": "two rooms, no lift"}, "expected": 1250.5}"#;
const TRIPLET: &str = r#"{"id": "t", "input": {"anchor": "x", "positive": "y", "negative": "z"}, "must_pass": true}"#;
const PROMPT: &str = r#"{"id": "w", "input": {"prompt": "Capital of France?"}, "expected": ["Paris", "paris"]}"#;

#[test]
fn a_prompt_may_leave_what_is_right_to_a_program_or_a_judge() {
    for left_out in ["", r#", "expected": null"#] {
        let set = parse(&PROMPT.replace(r#", "expected": ["Paris", "paris"]"#, left_out)).unwrap();
        assert_eq!((set.kind(), &set.cases[0].case.expected), (GoldenKind::Texts, &Expected::References(Vec::new())));
    }
}

#[test]
fn a_triplet_says_by_itself_what_is_right() {
    let second = TRIPLET.replace("\"t\"", "\"u\"").replace("\"y\"", "\"w\"");
    let set = parse(&format!("{TRIPLET}\n{second}")).unwrap();
    assert_eq!(set.kind(), GoldenKind::Triplets);
    assert_eq!(*set.input(0).unwrap(), GoldenInput::Triplet(["x", "y", "z"].map(str::to_owned)));
    assert_eq!(set.cases[0].case.expected, Expected::Implied);
    // One anchor is one source, however many triplets it has.
    assert_eq!((set.cases[0].case.sources, set.cases[1].case.sources), ([0, 0], [0, 0]));
    refused(&TRIPLET.replace("\"must_pass\": true", "\"expected\": \"y\""), "a triplet needs no `expected`");
}

const TENSORS: &str = r#"{"id": "x", "input": {"tensors": {"x": [[1, 2.5]], "on": true}}, "expected": {"tensors": {"y": [[3]], "z": 4}}}"#;

#[test]
fn tensors_expect_tensors() {
    let set = parse(TENSORS).unwrap();
    assert_eq!((set.kind(), set.kind().in_words()), (GoldenKind::Tensors, "tensors"));
    let Expected::Tensors { tensors, .. } = &set.cases[0].case.expected else { panic!("{:?}", set.cases[0]) };
    assert_eq!((tensors["y"].shape(), tensors["y"].values(), tensors["z"].shape()), (&[1, 1][..], &[3.0][..], &[][..]));
    let GoldenInput::One(Input::Tensors(arrays)) = &*set.input(0).unwrap() else { panic!("no tensors") };
    assert_eq!((arrays["x"].shape(), arrays["on"].values()), (&[1, 2][..], &[1.0][..]));
    let with = |from: &str, to: &str| TENSORS.replace(from, to);
    refused(
        &with("[[1, 2.5]]", "[[1], [2, 3]]"),
        "golden/slabs.jsonl:1: input tensor `x`: lists side by side have one length",
    );
    refused(&with("[[3]]", "[null]"), "expected tensor `y`: `null` is no number");
    refused(
        &with(r#""z": 4}"#, r#""z": 4}, "toleranse": {"atol": 1}"#),
        "unknown field `toleranse`, expected one of `tensors`, `tolerance`",
    );
    refused(&with("[[3]]", "[[]]"), "expected tensor `y` has no number");
    refused(&with(r#"{"x": [[1, 2.5]], "on": true}"#, "{}"), "`tensors` names no input tensor");
    refused(&with(r#"{"tensors": {"y": [[3]], "z": 4}}"#, "4"), r#"tensors expect {"tensors": {…}}"#);
    refused(&with(r#""id": "x""#, r#""id": "x", "must_pass": true"#), "give its tensors a `tolerance`");
    let many: Vec<String> = (0..65).map(|n| format!(r#""t{n}": 1"#)).collect();
    refused(&with(r#""x": [[1, 2.5]], "on": true"#, &many.join(", ")), "65 tensors are more than 64");
    let other = with(r#""id": "x""#, r#""id": "y""#).replace(r#", "z": 4"#, "");
    refused(&format!("{TENSORS}\n{other}"), "all cases expect the same tensors: `y`, `z` before, `y` here");
    refused(&format!("{TENSORS}\n{NUMBER}"), "tensors before, numbers here");
}

#[test]
fn tensors_are_right_within_a_tolerance() {
    let with = |more: &str| TENSORS.replace(r#""z": 4}}"#, &format!(r#""z": 4}}, {more}}}"#));
    let read = |more: &str| match parse(&with(more)).unwrap().cases.remove(0).case.expected {
        Expected::Tensors { tolerances, .. } => tolerances,
        other => panic!("{other:?}"),
    };
    let tolerance = |atol, rtol| Tolerance::new(atol, rtol).unwrap();
    let all = read(r#""tolerance": {"atol": 0.5, "rtol": 0.01}"#);
    assert_eq!((all["y"], all["z"]), (tolerance(0.5, 0.01), tolerance(0.5, 0.01)));
    let one = read(r#""tolerance": {"atol": 1}, "tolerances": {"z": {"rtol": 0}}"#);
    assert_eq!((one["y"], one["z"]), (tolerance(1.0, 0.0), tolerance(0.0, 0.0)));
    assert_eq!(read(r#""tolerances": {"z": {"rtol": 0.1}}"#).into_keys().collect::<Vec<_>>(), ["z"]);
    let must_pass = with(r#""tolerance": {"atol": 1}"#).replace(r#""id": "x""#, r#""id": "x", "must_pass": true"#);
    assert!(parse(&must_pass).unwrap().cases[0].case.must_pass);
    for (wrong, problem) in [
        (r#""tolerance": {}"#, "tolerance of `y`: it has neither `atol` nor `rtol`"),
        (r#""tolerance": {"atol": -1}"#, "tolerance of `y`: `atol` -1 and `rtol` 0 must be 0 or more"),
        (r#""tolerances": {"z": {"atol": 1, "eps": 2}}"#, "tolerance of `z`: unknown field `eps`"),
        (r#""tolerances": {"q": {"atol": 1}}"#, "`tolerances` names `q`, which is not expected"),
        (r#""tolerence": {"atol": 1}"#, "\"tolerance\" or \"tolerances\""),
    ] {
        refused(&with(wrong), problem);
    }
}

#[test]
fn a_text_that_expects_a_number_asks_for_a_regression() {
    let set = parse(NUMBER).unwrap();
    assert_eq!((set.kind(), set.cases[0].case.expected.clone()), (GoldenKind::Numbers, Expected::Number(1250.5)));
    assert!(set.labels().is_empty());
}

#[test]
fn a_prompt_has_one_reference_or_several() {
    let set = parse(PROMPT).unwrap();
    let message = Message { role: "user".to_owned(), content: "Capital of France?".to_owned() };
    assert_eq!(
        (set.kind(), set.input(0).unwrap().into_owned()),
        (GoldenKind::Texts, GoldenInput::Prompt(vec![message]))
    );
    let references = ["Paris", "paris"].map(str::to_owned).to_vec();
    assert_eq!(set.cases[0].case.expected, Expected::References(references));
    let one = parse(&PROMPT.replace(r#"["Paris", "paris"]"#, "\"Paris\"")).unwrap();
    assert_eq!(one.cases[0].case.expected, Expected::References(vec!["Paris".to_owned()]));
    assert!(one.labels().is_empty());
    for wrong in ["[]", "3", "[1, 2]"] {
        refused(&PROMPT.replace(r#"["Paris", "paris"]"#, wrong), "a prompt expects a text, a list of texts or nothing");
    }
}

#[test]
fn a_conversation_ends_with_its_user() {
    let conversation =
        |messages: &str| PROMPT.replace(r#""prompt": "Capital of France?""#, &format!("\"messages\": {messages}"));
    let set = parse(&conversation(
        r#"[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Capital of France?"}]"#,
    ));
    assert!(matches!(&*set.unwrap().input(0).unwrap(), GoldenInput::Prompt(messages) if messages.len() == 2));
    refused(&conversation("[]"), "`messages` must end with one of the user");
    refused(&conversation(r#"[{"role": "assistant", "content": "Hm?"}]"#), "`messages` must end with one of the user");
    refused(
        &conversation(r#"[{"role": "tool", "content": "7"}]"#),
        "role \"tool\" is not one of: system, user, assistant",
    );
}

#[test]
fn a_ranking_has_a_relevance_for_each_document() {
    let set = parse(RANKING).unwrap();
    let documents = ["y", "z"].map(str::to_owned).to_vec();
    assert_eq!(*set.input(0).unwrap(), GoldenInput::Ranking { query: "x".to_owned(), documents });
    assert_eq!(set.cases[0].case.expected, Expected::Relevances(vec![0, 2]));
    refused(&RANKING.replace("[0, 2]", "[0]"), "2 documents need 2 relevances, and there are 1");
    refused(&RANKING.replace("[0, 2]", "1"), "a query expects a list: the relevance of each document");
    refused(&RANKING.replace("[0, 2]", "[0, -2]"), "golden/slabs.jsonl:1: ");
    refused(&RANKING.replace("[0, 2]", "[0, 0]"), "`must_pass` needs a relevant document");
    refused(&RANKING.replace(r#"["y", "z"]"#, "[]").replace("[0, 2]", "[]"), "a query needs at least one document");
    let many = format!("[{}]", vec![r#""d""#; 1001].join(", "));
    refused(&RANKING.replace(r#"["y", "z"]"#, &many), "1001 documents are more than 1000");
}

#[test]
fn a_case_has_an_input_an_expected_label_slices_and_a_pin() {
    let text = format!("{A}\n{B}\n");
    let set = parse(&text).unwrap();
    assert_eq!((set.name.as_str(), set.digest), ("slabs", Digest::of(text.as_bytes())));
    assert_eq!(*set.input(0).unwrap(), GoldenInput::One(Input::Text("hi".to_owned())));
    assert_eq!(*set.input(1).unwrap(), GoldenInput::One(Input::Tokens(vec![101, 102])));
    let first = &set.cases[0].case;
    assert_eq!((first.expected.clone(), first.must_pass), (Expected::Label("benign".to_owned()), true));
    assert_eq!(set.labels().into_iter().collect::<Vec<_>>(), ["benign", "injection"]);
}

#[test]
fn pairs_that_share_a_text_share_a_source() {
    let second = r#"{"id": "q", "input": {"a": "y", "b": "z"}, "expected": 0.1}"#;
    let set = parse(&format!("{PAIR}\n{second}")).unwrap();
    assert_eq!((set.cases[0].case.sources, set.cases[1].case.sources), ([0, 1], [1, 2]));
}

#[test]
fn a_byte_more_is_another_golden_set() {
    assert_ne!(parse(A).unwrap().digest, parse(&format!("{A}\n")).unwrap().digest);
}

#[test]
fn what_is_wrong_is_told_with_its_line() {
    refused(&format!("{A}\n{A}"), "golden/slabs.jsonl:2: id `a` is already taken by line 1");
    refused(
        &format!("{A}\n{PAIR}"),
        "golden/slabs.jsonl:2: a golden set asks for one kind of answer: labels before, similarities of pairs here",
    );
    refused(&format!("{A}\n\n{{"), "golden/slabs.jsonl:3: ");
    refused(&A.replace("must_pass", "mustpass"), "unknown field `mustpass`");
    refused(&A.replace("text", "txt"), r#"expected {"text": …}"#);
    refused(&A.replace("\"benign\"", "[0, 1]"), "a text or an image expects a label, a list of labels or a number");
    refused(&A.replace("\"benign\"", "0.5"), "`must_pass` needs a case that can be right");
    refused(
        &A.replace("\"expected\": \"benign\", ", ""),
        "a text or an image expects a label, a list of labels or a number",
    );
    refused(&format!("{B}\n{NUMBER}"), "golden/slabs.jsonl:2: a golden set asks for one kind of answer");
    refused(&PAIR.replace("0.73", "[1, 0]"), "a pair expects a number, or a label");
    refused(&PAIR.replace("0.73", "0.73, \"must_pass\": true"), "`must_pass` needs a case that can be right");
    refused(&A.replace("short", "*"), "a slice cannot be called `*`");
    refused(&A.replace("\"a\"", "\" \""), "must be 1 to 200 printable characters");
    refused(&A.replace("\"a\"", "\"\\u001b[2J\""), "must be 1 to 200 printable characters");
    refused("\n\n", "has no cases");
}

fn blessed(text: &str) -> Lock {
    Lock::bless(&parse(text).unwrap(), "mira", "2026-01-01T00:00:00Z", "read all of them", None)
}

#[test]
fn how_a_case_is_spaced_and_ordered_is_not_blessed_what_it_says_is() {
    let lock = blessed(&format!("{A}\n{B}"));
    let respaced =
        A.replace(": ", ":   ").replace(r#""id":   "a", "#, "").replace("{\"input\"", "{\"id\": \"a\", \"input\"");
    assert_ne!(respaced, A);
    assert!(lock.changes(&parse(&format!("{B}\n\n{respaced}")).unwrap()).is_empty());
    for edit in [
        A.replace("hi", "hi "),
        A.replace("benign", "injection"),
        A.replace("short", "shorter"),
        A.replace("true", "false"),
        A.replace("}, ", r#"}, "source": "mail 7", "#),
        A.replace("}, ", r#"}, "tags": ["en"], "#),
        A.replace("}, ", r#"}, "provenance": {"licence": "MIT"}, "#),
    ] {
        let changes = lock.changes(&parse(&format!("{edit}\n{B}")).unwrap());
        assert_eq!(changes, Changes { edited: vec!["a".to_owned()], ..Changes::default() }, "{edit}");
    }
}

#[test]
fn a_set_is_refused_until_every_case_is_blessed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("test.jsonl");
    let set = parse(&format!("{A}\n{B}")).unwrap();
    assert!(matches!(set.check_blessed(&path), Err(LockError::Never { .. })));
    blessed(&format!("{A}\n{B}")).write(&path).unwrap();
    assert_eq!(set.check_blessed(&path).unwrap().by, "mira");
    let other = parse(&format!("{}\n{}", A.replace("hi", "ho"), B.replace("\"b\"", "\"c\""))).unwrap();
    let error = other.check_blessed(&path).unwrap_err().to_string();
    assert!(error.ends_with("is not what mira blessed: 1 missing (`b`), 1 added (`c`), 1 edited (`a`)"), "{error}");
}

#[test]
fn a_lock_changed_by_hand_or_by_a_merge_is_no_blessing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("test.jsonl");
    blessed(&format!("{A}\n{B}")).write(&path).unwrap();
    let lock = std::fs::read_to_string(Lock::path_of(&path)).unwrap();
    let digest = parse(A).unwrap().cases[0].digest.to_string();
    let error = |text: &str| {
        std::fs::write(Lock::path_of(&path), text).unwrap();
        Lock::read(&path).unwrap_err()
    };
    assert!(matches!(error(&lock.replace(&digest, &Digest::of(b"x").to_string())), LockError::Inconsistent(_)));
    assert!(matches!(error(&format!("<<<<<<< ours\n{lock}")), LockError::Syntax { .. }));
    assert!(matches!(error(&lock.replace("lock = 1", "lock = 2")), LockError::Version { found: 2, .. }));
}

#[test]
fn cases_of_one_source_are_drawn_together() {
    let of = |id: &str, source: &str| A.replace("\"a\"", &format!("\"{id}\"")).replace("}, ", &format!("}}, {source}"));
    let set = parse(&[of("1", r#""source": "s", "#), of("2", ""), of("3", r#""source": "s", "#)].join("\n")).unwrap();
    let sources: Vec<[usize; 2]> = set.cases.iter().map(|case| case.case.sources).collect();
    assert_eq!(sources, [[0, 0], [1, 1], [0, 0]]);
    refused(&PAIR.replace("}, ", r#"}, "source": "s", "#), "a pair takes no `source`");
}

#[test]
fn provenance_and_tags_are_few_and_short() {
    let with = |more: &str| A.replace("}, ", &format!("}}, {more}, "));
    let set = parse(&with(r#""provenance": {"by": "mira", "year": 2026, "checked": true}, "tags": ["en"]"#)).unwrap();
    assert_eq!(set.cases[0].provenance["by"], Fact::Text("mira".to_owned()));
    assert_eq!(set.cases[0].provenance["year"], Fact::Whole(2026));
    refused(&with(r#""provenance": {"by": {"name": "mira"}}"#), "expected a text, a number or a yes or no");
    refused(&with(&format!(r#""provenance": {{"by": "{}"}}"#, "x".repeat(2001))), "provenance `by` is over 2000");
    refused(&with(r#""tags": ["en", "en"]"#), "a tag is given twice");
    let many: Vec<String> = (0..33).map(|n| format!("\"{n}\"")).collect();
    refused(&with(&format!(r#""tags": [{}]"#, many.join(", "))), "33 tags are more than 32");
}

#[test]
fn a_case_may_have_a_weight_and_says_the_same_without_one() {
    let weighed = |weight: &str| parse(&A.replacen('{', &format!(r#"{{"weight": {weight}, "#), 1));
    assert_eq!((weighed("2.5").unwrap().cases[0].case.weight, parse(A).unwrap().cases[0].case.weight), (2.5, 1.0));
    assert_ne!(weighed("2.5").unwrap().cases[0].digest, parse(A).unwrap().cases[0].digest);
    for usual in ["null", "1", "1.0"] {
        assert_eq!(weighed(usual).unwrap().cases[0].digest, parse(A).unwrap().cases[0].digest);
    }
    for wrong in ["0", "-1", "1e7", "1e-7"] {
        let error = weighed(wrong).unwrap_err();
        assert!(error.contains("must be 0.000001 to 1000000"), "{error}");
    }
    assert!(weighed("\"2\"").unwrap_err().contains("invalid type"));
}
