use std::num::NonZeroU16;

/// How many of the first documents count.
pub type Cutoff = NonZeroU16;

/// How a model ordered the documents of queries, beside how relevant they are.
#[derive(Clone, Debug, PartialEq)]
pub struct Rankings {
    /// Relevance of each document of each query, 0 for none.
    pub(crate) expected: Vec<Vec<u32>>,
    /// Its score; higher is better, and [`Rankings::NOT_FOUND`] for one that was not among the answer.
    pub(crate) predicted: Vec<Vec<f64>>,
}

/// Scores that do not belong to the documents of their query.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("case {case_idx} needs one finite score for each of its {n_documents} documents")]
pub struct RankingsError {
    /// Which query.
    pub case_idx: usize,
    /// How many documents it has.
    pub n_documents: usize,
}

/// The relevances of a query's documents in the model's order, and how many of them it gave at all.
pub(crate) struct Ordered {
    relevances: Vec<u32>,
    n_found: usize,
}

impl Ordered {
    /// The first `k` of what the model gave.
    fn first(&self, k: Cutoff) -> &[u32] {
        &self.relevances[..self.n_found.min(usize::from(k.get()))]
    }

    fn found(&self) -> &[u32] {
        &self.relevances[..self.n_found]
    }
}

impl Rankings {
    /// The score of a document that a search did not give: it has no rank, however long the list is. It still counts among those
    /// that should have been found.
    pub const NOT_FOUND: f64 = f64::MIN;

    /// `expected` and `predicted` hold a list for each query, with an entry for each of its documents.
    pub fn new(expected: Vec<Vec<u32>>, predicted: Vec<Vec<f64>>) -> Result<Self, RankingsError> {
        for (case_idx, relevances) in expected.iter().enumerate() {
            let scores = predicted.get(case_idx);
            let fits = |scores: &Vec<f64>| scores.len() == relevances.len() && scores.iter().all(|s| s.is_finite());
            if !scores.is_some_and(fits) {
                return Err(RankingsError { case_idx, n_documents: relevances.len() });
            }
        }
        let predicted = predicted.into_iter().take(expected.len()).collect();
        Ok(Self { expected, predicted })
    }

    /// Number of queries.
    pub fn n_cases(&self) -> usize {
        self.expected.len()
    }

    /// The documents in the order they came in: what a model that knows nothing leaves.
    pub fn as_given(&self) -> Self {
        let predicted = self.expected.iter().map(|relevances| vec![0.0; relevances.len()]).collect();
        Self { expected: self.expected.clone(), predicted }
    }

    /// The relevances of a query's documents in the model's order. Documents of one score stay in the order they came in.
    pub fn ordered(&self, case_idx: usize) -> Vec<u32> {
        let (relevances, scores) = (&self.expected[case_idx], &self.predicted[case_idx]);
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&left, &right| scores[right].total_cmp(&scores[left]));
        order.into_iter().map(|idx| relevances[idx]).collect()
    }

    /// The rank, from 1, of the first of a query's most relevant documents; `None` where none is relevant or none of those was found.
    pub fn best_rank(&self, case_idx: usize) -> Option<usize> {
        let ordered = self.ordered(case_idx);
        let most = ordered.iter().copied().max().filter(|&most| most > 0)?;
        let found = ordered.iter().take(self.n_found(case_idx));
        found.enumerate().find(|(_, relevance)| **relevance == most).map(|(idx, _)| idx + 1)
    }

    fn n_found(&self, case_idx: usize) -> usize {
        self.predicted[case_idx].iter().filter(|&&score| score > Self::NOT_FOUND).count()
    }

    pub(crate) fn subset(&self, case_idxs: &[usize]) -> Self {
        Self {
            expected: case_idxs.iter().map(|&idx| self.expected[idx].clone()).collect(),
            predicted: case_idxs.iter().map(|&idx| self.predicted[idx].clone()).collect(),
        }
    }

    /// `of` each query's relevances in the model's order.
    pub(crate) fn each(&self, of: impl Fn(&Ordered) -> f64) -> Vec<f64> {
        let ordered = |idx| Ordered { relevances: self.ordered(idx), n_found: self.n_found(idx) };
        (0..self.n_cases()).map(|idx| of(&ordered(idx))).collect()
    }
}

