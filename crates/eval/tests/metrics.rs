//! What holds for every metric, on answers drawn at random: its range, and that counting cases is repeating them.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::LazyLock;

use highroad_eval::{
    About, Array, Classes, Costs, Cutoff, Generated, Likelihood, Metric, MetricError, Numbers, Observed, Parameter,
    Pattern, Rankings, Schema, Similarities, Tensors, Texts, Tolerance, Triplets,
};
use proptest::collection::vec;
use proptest::prelude::*;

const LABELS: [&str; 3] = ["a", "b", "c"];

/// One case of every kind of answers, so that any list of them makes one [`Observed`] of each kind.
#[derive(Clone, Debug)]
struct Drawn {
    expected: usize,
    scores: [u8; 3],
    numbers: [i8; 2],
    similarities: [i8; 2],
    relevances: Vec<u32>,
    text: String,
    references: Vec<String>,
    n_passed: u32,
    log_probability: f64,
    n_tokens: u32,
}

const N_SAMPLES: usize = 3;

fn case() -> Drawn {
    Drawn {
        expected: 0,
        scores: [1, 2, 3],
        numbers: [1, 2],
        similarities: [2, 1],
        relevances: vec![1, 0],
        text: "x".to_owned(),
        references: vec!["x".to_owned()],
        n_passed: 1,
        log_probability: -1.0,
        n_tokens: 1,
    }
}

fn drawn() -> impl Strategy<Value = Drawn> {
    let text = || {
        prop::sample::select(vec!["", " ", "{}", "[1]", "the cat", "a cat sat on the mat", "cat", "naïve 日本, 1.5-2"])
    };
    let labelled = (
        0..3usize,
        prop::array::uniform3(0..5u8).prop_filter("some label scores", |scores| scores.iter().any(|&score| score > 0)),
    );
    let measured = (prop::array::uniform2(-3..4i8), prop::array::uniform2(-2..3i8), vec(0..3u32, 1..6));
    let written = (text(), vec(text(), 1..4), 0..=N_SAMPLES as u32, -9.0..=0.0f64, 1..9u32);
    (labelled, measured, written).prop_map(
        |(
            (expected, scores),
            (numbers, similarities, relevances),
            (text, references, n_passed, log_probability, n_tokens),
        )| {
            let references = references.into_iter().map(str::to_owned).collect();
            let text = text.to_owned();
            Drawn {
                expected,
                scores,
                numbers,
                similarities,
                relevances,
                text,
                references,
                n_passed,
                log_probability,
                n_tokens,
            }
        },
    )
}

fn all_kinds(cases: &[Drawn]) -> Vec<Observed> {
    let pick = |of: fn(&Drawn) -> f64| cases.iter().map(of).collect::<Vec<f64>>();
    let total = |case: &Drawn| f32::from(case.scores.iter().sum::<u8>());
    let shares: Vec<_> = cases.iter().map(|case| case.scores.map(|score| f32::from(score) / total(case))).collect();
    let best = |scores: &[f32; 3]| (0..3).rev().max_by(|&i, &j| scores[i].total_cmp(&scores[j])).unwrap();
    let answers = shares.iter().map(|scores| (LABELS[best(scores)], scores.as_slice()));
    let expected = cases.iter().map(|case| LABELS[case.expected]);
    let scores = |case: &Drawn| (0..case.relevances.len()).map(|idx| (idx * 7 % 4) as f64).collect();
    let generated = |case: &Drawn| Generated {
        texts: vec![case.text.clone(); N_SAMPLES],
        n_passed: Some(case.n_passed),
        likelihood: Some(Likelihood { log_probability: case.log_probability, n_tokens: case.n_tokens }),
        judged: [("helpful".to_owned(), f64::from(case.scores[0]) / 4.0)].into(),
    };
    vec![
        Observed::Classes(Classes::new(&LABELS.map(str::to_owned), expected, answers).unwrap()),
        Observed::Similarities(Similarities {
            expected: pick(|case| f64::from(case.numbers[0])),
            predicted: pick(|case| f64::from(case.numbers[1]) / 3.0),
        }),
        Observed::Triplets(Triplets::new(cases.iter().map(|case| case.similarities.map(f64::from)).collect()).unwrap()),
        Observed::Rankings(
            Rankings::new(
                cases.iter().map(|case| case.relevances.clone()).collect(),
                cases.iter().map(scores).collect(),
            )
            .unwrap(),
        ),
        Observed::Numbers(
            Numbers::new(pick(|case| f64::from(case.numbers[0])), pick(|case| f64::from(case.numbers[1]) / 3.0))
                .unwrap(),
        ),
        tensors(cases),
        Observed::Texts(
            Texts::new(
                cases.iter().map(|case| case.references.clone()).collect(),
                cases.iter().map(generated).collect(),
            )
            .unwrap(),
        ),
    ]
}

