//! What every Highroad server process shares: errors, telemetry, the HTTP shell.
//!
//! Nothing here knows what a run, a model or a request means; protocol edges (MLflow, OpenAI, OIP) turn a [`Problem`]
//! into their own error shape.

pub mod metrics;
mod problem;
mod shell;
pub mod telemetry;

pub use problem::{Kind, Problem};
pub use shell::{Bound, RequestId, Shell, stop_signal};

/// Why a server process could not start or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum ServiceError {
    #[error("cannot listen on `{address}`: {source}")]
    Bind { address: String, source: std::io::Error },
    #[error("the server on {address} stopped: {source}")]
    Serve { address: std::net::SocketAddr, source: std::io::Error },
    #[error("the log filter `{filter}` is not understood: {reason}")]
    LogFilter { filter: String, reason: String },
}
