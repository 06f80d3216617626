use super::*;
use crate::{Classes, Rankings, Similarities};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

const LABELS: [&str; 2] = ["benign", "injection"];

fn cases(n: usize) -> Vec<Case> {
    (0..n)
        .map(|idx| Case {
            id: format!("case-{idx}"),
            expected: crate::Expected::Label(LABELS[idx % 2].to_owned()),
            slices: vec![if idx % 3 == 0 { "short" } else { "long" }.to_owned()],
            must_pass: idx == 0,
            sources: [idx; 2],
            weight: 1.0,
        })
        .collect()
}

/// Two classifiers that err on 7 % of the cases each, on 4 % both.
fn retrained(n: usize) -> [Observed; 2] {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let draws: Vec<f64> = (0..n).map(|_| rng.random()).collect();
    [0.0..0.07, 0.03..0.10].map(|wrong| {
        let label = |idx: usize| (idx % 2) ^ usize::from(wrong.contains(&draws[idx]));
        let answers = (0..n).map(|idx| (LABELS[label(idx)], if label(idx) == 0 { [0.9, 0.1] } else { [0.2, 0.8] }));
        let answers: Vec<(&str, [f32; 2])> = answers.collect();
        let answers = answers.iter().map(|(label, scores)| (*label, scores.as_slice()));
        Observed::Classes(Classes::new(&LABELS.map(str::to_owned), (0..n).map(|idx| LABELS[idx % 2]), answers).unwrap())
    })
}

fn test(rules: &str, cases: &[Case], models: Models<'_>, n: usize) -> SelfTest {
    let threads = NonZeroUsize::new(2).unwrap();
    let mut last = (0, 0);
    let tested =
        self_test(&Gates::parse(rules).unwrap(), cases, models, Simulations { n, seed: 1, threads }, |done, all| {
            assert!(done > last.0 && done <= all);
            last = (done, all);
        });
    assert_eq!(last.0, last.1, "the bar comes to its end");
    let tested = tested.unwrap();
    for rule in &tested.rules {
        eprintln!("{} ({} cases, {:?} discordant)", rule.rule, rule.n_cases, rule.discordant);
        rule.promises.iter().for_each(|kept| eprintln!("  {} {}", kept.kept, kept.in_words()));
    }
    tested.broken.iter().for_each(|broken| eprintln!("{:?} caught by {:?}", broken.fault, broken.caught_by));
    tested
}

#[test]
fn a_sound_gate_keeps_its_promises_and_each_broken_one_is_caught() {
    let [first, second] = retrained(100);
    let rules = "[[rule]]\nmetric = \"accuracy\"\nmargin = 0.05";
    let tested = test(rules, &cases(100), Models::Retrained([&first, &second]), 400);
    assert_eq!(tested.outcome, Outcome::Pass);
    let differ = tested.rules[0].discordant.unwrap();
    assert!((0.03..0.09).contains(&differ), "{differ}: as the models differ, not as somebody supposed");
}

#[test]
fn a_bootstrapped_gate_is_tested_like_an_exact_one() {
    let [first, second] = retrained(120);
    let rules = "[[rule]]\nmetric = \"f1_macro\"\nmargin = 0.06";
    let tested = test(rules, &cases(120), Models::Retrained([&first, &second]), 200);
    assert_eq!(tested.outcome, Outcome::Pass);
}

#[test]
fn each_slice_is_tested_by_itself_and_one_model_is_enough() {
    let [first, _] = retrained(60);
    let rules = "[[rule]]\nmetric = \"recall\"\nlabel = \"injection\"\nslice = \"*\"\nmargin = 0.05\nfloor = 0.5";
    let tested = test(rules, &cases(60), Models::One { answers: &first, discordant: 0.1 }, 200);
    let slices: Vec<usize> = tested.rules.iter().map(|rule| rule.n_cases).collect();
    assert_eq!(slices, [40, 20]);
    assert!(tested.rules.iter().flat_map(|rule| &rule.promises).all(|kept| kept.kept));
}

#[test]
fn the_same_seed_gives_the_same_numbers_on_any_number_of_threads() {
    let [first, second] = retrained(40);
    let gates = Gates::parse("[[rule]]\nmetric = \"accuracy\"\nmargin = 0.1").unwrap();
    let tested = [1, 3].map(|threads| {
        let simulations = Simulations { n: 60, seed: 9, threads: NonZeroUsize::new(threads).unwrap() };
        self_test(&gates, &cases(40), Models::Retrained([&first, &second]), simulations, |_, _| ()).unwrap()
    });
    assert_eq!(tested[0], tested[1]);
}

