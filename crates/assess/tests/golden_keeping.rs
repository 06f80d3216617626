//! Slices by expression, findings, coverage, comparison and changes of golden sets.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use highroad_assess::{
    EditError, Editing, Finding, GoldenSet, Kind, Level, Line, LintOptions, SliceError, Training, add, coverage, diff,
    edit, leaks, lint,
};
use highroad_eval::{McNemarPower, Sides};
use serde_json::{Value, json};

fn set(cases: &[Value]) -> GoldenSet {
    let lines: Vec<String> = cases.iter().map(Value::to_string).collect();
    GoldenSet::parse(lines.join("\n").as_bytes(), Path::new("test.jsonl")).unwrap()
}

fn case(id: &str, text: &str, expected: &str) -> Value {
    json!({"id": id, "input": {"text": text}, "expected": expected})
}

fn with(mut case: Value, key: &str, value: Value) -> Value {
    case[key] = value;
    case
}

fn slices(cases: &[Value], expressions: &[(&str, &str)]) -> Result<Vec<Vec<String>>, SliceError> {
    let expressions: BTreeMap<String, String> =
        expressions.iter().map(|(name, expression)| ((*name).to_owned(), (*expression).to_owned())).collect();
    let set = set(cases).with_slices(&expressions)?;
    Ok(set.cases.iter().map(|case| case.case.slices.clone()).collect())
}

#[test]
fn an_expression_sees_the_case_and_makes_a_slice() {
    let cases = [
        with(with(case("a", "short", "ham"), "tags", json!(["en", "mail"])), "slices", json!(["written"])),
        with(case("b", &"long ".repeat(50), "spam"), "provenance", json!({"year": 2026, "licence": "MIT"})),
        with(with(case("c", "ünï", "spam"), "source", json!("mail 7")), "must_pass", json!(true)),
    ];
    for (expression, expected) in [
        ("length > 200", vec!["b"]),
        ("length == 3", vec!["c"]),
        ("words == 50", vec!["b"]),
        ("label == 'spam' && !must_pass", vec!["b"]),
        ("'en' in tags", vec!["a"]),
        ("'written' in slices", vec!["a"]),
        ("'year' in provenance && provenance.year >= 2026", vec!["b"]),
        ("'licence' in provenance && provenance['licence'] == 'MIT'", vec!["b"]),
        ("source.startsWith('mail')", vec!["c"]),
        ("text.matches('^sh?ort$') || id == 'b'", vec!["a", "b"]),
    ] {
        let found = slices(&cases, &[("made", expression)]).unwrap();
        let ids = ["a", "b", "c"].into_iter().zip(&found).filter(|(_, slices)| slices.contains(&"made".to_owned()));
        assert_eq!(ids.map(|(id, _)| id).collect::<Vec<_>>(), expected, "{expression}");
    }
}

#[test]
fn an_expression_that_cannot_decide_is_an_error_that_names_slice_and_case() {
    let cases = [with(case("a", "hi", "ham"), "slices", json!(["written"]))];
    let error = |name: &str, expression: &str| slices(&cases, &[(name, expression)]).unwrap_err().to_string();
    assert!(error("x", "length >").contains("slice `x`: `length >` is no expression"));
    assert!(error("x", "length").contains("fails on case `a`: it is int, not a yes or no"));
    assert!(error("x", "provenance.year > 1").contains("fails on case `a`"));
    assert!(error("x", "colour == 'red'").contains("fails on case `a`"));
    assert!(error("*", "true").contains("means every slice"));
    assert!(error("written", "true").contains("case `a` names the slice `written` itself"));
    assert!(error("x", &format!("true{}", " || true".repeat(200))).contains("over 1000 characters"));
}

#[test]
fn an_expression_has_no_loops_and_no_bottomless_nesting() {
    let cases = [with(case("a", "hi", "ham"), "tags", json!(["en"]))];
    assert!(slices(&cases, &[("x", "tags.exists(t, t == 'en')")]).is_err());
    assert!(slices(&cases, &[("x", &format!("{}true{}", "(".repeat(480), ")".repeat(480)))]).is_err());
}

