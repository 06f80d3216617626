//! What monitoring compares live traffic with, made from a golden set or training data.

use highroad_eval::Observed;
use highroad_eval::drift::{BaselineBuilder, Observation};
use highroad_task::{Answer, Glimpse, Input, Predictor};

use crate::run::{Asks, Inputs, spread};
use crate::{AssessError, GoldenInput, GoldenSet, KeptAnswers, Results, Value};

/// Most inputs of a golden set that are looked at, evenly spread.
const MOST_INPUTS: usize = 5_000;
/// Cases that these are taken from: reading a larger set once more would take as long as evaluating it from kept answers.
const MOST_CASES: usize = 100_000;
/// Inputs that are tokenised and answered at a time.
const AT_ONCE: usize = 256;

/// The distributions of a golden set's inputs and of `predictor`'s answers to them; what `kept` holds is not answered again. `results`
/// tell which answers are right.
pub fn golden_baseline(
    predictor: &Predictor,
    golden: &GoldenSet,
    results: Option<&Results>,
    kept: &KeptAnswers,
    builder: BaselineBuilder,
) -> Result<BaselineBuilder, AssessError> {
    let mut builder = builder;
    let inputs = Inputs::of(golden, Asks::of(predictor), 0..golden.cases.len().min(MOST_CASES))?;
    for chunk in spread(inputs.len(), MOST_INPUTS).chunks(AT_ONCE) {
        let asked: Vec<Input> = inputs.asked(chunk)?.into_iter().map(|asked| asked.input).collect();
        let known = chunk.iter().map(|&idx| Ok(kept.get(inputs.digest(idx))?.map(|(answer, _)| answer)));
        let known = known.collect::<Result<Option<Vec<Answer>>, AssessError>>()?;
        observe(predictor, &asked, known)?.into_iter().for_each(|observation| builder.add(observation));
    }
    if let Some(Observed::Classes(classes)) = results.and_then(|results| results.observed(golden, &[]).ok()) {
        classes.correct().into_iter().for_each(|right| builder.judged(right));
    }
    Ok(builder)
}

/// The same of a classifier that somebody else hosts: of the labels that it gave in `results`. `None` where it gives others.
pub fn hosted_baseline(
    golden: &GoldenSet,
    results: &Results,
    mut builder: BaselineBuilder,
) -> Result<Option<BaselineBuilder>, AssessError> {
    for idx in spread(golden.cases.len().min(MOST_CASES), MOST_INPUTS) {
        let asked = golden.input(idx)?;
        let (GoldenInput::One(input), Value::Class { label, scores }) = (&*asked, &results.cases[idx].value) else {
            return Ok(None);
        };
        let answer = Answer::Class { label: label.clone(), scores: scores.clone() };
        builder.add(Glimpse::of(input).observe(&answer, None));
    }
    if let Observed::Classes(classes) = results.observed(golden, &[])? {
        classes.correct().into_iter().for_each(|right| builder.judged(right));
    }
    Ok(Some(builder))
}

/// What there is to count of `inputs`; they are answered unless `answers` are.
pub fn observe(
    predictor: &Predictor,
    inputs: &[Input],
    answers: Option<Vec<Answer>>,
) -> Result<Vec<Observation>, AssessError> {
    let failed = |source| AssessError::Task { case: "of the baseline".to_owned(), source };
    let prepared =
        inputs.iter().map(|input| predictor.prepare(input)).collect::<Result<Vec<_>, _>>().map_err(failed)?;
    let answers = match answers {
        Some(answers) => answers,
        None => predictor.predict_prepared(&prepared).map_err(failed)?,
    };
    let unknown_id = predictor.unknown_id();
    let all = inputs.iter().zip(&prepared).zip(&answers);
    Ok(all
        .map(|((input, prepared), answer)| Glimpse::of(input).prepared(prepared).observe(answer, unknown_id))
        .collect())
}
