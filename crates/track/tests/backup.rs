//! A backup is taken while the server writes, is one moment of its history, and tells when it is damaged.
#![allow(clippy::unwrap_used)]

use highroad_track::wire::ExperimentId;
use highroad_track::{Batch, Database, Millis, NewRun, Setup, Tracker, back_up, check_backup};
use serde_json::json;

async fn run(tracker: &Tracker) -> String {
    let new = NewRun {
        run_id: "0123456789abcdef0123456789abcdef".into(),
        experiment_id: ExperimentId(0),
        fallback_name: "r".into(),
        run_name: None,
        user_id: String::new(),
        start_time: Millis(1),
        tags: Vec::new(),
    };
    tracker.store().create_run(new).await.unwrap().info.run_id
}

async fn log(tracker: &Tracker, run_id: &str, step: i64) {
    let metrics = (0..100).map(|n| json!({ "key": format!("m{n}"), "value": 0.5, "timestamp": step, "step": step }));
    let metrics = metrics.map(|metric| serde_json::from_value(metric).unwrap()).collect();
    tracker.store().log_batch(run_id, &Batch { metrics, ..Batch::default() }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_of_a_server_that_writes_is_whole_and_opens_as_a_database() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::under(home.path());
    let tracker = Tracker::open(setup.clone()).await.unwrap();
    let run_id = run(&tracker).await;
    log(&tracker, &run_id, 0).await;
    let file = home.path().join("backup.db");
    let writer = {
        let (tracker, run_id) = (tracker.clone(), run_id.clone());
        tokio::spawn(async move {
            for step in 1..20 {
                log(&tracker, &run_id, step).await;
            }
        })
    };
    let backup = back_up(&setup.database, &file).await.unwrap();
    writer.await.unwrap();
    assert_eq!((backup.n_runs, backup.n_points % 100), (1, 0), "no batch is cut in two");
    assert!(backup.n_points >= 100);
    assert_eq!(check_backup(&file).await.unwrap(), backup);
    assert!(back_up(&setup.database, &file).await.unwrap_err().to_string().contains("never replaces"));

    let restored = Tracker::open(Setup { database: Database::Sqlite(file), ..setup }).await.unwrap();
    let kept = restored.store().metric_history(&run_id, "m7", 1000, "").await.unwrap().items.len();
    assert_eq!(i64::try_from(kept).unwrap(), backup.n_points / 100);
}

#[tokio::test]
async fn a_damaged_backup_is_told() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::under(home.path());
    let tracker = Tracker::open(setup.clone()).await.unwrap();
    let run_id = run(&tracker).await;
    for step in 0..20 {
        log(&tracker, &run_id, step).await;
    }
    let file = home.path().join("backup.db");
    back_up(&setup.database, &file).await.unwrap();
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 4096].fill(0xa5);
    std::fs::write(&file, bytes).unwrap();
    assert!(check_backup(&file).await.is_err());
    let postgres: Database = "postgres://db/runs".parse().unwrap();
    assert!(back_up(&postgres, &file).await.unwrap_err().to_string().contains("pg_dump"));
}
