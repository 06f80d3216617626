/// What a run of a program costs beside its tokens, learned from runs: the line `seconds = fixed + each · tokens` by weighted least squares.
///
/// It decides who shares a batch: a row may join while the padding that this brings costs less than a run of its own. A small model on a CPU
/// is soon as fast row by row, a GPU takes a whole batch in the time of one row; neither is known before it was tried.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunCost {
    n_runs: u32,
    /// Weighted sums over the runs: of 1, tokens, tokens², seconds, tokens · seconds.
    sums: [f64; 5],
    /// `fixed` and `each`.
    line: Option<(f64, f64)>,
}

/// Before anything is known.
const TOKENS_OF_A_RUN: usize = 32;
const MOST_TOKENS_OF_A_RUN: f64 = 65_536.0;
/// Runs before a line is trusted.
const ENOUGH_RUNS: u32 = 8;
/// What is left of the weight of a run after the next one.
const KEPT: f64 = 0.98;
/// Weight of a run that took longer than the line says: a neighbour that had the processor says nothing of the program.
const WEIGHT_OF_LATE: f64 = 0.1;
/// Standard deviation of the tokens, over their mean, below which they do not tell a line from a point.
const LEAST_SPREAD: f64 = 0.05;

impl RunCost {
    /// Counts a run of `tokens`, padding included, that took so many seconds.
    pub fn record(&mut self, tokens: usize, seconds: f64) {
        let tokens = tokens as f64;
        let late = self.line.is_some_and(|(fixed, each)| seconds > fixed + each * tokens);
        let weight = if late { WEIGHT_OF_LATE } else { 1.0 };
        for (sum, of_run) in self.sums.iter_mut().zip([1.0, tokens, tokens * tokens, seconds, tokens * seconds]) {
            *sum = KEPT * *sum + weight * of_run;
        }
        self.n_runs = self.n_runs.saturating_add(1);
        self.line = self.fitted().or(self.line);
    }

    /// The tokens that could be done in the time that a run takes beside its tokens.
    pub fn run_tokens(&self) -> usize {
        match self.line {
            None => TOKENS_OF_A_RUN,
            Some((fixed, each)) if each > 0.0 => (fixed / each).clamp(0.0, MOST_TOKENS_OF_A_RUN) as usize,
            Some(_) => MOST_TOKENS_OF_A_RUN as usize,
        }
    }

    fn fitted(&self) -> Option<(f64, f64)> {
        let [n, tokens, squares, seconds, products] = self.sums;
        let mean = tokens / n;
        let variance = squares / n - mean * mean;
        if self.n_runs < ENOUGH_RUNS || variance <= (LEAST_SPREAD * mean).powi(2) {
            return None;
        }
        let each = (products / n - mean * seconds / n) / variance;
        Some((seconds / n - each * mean, each))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fixed_part_is_learned_and_delays_are_not() {
        let mut cost = RunCost::default();
        for n in 0..400_usize {
            let tokens = 8 + 37 * n % 200;
            let delay = if n % 5 == 0 { 0.02 } else { 0.0 };
            cost.record(tokens, 0.002 + 0.0001 * tokens as f64 + delay);
        }
        assert!((16..=32).contains(&cost.run_tokens()), "{cost:?}");
        // From now on a run takes as long as 100 tokens.
        (0..400_usize).for_each(|n| cost.record(8 + 37 * n % 200, 0.01 + 0.0001 * (8 + 37 * n % 200) as f64));
        assert!((95..=105).contains(&cost.run_tokens()), "{cost:?}");
    }

    #[test]
    fn what_is_not_known_is_not_guessed() {
        let mut cost = RunCost::default();
        assert_eq!(cost.run_tokens(), TOKENS_OF_A_RUN);
        (0..100).for_each(|_| cost.record(64, 0.5));
        assert_eq!(cost.run_tokens(), TOKENS_OF_A_RUN, "one length tells no line");
        (1..20).for_each(|n| cost.record(64 * n, 0.5));
        assert_eq!(cost.run_tokens(), MOST_TOKENS_OF_A_RUN as usize, "tokens cost nothing");
        (0..100).for_each(|_| cost.record(0, 0.0));
        assert!(cost.run_tokens() <= MOST_TOKENS_OF_A_RUN as usize);
    }
}
