//! Where the tables are: a SQLite file or a PostgreSQL database, spoken to with the same queries.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use sqlx::any::{AnyConnectOptions, AnyPoolOptions};
use sqlx::postgres::PgConnectOptions;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AnyConnection, AnyPool, ConnectOptions as _, Connection as _};

use crate::TrackError;

/// How long a writer waits for another process's transaction.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a start waits for a connection before it says that the database does not answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where the tracking tables are. Displayed without a password.
#[derive(Clone, PartialEq, Eq)]
pub enum Database {
    /// A file; any number of processes of one machine may share it.
    Sqlite(PathBuf),
    /// `postgres://user:password@host:port/name?sslmode=verify-full`; any number of servers may share it.
    Postgres(String),
}

/// A pool that no task looks after. sqlx 0.9's goes over `num_idle` connections, a count that a race can leave below zero, which as an
/// unsigned number is without end: the thread it runs on is lost, and a command that has finished never exits.
fn unattended() -> AnyPoolOptions {
    AnyPoolOptions::new().idle_timeout(None).max_lifetime(None)
}

impl Database {
    /// What begins a transaction that will write.
    ///
    /// It holds the only write lock from the start, on either database: a rule that reads first and writes later never
    /// finds the tables changed under it, whichever process wrote.
    pub(super) fn begin_write(&self) -> &'static str {
        match self {
            Self::Sqlite(_) => "BEGIN IMMEDIATE",
            // The number is ours alone: the ASCII codes of `hroad`.
            Self::Postgres(_) => "BEGIN; SELECT pg_advisory_xact_lock(448345170276)",
        }
    }

    /// The rows of a subquery as one value: a JSON list of lists of `columns`, in no order. Null or `[]` if there are none.
    pub(super) fn list(&self, columns: &str, from: &str) -> String {
        format!("(SELECT {} FROM {from})", self.aggregate(columns))
    }

    /// The beginning of a query that gives all its rows as one text, as [`Database::list`] does; `columns` may be such lists
    /// themselves. They are in the order in which a subquery in FROM sorts them.
    ///
    /// sqlx hands rows over one by one between threads, which costs more than finding them.
    pub(super) fn select_list(&self, columns: &str) -> String {
        format!("SELECT CAST({} AS TEXT)", self.aggregate(columns))
    }

    fn aggregate(&self, columns: &str) -> String {
        match self {
            Self::Sqlite(_) => format!("json_group_array(json_array({columns}))"),
            Self::Postgres(_) => format!("json_agg(json_build_array({columns}))"),
        }
    }

    /// A number as text that reads back as the same number, bit for bit; NULL where the database has no such text.
    pub(super) fn exact_text(&self, column: &str) -> String {
        match self {
            // SQLite's digits are computed with about 100 bits, which far from 1 are not enough for the 17th.
            Self::Sqlite(_) => format!(
                "CASE WHEN {column} = 0 OR ABS({column}) BETWEEN 1e-30 AND 1e30 THEN format('%!.17g', {column}) END"
            ),
            Self::Postgres(_) => format!("CAST({column} AS TEXT)"),
        }
    }

    /// A pool of at most `n_connections`, each with this database's settings.
    pub(super) async fn pool(&self, n_connections: u32) -> Result<AnyPool, TrackError> {
        let connected = async {
            let options = self.options()?;
            if let Self::Postgres(_) = self {
                // A pool would try again without a word; one connection tells what is wrong.
                options.connect().await?.close().await?;
            }
            let settings = self.settings();
            let pool = unattended().max_connections(n_connections).acquire_timeout(BUSY_TIMEOUT);
            // A connection over a network may have broken while it was idle. One to a file does not, and asking it would
            // double the way between threads that most calls consist of.
            let pool = pool.test_before_acquire(matches!(self, Self::Postgres(_)));
            // Where SQLite itself undoes a transaction (the disk is full), sqlx goes on believing in it, and nothing could ever be
            // written through the connection again.
            let pool =
                pool.before_acquire(|connection, _| Box::pin(async move { Ok(!connection.is_in_transaction()) }));
            let pool = pool.after_connect(move |connection, _| {
                Box::pin(async move { sqlx::raw_sql(settings).execute(connection).await.map(drop) })
            });
            tokio::time::timeout(CONNECT_TIMEOUT, pool.connect_with(options))
                .await
                .map_err(|_| sqlx::Error::PoolTimedOut)?
        };
        connected.await.map_err(|source| TrackError::Open { database: self.clone(), source })
    }

    /// A connection of its own, outside any pool.
    pub(super) async fn session(&self) -> Result<AnyConnection, TrackError> {
        let connected = async { AnyConnection::connect_with(&self.options()?).await };
        let connected =
            tokio::time::timeout(CONNECT_TIMEOUT, connected).await.unwrap_or(Err(sqlx::Error::PoolTimedOut));
        connected.map_err(|source| TrackError::Open { database: self.clone(), source })
    }

    /// A pool that only reads a SQLite file which nobody writes.
    pub(super) async fn pool_of_copy(file: &Path) -> Result<AnyPool, TrackError> {
        sqlx::any::install_default_drivers();
        let connected = async {
            let options =
                SqliteConnectOptions::new().filename(std::path::absolute(file)?).read_only(true).immutable(true);
            let options = AnyConnectOptions::from_url(&options.to_url_lossy())?;
            unattended().max_connections(1).connect_with(options).await
        };
        connected.await.map_err(|source| TrackError::Open { database: Self::from(file), source })
    }

    fn options(&self) -> Result<AnyConnectOptions, sqlx::Error> {
        sqlx::any::install_default_drivers();
        match self {
            Self::Sqlite(path) => {
                let path = std::path::absolute(path)?;
                let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
                AnyConnectOptions::from_url(&options.to_url_lossy())
            }
            Self::Postgres(url) => url.parse(),
        }
    }

    fn settings(&self) -> &'static str {
        match self {
            // FULL: what was answered with success survives a power cut, not only the end of the process.
            Self::Sqlite(_) => {
                const { assert!(BUSY_TIMEOUT.as_millis() == 30_000) };
                "PRAGMA busy_timeout = 30000; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
                 PRAGMA foreign_keys = ON; PRAGMA case_sensitive_like = ON; PRAGMA wal_autocheckpoint = 4000;"
            }
            Self::Postgres(_) => {
                "SET lock_timeout = '30s'; SET standard_conforming_strings = on; SET extra_float_digits = 1;"
            }
        }
    }
}