fn kinds(findings: &[Finding]) -> Vec<(Kind, Level, Vec<&str>)> {
    findings.iter().map(|f| (f.kind, f.level, f.cases.iter().map(String::as_str).collect())).collect()
}

const LONG: &str = "The committee met on Tuesday to discuss the budget for next year and agreed on most of its points";

#[test]
fn copies_near_copies_and_contradictions_are_told_once_each() {
    let near = LONG.replace("Tuesday", "Monday");
    let cases = [
        case("a", LONG, "news"),
        case("b", "something else entirely, about football and its rules", "sport"),
        case("c", &LONG.to_uppercase(), "news"),
        case("d", &near, "news"),
        case("e", &format!("  {LONG}!"), "sport"),
        case("f", &LONG.replace("budget", "budgets"), "sport"),
    ];
    let findings = lint(&set(&cases), None, &LintOptions { fewest_in_slice: 0, ..LintOptions::default() }).unwrap();
    assert_eq!(
        kinds(&findings),
        [
            (Kind::Duplicate, Level::Error, vec!["a", "c"]),
            (Kind::Contradiction, Level::Error, vec!["a", "e"]),
            (Kind::NearDuplicate, Level::Warning, vec!["a", "d"]),
            (Kind::Contradiction, Level::Warning, vec!["a", "f"]),
        ]
    );
    assert!(findings[3].message.contains("\"news\" and \"sport\""), "{}", findings[3].message);
    assert!(findings[2].similarity.unwrap() > 0.8 && findings[2].similarity.unwrap() < 1.0);
}

#[test]
fn cases_of_one_source_may_repeat_each_other() {
    let of = |id: &str, text: &str| with(case(id, text, "news"), "source", json!("page 1"));
    let cases = [of("a", LONG), of("b", LONG), of("c", &LONG.replace("Tuesday", "Monday"))];
    assert_eq!(lint(&set(&cases), None, &LintOptions::default()).unwrap(), []);
}

#[test]
fn swapped_pairs_and_equal_token_ids_are_copies_and_near_token_ids_are_not() {
    let pair = |id: &str, a: &str, b: &str| json!({"id": id, "input": {"a": a, "b": b}, "expected": 0.5});
    let pairs = set(&[pair("p", "one text", "another text"), pair("q", "Another text", "one text.")]);
    assert_eq!(
        kinds(&lint(&pairs, None, &LintOptions::default()).unwrap()),
        [(Kind::Duplicate, Level::Error, vec!["p", "q"])]
    );
    let tokens = |id: &str, last: u32| {
        let ids: Vec<u32> = (0..100).chain([last]).collect();
        json!({"id": id, "input": {"tokens": ids}, "expected": "x"})
    };
    let set = set(&[tokens("t", 7), tokens("u", 7), tokens("v", 8)]);
    assert_eq!(
        kinds(&lint(&set, None, &LintOptions::default()).unwrap()),
        [(Kind::Duplicate, Level::Error, vec!["t", "u"])]
    );
}

#[test]
fn labels_and_slices_are_held_against_the_model_and_an_even_share() {
    let mut cases: Vec<Value> =
        (0..60).map(|n| case(&format!("c{n}"), &format!("{} {n}", "word".repeat(n)), "ham")).collect();
    cases[0] = with(case("c0", "zero", "spam"), "slices", json!(["tiny"]));
    let known = ["ham", "phishing"].map(str::to_owned);
    let findings = lint(&set(&cases), Some(&known), &LintOptions { near: 1.0, ..LintOptions::default() }).unwrap();
    assert_eq!(
        kinds(&findings),
        [
            (Kind::UnknownLabel, Level::Error, vec!["c0"]),
            (Kind::UnusedLabel, Level::Warning, vec![]),
            (Kind::RareLabel, Level::Warning, vec!["c0"]),
            (Kind::SmallSlice, Level::Warning, vec!["c0"]),
        ]
    );
}

