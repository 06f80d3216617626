//! The registry's rules over HTTP: what the gate refuses, what stays free, and what the record says.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::Request;
use highroad_package::Digest;
use highroad_track::{Millis, Tracker};
use rstest::rstest;
use serde_json::{Value, json};
use tower::ServiceExt as _;

mod place;
use place::{Kept, Kind};

/// 2026-11-23T10:00:00Z
const NOON: i64 = 1_795_428_000_000;
const DAY: i64 = 86_400_000;

struct House {
    router: Router,
    now: Arc<AtomicI64>,
    _kept: Kept,
}

impl House {
    async fn new(kind: Kind) -> Self {
        let (mut setup, kept) = kind.place();
        let now = Arc::new(AtomicI64::new(NOON));
        let clock = Arc::clone(&now);
        setup.clock = Arc::new(move || Millis(clock.load(Ordering::SeqCst)));
        let tracker = Tracker::open(setup).await.unwrap();
        Self { router: tracker.server(), now, _kept: kept }
    }

    async fn call(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        self.send(method, path, body.to_string().into_bytes()).await
    }

    async fn send(&self, method: &str, path: &str, body: Vec<u8>) -> (u16, Value) {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", "application/json")
            .body(Body::from(body))
            .unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let bytes = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    /// A version of `name` that holds a package, with this verdict if any; gives its number.
    async fn version(&self, name: &str, package: &Digest, verdict: Option<Vec<u8>>) -> u64 {
        self.call("POST", "/api/2.0/mlflow/registered-models/create", json!({ "name": name })).await;
        let mut tags = vec![json!({ "key": "highroad.package", "value": package.to_string() })];
        if let Some(bytes) = verdict {
            let digest = Digest::of(&bytes);
            tags.push(json!({ "key": "highroad.verdict", "value": digest.to_string() }));
            let path = format!(
                "/api/2.0/mlflow-artifacts/artifacts/highroad/verdicts/{}/{}.json",
                package.hex(),
                digest.hex()
            );
            assert_eq!(self.send("PUT", &path, bytes).await.0, 200);
        }
        let source = format!("mlflow-artifacts:/highroad/packages/{}", package.hex());
        let body = json!({ "name": name, "source": source, "tags": tags });
        let (status, reply) = self.call("POST", "/api/2.0/mlflow/model-versions/create", body).await;
        assert_eq!(status, 200, "{reply}");
        reply["model_version"]["version"].as_str().unwrap().parse().unwrap()
    }

    /// Uploads an override of `package` as champion of `name` from noon for `days`, and ties it to the version.
    async fn override_gate(&self, name: &str, version: u64, package: &Digest, days: i64) {
        let time = |at: i64| Millis(at).rfc3339();
        let bytes = json!({
            "highroad_override": 1, "package": package, "model": name, "alias": "champion", "by": "ann", "why": "an outage",
            "missing": { "reason": "it has no verdict" }, "created_at": time(NOON), "expires_at": time(NOON + days * DAY),
        })
        .to_string()
        .into_bytes();
        let digest = Digest::of(&bytes);
        let path =
            format!("/api/2.0/mlflow-artifacts/artifacts/highroad/overrides/{}/{}.json", package.hex(), digest.hex());
        assert_eq!(self.send("PUT", &path, bytes).await.0, 200);
        self.tag(name, version, "highroad.override.champion", &digest.to_string()).await;
    }

    async fn tag(&self, name: &str, version: u64, key: &str, value: &str) {
        let tag = json!({ "name": name, "version": version.to_string(), "key": key, "value": value });
        assert_eq!(self.call("POST", "/api/2.0/mlflow/model-versions/set-tag", tag).await.0, 200);
    }

    async fn set_alias(&self, name: &str, version: u64) -> (u16, Value) {
        let body = json!({ "name": name, "alias": "champion", "version": version.to_string() });
        self.call("POST", "/api/2.0/mlflow/registered-models/alias", body).await
    }

    async fn promote(&self, name: &str, version: u64) -> (u16, Value) {
        let body = json!({ "name": name, "version": version, "by": "ann", "why": "better",
                           "rehearsal": { "passed": true } });
        self.call("POST", "/api/2.0/highroad/promote", body).await
    }

    async fn roll_back(&self, name: &str) -> (u16, Value) {
        self.call("POST", "/api/2.0/highroad/rollback", json!({ "name": name, "by": "bob", "why": "worse" })).await
    }

    async fn champion(&self, name: &str) -> Option<String> {
        let path = format!("/api/2.0/mlflow/registered-models/alias?name={name}&alias=champion");
        let (_, reply) = self.call("GET", &path, Value::Null).await;
        reply["model_version"]["version"].as_str().map(str::to_owned)
    }

    async fn trail(&self, name: &str) -> Vec<Value> {
        let (_, reply) = self.call("GET", &format!("/api/2.0/highroad/audit?name={name}"), Value::Null).await;
        reply["moves"].as_array().cloned().unwrap_or_default()
    }
}

fn package(n: u8) -> Digest {
    Digest::of(&[n])
}

/// A passing verdict that compares with package `baseline`.
fn against(package: &Digest, baseline: &Digest) -> Vec<u8> {
    let mut verdict: Value = serde_json::from_slice(&passing(package)).unwrap();
    verdict["baseline"] = json!({ "kind": "package", "package": baseline.to_string() });
    verdict.to_string().into_bytes()
}

fn verdict(package: &Digest, outcome: &str, waivers: Value) -> Vec<u8> {
    let digest = package.to_string();
    json!({
        "highroad_verdict": 1, "outcome": outcome, "package": digest,
        "baseline": { "kind": "trivial", "name": "majority" },
        "golden_set": { "name": "cases", "digest": digest, "n_cases": 3 },
        "gates": digest, "numerics_id": "highroad-1/portable/f32", "evidence": "bit-exact", "answers": digest,
        "checks": [{ "rule": "accuracy at least 0.9", "outcome": outcome, "n_cases": 3, "candidate": 0.95,
                      "reason": "it is" }], "flips": [], "waivers": waivers,
        "created_at": "2026-11-22T00:00:00Z", "created_by": "ann",
    })
    .to_string()
    .into_bytes()
}

/// Says pass over a check that failed.
fn claiming(package: &Digest) -> Vec<u8> {
    let mut forged: Value = serde_json::from_slice(&verdict(package, "fail", json!([]))).unwrap();
    forged["outcome"] = json!("pass");
    forged.to_string().into_bytes()
}

fn passing(package: &Digest) -> Vec<u8> {
    verdict(package, "pass", json!([]))
}

#[rstest]
#[tokio::test]
async fn a_package_without_a_passing_verdict_gets_no_alias_by_any_route(
    #[values(Kind::Sqlite, Kind::Postgres)] kind: Kind,
) {
    let house = House::new(kind).await;
    let cases = [
        (None, "has no verdict"),
        (Some(verdict(&package(1), "fail", json!([]))), "the verdict is fail, not pass: accuracy at least 0.9 (it is)"),
        (Some(verdict(&package(1), "inconclusive", json!([]))), "the verdict is inconclusive"),
        (Some(passing(&package(2))), "is about package"),
        (Some(b"{}".to_vec()), "cannot be read"),
        (Some(claiming(&package(1))), "do not support"),
    ];
    for (given, reason) in cases {
        let version = house.version("m", &package(1), given).await;
        for (status, reply) in [house.set_alias("m", version).await, house.promote("m", version).await] {
            assert_eq!((status, reply["error_code"].as_str()), (403, Some("PERMISSION_DENIED")), "{reason}: {reply}");
            assert!(reply["message"].as_str().unwrap().contains(reason), "{reason}: {reply}");
        }
        let stage = json!({ "name": "m", "version": version.to_string(), "stage": "Production" });
        assert_eq!(house.call("POST", "/api/2.0/mlflow/model-versions/transition-stage", stage).await.0, 403);
    }
    assert_eq!(house.champion("m").await, None);
    assert!(house.trail("m").await.is_empty(), "what was refused did not happen");
}

#[rstest]
#[tokio::test]
async fn a_verdict_that_was_never_uploaded_or_was_replaced_does_not_count(
    #[values(Kind::Sqlite, Kind::Postgres)] kind: Kind,
) {
    let house = House::new(kind).await;
    let version = house.version("m", &package(1), Some(passing(&package(1)))).await;
    let digest = Digest::of(&passing(&package(1)));
    let path =
        format!("/api/2.0/mlflow-artifacts/artifacts/highroad/verdicts/{}/{}.json", package(1).hex(), digest.hex());
    house.send("PUT", &path, verdict(&package(1), "fail", json!([]))).await;
    let (status, reply) = house.promote("m", version).await;
    assert!(status == 403 && reply["message"].as_str().unwrap().contains("is not the one of digest"), "{reply}");
    house.send("DELETE", &path, Vec::new()).await;
    let (status, reply) = house.promote("m", version).await;
    assert!(status == 403 && reply["message"].as_str().unwrap().contains("never uploaded"), "{reply}");
}

#[rstest]
#[tokio::test]
async fn an_expired_acceptance_blocks_a_promotion_but_not_the_way_back(
    #[values(Kind::Sqlite, Kind::Postgres)] kind: Kind,
) {
    let house = House::new(kind).await;
    let waiver = json!([{ "case": "c7", "by": "eve", "why": "rare", "expires_at": "2026-11-24T10:00:00Z" }]);
    let waived = house.version("m", &package(1), Some(verdict(&package(1), "pass", waiver))).await;
    let clean = house.version("m", &package(2), Some(passing(&package(2)))).await;
    assert_eq!(house.promote("m", waived).await.0, 200);
    assert_eq!(house.promote("m", clean).await.0, 200);
    house.now.store(NOON + 2 * DAY, Ordering::SeqCst);
    let (status, reply) = house.promote("m", waived).await;
    assert!(status == 403 && reply["message"].as_str().unwrap().contains("c7"), "{reply}");
    let (status, reply) = house.roll_back("m").await;
    assert_eq!((status, &reply["move"]["to"]), (200, &json!(waived)), "{reply}");
}

#[rstest]
#[tokio::test]
async fn an_override_lets_one_alias_name_one_package_until_it_expires(
    #[values(Kind::Sqlite, Kind::Postgres)] kind: Kind,
) {
    let house = House::new(kind).await;
    let first = house.version("m", &package(1), Some(passing(&package(1)))).await;
    assert_eq!(house.promote("m", first).await.0, 200);
    let version = house.version("m", &package(2), Some(verdict(&package(2), "fail", json!([])))).await;
    house.override_gate("m", version, &package(2), 31).await;
    let (status, reply) = house.promote("m", version).await;
    assert!(status == 403 && reply["message"].as_str().unwrap().contains("lasts over 30 days"), "{reply}");

    house.override_gate("m", version, &package(2), 7).await;
    let staging = json!({ "name": "m", "alias": "staging", "version": version.to_string() });
    assert_eq!(house.call("POST", "/api/2.0/mlflow/registered-models/alias", staging).await.0, 403, "another alias");
    let stage = json!({ "name": "m", "version": version.to_string(), "stage": "Production" });
    assert_eq!(house.call("POST", "/api/2.0/mlflow/model-versions/transition-stage", stage).await.0, 403);
    let (status, reply) = house.promote("m", version).await;
    assert_eq!(status, 200, "{reply}");
    let moved = &reply["move"];
    assert_eq!((&moved["action"], &moved["verdict"]), (&json!("override"), &Value::Null), "{moved}");
    assert_eq!((&moved["override"]["by"], &moved["override"]["why"]), (&json!("ann"), &json!("an outage")));
    assert!(house.trail("m").await[1].get("override").is_none(), "a promotion on a verdict has none");

    // The way back to a verdict needs none, and once it has expired nothing leads there again.
    assert_eq!(house.roll_back("m").await.0, 200);
    assert_eq!(house.promote("m", version).await.0, 200);
    let third = house.version("m", &package(3), Some(passing(&package(3)))).await;
    assert_eq!(house.promote("m", third).await.0, 200);
    house.now.fetch_add(7 * DAY, Ordering::SeqCst);
    let (status, reply) = house.roll_back("m").await;
    assert!(
        status == 403 && reply["message"].as_str().unwrap().contains("ann overrode the gate only until"),
        "{reply}"
    );
    let (status, reply) = house.promote("m", version).await;
    assert!(
        status == 403 && reply["message"].as_str().unwrap().contains("ann overrode the gate only until"),
        "{reply}"
    );
    assert!(reply["message"].as_str().unwrap().contains("the verdict is fail"), "{reply}");
}

#[rstest]
#[tokio::test]
async fn an_override_that_was_changed_or_is_about_something_else_counts_for_nothing(
    #[values(Kind::Sqlite, Kind::Postgres)] kind: Kind,
) {
    let house = House::new(kind).await;
    let version = house.version("m", &package(1), None).await;
    house.override_gate("m", version, &package(2), 7).await;
    let refused = async |reason: &str| {
        let (status, reply) = house.promote("m", version).await;
        let message = reply["message"].as_str().unwrap();
        assert!(status == 403 && message.contains("has no verdict") && message.contains(reason), "{reason}: {reply}");
    };
    refused("was never uploaded").await;
    house.tag("m", version, "highroad.override.champion", "sha256:soon").await;
    refused("its tag").await;
    let forged = Digest::of(b"forged");
    let path =
        format!("/api/2.0/mlflow-artifacts/artifacts/highroad/overrides/{}/{}.json", package(1).hex(), forged.hex());
    house.send("PUT", &path, b"{}".to_vec()).await;
    house.tag("m", version, "highroad.override.champion", &forged.to_string()).await;
    refused("is not the one of digest").await;
    house.override_gate("m", version, &package(1), 7).await;
    assert_eq!(house.promote("m", version).await.0, 200);
}

#[rstest]
#[tokio::test]
async fn models_that_are_no_packages_stay_free(#[values(Kind::Sqlite, Kind::Postgres)] kind: Kind) {
    let house = House::new(kind).await;
    house.call("POST", "/api/2.0/mlflow/registered-models/create", json!({ "name": "other" })).await;
    let body = json!({ "name": "other", "source": "s3://bucket/model" });
    house.call("POST", "/api/2.0/mlflow/model-versions/create", body).await;
    assert_eq!(house.set_alias("other", 1).await.0, 200);
    let trail = house.trail("other").await;
    assert_eq!((&trail[0]["action"], &trail[0]["verdict"]), (&json!("set"), &Value::Null));
}

#[rstest]
#[tokio::test]
async fn the_package_of_a_version_cannot_be_taken_off_or_exchanged(#[values(Kind::Sqlite, Kind::Postgres)] kind: Kind) {
    let house = House::new(kind).await;
    house.version("m", &package(1), None).await;
    let tag = json!({ "name": "m", "version": "1", "key": "highroad.package" });
    assert_eq!(house.call("DELETE", "/api/2.0/mlflow/model-versions/delete-tag", tag).await.0, 403);
    let tag = json!({ "name": "m", "version": "1", "key": "highroad.package", "value": package(2).to_string() });
    assert_eq!(house.call("POST", "/api/2.0/mlflow/model-versions/set-tag", tag).await.0, 400);
    // Nor left out when the version is made: the source says what it holds.
    let source = format!("mlflow-artifacts:/highroad/packages/{}", package(3).hex());
    house.call("POST", "/api/2.0/mlflow/model-versions/create", json!({ "name": "m", "source": source })).await;
    assert_eq!(house.set_alias("m", 2).await.0, 403);
}

/// Spelt as clients resolve it to the artifacts of the package all the same.
#[rstest]
#[tokio::test]
async fn no_spelling_of_its_source_gets_a_package_past_the_gate(#[values(Kind::Sqlite, Kind::Postgres)] kind: Kind) {
    let house = House::new(kind).await;
    let hex = package(1).hex();
    house.version("m", &package(1), Some(verdict(&package(1), "inconclusive", json!([])))).await;
    let (_, run) = house.call("POST", "/api/2.0/mlflow/runs/create", json!({ "experiment_id": "0" })).await;
    let run = run["run"]["info"]["run_id"].as_str().unwrap().to_owned();
    let made = |source: String| {
        let house = &house;
        async move {
            let body = json!({ "name": "m", "source": source });
            let (status, reply) = house.call("POST", "/api/2.0/mlflow/model-versions/create", body).await;
            (status == 200).then(|| reply["model_version"]["version"].as_str().unwrap().parse::<u64>().unwrap())
        }
    };
    let mut n_made = 0;
    for source in [
        format!("mlflow-artifacts:/highroad//packages/{hex}"),
        format!("mlflow-artifacts://127.0.0.1:5000/highroad/packages/{hex}"),
        format!("mlflow-artifacts:/./highroad/packages/{hex}"),
        format!("mlflow-artifacts:/highroad/%70ackages/{hex}"),
        format!("MLFLOW-ARTIFACTS:/highroad/packages/{hex}/"),
        format!("mlflow-artifacts:/api/2.0/mlflow-artifacts/artifacts/highroad/packages/{hex}"),
        format!("http://127.0.0.1:5000/api/2.0/mlflow-artifacts/artifacts/highroad/packages/{hex}"),
        format!("s3://bucket/highroad/packages/{hex}"),
        "mlflow-artifacts:/highroad/packages".to_owned(),
        "mlflow-artifacts:/highroad".to_owned(),
        "models:/m/1".to_owned(),
        "MODELS:/m/1".to_owned(),
        "models:/m/1/program.pt2".to_owned(),
        format!("runs:/{run}/../../../highroad/packages/{hex}"),
    ] {
        let Some(version) = made(source.clone()).await else { continue };
        n_made += 1;
        assert_eq!(house.set_alias("m", version).await.0, 403, "{source}");
        assert_eq!(house.promote("m", version).await.0, 403, "{source}");
        let stage = json!({ "name": "m", "version": version.to_string(), "stage": "Production" });
        assert_eq!(house.call("POST", "/api/2.0/mlflow/model-versions/transition-stage", stage).await.0, 403);
    }
    assert!(n_made > 8, "some are refused as they are made, and most are not: {n_made}");
    let free = made(format!("runs:/{run}/model")).await.unwrap();
    assert_eq!(house.set_alias("m", free).await.0, 200, "what a run logged is free");

    // A tag cannot say that the source holds something else.
    let tag = json!([{ "key": "highroad.package", "value": package(2).to_string() }]);
    let body = json!({ "name": "m", "source": format!("mlflow-artifacts:/highroad//packages/{hex}"), "tags": tag });
    assert_eq!(house.call("POST", "/api/2.0/mlflow/model-versions/create", body).await.0, 400);
}

#[rstest]
#[tokio::test]
async fn a_verdict_on_the_package_against_itself_promotes_nothing(#[values(Kind::Sqlite, Kind::Postgres)] kind: Kind) {
    let house = House::new(kind).await;
    let version = house.version("m", &package(1), Some(against(&package(1), &package(1)))).await;
    let (status, reply) = house.promote("m", version).await;
    assert_eq!(status, 403, "{reply}");
    assert!(reply["message"].as_str().unwrap().contains("compares the package with itself"), "{reply}");
    assert_eq!(house.set_alias("m", version).await.0, 403);
}

#[rstest]
#[tokio::test]
async fn a_verdict_against_something_else_than_the_champion_is_told_in_the_record(
    #[values(Kind::Sqlite, Kind::Postgres)] kind: Kind,
) {
    let house = House::new(kind).await;
    let first = house.version("m", &package(1), Some(passing(&package(1)))).await;
    assert_eq!(house.promote("m", first).await.1["move"].get("caution"), None, "it replaces nothing");
    let second = house.version("m", &package(2), Some(against(&package(2), &package(1)))).await;
    assert_eq!(house.promote("m", second).await.1["move"].get("caution"), None, "compared with the champion");
    let third = house.version("m", &package(3), Some(against(&package(3), &package(1)))).await;
    let (status, reply) = house.promote("m", third).await;
    let caution = reply["move"]["caution"].as_str().unwrap();
    let [old, champion] = [package(1), package(2)];
    assert_eq!(status, 200, "{reply}");
    assert_eq!(caution, format!("its verdict compares it with {old}, not with m:2 ({champion}), which it replaces"));
    assert_eq!(house.trail("m").await[0]["caution"], json!(caution));
    assert_eq!(house.roll_back("m").await.1["move"].get("caution"), None, "the way back compares nothing");
}

#[rstest]
#[tokio::test]
async fn a_later_failing_verdict_shuts_promotions_and_not_the_way_back(
    #[values(Kind::Sqlite, Kind::Postgres)] kind: Kind,
) {
    let house = House::new(kind).await;
    let first = house.version("m", &package(1), Some(passing(&package(1)))).await;
    assert_eq!(house.promote("m", first).await.0, 200);
    let second = house.version("m", &package(2), Some(passing(&package(2)))).await;
    assert_eq!(house.promote("m", second).await.0, 200);

    let failing = verdict(&package(1), "fail", json!([]));
    let digest = Digest::of(&failing);
    let path =
        format!("/api/2.0/mlflow-artifacts/artifacts/highroad/verdicts/{}/{}.json", package(1).hex(), digest.hex());
    assert_eq!(house.send("PUT", &path, failing).await.0, 200);
    house.tag("m", first, "highroad.verdict", &digest.to_string()).await;
    assert_eq!(house.promote("m", first).await.0, 403);
    let (status, reply) = house.roll_back("m").await;
    assert_eq!((status, &reply["move"]["to"]), (200, &json!(first)), "{reply}");
    let admitted_by = Digest::of(&passing(&package(1))).to_string();
    assert_eq!(reply["move"]["verdict"], json!(admitted_by), "the verdict that admitted it");
}

#[rstest]
#[tokio::test]
async fn a_new_name_keeps_the_trail_and_changes_none_of_its_rows(#[values(Kind::Sqlite, Kind::Postgres)] kind: Kind) {
    let house = House::new(kind).await;
    let rename = async |name: &str, new_name: &str| {
        let body = json!({ "name": name, "new_name": new_name });
        assert_eq!(house.call("POST", "/api/2.0/mlflow/registered-models/rename", body).await.0, 200);
    };
    house.call("POST", "/api/2.0/mlflow/registered-models/create", json!({ "name": "m" })).await;
    rename("m", "mod").await;
    for n in 1..=2 {
        let version = house.version("mod", &package(n), Some(passing(&package(n)))).await;
        assert_eq!(house.promote("mod", version).await.0, 200);
    }
    let before = house.trail("mod").await;
    assert_eq!(before.len(), 3, "{before:?}");
    assert_eq!((&before[2]["renamed_from"], &before[2]["action"]), (&json!("m"), &json!("rename")), "no alias yet");
    rename("mod", "mod2").await;
    let after = house.trail("mod2").await;
    assert_eq!(after[2..], before, "rows keep the name of their time");
    let told: Vec<_> = after[..2].iter().map(|row| (&row["model"], &row["alias"], row.get("renamed_from"))).collect();
    let (mod2, alias) = (json!("mod2"), json!("champion"));
    assert_eq!(told, [(&mod2, &alias, None), (&mod2, &json!(""), Some(&json!("mod")))]);
    assert_eq!(house.trail("mod").await.len(), 4, "all that tells of the name: both renames and two promotions");

    // Somebody else takes the old name: neither knows of the other's moves.
    let version = house.version("mod", &package(3), Some(passing(&package(3)))).await;
    assert_eq!(house.promote("mod", version).await.0, 200);
    assert_eq!(house.trail("mod").await.len(), 1);
    assert_eq!(house.roll_back("mod").await.1["move"]["to"], Value::Null, "it was nowhere before");
    assert_eq!(house.roll_back("mod2").await.1["move"]["to"], json!(1), "the way back leads through the new name");
    // There and back again.
    rename("mod2", "x").await;
    rename("x", "mod2").await;
    let trail = house.trail("mod2").await;
    assert_eq!(trail.len(), 3 + 2 + 1 + 4, "{trail:?}");
    assert!(trail.windows(2).all(|two| two[0]["move_id"].as_i64() > two[1]["move_id"].as_i64()));
}

#[rstest]
#[tokio::test]
async fn what_servers_tell_of_themselves_is_no_change_of_a_model(#[values(Kind::Sqlite, Kind::Postgres)] kind: Kind) {
    let house = House::new(kind).await;
    house.version("m", &package(1), None).await;
    let updated = async || {
        let path = "/api/2.0/mlflow/registered-models/get?name=m";
        house.call("GET", path, Value::Null).await.1["registered_model"]["last_updated_timestamp"].clone()
    };
    let before = updated().await;
    house.now.fetch_add(1000, Ordering::SeqCst);
    let tag = |key: &str| json!({ "name": "m", "key": key, "value": "v" });
    let standing = tag("highroad.serving.00000000000000aa.champion");
    for (method, path) in [("POST", "set-tag"), ("DELETE", "delete-tag")] {
        let path = format!("/api/2.0/mlflow/registered-models/{path}");
        assert_eq!(house.call(method, &path, standing.clone()).await.0, 200);
        assert_eq!(updated().await, before);
    }
    assert_eq!(house.call("POST", "/api/2.0/mlflow/registered-models/set-tag", tag("team")).await.0, 200);
    assert_ne!(updated().await, before);
    let unknown = json!({ "name": "none", "key": "highroad.serving.aa.champion", "value": "v" });
    assert_eq!(house.call("POST", "/api/2.0/mlflow/registered-models/set-tag", unknown).await.0, 404);
}

#[rstest]
#[tokio::test]
async fn every_move_is_recorded_and_each_rollback_undoes_one(#[values(Kind::Sqlite, Kind::Postgres)] kind: Kind) {
    let house = House::new(kind).await;
    for n in 1..=3 {
        let version = house.version("m", &package(n), Some(passing(&package(n)))).await;
        house.now.fetch_add(1000, Ordering::SeqCst);
        let (status, reply) = house.promote("m", version).await;
        assert_eq!(status, 200, "{reply}");
    }
    for expected in [Some("2"), Some("1"), None] {
        let (status, reply) = house.roll_back("m").await;
        assert_eq!(status, 200, "{reply}");
        assert_eq!(house.champion("m").await.as_deref(), expected);
    }
    assert_eq!(house.roll_back("m").await.0, 404);

    let trail = house.trail("m").await;
    let steps: Vec<_> = trail.iter().rev().map(|m| (m["action"].as_str().unwrap(), &m["from"], &m["to"])).collect();
    let (none, one, two, three) = (json!(null), json!(1), json!(2), json!(3));
    assert_eq!(
        steps,
        [
            ("promote", &none, &one),
            ("promote", &one, &two),
            ("promote", &two, &three),
            ("rollback", &three, &two),
            ("rollback", &two, &one),
            ("rollback", &one, &none),
        ]
    );
    let first = trail.last().unwrap();
    assert_eq!((&first["by"], &first["why"], &first["at"]), (&json!("ann"), &json!("better"), &json!(NOON + 1000)));
    assert_eq!(first["verdict"], json!(Digest::of(&passing(&package(1))).to_string()));
    assert_eq!(first["rehearsal"]["passed"], json!(true));
}

#[rstest]
#[tokio::test]
async fn a_rollback_passes_over_a_version_that_is_gone(#[values(Kind::Sqlite, Kind::Postgres)] kind: Kind) {
    let house = House::new(kind).await;
    for n in 1..=3 {
        let version = house.version("m", &package(n), Some(passing(&package(n)))).await;
        house.promote("m", version).await;
    }
    house.call("DELETE", "/api/2.0/mlflow/model-versions/delete", json!({ "name": "m", "version": "2" })).await;
    assert_eq!(house.roll_back("m").await.1["move"]["to"], json!(1));
}

#[rstest]
#[tokio::test]
async fn a_promotion_needs_a_name_and_a_reason(#[values(Kind::Sqlite, Kind::Postgres)] kind: Kind) {
    let house = House::new(kind).await;
    let version = house.version("m", &package(1), Some(passing(&package(1)))).await;
    for (by, why) in [("", "x"), ("x", " ")] {
        let body = json!({ "name": "m", "version": version, "by": by, "why": why });
        assert_eq!(house.call("POST", "/api/2.0/highroad/promote", body).await.0, 400);
    }
    assert_eq!(house.promote("m", 99).await.0, 404);
    assert_eq!(house.promote("nobody", 1).await.0, 404);
}

/// Two servers over one database, as two processes would be, each writing at once.
#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_servers_on_one_database_lose_nothing(#[values(Kind::Sqlite, Kind::Postgres)] kind: Kind) {
    let (setup, _kept) = kind.place();
    let (a, b) = (Tracker::open(setup.clone()).await.unwrap(), Tracker::open(setup).await.unwrap());
    let call = |router: Router, path: &'static str, body: Value| async move {
        let request = Request::builder()
            .method("POST")
            .uri(path)
            .header("content-type", "application/json")
            .body(Body::from(body.to_string()))
            .unwrap();
        let response = router.oneshot(request).await.unwrap();
        let status = response.status();
        let bytes = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&bytes));
        serde_json::from_slice::<Value>(&bytes).unwrap()
    };
    let run = call(a.server(), "/api/2.0/mlflow/runs/create", json!({ "experiment_id": "0" })).await;
    let run_id = run["run"]["info"]["run_id"].as_str().unwrap().to_owned();
    call(a.server(), "/api/2.0/mlflow/registered-models/create", json!({ "name": "m" })).await;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..40 {
        let server = if n % 2 == 0 { a.server() } else { b.server() };
        let run_id = run_id.clone();
        tasks.spawn(async move {
            let metric = json!({ "run_id": run_id, "key": "m", "value": n, "timestamp": n, "step": n });
            call(server.clone(), "/api/2.0/mlflow/runs/log-metric", metric).await;
            call(server, "/api/2.0/mlflow/model-versions/create", json!({ "name": "m", "source": "s3://bucket/x" }))
                .await
        });
    }
    let replies = tasks.join_all().await;
    let mut versions: Vec<u64> =
        replies.iter().map(|reply| reply["model_version"]["version"].as_str().unwrap().parse().unwrap()).collect();
    versions.sort_unstable();
    assert_eq!(versions, (1..=40).collect::<Vec<u64>>(), "each version number is given once");
    assert_eq!(b.store().metric_history(&run_id, "m", 100, "").await.unwrap().items.len(), 40);
}