/// Discounted cumulative gain of the first `k`, over that of the best order; 0 where nothing is relevant.
///
/// The gain is the relevance itself, the discount log2(rank + 1): Järvelin and Kekäläinen (2002) as trec_eval and
/// scikit-learn take it.
pub(crate) fn ndcg(ordered: &Ordered, k: Cutoff) -> f64 {
    let gain = |(idx, &relevance): (usize, &u32)| f64::from(relevance) / (idx as f64 + 2.0).log2();
    let cumulative = |relevances: &[u32]| relevances.iter().enumerate().map(gain).sum::<f64>();
    let mut best = ordered.relevances.clone();
    best.sort_unstable_by(|left, right| right.cmp(left));
    best.truncate(usize::from(k.get()));
    let most = cumulative(&best);
    if most == 0.0 { 0.0 } else { cumulative(ordered.first(k)) / most }
}

/// 1 / rank of the first relevant document among the first `k`, else 0.
pub(crate) fn reciprocal_rank(ordered: &Ordered, k: Cutoff) -> f64 {
    let first = ordered.first(k).iter().position(|&relevance| relevance > 0);
    first.map_or(0.0, |idx| 1.0 / (idx as f64 + 1.0))
}

/// Share of the relevant documents that are among the first `k`; 0 where nothing is relevant.
pub(crate) fn recall(ordered: &Ordered, k: Cutoff) -> f64 {
    let relevant = |relevances: &[u32]| relevances.iter().filter(|&&relevance| relevance > 0).count() as f64;
    let all = relevant(&ordered.relevances);
    if all == 0.0 { 0.0 } else { relevant(ordered.first(k)) / all }
}

/// Sum over the relevant documents that were found of the precision at their rank, over the number of all relevant ones; 0 where
/// nothing is relevant.
pub(crate) fn average_precision(ordered: &Ordered) -> f64 {
    let n_all = ordered.relevances.iter().filter(|&&relevance| relevance > 0).count();
    let (mut n_relevant, mut total) = (0.0, 0.0);
    for (idx, _) in ordered.found().iter().enumerate().filter(|(_, relevance)| **relevance > 0) {
        n_relevant += 1.0;
        total += n_relevant / (idx as f64 + 1.0);
    }
    if n_all == 0 { 0.0 } else { total / n_all as f64 }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn documents_of_one_score_stay_in_the_order_they_came_in() {
        let rankings = Rankings::new(vec![vec![3, 0, 1, 2]], vec![vec![0.5, 0.9, 0.5, 0.5]]).unwrap();
        assert_eq!(rankings.ordered(0), [0, 3, 1, 2]);
        assert_eq!(rankings.as_given().ordered(0), [3, 0, 1, 2]);
        assert_eq!((rankings.best_rank(0), rankings.as_given().best_rank(0)), (Some(2), Some(1)));
    }

    #[test]
    fn a_query_without_a_relevant_document_counts_nothing() {
        let k = Cutoff::new(10).unwrap();
        for relevances in [vec![], vec![0, 0]] {
            let n_found = relevances.len();
            let ordered = &Ordered { relevances, n_found };
            assert_eq!(ndcg(ordered, k) + reciprocal_rank(ordered, k) + recall(ordered, k), 0.0);
            assert_eq!(average_precision(ordered), 0.0);
        }
    }

    #[test]
    fn what_was_not_found_has_no_rank_and_is_missed_all_the_same() {
        let k = Cutoff::new(10).unwrap();
        // Two of three relevant documents were found, at ranks 1 and 3.
        let scores = vec![-1.0, Rankings::NOT_FOUND, -3.0, -2.0];
        let rankings = Rankings::new(vec![vec![1, 2, 1, 0]], vec![scores]).unwrap();
        let of = |metric: fn(&Ordered, Cutoff) -> f64| rankings.each(|ordered| metric(ordered, k))[0];
        assert_eq!(of(recall), 2.0 / 3.0);
        assert_eq!(rankings.each(average_precision)[0], (1.0 + 2.0 / 3.0) / 3.0);
        // (1 + 1/2) / (2 + 1/log2(3) + 1/2)
        assert!((of(ndcg) - 1.5 / (2.5 + 1.0 / 3f64.log2())).abs() < 1e-12);
        assert_eq!(rankings.best_rank(0), None);
    }

    #[test]
    fn each_document_needs_one_finite_score() {
        let refused = |scores: Vec<Vec<f64>>| Rankings::new(vec![vec![1, 0]], scores).unwrap_err();
        assert_eq!(refused(vec![vec![1.0]]), RankingsError { case_idx: 0, n_documents: 2 });
        assert_eq!(refused(vec![]).case_idx, 0);
        assert_eq!(refused(vec![vec![1.0, f64::NAN]]).case_idx, 0);
    }
}
