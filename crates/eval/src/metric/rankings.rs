use super::{Measure, Metric, MetricError};
use crate::Rankings;
use crate::ranking::{average_precision, ndcg, recall, reciprocal_rank};

/// A metric of documents ranked for queries: the mean of its values for each.
pub(super) fn measure(metric: Metric, rankings: &Rankings) -> Result<Measure, MetricError> {
    let of_each = match metric {
        Metric::Ndcg(k) => rankings.each(|ordered| ndcg(ordered, k)),
        Metric::Mrr(k) => rankings.each(|ordered| reciprocal_rank(ordered, k)),
        Metric::RecallAt(k) => rankings.each(|ordered| recall(ordered, k)),
        Metric::Map => rankings.each(average_precision),
        _ => return Err(metric.of_other_answers()),
    };
    Ok(Measure::Mean(of_each))
}
