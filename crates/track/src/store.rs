//! The SQL side: what is kept, and the rules that hold whichever client writes.
//!
//! Every function that writes is one transaction. Time and new ids are arguments. The SQL keeps to what SQLite and
//! PostgreSQL share; `$n` placeholders are both's. CONTRIBUTING.md tells how to add a table.

use std::sync::{Arc, Mutex, PoisonError};

use sqlx::{Any, AnyPool, Transaction};

use self::hold::Hold;
use self::ingest::Ingest;
use self::query::QueryBuilder;
use crate::TrackError;

mod backup;
mod budgets;
mod database;
mod datasets;
mod experiments;
mod hold;
mod import;
mod ingest;
mod inputs;
mod logged_models;
mod migrations;
mod query;
mod registry;
mod runs;
mod search;
mod traces;
mod views;

pub use backup::{Backup, back_up, check_backup};
pub use budgets::{LeaseWanted, Spent};
pub use database::Database;
pub use datasets::{DatasetSearch, EvaluationDataset, Upserted};
pub use experiments::ExperimentSearch;
pub use import::{ImportedVersion, RunEnd};
pub use logged_models::{LoggedModelSearch, NewLoggedModel, OrderField};
pub use migrations::{Loss, Migrated, Schema, migrate};
pub use registry::{ArchiveOthers, Mover, NewVersion, Target, version_number};
pub use runs::{Batch, NewRun, RunChange};
pub use search::{Page, RunSearch, View};
pub use traces::{Assessment, Previews, Span, TraceInfo, TraceSearch, TracesToDelete};
pub use views::{CellValue, ExperimentSummary, History, KeyInUse, TableRow, TableSearch, Window};

/// Connections that read.
const N_READERS: u32 = 4;
/// Parts of one large read that are read at the same time: others need connections too.
const PARALLEL_READS: usize = 2;

/// Milliseconds since 1970, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Millis(pub i64);

impl Millis {
    /// The same moment as RFC 3339 in UTC with whole seconds, the form verdicts use.
    pub fn rfc3339(self) -> String {
        jiff::Timestamp::from_millisecond(self.0).map_or_else(|_| "invalid".to_owned(), |at| format!("{at:.0}"))
    }
}

/// The tracking database. Cheap to clone; any number of processes may open one.
#[derive(Debug, Clone)]
pub struct Store {
    database: Database,
    reads: AnyPool,
    ingest: Ingest,
    // There is one writer at a time. One connection queues writers here, in order, rather than in SQLite's busy loop or
    // at PostgreSQL's lock; those are left for other processes.
    writes: AnyPool,
    held: Arc<Mutex<Option<Hold>>>,
}

impl Store {
    /// Opens or creates the tables and brings them up to date. Errors if they are newer than this program.
    pub async fn open(database: Database) -> Result<Self, TrackError> {
        let held = Arc::new(Mutex::new(Some(Hold::shared(&database).await?)));
        let writes = database.pool(1).await?;
        migrations::move_to_newest(&database, &writes).await?;
        let reads = database.pool(N_READERS).await?;
        let ingest = Ingest::start(database.clone(), writes.clone());
        Ok(Self { database, reads, ingest, writes, held })
    }

    /// Closes every connection, which folds SQLite's write-ahead log into the file.
    pub async fn close(&self) {
        self.reads.close().await;
        self.writes.close().await;
        drop(self.held.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Begins a transaction that already holds the write lock.
    async fn write(&self) -> Result<Transaction<'static, Any>, TrackError> {
        Ok(self.writes.begin_with(self.database.begin_write()).await?)
    }
}

/// Errors with MLflow's words if a required text is empty.
fn required<'a>(name: &str, value: &'a str) -> Result<&'a str, TrackError> {
    if value.is_empty() {
        return Err(TrackError::Invalid(format!("Missing value for required parameter '{name}'.")));
    }
    Ok(value)
}
