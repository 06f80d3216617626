use std::time::{Duration, Instant};

use highroad_package::TaskKind;
use highroad_task::{Input, Predictor};

use crate::{AssessError, GoldenInput, GoldenSet};

/// Inputs that are timed.
const MOST_INPUTS: usize = 50;

/// The share of the time from text to answer that goes into preprocessing, over the first golden inputs.
pub fn preprocessing_share(predictor: &Predictor, golden: &GoldenSet) -> Result<f64, AssessError> {
    let (mut preparing, mut all) = (Duration::ZERO, Duration::ZERO);
    for (idx, case) in golden.cases.iter().take(MOST_INPUTS).enumerate() {
        let Some(input) = first_input(&*golden.input(idx)?, predictor) else { continue };
        let name = |source| AssessError::Task { case: case.case.id.clone(), source };
        let start = Instant::now();
        let prepared = [predictor.prepare(&input).map_err(name)?];
        preparing += start.elapsed();
        predictor.answer(&prepared).map_err(name)?;
        all += start.elapsed();
    }
    Ok(preparing.as_secs_f64() / all.as_secs_f64().max(f64::MIN_POSITIVE))
}

/// One input of a case: the first text of a pair or triplet; a query, with its first document for a reranker. `None` for what
/// no package is asked.
fn first_input(input: &GoldenInput, predictor: &Predictor) -> Option<Input> {
    let is_reranker = matches!(predictor.manifest().task.kind, TaskKind::Rerank);
    match input {
        GoldenInput::One(input) => Some(input.clone()),
        GoldenInput::Pair([first, _]) | GoldenInput::Triplet([first, ..]) => Some(Input::Text(first.clone())),
        GoldenInput::Ranking { query, documents } => match documents.first() {
            Some(document) if is_reranker => Some(Input::Pair { query: query.clone(), document: document.clone() }),
            _ => Some(Input::Text(query.clone())),
        },
        GoldenInput::Prompt(_) => None,
    }
}
