use highroad_data::{ImageError, TokenizerError};
use highroad_package::PackageError;
use highroad_runtime::{LoadError, RunError};
use highroad_tensor::TensorError;

use crate::ParityCase;

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
    Image(#[from] ImageError),
    #[error("cannot load `program.pt2`: {0}")]
    Load(#[from] LoadError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Tensor(#[from] TensorError),

    #[error("the program does not fit its task: {0}")]
    Signature(String),
    #[error("the parity cases are not usable: {0}")]
    Parity(String),
    #[error(
        "the program is not what PyTorch computed: output {} of parity case {} is off by {:.3e} (relative rms), and at most \
         {limit:e} is accepted",
        worst.output, worst.case, worst.relative_rms
    )]
    NoParity { worst: ParityCase, limit: f64 },

    #[error("the package is made to {task}: it takes {takes}")]
    OtherInput { task: &'static str, takes: &'static str },
    #[error("the image has {} x {} pixels (height x width), and the package takes {} x {} and resizes nothing", found.0, found.1, needed.0, needed.1)]
    ImageSize { found: (usize, usize), needed: (usize, usize) },
    #[error("an input needs at least one token")]
    NoTokens,
    #[error("the input has {n_tokens} tokens, and the package takes at most {max_tokens}")]
    TooManyTokens { n_tokens: usize, max_tokens: usize },
    #[error("the input has more tokens than the {max_tokens} that the package takes, and it may not be cut")]
    MayNotCut { max_tokens: usize },
    #[error("the model has no prompt `{asked}`: it has {}", named(known))]
    UnknownPrompt { asked: String, known: Vec<String> },
    #[error("`dimensions` is {asked}, and the model gives {}", one_of(known))]
    Dimensions { asked: u64, known: Vec<u32> },
    #[error("the package reads no texts and has no tokenizer")]
    NoTokenizer,
    #[error("token id {0} is not in the vocabulary")]
    UnknownToken(u32),
    #[error("the program's output for row {row} is infinite or not a number")]
    NotFinite { row: usize },
    #[error("{0}")]
    Tensors(String),
    #[error(transparent)]
    Engine(Box<dyn std::error::Error + Send + Sync>),
}

/// "`a`, `b` and `c`"
fn named(names: &[String]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    match names.split_last() {
        None => "none".to_owned(),
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
    }
}

/// `2, 4 or 8`
fn one_of(numbers: &[u32]) -> String {
    let texts: Vec<String> = numbers.iter().map(u32::to_string).collect();
    match texts.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => texts.concat(),
    }
}
