//! Runs golden sets through predictors, measures latency, writes verdicts.

mod error;
mod golden;
mod load;
mod mix;
mod results;
mod run;
mod verdict;

pub use error::{AssessError, GoldenError};
pub use golden::{GoldenCase, GoldenInput, GoldenSet};
pub use load::{Clock, Replicas, Served, SystemClock, load, saturate};
pub use mix::Mix;
pub use results::{CaseAnswer, Results, Speed, Value, answers_digest};
pub use run::{Model, RunOptions, Truncated, run};
pub use verdict::{Judged, Signature, judge, keep};
