//! What every Highroad server process shares: errors, telemetry, the HTTP shell, who may ask, TLS.
//!
//! Nothing here knows what a run, a model or a request means; protocol edges (MLflow, OpenAI, OIP) turn a [`Problem`]
//! into their own error shape.

pub mod access;
pub mod metrics;
mod problem;
mod shell;
pub mod telemetry;
mod tls;
pub mod trace;

pub use problem::{Kind, Problem};
pub use shell::{Bound, RequestId, Shell, stop_signal};
pub use tls::{Tls, TlsFiles};

use std::path::PathBuf;

/// Why a server process could not start or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum ServiceError {
    #[error("cannot listen on `{address}`: {source}")]
    Bind { address: String, source: std::io::Error },
    #[error("the server on {address} stopped: {source}")]
    Serve { address: std::net::SocketAddr, source: std::io::Error },
    #[error("`{path}` is no access file: {reason}")]
    Access { path: PathBuf, reason: String },
    #[error("cannot use the certificate `{path}`: {reason}")]
    Tls { path: PathBuf, reason: String },
    #[error("the system gives no random numbers: {reason}")]
    Random { reason: String },
    #[error("the log filter `{filter}` is not understood: {reason}")]
    LogFilter { filter: String, reason: String },
}