fn file(folder: &Path, name: &str, content: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, content).unwrap();
    path.display().to_string()
}

const TWO: NonZeroUsize = NonZeroUsize::new(2).unwrap();

#[test]
fn leaks_are_found_in_every_kind_of_file_with_their_place() {
    let folder = tempfile::tempdir().unwrap();
    let cases = [
        case("a", LONG, "news"),
        case("b", "an entirely different text about the tides of the northern sea", "other"),
        case("c", "never trained on: a note on chess openings for beginners", "other"),
    ];
    let near = LONG.replace("Tuesday", "Monday");
    let csv = file(
        folder.path(),
        "train.csv",
        &format!("label,text\nx,filler one\nx,\"{}\"\nx,\"{near}\"\n", LONG.to_lowercase()),
    );
    let rows = [
        json!({"text": "filler"}),
        json!({"no_text": 1}),
        json!({"text": "An entirely different text, about the tides of the Northern sea."}),
    ];
    let jsonl = file(folder.path(), "more.jsonl", &rows.map(|row| row.to_string()).join("\n"));
    let training = Training::open(&[csv.clone(), jsonl.clone()], &["text".to_owned()], TWO).unwrap();
    assert_eq!((training.len(), training.n_bad()), (5, 1));
    let findings = leaks(&set(&cases), &training, 0.8, TWO, |_| {}).unwrap();
    assert_eq!(kinds(&findings), [(Kind::Leak, Level::Error, vec!["a"]), (Kind::Leak, Level::Error, vec!["b"])]);
    assert_eq!(findings[0].place.as_deref().unwrap(), format!("{csv}: record 2"));
    assert!(findings[0].message.contains("2 records in all"), "{}", findings[0].message);
    assert_eq!(findings[1].place.as_deref().unwrap(), format!("{jsonl}: record 2"));
    let near = file(folder.path(), "near.csv", &format!("text\n\"{near}\"\n"));
    let training = Training::open(&[near], &["text".to_owned()], TWO).unwrap();
    let findings = leaks(&set(&cases), &training, 0.8, TWO, |_| {}).unwrap();
    assert_eq!(kinds(&findings), [(Kind::NearLeak, Level::Error, vec!["a"])]);
    assert_eq!(leaks(&set(&cases), &training, 0.99, TWO, |_| {}).unwrap(), []);
}

#[test]
fn coverage_counts_sources_and_tells_what_each_slice_can_detect() {
    let cases: Vec<Value> = (0..200)
        .map(|n| {
            let mut case = case(&format!("c{n}"), &format!("text {n}"), ["ham", "spam"][n % 2]);
            case["must_pass"] = json!(n == 0);
            if n < 100 {
                case["slices"] = json!(["half"]);
                case["source"] = json!(format!("s{}", n / 10));
            }
            case
        })
        .collect();
    let rows = coverage(&set(&cases), 0.05, 0.8);
    let names: Vec<(Option<&str>, Option<&str>)> =
        rows.iter().map(|row| (row.slice.as_deref(), row.label.as_deref())).collect();
    let half = Some("half");
    assert_eq!(
        names,
        [
            (None, None),
            (None, Some("ham")),
            (None, Some("spam")),
            (half, None),
            (half, Some("ham")),
            (half, Some("spam"))
        ]
    );
    assert_eq!((rows[0].n_cases, rows[0].n_sources, rows[0].n_must_pass), (200, 110, 1));
    assert_eq!((rows[3].n_cases, rows[3].n_sources), (100, 10));
    let exact = McNemarPower { n_cases: 110, discordant: 0.1, alpha: 0.05, sides: Sides::One };
    assert_eq!(rows[0].detectable[1], exact.minimum_detectable_effect(0.8));
    assert!(rows[0].detectable[1].is_some() && rows[3].detectable == [None; 3]);
}

