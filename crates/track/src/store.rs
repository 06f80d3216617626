//! The SQL side: what is kept, and the rules that hold whichever client writes.
//!
//! Every function that writes is one transaction. Time and new ids are arguments. The SQL keeps to what SQLite and
//! Postgres share; `$n` placeholders are both's.

use std::path::Path;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Sqlite, SqlitePool, Transaction};

use crate::TrackError;

mod experiments;
mod inputs;
mod logged_models;
mod registry;
mod runs;
mod search;

pub use experiments::ExperimentSearch;
pub use logged_models::{LoggedModelSearch, NewLoggedModel, OrderField};
pub use registry::{ArchiveOthers, Mover, NewVersion, Target, version_number};
pub use runs::{Batch, NewRun, RunChange};
pub use search::{Page, RunSearch, View};

/// How long a writer waits for another process's transaction.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);
const N_READERS: u32 = 4;

/// Milliseconds since 1970, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Millis(pub i64);

impl Millis {
    /// The same moment as RFC 3339 in UTC with whole seconds, the form verdicts use.
    pub fn rfc3339(self) -> String {
        jiff::Timestamp::from_millisecond(self.0).map_or_else(|_| "invalid".to_owned(), |at| format!("{at:.0}"))
    }
}

/// The tracking database. Cheap to clone; any number of processes may open one file.
#[derive(Debug, Clone)]
pub struct Store {
    reads: SqlitePool,
    // SQLite has one writer at a time. One connection queues writers here, in order, rather than in SQLite's busy loop;
    // the busy timeout is left for other processes.
    writes: SqlitePool,
}

impl Store {
    /// Opens or creates the SQLite file at `path` and brings its tables up to date.
    pub async fn open(path: &Path) -> Result<Self, TrackError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // In WAL a power cut may lose the last transactions but never corrupts the file.
            .synchronous(SqliteSynchronous::Normal)
            .busy_timeout(BUSY_TIMEOUT)
            .foreign_keys(true)
            .pragma("case_sensitive_like", "ON");
        let open = |source| TrackError::Open { path: path.to_owned(), source };
        let writes = SqlitePoolOptions::new().max_connections(1).connect_with(options.clone()).await.map_err(open)?;
        sqlx::migrate!("migrations/sqlite").run(&writes).await?;
        let reads = SqlitePoolOptions::new().max_connections(N_READERS).connect_with(options).await.map_err(open)?;
        Ok(Self { reads, writes })
    }

    /// Closes every connection, which folds the write-ahead log into the file.
    pub async fn close(&self) {
        self.reads.close().await;
        self.writes.close().await;
    }

    /// Begins a transaction that already holds the write lock: one that read first and wrote later could find the
    /// database changed under it.
    async fn write(&self) -> Result<Transaction<'static, Sqlite>, TrackError> {
        Ok(self.writes.begin_with("BEGIN IMMEDIATE").await?)
    }
}

/// Errors with MLflow's words if a required text is empty.
fn required<'a>(name: &str, value: &'a str) -> Result<&'a str, TrackError> {
    if value.is_empty() {
        return Err(TrackError::Invalid(format!("Missing value for required parameter '{name}'.")));
    }
    Ok(value)
}
