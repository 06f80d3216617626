//! Runs golden sets through predictors, measures latency, writes verdicts.

mod error;
mod golden;
mod kept;
pub mod report;
mod results;
mod run;
mod verdict;

pub use error::{AssessError, GoldenError};
pub use golden::{GoldenCase, GoldenInput, GoldenSet};
pub use kept::KeptAnswers;
pub use results::{CaseAnswer, Checked, Results, Speed, Value, answers_digest};
pub use run::{Model, RunOptions, Stage, Truncated, run};
pub use verdict::{Judged, Signature, judge, keep};
