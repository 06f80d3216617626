//! That servers use a database, so that nobody takes its tables away under them.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::PathBuf;

use sqlx::{AnyConnection, Connection as _};

use super::Database;
use crate::TrackError;

/// Whose advisory lock servers share; beside the one of writers, `begin_write`.
const POSTGRES_LOCK: i64 = 448_345_170_277;

/// What is held until this is dropped; the system gives it up when the process dies.
#[derive(Debug)]
#[allow(dead_code, reason = "it is held, not read")]
pub(super) enum Hold {
    /// A lock on `FILE.lock` beside the database.
    File(File),
    /// A session that holds an advisory lock.
    Session(Box<AnyConnection>),
    /// The file system keeps no locks.
    Nothing,
}

impl Hold {
    /// Held by every process that serves the database, together with others. Errors while [`Hold::alone`] is held.
    pub(super) async fn shared(database: &Database) -> Result<Self, TrackError> {
        let taken = Self::take(database, File::try_lock_shared, "pg_try_advisory_lock_shared").await?;
        taken.ok_or_else(|| {
            TrackError::Refused(format!("the tables of `{database}` are being moved; start again when that is done"))
        })
    }

    /// Held while tables go back. Errors if a process uses the database.
    pub(super) async fn alone(database: &Database) -> Result<Self, TrackError> {
        let taken = Self::take(database, File::try_lock, "pg_try_advisory_lock").await?;
        taken.ok_or_else(|| {
            TrackError::Refused(format!(
                "a server or another command uses `{database}`: stop it before the tables go to another version"
            ))
        })
    }

    async fn take(
        database: &Database,
        lock: fn(&File) -> Result<(), TryLockError>,
        function: &str,
    ) -> Result<Option<Self>, TrackError> {
        match database {
            Database::Sqlite(path) => {
                let mut name = path.as_os_str().to_owned();
                name.push(".lock");
                let path = PathBuf::from(name);
                let opened = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
                let file = opened.map_err(|source| TrackError::Io { path, source })?;
                match lock(&file) {
                    Ok(()) => Ok(Some(Self::File(file))),
                    Err(TryLockError::WouldBlock) => Ok(None),
                    Err(TryLockError::Error(_)) => Ok(Some(Self::Nothing)),
                }
            }
            Database::Postgres(_) => {
                let mut session = database.session().await?;
                let query = format!("SELECT {function}($1)");
                let is_taken: bool =
                    sqlx::query_scalar(sqlx::AssertSqlSafe(query)).bind(POSTGRES_LOCK).fetch_one(&mut session).await?;
                if is_taken {
                    return Ok(Some(Self::Session(Box::new(session))));
                }
                session.close().await?;
                Ok(None)
            }
        }
    }
}