/// The numbers as one output, the similarities as another.
fn tensors(cases: &[Drawn]) -> Observed {
    let side = |of: fn(&Drawn) -> [f64; 3]| {
        let case = |case: &Drawn| -> BTreeMap<String, Array> {
            let [x, y, z] = of(case);
            let arrays = [("x", vec![1], vec![x]), ("y", vec![1, 2], vec![y, z])];
            arrays.map(|(name, shape, values)| (name.to_owned(), Array::new(shape, values).unwrap())).into()
        };
        cases.iter().map(case).collect::<Vec<_>>()
    };
    let expected = side(|case| [f64::from(case.numbers[0]), 1.0, f64::from(case.similarities[0])]);
    let predicted = side(|case| [f64::from(case.numbers[1]) / 3.0, f64::from(case.similarities[1]), 0.5]);
    let (expected, predicted): (Vec<_>, Vec<_>) = expected.iter().zip(&predicted).unzip();
    let tolerance = BTreeMap::from([("x".to_owned(), Tolerance::new(0.25, 0.5).unwrap())]);
    let tensors = Tensors::new(&expected, &predicted).unwrap();
    Observed::Tensors(tensors.with_tolerances(&vec![&tolerance; cases.len()]).unwrap())
}

static COSTS: LazyLock<Costs> =
    LazyLock::new(|| serde_json::from_str(r#"{"a": {"b": 5.5}, "c": {"a": 0.25}}"#).unwrap());
static REGEX: LazyLock<Pattern> = LazyLock::new(|| Pattern::try_from("c.t".to_owned()).unwrap());
static SCHEMA: LazyLock<Schema> = LazyLock::new(|| Schema::try_from(r#"{"type": "object"}"#.to_owned()).unwrap());

/// The metric with what it needs: for one label "a", a table of costs, a pattern, a schema and a judge.
fn taken(metric: Metric, observed: &Observed) -> Result<highroad_eval::Statistic, MetricError> {
    let about = match metric.parameter() {
        None => About::default(),
        Some(Parameter::Label) => About::from(Some("a")),
        Some(Parameter::Costs) => About { costs: Some(&COSTS), ..About::default() },
        Some(Parameter::Regex) => About { regex: Some(&REGEX), ..About::default() },
        Some(Parameter::Schema) => About { schema: Some(&SCHEMA), ..About::default() },
        Some(Parameter::Judge) => About { judge: Some("helpful"), ..About::default() },
        Some(Parameter::Custom) => About { custom: Some("own"), ..About::default() },
        Some(Parameter::Output) => unreachable!("no metric needs an output"),
    };
    metric.of(observed, about)
}

/// All metrics, those of the first k with a k of 2 as well.
fn metrics() -> Vec<Metric> {
    let two = Cutoff::new(2).unwrap();
    let of_two =
        [Metric::AccuracyAt(two), Metric::Ndcg(two), Metric::Mrr(two), Metric::RecallAt(two), Metric::PassAt(two)];
    Metric::all().chain(of_two).collect()
}

#[test]
fn every_metric_is_of_some_answers_and_has_one_name() {
    let kinds = all_kinds(&[case(), Drawn { expected: 1, ..case() }, case()]);
    for metric in metrics() {
        let n_kinds = kinds.iter().filter(|observed| taken(metric, observed).is_ok()).count();
        let is_correlation = matches!(metric, Metric::Pearson | Metric::Spearman);
        let is_of_numbers = [Metric::Mae, Metric::Rmse, Metric::R2, Metric::Mape, Metric::MaxError, Metric::RelativeL2];
        let is_given = matches!(metric, Metric::Custom | Metric::CustomLoss | Metric::CustomShare);
        assert_eq!(
            n_kinds,
            if is_given {
                0
            } else if is_correlation || is_of_numbers.contains(&metric) {
                2
            } else {
                1
            },
            "{metric}"
        );
        assert_eq!(metric.name().parse::<Metric>().unwrap(), metric);
    }
}

proptest! {
    #[test]
    fn every_metric_stays_in_its_range(cases in vec(drawn(), 1..12)) {
        for observed in all_kinds(&cases) {
            for (metric, statistic) in metrics().into_iter().filter_map(|m| Some((m, taken(m, &observed).ok()?))) {
                let (value, (least, most)) = (statistic.observed(), metric.range());
                prop_assert!(value >= least && value <= most, "{metric} is {value}");
            }
        }
    }

    #[test]
    fn a_case_that_counts_twice_is_that_case_twice(cases in vec((drawn(), 0..4u32), 3..10)) {
        let once: Vec<Drawn> = cases.iter().map(|(case, _)| case.clone()).collect();
        let counts: Vec<u32> = cases.iter().map(|(_, count)| *count).collect();
        let repeated: Vec<Drawn> =
            cases.iter().flat_map(|(case, count)| std::iter::repeat_n(case.clone(), *count as usize)).collect();
        prop_assume!(repeated.len() >= 3);
        for (counted, repeated) in all_kinds(&once).iter().zip(all_kinds(&repeated)) {
            for metric in metrics() {
                let (Ok(counted), Ok(repeated)) = (taken(metric, counted), taken(metric, &repeated)) else { continue };
                let (counted, repeated) = (counted.value(&counts), repeated.observed());
                // Perplexities are large; sums in another order differ in the last bits.
                let close = 1e-12 * repeated.abs().max(1.0);
                prop_assert!((counted - repeated).abs() <= close, "{metric}: {counted} counted, {repeated} repeated");
            }
        }
    }

    #[test]
    fn flags_of_right_answers_are_the_metric(cases in vec(drawn(), 1..12)) {
        for observed in all_kinds(&cases) {
            for statistic in metrics().into_iter().filter_map(|metric| taken(metric, &observed).ok()) {
                if let Some(right) = statistic.right() {
                    let share = right.iter().filter(|&&right| right).count() as f64 / right.len() as f64;
                    prop_assert!((statistic.observed() - share).abs() <= 1e-12);
                }
            }
        }
    }
}

fn texts(cases: &[(&str, &[&str])]) -> Observed {
    let references =
        cases.iter().map(|(_, references)| references.iter().map(|&one| one.to_owned()).collect()).collect();
    let generated = cases.iter().map(|&(text, _)| Generated::text(text)).collect();
    Observed::Texts(Texts::new(references, generated).unwrap())
}

#[test]
fn the_closest_reference_counts() {
    let observed = texts(&[("Lyon", &["Paris", "Lyon "])]);
    for metric in [Metric::ExactMatch, Metric::TokenF1, Metric::RougeL, Metric::Chrf] {
        assert_eq!(metric.of(&observed, None).unwrap().observed(), 1.0, "{metric}");
    }
}

#[test]
fn an_empty_answer_is_right_where_nothing_was_to_be_said() {
    let value = |metric: Metric, observed: &Observed| metric.of(observed, None).unwrap().observed();
    let (wanted, missing, needless) = (texts(&[("", &[""])]), texts(&[("", &["x"])]), texts(&[("x", &[""])]));
    assert_eq!(value(Metric::ExactMatch, &wanted) + value(Metric::TokenF1, &wanted), 2.0);
    for metric in [Metric::ExactMatch, Metric::TokenF1, Metric::RougeL, Metric::Chrf, Metric::Bleu] {
        assert_eq!(value(metric, &missing) + value(metric, &needless), 0.0, "{metric}");
    }
}

#[test]
fn json_is_json_and_nothing_around_it() {
    let of = |text: &str| Metric::ValidJson.of(&texts(&[(text, &[""])]), None).unwrap().observed();
    for json in ["{}", " [1, 2]\n", "\"x\"", "1e999"] {
        assert_eq!(of(json), 1.0, "{json}");
    }
    for other in ["", "{", "{} {}", "```json\n{}\n```", "NaN", "{'a': 1}"] {
        assert_eq!(of(other), 0.0, "{other}");
    }
}

#[test]
fn what_a_metric_lacks_is_told() {
    let observed = texts(&[("x", &["x"])]);
    let refused = |name: &str, about: About<'_>| {
        let metric: Metric = name.parse().unwrap();
        metric.of(&observed, about).unwrap_err().to_string()
    };
    assert_eq!(refused("accuracy", About::default()), "`accuracy` needs a classifier's answers");
    assert_eq!(refused("recall", About::default()), "`recall` needs a `label`");
    assert_eq!(refused("cost", About::default()), "`cost` needs `costs`");
    assert_eq!(refused("matches_regex", About::default()), "`matches regex` needs a `regex`");
    assert_eq!(refused("bleu", About::from(Some("x"))), "`BLEU` takes no `label`");
    assert_eq!(
        refused("perplexity", About::default()),
        "`perplexity` needs the log-probability of every answer, and case 0 has none"
    );
    assert_eq!(
        refused("pass_at_2", About::default()),
        "`pass@2` needs at least as many samples of every case, and there is one with 1"
    );
}

#[test]
fn what_is_asked_of_tensors_is_of_their_outputs() {
    let observed = tensors(&[case(), Drawn { numbers: [0, 1], ..case() }, case()]);
    let of = |name: &str, output: Option<&str>| {
        let about = About { output, ..About::default() };
        name.parse::<Metric>().unwrap().of(&observed, about).map(|of| of.observed()).map_err(|error| error.to_string())
    };
    // |2/3 - 1|, |1/3 - 0| and again the first.
    assert!((of("mae", Some("x")).unwrap() - 1.0 / 3.0).abs() < 1e-12);
    let all = of("mae", None).unwrap();
    assert!(all > of("mae", Some("x")).unwrap() && all < of("mae", Some("y")).unwrap());
    assert!(of("pearson", Some("x")).is_ok());
    for (name, output, problem) in [
        ("mae", Some("z"), "there is no output `z`: the cases expect `x`, `y`"),
        ("mape", Some("x"), "is undefined where 0 is right, as in case 1"),
        ("pearson", Some("y"), "needs one number a case"),
        ("spearman", None, "needs one number a case"),
        ("accuracy", None, "`accuracy` needs a classifier's answers"),
        ("bleu", Some("x"), "`BLEU` takes no `output`"),
    ] {
        let error = of(name, output).unwrap_err();
        assert!(error.contains(problem), "{name}: {error}");
    }
    let numbers = Observed::Numbers(Numbers::new(vec![1.0], vec![1.0]).unwrap());
    let error = Metric::Mae.of(&numbers, About { output: Some("x"), ..About::default() }).unwrap_err();
    assert_eq!(error.to_string(), "`mean absolute error` takes no `output`");
}

#[test]
fn tensors_that_do_not_fit_their_case_are_refused() {
    let array = |shape: &[usize]| Array::new(shape.to_vec(), vec![1.0; shape.iter().product()]).unwrap();
    let of = |name: &str, shape: &[usize]| BTreeMap::from([(name.to_owned(), array(shape))]);
    let refused = |expected: [BTreeMap<String, Array>; 2], predicted: [BTreeMap<String, Array>; 2]| {
        let error = Tensors::new(&expected.each_ref(), &predicted.each_ref()).unwrap_err();
        error.to_string()
    };
    let right = || [of("y", &[1, 2]), of("y", &[1, 2])];
    assert_eq!(
        refused([of("y", &[1]), of("z", &[1])], right()),
        "case 0 expects output `y` of shape [1], and the answer has [1, 2]"
    );
    assert_eq!(refused([of("y", &[1, 2]), of("z", &[1])], right()), "case 1 expects other outputs than the first case");
    assert_eq!(refused(right(), [of("y", &[1, 2]), of("z", &[1, 2])]), "case 1 has no answer for output `y`");
}

#[test]
fn a_table_of_costs_names_labels_of_the_model() {
    let costs: Costs = serde_json::from_str(r#"{"a": {"spam": 2.0}}"#).unwrap();
    let error =
        Metric::Cost.of(&all_kinds(&[case()])[0], About { costs: Some(&costs), ..About::default() }).unwrap_err();
    assert_eq!(error.to_string(), "label `spam` is not one of: a, b, c");
}

#[test]
fn texts_that_no_metric_could_take_are_refused() {
    let refused = |references: Vec<Vec<String>>, generated: Generated| {
        Texts::new(references, vec![generated]).unwrap_err().to_string()
    };
    let one = || vec![vec![String::new()]];
    assert_eq!(refused(vec![], Generated::text("x")), "0 expected answers but 1 given ones");
    assert_eq!(refused(one(), Generated { texts: vec![], ..Generated::text("") }), "case 0 has no text");
    assert_eq!(refused(one(), Generated::text("x".repeat((1 << 20) + 1))), "case 0 has a text of over 1 MiB");
    let passed = Generated { n_passed: Some(2), ..Generated::text("x") };
    assert_eq!(refused(one(), passed), "case 0 has more texts that passed than texts");
    let likely = |log_probability, n_tokens| Generated {
        likelihood: Some(Likelihood { log_probability, n_tokens }),
        ..Generated::text("x")
    };
    for unlikely in [likely(0.5, 1), likely(f64::NAN, 1), likely(-1.0, 0)] {
        assert_eq!(refused(one(), unlikely), "case 0 has a log-probability above 0 or of no token");
    }
}
