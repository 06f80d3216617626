use std::io;
use std::sync::Arc;

/// A process gave no answer. `what` is what it is for, as people call it: `PyTorch`.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum WorkerError {
    #[error("cannot start `{python}` for {what}: {source}")]
    Start { what: &'static str, python: String, source: Arc<io::Error> },
    #[error("{what}: {reason}")]
    Refused { what: &'static str, reason: String },
    #[error("the {what} process ended ({status}){stderr}")]
    Ended { what: &'static str, status: String, stderr: String },
    #[error("the {what} process did not answer within {seconds} s and was ended{stderr}")]
    TimedOut { what: &'static str, seconds: u64, stderr: String },
    #[error("the {what} process took {found_mib} MiB of memory and was ended: it may take {limit_mib} MiB")]
    Memory { what: &'static str, found_mib: u64, limit_mib: u64 },
    #[error("the {what} process sent what is no answer: {reason}{stderr}")]
    Garbage { what: &'static str, reason: String, stderr: String },
    #[error("what a process that was started again computes with is another: {found}, and was {expected}")]
    OtherNumerics { found: String, expected: String },
    #[error("no {what} process runs now: {reason}")]
    Down { what: &'static str, reason: String },
}

impl WorkerError {
    /// Whether the process is no more.
    pub fn is_end(&self) -> bool {
        !matches!(self, Self::Refused { .. })
    }

    /// One word for a metric: `hung`, `memory` or `ended`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::TimedOut { .. } => "hung",
            Self::Memory { .. } => "memory",
            _ => "ended",
        }
    }
}
