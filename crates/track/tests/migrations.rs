//! The tables go forward and back on both databases, and nothing touches tables that are newer than the program.
#![allow(clippy::unwrap_used)]

use highroad_track::{Database, Loss, Schema, Tracker, migrate};
use rstest::rstest;
use sqlx::AnyConnection;
use sqlx::Connection as _;

mod place;
use place::Kind;

#[rstest]
#[tokio::test]
async fn every_step_goes_forward_and_back(#[values(Kind::Sqlite, Kind::Postgres)] kind: Kind) {
    let (setup, _kept) = kind.place();
    let database = setup.database.clone();
    let newest = migrate(&database, Schema::Newest, Loss::Refused).await.unwrap().to;
    let made = tables(&database).await;
    let mut version = newest;
    while version > 0 {
        version = migrate(&database, Schema::Down, Loss::Accepted).await.unwrap().to;
        migrate(&database, Schema::Newest, Loss::Refused).await.unwrap();
        assert_eq!(tables(&database).await, made, "after a step back to {version} and forward again");
        assert_eq!(migrate(&database, Schema::Version(version), Loss::Accepted).await.unwrap().from, newest);
    }
    assert_eq!(tables(&database).await, ["_sqlx_migrations"]);
    let error = migrate(&database, Schema::Version(newest + 1), Loss::Refused).await.unwrap_err();
    assert!(error.to_string().contains(&format!("the newest is {newest}")), "{error}");
    Tracker::open(setup).await.unwrap();
}

#[rstest]
#[tokio::test]
async fn tables_newer_than_the_program_are_refused(#[values(Kind::Sqlite, Kind::Postgres)] kind: Kind) {
    let (setup, _kept) = kind.place();
    let newest = migrate(&setup.database, Schema::Newest, Loss::Refused).await.unwrap().to;
    let mut connection = connect(&setup.database).await;
    sqlx::query("UPDATE _sqlx_migrations SET version = 999 WHERE version = $1")
        .bind(newest)
        .execute(&mut connection)
        .await
        .unwrap();
    let error = Tracker::open(setup).await.err().unwrap().to_string();
    assert!(error.contains("tables of version 999") && error.contains("use a newer highroad"), "{error}");
}

#[rstest]
#[tokio::test]
async fn tables_in_use_stay_and_what_they_hold_is_dropped_only_where_that_is_said(
    #[values(Kind::Sqlite, Kind::Postgres)] kind: Kind,
) {
    let (setup, _kept) = kind.place();
    let database = setup.database.clone();
    let tracker = Tracker::open(setup.clone()).await.unwrap();
    let other = Tracker::open(setup).await.unwrap();
    other.close().await;
    let made = tables(&database).await;
    for schema in [Schema::Down, Schema::Version(0)] {
        let error = migrate(&database, schema, Loss::Accepted).await.unwrap_err().to_string();
        assert!(error.contains("a server or another command uses"), "{error}");
    }
    tracker.close().await;
    let error = migrate(&database, Schema::Version(0), Loss::Refused).await.unwrap_err().to_string();
    assert!(error.contains("drops every run, model and trace") && error.contains("--yes"), "{error}");
    assert_eq!(tables(&database).await, made);
    assert_eq!(migrate(&database, Schema::Version(0), Loss::Accepted).await.unwrap().to, 0);
}

#[tokio::test]
async fn a_database_that_does_not_answer_is_named_without_its_password() {
    let database: Database = "postgres://anna:s3cret@127.0.0.1:1/runs".parse().unwrap();
    let error = migrate(&database, Schema::Newest, Loss::Refused).await.unwrap_err().to_string();
    assert!(error.contains("postgres://127.0.0.1:1/runs cannot be opened"), "{error}");
    assert!(!error.contains("s3cret"), "{error}");
}

async fn connect(database: &Database) -> AnyConnection {
    let url = match database {
        Database::Sqlite(path) => format!("sqlite://{}", path.display()),
        Database::Postgres(url) => url.clone(),
    };
    AnyConnection::connect(&url).await.unwrap()
}

async fn tables(database: &Database) -> Vec<String> {
    let query = match database {
        Database::Sqlite(_) => {
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name <> 'sqlite_sequence' ORDER BY 1"
        }
        Database::Postgres(_) => {
            "SELECT CAST(table_name AS TEXT) FROM information_schema.tables WHERE table_schema = 'public' ORDER BY 1"
        }
    };
    sqlx::query_scalar(query).fetch_all(&mut connect(database).await).await.unwrap()
}