#[test]
fn a_difference_names_cases_flips_and_slices() {
    let old =
        [case("a", "one", "ham"), with(case("b", "two", "ham"), "slices", json!(["s"])), case("c", "three", "ham")];
    let new =
        [case("d", "four", "spam"), with(case("b", "two", "spam"), "slices", json!(["t"])), case("a", "one", "ham")];
    let found = diff(&set(&old), &set(&new)).unwrap();
    assert_eq!(
        (found.added.as_slice(), found.removed.as_slice(), found.n_same),
        (&["d".to_owned()][..], &["c".to_owned()][..], 1)
    );
    assert_eq!(found.edited[0].changed, ["expected", "slices"]);
    assert_eq!(found.label_flips().next().unwrap(), ("b", &["ham".to_owned(), "spam".to_owned()]));
    assert_eq!(found.slices, BTreeMap::from([("s".to_owned(), [1, 0]), ("t".to_owned(), [0, 1])]));
    assert!(diff(&set(&old), &set(&old)).unwrap().is_empty());
}

fn written(text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("test.jsonl");
    std::fs::write(&path, text).unwrap();
    (folder, path)
}

fn line(value: Value) -> Line {
    serde_json::from_value(value).unwrap()
}

#[test]
fn an_edit_leaves_every_other_byte_and_key_as_it_was() {
    let text = "\n{\"expected\":\"ham\",  \"input\":{\"text\":\"\\u00fc\"}, \"id\":\"a\"}\r\n{\"id\": \"b\", \"input\": {\"text\": \"\\u00fc 1.50\"}, \"expected\": \"ham\", \"slices\": [\"s\"]}\n\n{\"id\":\"c\",\"input\":{\"text\":\"z\"},\"expected\":\"ham\"}";
    let (_folder, path) = written(text);
    let spam = json!("spam");
    let editing = Editing {
        expected: Some(spam.clone()),
        join: vec!["t".to_owned()],
        leave: vec!["s".to_owned()],
        provenance: vec![("by".to_owned(), json!("mira"))],
        ..Editing::default()
    };
    edit(&path, "b", &editing).unwrap();
    let expected = text.replace(
        "\"expected\": \"ham\", \"slices\": [\"s\"]}",
        "\"expected\": \"spam\", \"slices\": [\"t\"], \"provenance\": {\"by\": \"mira\"}}",
    );
    assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);
    edit(&path, "c", &Editing { expected: Some(spam), ..Editing::default() }).unwrap();
    let expected = expected.replace(r#"{"text":"z"},"expected":"ham"}"#, r#"{"text":"z"},"expected":"spam"}"#);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);
}

#[test]
fn a_change_that_would_leave_an_unsound_set_changes_nothing() {
    let text = "{\"id\": \"a\", \"input\": {\"text\": \"x\"}, \"expected\": \"ham\"}\n";
    let (folder, path) = written(text);
    let ranking = Editing { expected: Some(json!([1])), ..Editing::default() };
    assert!(matches!(edit(&path, "a", &ranking), Err(EditError::Unsound(_))));
    assert!(matches!(edit(&path, "z", &ranking), Err(EditError::NoCase { .. })));
    let same = Editing { expected: Some(json!("ham")), ..Editing::default() };
    assert!(matches!(edit(&path, "a", &same), Err(EditError::Nothing(_))));
    let leave = Editing { leave: vec!["s".to_owned()], ..Editing::default() };
    assert!(matches!(edit(&path, "a", &leave), Err(EditError::NotInSlice { .. })));
    let twice = [line(case("b", "y", "ham")), line(case("a", "x", "ham"))];
    assert!(matches!(add(&path, &twice), Err(EditError::Unsound(_))));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file stays");
}

#[test]
fn additions_at_one_time_all_arrive() {
    let (_folder, path) = written("");
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let path = &path;
            scope.spawn(move || {
                for n in 0..10 {
                    add(path, &[line(case(&format!("{thread}-{n}"), &format!("{thread} {n}"), "ham"))]).unwrap();
                }
            });
        }
    });
    assert_eq!(GoldenSet::read(&path).unwrap().cases.len(), 40);
    let first = std::fs::read_to_string(&path).unwrap();
    assert!(first.starts_with("{\"id\": \""), "{first}");
}
