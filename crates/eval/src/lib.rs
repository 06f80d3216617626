//! Metrics, intervals, paired tests, gates and verdicts: pure functions, no I/O, no clock.

mod about;
mod agreement;
mod array;
mod bootstrap;
mod cost;
mod curves;
mod custom;
mod deciders;
pub mod drift;
mod gate;
mod hosted;
mod interval;
mod judged;
mod latency;
mod metric;
mod multiplicity;
mod numbers;
mod objective;
mod observed;
mod overrides;
mod paired;
mod permutation;
mod power;
mod probation;
mod ranking;
mod rollout;
mod rules;
mod selftest;
mod sequential;
mod summary;
mod tensors;
mod text;
mod texts;
mod tolerance;
mod traffic;
mod verdict;
mod weights;

pub use about::{About, Costs, Parameter, ParameterError, Pattern, Schema};
pub use agreement::{Agreement, AgreementMeasure, AgreementRule, majority};
pub use array::Array;
pub use bootstrap::{Bootstrap, Resamples, Units};
pub use cost::{CostEvidence, GpuCost, HOURS_A_MONTH};
pub use curves::{CurvePoint, ReliabilityBin, precision_recall_curve, reliability, roc_curve, thin};
pub use custom::{CustomEvidence, CustomRule, Given, add_to_summaries};
pub use deciders::right;
pub use gate::{Comparison, Decision, GateError, Side, WaiverError, decide, decide_with};
pub use hosted::{HostedCost, HostedEvidence};
pub use interval::{clopper_pearson, fisher_z, quantile, quantile_interval, wilson};
pub use judged::{DifferentPairs, JudgeEvidence, JudgeMode, JudgeRule};
pub use latency::{
    AtRate, BlockAtRate, BlockSaturated, Estimated, Load, LoadEvidence, Loads, PairedLatency, Percentile, Run,
    TrafficEvidence, capacity, judge_load, paired_latency,
};
pub use metric::{Metric, MetricError, Statistic, UnknownMetric};
pub use multiplicity::{benjamini_hochberg, holm};
pub use numbers::{Numbers, Triplets};
pub use objective::{BurnRule, Burned, Burning, Counts, MIN_BAD, Objective, burn_rate};
pub use observed::{Case, Classes, Expected, Observed, ObservedError, Similarities};
pub use overrides::{Aliased, MAX_OVERRIDE_DAYS, Missing, Override, OverrideRefusal};
pub use paired::Discordance;
pub use permutation::SignFlips;
pub use power::{FloorPower, McNemarPower, NonInferiority, Sides};
pub use probation::{ProbationCounts, ProbationRules, Regression, regression};
pub use ranking::{Cutoff, Rankings, RankingsError};
pub use rollout::{
    Judgement, Move, Pace, Plan, RolloutCounts, RolloutRules, RolloutRulesError, judge_rollout, next_move,
};
pub use rules::{Gates, GatesError, Inconclusive, LatencyRule, Rule};
pub use selftest::{BrokenTest, Fault, Kept, Models, Promise, RuleTest, SelfTest, Simulations, self_test};
pub use sequential::{Sequential, SequentialError, SequentialFlips};
pub use summary::{Measured, Method, Summary, summarise};
pub use tensors::Tensors;
pub use texts::{Generated, Likelihood, Texts};
pub use tolerance::Tolerance;
pub use traffic::{
    Arrival, CostRule, GoldenMix, LengthShare, Lengths, Loaded, MemoryRule, RequestDraw, ThroughputRule, Traffic,
    pair_orders, poisson_arrivals,
};
pub use verdict::{
    Baseline, CheckResult, Evidence, Flip, GoldenSet, Latency, Outcome, PipelineEvidence, Recency, Refusal, Test,
    Verdict, Waiver, outcome, to_accept,
};
pub use weights::effective_size;
