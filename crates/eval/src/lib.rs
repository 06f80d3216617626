//! Metrics, intervals, paired tests, gates and verdicts: pure functions, no I/O, no clock.

mod verdict;

pub use verdict::{Baseline, CheckResult, Evidence, Flip, GoldenSet, Outcome, Refusal, Verdict, Waiver};
