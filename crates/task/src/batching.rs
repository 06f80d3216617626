use std::collections::VecDeque;

/// One row of work that waits for a batch.
pub trait Waiting {
    /// Length of the row; a batch costs its number of rows times the longest.
    fn n_tokens(&self) -> usize;

    /// Whether the row may share a batch with others.
    fn may_share(&self) -> bool {
        true
    }
}

/// Rows that wait for their turn, and the choice of the next batch: what a server runs, and what a load test models.
///
/// A batch is anchored at the request whose turn it is (requests take turns, so that one request with thousands of rows does
/// not hold up the others) and filled with the waiting rows closest in length, as far as the token budget goes and padding
/// stays cheap.
#[derive(Debug)]
pub struct TurnQueue<R> {
    rows: VecDeque<(u64, R)>,
    next_turn: u64,
}

/// Padding that is always cheap: below this many tokens a batch costs mostly its fixed part.
const CHEAP_PADDING_TOKENS: usize = 128;

impl<R> Default for TurnQueue<R> {
    fn default() -> Self {
        Self { rows: VecDeque::new(), next_turn: 0 }
    }
}

impl<R: Waiting> TurnQueue<R> {
    /// Number of rows that wait.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether no row waits.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The waiting rows, in no order that a caller may rely on.
    pub fn iter(&self) -> impl Iterator<Item = &R> {
        self.rows.iter().map(|(_, row)| row)
    }

    /// Tokens of all waiting rows, without padding.
    pub fn n_tokens(&self) -> usize {
        self.iter().map(R::n_tokens).sum()
    }

    /// Queues the rows of one request behind all others.
    pub fn push_request(&mut self, rows: impl IntoIterator<Item = R>) {
        let turn = self.take_turn();
        self.rows.extend(rows.into_iter().map(|row| (turn, row)));
    }

    /// Takes out every row that `leaves` names.
    pub fn take_out(&mut self, leaves: impl Fn(&R) -> bool) -> Vec<R> {
        if !self.iter().any(&leaves) {
            return Vec::new();
        }
        let (out, stay): (VecDeque<_>, _) = self.rows.drain(..).partition(|(_, row)| leaves(row));
        self.rows = stay;
        out.into_iter().map(|(_, row)| row).collect()
    }

    /// The next batch, its rows in the order they came in: at most `budget_tokens` with padding, or one longer row alone.
    /// `None` if nothing waits.
    pub fn take_batch(&mut self, budget_tokens: usize) -> Option<Vec<R>> {
        // Ties keep the order of submission: `min_by_key` returns the first.
        let anchor_idx = (0..self.rows.len()).min_by_key(|&idx| self.rows[idx].0)?;
        let anchor_turn = self.rows[anchor_idx].0;
        let mut chosen = self.choose(anchor_idx, budget_tokens);
        chosen.sort_unstable();
        let mut batch = Vec::with_capacity(chosen.len());
        for idx in chosen.into_iter().rev() {
            batch.extend(self.rows.remove(idx).map(|(_, row)| row));
        }
        batch.reverse();
        // The request has had its turn; what is left of it queues up behind the others.
        let turn = self.take_turn();
        self.rows.iter_mut().filter(|row| row.0 == anchor_turn).for_each(|row| row.0 = turn);
        Some(batch)
    }

    fn take_turn(&mut self) -> u64 {
        self.next_turn += 1;
        self.next_turn
    }

    // The rows that run with the anchor: the closest in length first, while the padded batch fits the budget and padding
    // stays under a quarter of the real tokens.
    fn choose(&self, anchor_idx: usize, budget_tokens: usize) -> Vec<usize> {
        let (_, anchor) = &self.rows[anchor_idx];
        if !anchor.may_share() {
            return vec![anchor_idx];
        }
        let mut candidates: Vec<usize> =
            (0..self.rows.len()).filter(|&idx| idx != anchor_idx && self.rows[idx].1.may_share()).collect();
        candidates.sort_by_key(|&idx| {
            let (turn, row) = &self.rows[idx];
            (row.n_tokens().abs_diff(anchor.n_tokens()), *turn)
        });
        let (mut longest, mut real_tokens) = (anchor.n_tokens(), anchor.n_tokens());
        let mut chosen = vec![anchor_idx];
        for idx in candidates {
            let n_tokens = self.rows[idx].1.n_tokens();
            let padded = (chosen.len() + 1) * longest.max(n_tokens);
            let padding = padded - (real_tokens + n_tokens);
            if padded > budget_tokens || padding > CHEAP_PADDING_TOKENS.max((real_tokens + n_tokens) / 4) {
                break;
            }
            chosen.push(idx);
            longest = longest.max(n_tokens);
            real_tokens += n_tokens;
        }
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Waiting for usize {
        fn n_tokens(&self) -> usize {
            *self
        }
    }

    fn queue(requests: &[&[usize]]) -> TurnQueue<usize> {
        let mut queue = TurnQueue::default();
        requests.iter().for_each(|rows| queue.push_request(rows.iter().copied()));
        queue
    }

    #[test]
    fn a_batch_fills_with_the_rows_closest_in_length_to_the_oldest() {
        let mut queue = queue(&[&[400], &[30], &[390], &[410]]);
        assert_eq!(queue.take_batch(1300), Some(vec![400, 390, 410]));
        assert_eq!((queue.take_batch(1300), queue.take_batch(1300)), (Some(vec![30]), None));
    }

    #[test]
    fn a_request_of_many_rows_takes_turns_with_the_others() {
        let mut queue = queue(&[&[100, 100, 100], &[10]]);
        assert_eq!(queue.take_batch(100), Some(vec![100]));
        assert_eq!(queue.take_batch(100), Some(vec![10]));
        assert_eq!((queue.take_batch(100), queue.n_tokens()), (Some(vec![100]), 100));
    }

    #[test]
    fn rows_that_leave_are_taken_out_and_the_others_stay() {
        let mut queue = queue(&[&[1, 2], &[3]]);
        assert_eq!(queue.take_out(|&row| row == 2), [2]);
        assert_eq!(queue.iter().copied().collect::<Vec<_>>(), [1, 3]);
    }
}
