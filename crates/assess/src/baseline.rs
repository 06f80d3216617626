//! What monitoring compares live traffic with, made from a golden set or training data.

use highroad_eval::Observed;
use highroad_eval::drift::{BaselineBuilder, Observation};
use highroad_hosted::{Hosted, HostedTask, Question, Said, about_text, answer_of, inputs_of, relevances};
use highroad_package::TaskKind;
use highroad_task::raw::Tensor;
use highroad_task::{Answer, Glimpse, Input, MetShapes, MetTensors, Predictor, TensorGlimpse, Written};

use crate::hosted::conversation;
use crate::run::{Asks, Inputs, spread};
use crate::{AssessError, GoldenInput, GoldenSet, KeptAnswers, KeptReplies, Results, Value};

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

/// The same of a model that somebody else hosts: of what it answered in `results`, and of vectors and texts, which these do not hold, of
/// what is `kept` of its replies. What is not there is left out.
pub fn hosted_baseline(
    hosted: &Hosted,
    golden: &GoldenSet,
    results: &Results,
    kept: &KeptReplies,
    mut builder: BaselineBuilder,
) -> Result<BaselineBuilder, AssessError> {
    match hosted.task {
        HostedTask::Embed => return embedded_baseline(hosted, golden, kept, builder),
        HostedTask::Infer => return computed_baseline(hosted, golden, kept, builder),
        _ => {}
    }
    for idx in spread(golden.cases.len().min(MOST_CASES), MOST_INPUTS) {
        let asked = golden.input(idx)?;
        let observation = match (&*asked, &results.cases[idx].value) {
            (GoldenInput::One(input), Value::Class { label, scores }) => {
                let answer = Answer::Class { label: label.clone(), scores: scores.clone() };
                Some(Glimpse::of(input).by_words().observe(&answer, None))
            }
            (GoldenInput::Ranking { query, documents }, Value::Scores(scores)) => {
                // One document of each query, as one of each request is looked at: those of one query are alike.
                let at = idx.wrapping_mul(PRIME) % documents.len().max(1);
                let answer = relevances(scores).into_iter().nth(at);
                let glimpse = documents.get(at).map(|document| Glimpse::of_pair(query, document).by_words());
                glimpse.zip(answer).map(|(glimpse, answer)| glimpse.observe(&answer, None))
            }
            (GoldenInput::Prompt(messages), Value::Generated(_)) => {
                let said = kept.get(&conversation(hosted, messages, 0).digest())?;
                let glimpse = Glimpse::of_messages(messages.iter().map(|it| (it.role.as_str(), it.content.as_str())));
                said.and_then(|reply| {
                    let n_tokens = reply.usage.map(|usage| usage.output as f64);
                    let Said::Text { text, finish_reason, refused, .. } = reply.said else { return None };
                    let written = Written::of(&text, n_tokens, finish_reason.as_deref(), false, refused);
                    Some(glimpse.by_words().observe_written(written))
                })
            }
            _ => None,
        };
        observation.into_iter().for_each(|observation| builder.add(observation));
    }
    if let Observed::Classes(classes) = results.observed(golden, &[])? {
        classes.correct().into_iter().for_each(|right| builder.judged(right));
    }
    Ok(builder)
}

/// Far from the numbers of documents that cases have, so that each place is as likely as another.
const PRIME: usize = 2_654_435_761;

/// Of every different text and its vector.
fn embedded_baseline(
    hosted: &Hosted,
    golden: &GoldenSet,
    kept: &KeptReplies,
    mut builder: BaselineBuilder,
) -> Result<BaselineBuilder, AssessError> {
    let task = TaskKind::Embed { dimensions: 0, normalized: false, matryoshka_dimensions: Vec::new() };
    let inputs = Inputs::of(golden, Asks::plainly(&task), 0..golden.cases.len().min(MOST_CASES))?;
    for asked in inputs.asked(&spread(inputs.len(), MOST_INPUTS))? {
        let Input::Text(text) = &asked.input else { continue };
        let Ok(question) = about_text(hosted, text) else { continue };
        let answer = kept.get(&question.digest())?.and_then(|reply| answer_of(hosted, &reply.said));
        if let Some(answer) = answer {
            builder.add(Glimpse::of(&asked.input).by_words().observe(&answer, None));
        }
    }
    Ok(builder)
}

/// Of the tensors of every case and of what came of them: first which of their sizes vary, then one row of each, as one of each request is
/// looked at.
fn computed_baseline(
    hosted: &Hosted,
    golden: &GoldenSet,
    kept: &KeptReplies,
    mut builder: BaselineBuilder,
) -> Result<BaselineBuilder, AssessError> {
    let idxs = spread(golden.cases.len().min(MOST_CASES), MOST_INPUTS);
    let mut shapes = MetShapes::default();
    for &idx in &idxs {
        met(hosted, golden, kept, idx)?.iter().for_each(|met| shapes.add(met));
    }
    let glimpse = shapes.glimpse();
    for idx in idxs {
        let Some(met) = met(hosted, golden, kept, idx)? else { continue };
        let Some(row) = idx.wrapping_mul(PRIME).checked_rem(met.n_rows_or_one()) else { continue };
        builder.add(Observation { tensors: met.rows(&glimpse, row, idx as u64), ..Observation::default() });
    }
    Ok(builder)
}

/// What a case asks, as the host is asked it, and what is kept of its answer.
fn met(hosted: &Hosted, golden: &GoldenSet, kept: &KeptReplies, idx: usize) -> Result<Option<MetTensors>, AssessError> {
    let asked = golden.input(idx)?;
    let GoldenInput::One(Input::Tensors(arrays)) = &*asked else { return Ok(None) };
    let Ok(question) = Question::tensors(hosted, arrays) else { return Ok(None) };
    let said = kept.get(&question.digest())?.map(|reply| reply.said);
    let Some(Said::Tensors { outputs }) = said else { return Ok(None) };
    let (body, json_bytes) = question.body();
    Ok(inputs_of(&body, json_bytes).ok().map(|inputs| MetTensors::of(inputs, outputs)))
}

/// What there is to count of each row of `inputs`, those of a program that takes tensors, in its order; it computes what comes out.
/// `first` is the number of the first row among all that are looked at.
pub fn observe_tensors(
    predictor: &Predictor,
    inputs: &[Tensor],
    first: usize,
) -> Result<Vec<Observation>, AssessError> {
    let program = predictor.program();
    let named = program.inputs().iter().map(|spec| spec.name.clone()).zip(inputs.iter().cloned()).collect();
    let outputs = predictor.run_tensors(named);
    let outputs = outputs.map_err(|source| AssessError::Task { case: "of the baseline".to_owned(), source })?;
    let outputs: Vec<Tensor> = outputs.into_iter().map(|(_, tensor)| tensor).collect();
    let glimpse = TensorGlimpse::of(program.inputs(), program.outputs());
    let row = |row: usize| {
        let draw = (first + row) as u64;
        let mut tensors = glimpse.of_inputs(inputs, row, draw);
        tensors.extend(glimpse.of_outputs(&outputs, row, draw));
        Observation { tensors, ..Observation::default() }
    };
    Ok((0..glimpse.n_rows(inputs)).map(row).collect())
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
