//! Runs golden sets through predictors, measures latency, writes verdicts.

mod baseline;
mod custom;
mod drift;
mod error;
mod files;
mod golden;
mod hosted;
mod judging;
mod kept;
mod load;
mod mix;
mod preprocessing;
mod rehearse;
pub mod report;
mod results;
pub mod review;
mod run;
mod shard;
mod torch;
mod verdict;

pub use baseline::{golden_baseline, hosted_baseline, observe, observe_tensors};
pub use custom::{CustomError, give};
pub use drift::Drift;
pub use error::{AssessError, GoldenError};
pub use golden::{
    ASSUMED_DISCORDANCE, Blessing, Changes, Coverage, Difference, EditError, Edited, Editing, Fact, Finding,
    GoldenCase, GoldenInput, GoldenKind, GoldenSet, Kind, Level, Line, LintOptions, Lock, LockError, MeaningError,
    Message, SliceError, Training, add, alike_by_meaning, can_be_right, coverage, diff, edit, in_words, leaks, lint,
};
pub use hosted::{HostedModel, run_hosted};
pub use judging::HostedJudge;
pub use kept::{KeptAnswers, KeptReplies};
pub use load::{Clock, Replicas, Served, SystemClock, load, saturate};
pub use mix::Mix;
pub use preprocessing::preprocessing_share;
pub use rehearse::{Rehearsal, Replayed, WayBack, rehearse};
pub use results::{CaseAnswer, Checked, Results, Speed, Value, answers_digest};
pub use run::{Model, RunOptions, Stage, Truncated, run, run_joined, run_shard};
pub use shard::{JoinError, Joined, Shard, ShardAnswers, ShardError};
pub use torch::OnTorch;
pub use verdict::{Judged, Ruled, Signature, judge, judge_with, keep};
