use highroad_data::TokenizerError;
use highroad_package::PackageError;
use highroad_runtime::{LoadError, RunError};

/// Why a predictor was not made or gave no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum TaskError {
    #[error(transparent)]
    Package(#[from] PackageError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),

    #[error(transparent)]
    Program(#[from] LoadError),
    #[error("the program did not run: {0}")]
    Run(#[from] RunError),
    #[error("parity case {case_idx}: {reason}")]
    Parity { case_idx: u32, reason: String },
    #[error("the program does not fit its task: {0}")]
    Signature(String),

    #[error("an input needs at least one token")]
    NoTokens,
    #[error("the input has {n_tokens} tokens, and the package takes at most {max_tokens}")]
    TooManyTokens { n_tokens: usize, max_tokens: usize },
    #[error("token id {0} is not in the vocabulary")]
    UnknownToken(u32),
}
