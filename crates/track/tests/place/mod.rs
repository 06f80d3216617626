//! Both databases, for tests that hold on either.
#![allow(clippy::unwrap_used)]

use highroad_testkit::Postgres;
use highroad_track::{Database, Setup};

#[derive(Debug, Clone, Copy)]
pub enum Kind {
    Sqlite,
    Postgres,
}

/// What a place needs for as long as it is used.
pub struct Kept {
    _home: tempfile::TempDir,
    _postgres: Option<Postgres>,
}

impl Kind {
    /// An empty place to keep things.
    pub fn place(self) -> (Setup, Kept) {
        let home = tempfile::tempdir().unwrap();
        let mut setup = Setup::under(home.path());
        let postgres = matches!(self, Self::Postgres).then(Postgres::start);
        if let Some(postgres) = &postgres {
            setup.database = Database::Postgres(postgres.url());
        }
        (setup, Kept { _home: home, _postgres: postgres })
    }
}
