//! Whether what a model meets is still what it was judged on: a baseline of distributions, counts of what was met, and the evidence
//! that the two differ.
//!
//! A signal (the length of a text, its language, the label that was answered) is counted in bins that the baseline fixes, so that counts
//! of minutes, days and replicas add up and take kilobytes whatever the traffic.

mod baseline;
mod builder;
mod divergence;
mod evidence;
mod judge;
mod mmd;
mod pane;
mod quality;
mod space;
mod tensor_row;
mod two_sample;
mod vocabulary;

pub use baseline::{Baseline, BaselineError, MAX_BASELINE_BYTES, MAX_TENSOR_SIGNALS, Signal, SignalKind, Source};
pub use builder::{BaselineBuilder, MAX_BASELINE_ROWS, Observation};
pub use divergence::{jensen_shannon, psi, psi_excess, psi_under_null};
pub use evidence::{drift_evidence, worse_evidence};
pub use judge::{Alarm, DriftPolicy, SignalState, Suffix, Verdict, judge_signals};
pub use mmd::{Mmd, mmd};
pub use pane::Pane;
pub use quality::{Confusion, LabelQuality, Ranks, Rate};
pub use tensor_row::{RowValues, TensorRow};
pub use two_sample::{ChiSquare, Kolmogorov, chi_square, g_test, kolmogorov_smirnov};
