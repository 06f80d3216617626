//! Metrics, intervals, paired tests, gates and verdicts: pure functions, no I/O, no clock.

mod bootstrap;
mod cost;
mod gate;
mod interval;
mod latency;
mod metric;
mod observed;
mod paired;
mod power;
mod ranking;
mod rules;
mod summary;
mod traffic;
mod verdict;

pub use bootstrap::{Bootstrap, Resamples, Units};
pub use cost::{CostEvidence, HOURS_A_MONTH};
pub use gate::{Comparison, Decision, GateError, Side, WaiverError, decide};
pub use interval::{clopper_pearson, fisher_z, quantile, quantile_interval, wilson};
pub use latency::{
    AtRate, BlockAtRate, BlockSaturated, Estimated, Load, LoadEvidence, Loads, Percentile, Run, TrafficEvidence,
    capacity, judge_load,
};
pub use metric::{Metric, MetricError, Statistic, UnknownMetric};
pub use observed::{Case, Classes, Expected, Observed, ObservedError, Similarities};
pub use paired::Discordance;
pub use power::{McNemarPower, NonInferiority, Sides};
pub use ranking::{Cutoff, Rankings, RankingsError};
pub use rules::{Gates, GatesError, LatencyRule, Rule};
pub use summary::{Measured, Method, Summary, summarise};
pub use traffic::{
    Arrival, CostRule, GoldenMix, LengthShare, Lengths, Loaded, MemoryRule, RequestDraw, ThroughputRule, Traffic,
    pair_orders, poisson_arrivals,
};
pub use verdict::{
    Baseline, CheckResult, Evidence, Flip, GoldenSet, Latency, Outcome, Refusal, Verdict, Waiver, outcome,
};