impl From<&Path> for Database {
    fn from(path: &Path) -> Self {
        Self::Sqlite(path.to_owned())
    }
}

impl FromStr for Database {
    type Err = TrackError;

    /// A URL of PostgreSQL, `sqlite:PATH`, or a bare path.
    fn from_str(text: &str) -> Result<Self, TrackError> {
        let path = match text.split_once(':') {
            Some(("postgres" | "postgresql", _)) => return Ok(Self::Postgres(text.to_owned())),
            Some(("sqlite", path)) => path.strip_prefix("//").unwrap_or(path),
            Some((scheme, rest)) if rest.starts_with("//") => {
                return Err(TrackError::Invalid(format!(
                    "databases of the kind `{scheme}` are not supported; use `postgres://…` or the path of a SQLite file"
                )));
            }
            _ => text,
        };
        if path.is_empty() {
            return Err(TrackError::Invalid("the path of the database is empty".into()));
        }
        Ok(Self::Sqlite(path.into()))
    }
}

impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => path.display().fmt(f),
            Self::Postgres(url) => match url.parse::<PgConnectOptions>() {
                Ok(at) => {
                    let name = at.get_database().unwrap_or_default();
                    write!(f, "postgres://{}:{}/{name}", at.get_host(), at.get_port())
                }
                Err(_) => f.write_str("postgres://…"),
            },
        }
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_is_named_by_a_url_or_a_path() {
        let sqlite = |path: &str| Database::Sqlite(path.into());
        assert_eq!("runs.db".parse::<Database>().unwrap(), sqlite("runs.db"));
        assert_eq!("sqlite:runs.db".parse::<Database>().unwrap(), sqlite("runs.db"));
        assert_eq!("sqlite:///data/runs.db".parse::<Database>().unwrap(), sqlite("/data/runs.db"));
        assert!(matches!("postgresql://db/x".parse::<Database>().unwrap(), Database::Postgres(_)));
        assert!("mysql://db/x".parse::<Database>().unwrap_err().to_string().contains("`mysql`"));
        assert!("".parse::<Database>().is_err());
    }

    #[tokio::test]
    async fn a_commit_waits_for_the_disk() {
        let home = tempfile::tempdir().unwrap();
        let pool = Database::Sqlite(home.path().join("track.db")).pool(1).await.unwrap();
        let synchronous: i64 = sqlx::query_scalar("PRAGMA synchronous").fetch_one(&pool).await.unwrap();
        let journal: String = sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&pool).await.unwrap();
        assert_eq!((synchronous, journal.as_str()), (2, "wal"));
    }

    #[test]
    fn a_password_is_never_shown() {
        let database: Database = "postgres://anna:s3cret@db.example:5433/runs".parse().unwrap();
        assert_eq!(
            format!("{database} {database:?}"),
            "postgres://db.example:5433/runs postgres://db.example:5433/runs"
        );
    }
}
