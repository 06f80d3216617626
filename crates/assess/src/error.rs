use std::io;
use std::path::PathBuf;

use highroad_data::RecordError;
use highroad_eval::{GateError, ObservedError, RankingsError};
use highroad_hosted::{DescriptionError, HostedError};
use highroad_package::{Digest, PackageError};
use highroad_task::TaskError;

use crate::{CustomError, JoinError};

/// A golden set cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum GoldenError {
    #[error("cannot read golden set `{}`", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("golden set `{}` is over {limit} bytes", path.display())]
    TooLarge { path: PathBuf, limit: u64 },
    #[error("golden set `{}` is no sound Parquet file: {reason}", path.display())]
    Parquet { path: PathBuf, reason: String },
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("{}:{line}: {reason}", path.display())]
    Case { path: PathBuf, line: usize, reason: String },
    #[error("golden set `{}`: case `{case}` is no longer what it was when the set was read", path.display())]
    Changed { path: PathBuf, case: String },
    #[error("golden set `{}`: case `{case}`: {reason}", path.display())]
    Picture { path: PathBuf, case: String, reason: String },
    #[error("golden set `{}` has no cases", .0.display())]
    Empty(PathBuf),
}

/// An assessment did not come to an end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum AssessError {
    #[error(transparent)]
    Golden(#[from] GoldenError),
    #[error("case `{case}`")]
    Task { case: String, source: TaskError },
    #[error("{n_answered} of {n_questions} questions are answered, and kept; case `{case}`")]
    Hosted { case: String, n_answered: usize, n_questions: usize, source: HostedError },
    #[error("a hosted model takes no token ids: those of case `{case}` are of another tokenizer")]
    Tokens { case: String },
    #[error("a hosted model is asked no images, and case `{case}` is one: images need a package")]
    HostedImage { case: String },
    #[error("a hosted model cannot be asked from here")]
    Runtime(#[source] io::Error),
    #[error(transparent)]
    Description(#[from] DescriptionError),
    #[error("judge `{judge}` compares two answers, so the baseline must be a model that writes")]
    NoPair { judge: String },
    #[error(
        "judge `{judge}` is not used: {problem}\nhint: another prompt or model may agree more with people; a floor that is lowered \
         for a judge is no floor"
    )]
    Agreement { judge: String, problem: String },
    #[error(
        "judge `{judge}` gave no score for `{case}` that can be read, in any of its repeats\nhint: ask for the score alone, or let the \
         host hold answers to a schema: `structured = true` in the judge's description"
    )]
    Unreadable { judge: String, case: String },
    #[error("a request under load failed")]
    Load { source: TaskError },
    #[error("[traffic] asks for rows of {tokens} tokens, and the model takes {max_tokens} at most")]
    RowTooLong { tokens: usize, max_tokens: usize },
    #[error("[traffic] asks for rows of {tokens} tokens, in which no word of the golden set fits")]
    RowTooShort { tokens: usize },
    #[error("[traffic] asks for rows of {tokens} tokens, and every image counts as {n_tokens}")]
    ImageTokens { tokens: usize, n_tokens: usize },
    #[error(
        "[traffic] asks for rows of other lengths, and tensors are asked as the golden set has them: leave `lengths` out"
    )]
    TensorTokens,
    #[error(transparent)]
    Custom(#[from] CustomError),
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error("the golden set asks more than {limit} different inputs")]
    TooManyInputs { limit: usize },
    #[error(transparent)]
    Observed(#[from] ObservedError),
    #[error(transparent)]
    Rankings(#[from] RankingsError),
    #[error(transparent)]
    Gate(#[from] GateError),
    #[error(transparent)]
    Package(#[from] PackageError),
    #[error("the model is made to {package}, but the golden set asks for {golden}")]
    OtherTask { package: &'static str, golden: &'static str },
    #[error("case `{case}` expects the label `{label}`, which the package does not have")]
    UnknownLabel { case: String, label: String },
    #[error("case `{case}`: {problem}")]
    Tensors { case: String, problem: String },
    #[error("case `{case}` got an answer of another kind than its task gives")]
    OtherAnswer { case: String },
    #[error("cannot read or write `{}`", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("`{}` is not evaluation results", path.display())]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("the results are of golden set {found}, not {expected}")]
    OtherGolden { expected: Digest, found: Digest },
    #[error("the results do not hold exactly the cases of the golden set, in order")]
    OtherCases,
}