#[test]
fn rankings_and_similarities_are_made_worse_by_one_margin_too() {
    const N_PAIRS: usize = 240;
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let n = 60;
    let expected: Vec<Vec<u32>> = (0..n).map(|_| (0..8).map(|document| u32::from(document == 0)).collect()).collect();
    let mut scores = |noise: f64| -> Vec<Vec<f64>> {
        let mut score = |relevance: &u32| f64::from(*relevance) + noise * rng.random::<f64>();
        expected.iter().map(|relevances| relevances.iter().map(&mut score).collect()).collect()
    };
    let (first, second) = (scores(1.4), scores(1.4));
    let rankings = |scores| Observed::Rankings(Rankings::new(expected.clone(), scores).unwrap());
    let [first, second] = [rankings(first), rankings(second)];
    let rules = "[[rule]]\nmetric = \"ndcg_at_10\"\nmargin = 0.1";
    let tested = test(rules, &cases(n), Models::Retrained([&first, &second]), 100);
    assert!(tested.rules[0].promises.iter().all(|kept| kept.kept));

    let people: Vec<f64> = (0..N_PAIRS).map(|_| rng.random()).collect();
    let mut pairs = || {
        let predicted = people.iter().map(|similarity| similarity + 0.3 * rng.random::<f64>()).collect();
        Observed::Similarities(Similarities { expected: people.clone(), predicted })
    };
    let [first, second] = [pairs(), pairs()];
    let rules = "[[rule]]\nmetric = \"spearman\"\nmargin = 0.05";
    let tested = test(rules, &cases(N_PAIRS), Models::Retrained([&first, &second]), 50);
    assert!(tested.rules[0].discordant.is_none());
    assert!(tested.rules[0].promises.iter().all(|kept| kept.kept));
}

#[test]
fn a_required_improvement_is_tested_at_its_edge_and_each_broken_gate_is_caught() {
    let [first, second] = retrained(100);
    let rules = "[[rule]]\nmetric = \"accuracy\"\nimprovement = 0.05\ninconclusive = \"fail\"";
    let tested = test(rules, &cases(100), Models::Retrained([&first, &second]), 400);
    let promises: Vec<Promise> = tested.rules[0].promises.iter().map(|kept| kept.promise).collect();
    assert_eq!(promises, [Promise::GainPasses, Promise::GainFails, Promise::EqualFailsAsPaired, Promise::Flips]);
    assert_eq!(tested.outcome, Outcome::Pass);
}

#[test]
fn a_model_compared_with_itself_is_no_test() {
    let [first, _] = retrained(40);
    let gates = Gates::parse("[[rule]]\nmetric = \"accuracy\"\nmargin = 0.1").unwrap();
    let simulations = Simulations { n: 10, seed: 1, threads: NonZeroUsize::MIN };
    let tested = self_test(&gates, &cases(40), Models::Retrained([&first, &first.clone()]), simulations, |_, _| ());
    assert!(matches!(tested, Err(GateError::NothingDiffers)));
}

#[test]
fn rules_without_a_margin_promise_nothing_that_could_be_tested() {
    let [first, second] = retrained(40);
    let gates = Gates::parse("[[rule]]\nmetric = \"accuracy\"\nfloor = 0.5").unwrap();
    let simulations = Simulations { n: 10, seed: 1, threads: NonZeroUsize::MIN };
    let tested = self_test(&gates, &cases(40), Models::Retrained([&first, &second]), simulations, |_, _| ());
    assert!(matches!(tested, Err(GateError::NothingToTest)));
}

#[test]
fn a_margin_that_no_model_can_lose_is_an_error() {
    let [first, second] = retrained(40);
    let gates = Gates::parse("[[rule]]\nmetric = \"accuracy\"\nmargin = 0.99").unwrap();
    let simulations = Simulations { n: 10, seed: 1, threads: NonZeroUsize::MIN };
    let tested = self_test(&gates, &cases(40), Models::Retrained([&first, &second]), simulations, |_, _| ());
    assert!(matches!(tested, Err(GateError::DropOutOfReach { .. })));
}
