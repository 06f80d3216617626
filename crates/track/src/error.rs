use std::path::PathBuf;

use highroad_service::{Kind, Problem};

/// Why the tracking server does not do what was asked. The text of the first six is for the client.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum TrackError {
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    Missing(String),
    #[error("{0}")]
    Exists(String),
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    TooLarge(String),
    #[error("{method} {path} is not spoken here")]
    UnknownRoute { method: String, path: String },
    #[error("the tracking database failed: {0}")]
    Database(#[from] sqlx::Error),
    #[error("the tracking database at {path} cannot be opened: {source}")]
    Open { path: PathBuf, source: sqlx::Error },
    #[error("the tracking database was written by another version of Highroad: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    #[error("cannot access `{path}`: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("the page cannot be drawn: {0}")]
    Page(#[from] minijinja::Error),
}

impl TrackError {
    /// MLflow's word for it, the `error_code` of the reply.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "INVALID_PARAMETER_VALUE",
            Self::Missing(_) => "RESOURCE_DOES_NOT_EXIST",
            Self::Exists(_) => "RESOURCE_ALREADY_EXISTS",
            Self::Refused(_) => "PERMISSION_DENIED",
            Self::TooLarge(_) => "BAD_REQUEST",
            Self::UnknownRoute { .. } => "ENDPOINT_NOT_FOUND",
            _ => "INTERNAL_ERROR",
        }
    }

    /// The same in no protocol's words. What is not for the client goes to the log here.
    pub fn problem(&self) -> Problem {
        match self {
            Self::Invalid(message) | Self::Exists(message) => Problem::invalid(message),
            Self::Missing(message) => Problem::not_found(message),
            Self::Refused(message) => Problem::new(Kind::Forbidden, message),
            Self::TooLarge(message) => Problem::new(Kind::TooLarge, message),
            Self::UnknownRoute { .. } => Problem::not_found(self.to_string()),
            other => Problem::internal(other),
        }
    }
}
