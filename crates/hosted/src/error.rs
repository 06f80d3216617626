use std::io;
use std::path::PathBuf;

/// A description is not usable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum DescriptionError {
    #[error("cannot read `{}`", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("`{}` is over {limit} bytes", path.display())]
    TooLarge { path: PathBuf, limit: u64 },
    #[error("`{}` does not describe a hosted model: {reason}", path.display())]
    Syntax { path: PathBuf, reason: String },
    #[error("there is no API key: {0}")]
    NoKey(String),
    #[error("no HTTP client can be made: {0}")]
    Client(reqwest::Error),
}

/// A hosted model gave no answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum HostedError {
    #[error("`{url}` could not be asked, after {n_tries} tries: {reason}")]
    Unreachable { url: String, n_tries: u32, reason: String },
    #[error("`{url}` answered {status}, after {n_tries} tries: {message}")]
    Status { url: String, status: u16, n_tries: u32, message: String },
    #[error("`{url}` refused the request with {status}: {message}")]
    Refused { url: String, status: u16, message: String },
    #[error(
        "`{url}` refused the key with {status}: {message}\nhint: the description names where the key is, as `api_key_env` or \
         `api_key_file`"
    )]
    Key { url: String, status: u16, message: String },
    #[error(
        "`{url}` asks to wait {wait_s:.0} s, and the description waits {most_s} s for one request at most (`wait_s`)"
    )]
    Wait { url: String, wait_s: f64, most_s: u64 },
    #[error("`{url}` answered with something else than its protocol says, after {n_tries} tries: {reason}")]
    Malformed { url: String, n_tries: u32, reason: String },
    #[error("`{url}` answered with more than {limit} bytes")]
    TooLarge { url: String, limit: usize },
    #[error(
        "stopped before more than {most} {currency} is spent: {spent:.6} is, and the next request may cost {next:.6}\nhint: what \
         was answered is kept, and a larger --max-cost goes on from there"
    )]
    OverBudget { most: f64, spent: f64, next: f64, currency: String },
    #[error("the cost cannot be limited: one price is in {first}, another in {other}")]
    Currencies { first: String, other: String },
    #[error("the cost cannot be limited: the description of `{model}` has no [price]")]
    NoPrice { model: String },
    #[error("it cannot be asked: {0}")]
    Input(String),
    #[error("`{0}` cannot be asked this: {1}")]
    OtherTask(String, &'static str),
}
