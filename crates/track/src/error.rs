use std::path::PathBuf;

use highroad_service::{Kind, Problem};

use crate::files::Artifacts;
use crate::store::Database;

/// Why the tracking server does not do what was asked. The text of the first eight is for the client.
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
    #[error("{0}")]
    Disabled(String),
    #[error("{0} is not supported for the current artifact repository")]
    Unsupported(&'static str),
    #[error("{method} {path} is not spoken here")]
    UnknownRoute { method: String, path: String },
    #[error("the disk of the tracking database is full; nothing of this request was kept")]
    Full,
    #[error("the tracking database failed: {0}")]
    Database(sqlx::Error),
    #[error("the tracking database at {database} cannot be opened: {source}")]
    Open { database: Database, source: sqlx::Error },
    #[error(
        "the tables of the tracking database at {database} cannot be brought to this version of Highroad: {source}"
    )]
    Migrate { database: Database, source: sqlx::migrate::MigrateError },
    #[error(
        "the tracking database at {database} has tables of version {found}, and this highroad knows up to {newest}; use \
         a newer highroad, or let that one go back first: `highroad track migrate --to {newest} --yes`"
    )]
    Newer { database: Database, found: i64, newest: i64 },
    #[error("cannot keep artifacts in `{place}`: {reason}")]
    OpenArtifacts { place: Artifacts, reason: String },
    #[error("the artifacts in `{place}` failed: {reason}")]
    Artifacts { place: Artifacts, reason: String },
    #[error("cannot access `{path}`: {source}")]
    Io { path: PathBuf, source: std::io::Error },
}

/// PostgreSQL's code for text that it cannot keep, such as one with a zero byte.
const NOT_TEXT: &str = "22021";

/// SQLite's and PostgreSQL's codes where the disk has no room.
const FULL: [&str; 2] = ["13", "53100"];

impl From<sqlx::Error> for TrackError {
    fn from(error: sqlx::Error) -> Self {
        match error.as_database_error().and_then(|error| error.code()).as_deref() {
            Some(NOT_TEXT) => Self::Invalid("a text has a zero byte, which the database cannot keep".into()),
            Some(code) if FULL.contains(&code) => Self::Full,
            _ => Self::Database(error),
        }
    }
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
            Self::Disabled(_) => "FEATURE_DISABLED",
            Self::Full => "TEMPORARILY_UNAVAILABLE",
            Self::Unsupported(_) => "NOT_IMPLEMENTED",
            Self::UnknownRoute { .. } => "ENDPOINT_NOT_FOUND",
            _ => "INTERNAL_ERROR",
        }
    }

    /// How MLflow 3 classifies it: `sqlstate` and `error_class` of the reply, which some of its replies lack.
    pub fn classification(&self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Invalid(_) | Self::TooLarge(_) => Some(("KAM00", "INVALID_PARAMETER_VALUE")),
            Self::Missing(_) | Self::UnknownRoute { .. } => Some(("KAM00", "RESOURCE_NOT_FOUND")),
            Self::Exists(_) => Some(("KAM00", "RESOURCE_ALREADY_EXISTS")),
            Self::Refused(_) => Some(("KAM00", "PERMISSION_DENIED")),
            Self::Unsupported(_) => None,
            _ => Some(("XXM00", "CLIENT_INTERNAL_ERROR")),
        }
    }

    /// The same in no protocol's words. What is not for the client goes to the log here.
    pub fn problem(&self) -> Problem {
        match self {
            Self::Invalid(message) | Self::Exists(message) => Problem::invalid(message),
            Self::Missing(message) => Problem::not_found(message),
            Self::Refused(message) => Problem::new(Kind::Forbidden, message),
            Self::TooLarge(message) => Problem::new(Kind::TooLarge, message),
            Self::Disabled(message) => Problem::new(Kind::Unavailable, message),
            Self::Full => {
                tracing::error!("{self}");
                Problem::new(Kind::Unavailable, self.to_string())
            }
            Self::Unsupported(_) => Problem::new(Kind::Unsupported, self.to_string()),
            Self::UnknownRoute { .. } => Problem::not_found(self.to_string()),
            other => Problem::internal(other),
        }
    }
}
