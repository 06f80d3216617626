use serde::de::IgnoredAny;

use super::{Measure, Metric, MetricError, of_sums};
use crate::text::{best, bleu, chrf, rouge, squad};
use crate::{About, Cutoff, Texts};

/// A metric of generated texts.
pub(super) fn measure(metric: Metric, texts: &Texts, about: About<'_>) -> Result<Measure, MetricError> {
    let wants_references = matches!(
        metric,
        Metric::ExactMatch | Metric::TokenF1 | Metric::RougeL | Metric::Chrf | Metric::Bleu | Metric::PassAt(_)
    );
    if let Some(case_idx) = texts.first_without_reference().filter(|_| wants_references) {
        return Err(MetricError::NoReference { metric, case_idx });
    }
    let every = |right: Vec<bool>| Measure::Right(right.into_iter().map(Some).collect());
    Ok(match metric {
        Metric::ExactMatch => every(texts.right()),
        Metric::ValidJson => every(texts.each(|text, _| serde_json::from_str::<IgnoredAny>(text).is_ok())),
        Metric::MatchesRegex => {
            let regex = about.regex.expect("parameters were checked");
            every(texts.each(|text, _| regex.is_match(text)))
        }
        Metric::MatchesSchema => {
            let schema = about.schema.expect("parameters were checked");
            every(texts.each(|text, _| schema.accepts(text)))
        }
        Metric::TokenF1 => {
            Measure::Mean(texts.each(|text, references| best(references, |one| squad::token_f1(text, one))))
        }
        Metric::RougeL => {
            Measure::Mean(texts.each(|text, references| best(references, |one| rouge::rouge_l(text, one))))
        }
        Metric::Chrf => of_sums(texts.each(chrf::sums), chrf::score),
        Metric::Bleu => of_sums(texts.each(bleu::sums), bleu::score),
        Metric::Perplexity => perplexity(texts)?,
        Metric::PassAt(k) => Measure::Mean(passes(texts, k)?),
        Metric::Judged => Measure::Mean(judged(texts, about.judge.expect("parameters were checked"))?),
        _ => return Err(metric.of_other_answers()),
    })
}

fn judged(texts: &Texts, judge: &str) -> Result<Vec<f64>, MetricError> {
    let of_case = |case_idx: usize| {
        let score = texts.generated(case_idx).judged.get(judge).copied();
        score.ok_or_else(|| MetricError::NotJudged { judge: judge.to_owned(), case_idx })
    };
    (0..texts.n_cases()).map(of_case).collect()
}

fn perplexity(texts: &Texts) -> Result<Measure, MetricError> {
    let of_case = |case_idx: usize| {
        let likelihood = texts.generated(case_idx).likelihood;
        let likelihood = likelihood.ok_or(MetricError::NoLikelihood { metric: Metric::Perplexity, case_idx })?;
        Ok([likelihood.log_probability, f64::from(likelihood.n_tokens)])
    };
    let rows = (0..texts.n_cases()).map(of_case).collect::<Result<_, _>>()?;
    Ok(of_sums(rows, |&[log_probability, n_tokens]| (-log_probability / n_tokens).exp()))
}

/// For each case the chance that one of k texts drawn from its samples is right.
fn passes(texts: &Texts, cutoff: Cutoff) -> Result<Vec<f64>, MetricError> {
    let of_case = |case_idx: usize| {
        let generated = texts.generated(case_idx);
        let (n_samples, k) = (generated.texts.len(), usize::from(cutoff.get()));
        if n_samples < k {
            return Err(MetricError::TooFewSamples { metric: Metric::PassAt(cutoff), n_samples });
        }
        let exact = || generated.texts.iter().filter(|text| texts.is_exact(case_idx, text)).count();
        Ok(pass_at(k, n_samples, generated.n_passed.map_or_else(exact, |n_passed| n_passed as usize)))
    };
    (0..texts.n_cases()).map(of_case).collect()
}

/// 1 − C(n − c, k) / C(n, k), as a product that neither overflows nor cancels (Chen et al. 2021).
fn pass_at(k: usize, n_samples: usize, n_right: usize) -> f64 {
    let n_wrong = n_samples - n_right;
    if n_wrong < k {
        return 1.0;
    }
    let fails: f64 = (n_wrong + 1..=n_samples).map(|n| 1.0 - k as f64 / n as f64).product();
    1.0 - fails
}
