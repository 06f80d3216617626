use std::time::Duration;

use highroad_eval::{OverrideRefusal, Refusal};
use highroad_hosted::DescriptionError;
use highroad_package::{Digest, PackageError, Reference};
use highroad_service::{Kind, Problem};
use highroad_task::TaskError;

use crate::budget::Refused;
use crate::config::Task;
use crate::index::IndexError;

/// Why a request was not answered. Protocols turn it into their own shape through [`AskError::problem`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum AskError {
    #[error("the model `{name}` does not exist; this server has {}", list(known))]
    UnknownMember { name: String, known: Vec<String> },
    #[error("this API key may not ask `{member}`")]
    NotAllowed { member: String },
    #[error("version `{version}` of `{member}` is not served; `{current}` is")]
    OtherVersion { member: String, version: String, current: String },
    #[error("no version of `{0}` is deployed")]
    NotDeployed(String),
    #[error("`{member}` is not ready: {reason}")]
    NotReady { member: String, reason: String },
    #[error("`{member}` is for {task}, not for {wanted}")]
    WrongTask { member: String, task: &'static str, wanted: &'static str },
    #[error("the request has {found} {what}; the limit is {limit}")]
    Limit { what: &'static str, found: usize, limit: usize },
    #[error("input {input_idx}: {source}")]
    Input { input_idx: usize, source: TaskError },
    #[error("pair {pair_idx}: {source}")]
    Pair { pair_idx: usize, source: TaskError },
    #[error(transparent)]
    Dimensions(TaskError),
    #[error("the tensors do not fit the program: {reason}")]
    Tensors { kind: &'static str, reason: String },
    #[error("the queue of `{member}` is full")]
    Overloaded { member: String, retry_after: Duration },
    #[error("the request waited {waited:?} for its turn and was given up")]
    Expired { waited: Duration },
    #[error("the worker of `{0}` failed while it ran this batch")]
    Lost(String),
    #[error("`{member}` failed: {reason}")]
    Failed { member: String, reason: String },
    #[error(transparent)]
    Budget(Refused),
    #[error("budgets cannot be written now, so nothing that costs money is asked")]
    Unwritable,
    #[error("`{member}` is hosted elsewhere and is not asked on this route")]
    Elsewhere { member: String },
}

impl AskError {
    /// The problem in no protocol's words.
    pub fn problem(&self) -> Problem {
        match self {
            Self::UnknownMember { .. } | Self::OtherVersion { .. } | Self::NotDeployed(_) => {
                Problem::not_found(self.to_string())
            }
            Self::NotAllowed { .. } => Problem::new(Kind::Forbidden, self.to_string()),
            Self::NotReady { .. } => {
                Problem::new(Kind::Unavailable, self.to_string()).retry_after(Duration::from_secs(1))
            }
            Self::WrongTask { .. }
            | Self::Limit { .. }
            | Self::Input { .. }
            | Self::Pair { .. }
            | Self::Dimensions(_)
            | Self::Tensors { .. } => Problem::invalid(self.to_string()),
            Self::Overloaded { retry_after, .. } => {
                Problem::new(Kind::Overloaded, self.to_string()).retry_after(*retry_after)
            }
            Self::Expired { .. } => {
                Problem::new(Kind::Unavailable, self.to_string()).retry_after(Duration::from_secs(1))
            }
            Self::Lost(_) => Problem::new(Kind::Internal, self.to_string()),
            Self::Failed { .. } => Problem::internal(self),
            Self::Budget(Refused::Over { wait, .. }) => {
                Problem::new(Kind::Overloaded, self.to_string()).retry_after(*wait)
            }
            Self::Budget(Refused::Never { .. }) | Self::Elsewhere { .. } => Problem::invalid(self.to_string()),
            Self::Budget(Refused::UnknownPrice { .. }) => Problem::new(Kind::Forbidden, self.to_string()),
            Self::Unwritable => Problem::new(Kind::Unavailable, self.to_string()).retry_after(Duration::from_secs(1)),
        }
    }

    /// What a request did not keep to, in one word for metrics; `None` where the request is not at fault.
    pub fn violation(&self) -> Option<&'static str> {
        Some(match self {
            Self::WrongTask { .. } => "wrong_task",
            Self::Limit { what: "inputs" | "images" | "documents", .. } => "too_many_inputs",
            Self::Limit { .. } => "too_long",
            Self::Input { source, .. } | Self::Pair { source, .. } => match source {
                TaskError::TooManyTokens { .. } | TaskError::MayNotCut { .. } => "too_long",
                TaskError::NoTokens => "empty",
                TaskError::UnknownToken(_) => "unknown_token",
                TaskError::Image(_) | TaskError::ImageSize { .. } => "image",
                _ => "wrong_input",
            },
            Self::Dimensions(_) => "dimensions",
            Self::Tensors { kind, .. } => kind,
            _ => return None,
        })
    }

    /// One word for metrics.
    pub fn outcome(&self) -> &'static str {
        match self {
            Self::UnknownMember { .. } | Self::OtherVersion { .. } => "unknown_model",
            Self::NotAllowed { .. } => "not_allowed",
            Self::NotDeployed(_) | Self::NotReady { .. } => "not_ready",
            Self::WrongTask { .. }
            | Self::Limit { .. }
            | Self::Input { .. }
            | Self::Pair { .. }
            | Self::Dimensions(_)
            | Self::Tensors { .. } => "invalid",
            Self::Overloaded { .. } => "overloaded",
            Self::Expired { .. } => "expired",
            Self::Lost(_) | Self::Failed { .. } | Self::Unwritable => "failed",
            Self::Budget(_) => "over_budget",
            Self::Elsewhere { .. } => "invalid",
        }
    }
}

