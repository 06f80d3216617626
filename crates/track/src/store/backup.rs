//! A copy of the database while it is served, and whether a copy can be relied on.

use std::path::{Path, PathBuf};

use sqlx::AnyPool;

use super::{Database, migrations};
use crate::TrackError;

/// What a backup holds.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[allow(missing_docs)]
pub struct Backup {
    pub size_bytes: u64,
    /// Version of its tables.
    pub schema: i64,
    pub n_experiments: i64,
    pub n_runs: i64,
    pub n_points: i64,
    pub n_model_versions: i64,
}

/// Copies a SQLite database to `file`, which must not exist, at one moment of its history and while servers use it; then
/// reads the copy as [`check_backup`] does. The copy appears under its name only when it is whole.
///
/// Errors for PostgreSQL, which has its own tools for this.
pub async fn back_up(database: &Database, file: &Path) -> Result<Backup, TrackError> {
    let Database::Sqlite(source) = database else {
        return Err(TrackError::Invalid(format!(
            "`{database}` is backed up with PostgreSQL's own tools: `pg_dump --format=custom --file={} URL`",
            file.display()
        )));
    };
    if !source.is_file() {
        return Err(TrackError::Missing(format!("there is no database at `{database}`")));
    }
    if file.exists() {
        return Err(TrackError::Exists(format!("`{}` exists; a backup never replaces a file", file.display())));
    }
    let partial = partial_name(file);
    let fail = |source| TrackError::Io { path: file.to_owned(), source };
    // What an attempt that was cut off left behind.
    match tokio::fs::remove_file(&partial).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(fail(error)),
        _ => {}
    }
    let pool = database.pool(1).await?;
    let copied = sqlx::query("VACUUM INTO $1").bind(partial.display().to_string()).execute(&pool).await;
    pool.close().await;
    copied?;
    let backup = check_backup(&partial).await?;
    tokio::fs::File::open(&partial).await.map_err(fail)?.sync_all().await.map_err(fail)?;
    tokio::fs::rename(&partial, file).await.map_err(fail)?;
    Ok(backup)
}

/// Reads the whole of a backup: every page and index, every reference between tables, and the version of the tables.
pub async fn check_backup(file: &Path) -> Result<Backup, TrackError> {
    let fail = |source| TrackError::Io { path: file.to_owned(), source };
    let size_bytes = tokio::fs::metadata(file).await.map_err(fail)?.len();
    let database = Database::Sqlite(file.to_owned());
    let pool = Database::pool_of_copy(file).await?;
    let read = read(&database, &pool, size_bytes).await;
    pool.close().await;
    read
}

async fn read(database: &Database, pool: &AnyPool, size_bytes: u64) -> Result<Backup, TrackError> {
    let damaged = |what: &str| TrackError::Invalid(format!("`{database}` is damaged: {what}"));
    let told: Vec<String> = sqlx::query_scalar("PRAGMA integrity_check").fetch_all(pool).await?;
    if told != ["ok"] {
        return Err(damaged(&told.join("; ")));
    }
    if !sqlx::query("PRAGMA foreign_key_check").fetch_all(pool).await?.is_empty() {
        return Err(damaged("rows name others that are not there"));
    }
    let schema = migrations::version(database, pool).await?;
    let count = async |sql: &'static str| sqlx::query_scalar::<_, i64>(sql).fetch_one(pool).await;
    Ok(Backup {
        size_bytes,
        schema,
        n_experiments: count("SELECT COUNT(*) FROM experiments").await?,
        n_runs: count("SELECT COUNT(*) FROM runs").await?,
        n_points: count("SELECT COUNT(*) FROM metrics").await?,
        n_model_versions: count("SELECT COUNT(*) FROM model_versions").await?,
    })
}

fn partial_name(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}