/// Why a version does not serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum DeployError {
    #[error("{0}")]
    Stale(String),
    #[error("`{0}` does not exist in the registry")]
    NotFound(Reference),
    #[error("`{0}` is not a Highroad package")]
    NotAPackage(String),
    #[error("the registry does not answer: {0}")]
    Registry(String),
    #[error("`{0}` needs a registry, and this server has none")]
    NoRegistry(Reference),
    #[error(transparent)]
    Package(#[from] PackageError),
    #[error("package {0} has no verdict; `highroad gate` makes one, `--development` serves it without")]
    NoVerdict(Digest),
    #[error(
        "a bare program has no verdict and can have none: `--development` serves it as it is, and `highroad pack` makes a package of it, \
         which `highroad gate` judges"
    )]
    BareProgram,
    #[error("package {package} may not serve: {refusal}; `--development` serves it without a passing verdict")]
    Refused { package: Digest, refusal: Refusal },
    #[error("package {package} may not serve: {reason}, and without an override: {refusal}")]
    Override { package: Digest, reason: OverrideRefusal, refusal: Box<DeployError> },
    #[error("verdict {verdict} cannot be read: {reason}")]
    Verdict { verdict: Digest, reason: String },
    #[error("the model does not load: {0}")]
    Load(TaskError),
    #[error("on `{numerics_id}` the parity cases do not reproduce: {reason}")]
    Parity { numerics_id: String, reason: String },
    #[error("the model does not answer its warm-up: {0}")]
    WarmUp(TaskError),
    #[error("`{version}` holds another package than the rollout names: {found}")]
    OtherPackage { version: String, found: Digest },
    #[error(
        "`{version}` is for the task `{found}`, and `task` says `{wanted}`: name a package for that as `model`, or mend it"
    )]
    Task { version: String, found: String, wanted: Task },
    #[error("`{0}` is for another task, or has other labels, than what serves")]
    OtherTask(String),
    #[error(
        "no Python was found for `engine = \"torch\"`: name one with PyTorch as `python = \"…\"`, or set HIGHROAD_PYTHON. The serving \
         image has none: build one from an image with PyTorch and the `highroad` binary"
    )]
    NoPython,
    #[error("its PyTorch does not start: {0}")]
    Torch(String),
    #[error("loading panicked")]
    Panicked,
    #[error(transparent)]
    Index(IndexError),
    #[error("{0}")]
    Pipeline(String),
    #[error("cannot write `{path}`: {source}")]
    Io { path: String, source: std::io::Error },
    #[error(transparent)]
    Hosted(DescriptionError),
}

impl DeployError {
    /// What happened, and what made it happen: `cannot read or write \`p\`: No space left on device (os error 28)`.
    pub fn with_causes(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            // Some errors tell their cause themselves.
            let told = error.to_string();
            if !text.ends_with(&told) {
                text = format!("{text}: {told}");
            }
            cause = error.source();
        }
        text
    }
}

fn list(names: &[String]) -> String {
    match names {
        [] => "none".to_owned(),
        names => names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "),
    }
}
