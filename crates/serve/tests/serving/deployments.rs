use std::time::Duration;

use highroad_serve::rollout::Follower;
use highroad_serve::{DeployError, State, Unverified};
use highroad_testkit::TinyPackage;
use serde_json::{Value, json};

use crate::rig::{Options, Rig, Verdicted, header};

async fn version_served(rig: &Rig) -> String {
    let response = rig.post_json("/v1/moderations", json!({ "input": "a" })).await;
    header(&response, "x-highroad-version")
}

async fn eventually(mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..400 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("it did not happen within ten seconds");
}

#[tokio::test]
async fn a_package_without_a_passing_verdict_does_not_serve() {
    for (verdicted, reason) in [(Verdicted::None, "has no verdict"), (Verdicted::Fail, "the verdict is fail")] {
        let rig = Rig::new(&["moderation"], Options::default()).await;
        rig.registry.release("moderation", 1, TinyPackage::ClassifyA, verdicted);
        rig.registry.promote("moderation", 1);
        let errors = rig.portfolio.load().await;
        assert!(errors[0].1.to_string().contains(reason), "{errors:?}");
        let ready = rig.get("/ready").await;
        assert_eq!(ready.status(), 503);
        let status: Value = ready.json().await.unwrap();
        assert!(status["members"][0]["failure"]["reason"].as_str().unwrap().contains(reason));
        assert_eq!(
            rig.post_json("/v1/moderations", json!({ "model": "moderation", "input": "a" })).await.status(),
            503
        );
    }
}

#[tokio::test]
async fn development_serves_it_and_says_so_in_every_answer() {
    let options = Options { unverified: Unverified::ServeAsDevelopment, ..Options::default() };
    let rig = Rig::new(&["moderation"], options).await;
    rig.registry.release("moderation", 1, TinyPackage::ClassifyA, Verdicted::None);
    rig.registry.promote("moderation", 1);
    assert!(rig.portfolio.load().await.is_empty());
    let response = rig.post_json("/v1/moderations", json!({ "input": "a" })).await;
    assert_eq!(header(&response, "x-highroad-evidence"), "development");
    assert_eq!(header(&response, "x-highroad-development"), "no verdict");
    let id = header(&response, "x-request-id");
    assert_eq!(rig.log.find(&id, |_| true).unwrap().unwrap().development.as_deref(), Some("no verdict"));
}

#[tokio::test]
async fn a_version_that_does_not_load_never_takes_traffic() {
    let rig = Rig::ready().await;
    rig.registry.release("moderation", 2, TinyPackage::ClassifyB, Verdicted::Fail);
    rig.registry.promote("moderation", 2);
    eventually(async || rig.portfolio.deployment("moderation").unwrap().status().failure.is_some()).await;
    assert_eq!(version_served(&rig).await, "moderation:1");
    let status = rig.portfolio.deployment("moderation").unwrap().status();
    assert_eq!((status.state, status.failure.unwrap().version.as_deref()), (State::Ready, Some("moderation:2")));
    let index: Value = rig.post("/v2/repository/index", "").await.json().await.unwrap();
    let entry = &index[1];
    assert_eq!(entry["state"], "READY");
    assert!(entry["reason"].as_str().unwrap().starts_with("moderation:2 does not serve: "));
    // Once the registry points at something sound again, the failure is history.
    rig.registry.promote("moderation", 1);
    eventually(async || rig.portfolio.deployment("moderation").unwrap().status().failure.is_none()).await;
    assert_eq!(version_served(&rig).await, "moderation:1");
}

#[tokio::test]
async fn a_promotion_is_followed_and_rolled_back() {
    let rig = Rig::ready().await;
    rig.registry.release("moderation", 2, TinyPackage::ClassifyB, Verdicted::Pass);
    rig.registry.promote("moderation", 2);
    eventually(async || version_served(&rig).await == "moderation:2").await;
    rig.registry.promote("moderation", 1);
    eventually(async || version_served(&rig).await == "moderation:1").await;
}

#[tokio::test]
async fn the_rollback_of_a_first_version_is_undeployment() {
    let rig = Rig::ready().await;
    rig.registry.undeploy("moderation");
    eventually(async || rig.portfolio.deployment("moderation").unwrap().status().state == State::Undeployed).await;
    let response = rig.post_json("/v1/moderations", json!({ "model": "moderation", "input": "a" })).await;
    assert_eq!(response.status(), 404);
    // Serving nothing is what should be, so the server is ready.
    assert_eq!(rig.get("/ready").await.status(), 200);
    assert_eq!(rig.get("/v2/models/moderation/ready").await.status(), 404);
    rig.registry.promote("moderation", 1);
    eventually(async || version_served(&rig).await == "moderation:1").await;
}

#[tokio::test]
async fn an_acceptance_that_expired_since_the_promotion_stops_neither_restart_nor_rollback() {
    for (admitted_at, serves) in
        [(None, false), (Some("2026-02-01T00:00:00Z"), false), (Some("2025-12-31T00:00:00Z"), true)]
    {
        let rig = Rig::new(&["moderation"], Options::default()).await;
        *rig.registry.admitted_at.lock().unwrap() = admitted_at.map(str::to_owned);
        rig.registry.release("moderation", 1, TinyPackage::ClassifyA, Verdicted::PassWaivedUntil2026);
        rig.registry.promote("moderation", 1);
        let errors = rig.portfolio.load().await;
        assert_eq!(errors.is_empty(), serves, "{admitted_at:?}: {errors:?}");
    }
}

/// RFC 3339, `hours` from now.
fn in_hours(hours: i64) -> String {
    let at = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(hours);
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[tokio::test]
async fn an_override_serves_until_it_expires_and_says_so_in_every_answer() {
    let rig = Rig::new(&["moderation"], Options::default()).await;
    let package = rig.registry.release("moderation", 1, TinyPackage::ClassifyA, Verdicted::Fail);
    rig.registry.promote("moderation", 1);
    let refused = async |reason: &str| {
        let errors = rig.portfolio.load().await;
        assert!(errors[0].1.to_string().contains(reason), "{reason}: {errors:?}");
    };
    refused("the verdict is fail").await;
    rig.registry.override_gate("other", package, [&in_hours(-1), &in_hours(1)]);
    refused("the override is about `other@champion`").await;
    rig.registry.override_gate("moderation", package, [&in_hours(-48), &in_hours(-1)]);
    refused("ann overrode the gate only until").await;
    rig.registry.override_gate("moderation", package, [&in_hours(-1), &in_hours(31 * 24)]);
    refused("lasts over 30 days").await;

    let end = in_hours(1);
    rig.registry.override_gate("moderation", package, [&in_hours(-1), &end]);
    assert!(rig.portfolio.load().await.is_empty());
    let response = rig.post_json("/v1/moderations", json!({ "input": "a" })).await;
    assert_eq!(header(&response, "x-highroad-evidence"), "override");
    assert_eq!(header(&response, "x-highroad-override"), format!("until {end}"));
    let record = rig.log.find(&header(&response, "x-request-id"), |_| true).unwrap().unwrap();
    assert!(record.evidence == "override" && record.overridden.is_some() && record.verdict.is_none(), "{record:?}");
    let status: Value = rig.get("/v1/highroad/status").await.json().await.unwrap();
    assert_eq!(status["members"][0]["serving"]["override"]["by"], "ann", "{status}");
}

#[tokio::test]
async fn what_runs_goes_on_when_its_override_is_taken_back_or_ends() {
    let rig = Rig::new(&["moderation"], Options::default()).await;
    let package = rig.registry.release("moderation", 1, TinyPackage::ClassifyA, Verdicted::None);
    rig.registry.promote("moderation", 1);
    rig.registry.override_gate("moderation", package, [&in_hours(-1), &in_hours(1)]);
    assert!(rig.portfolio.load().await.is_empty());
    rig.registry.override_gate("moderation", package, [&in_hours(-2), &in_hours(-1)]);
    eventually(async || rig.portfolio.deployment("moderation").unwrap().status().failure.is_some()).await;
    assert_eq!(version_served(&rig).await, "moderation:1");
    // A verdict that admits it goes before any override.
    rig.registry.release("moderation", 1, TinyPackage::ClassifyA, Verdicted::Pass);
    eventually(async || {
        let response = rig.post_json("/v1/moderations", json!({ "input": "a" })).await;
        header(&response, "x-highroad-evidence") == "bit-exact"
    })
    .await;
}

#[tokio::test]
async fn a_registry_that_is_away_takes_nothing_down() {
    let rig = Rig::ready().await;
    *rig.registry.away.lock().unwrap() = true;
    eventually(async || rig.portfolio.deployment("moderation").unwrap().status().failure.is_some()).await;
    assert_eq!(version_served(&rig).await, "moderation:1");
    assert_eq!(rig.get("/ready").await.status(), 200);
    *rig.registry.away.lock().unwrap() = false;
    eventually(async || rig.portfolio.deployment("moderation").unwrap().status().failure.is_none()).await;
}

#[tokio::test]
async fn other_numerics_are_attested_before_they_serve() {
    let rig = Rig::new(&["moderation"], Options::default()).await;
    let package = rig.registry.release("moderation", 1, TinyPackage::ClassifyA, Verdicted::PassElsewhere);
    rig.registry.promote("moderation", 1);
    assert!(rig.portfolio.load().await.is_empty());
    let response = rig.post_json("/v1/moderations", json!({ "input": "a" })).await;
    assert_eq!(header(&response, "x-highroad-evidence"), "attested");
    let numerics_id = highroad_task::raw::numerics_id();
    let path = highroad_serve::attestation_path(&rig.home.path().join("attestations"), &package, &numerics_id);
    let attestation: highroad_serve::Attestation = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!((attestation.package, attestation.numerics_id), (package, numerics_id));
    assert!(attestation.n_cases > 0 && attestation.worst_relative_rms <= attestation.limit_relative_rms);
}

#[tokio::test]
async fn the_way_back_is_attested_before_anybody_needs_it() {
    let rig = Rig::new(&["moderation"], Options::default()).await;
    let package = rig.registry.release("moderation", 1, TinyPackage::ClassifyA, Verdicted::PassElsewhere);
    rig.registry.release("moderation", 2, TinyPackage::ClassifyB, Verdicted::Pass);
    rig.registry.promote("moderation", 1);
    rig.registry.promote("moderation", 2);
    assert!(rig.portfolio.load().await.is_empty());
    let way_back = || rig.portfolio.deployment("moderation").unwrap().status().way_back;
    eventually(async || way_back().is_some()).await;
    let found = way_back().unwrap();
    assert_eq!((found.version.as_str(), found.package, found.evidence), ("moderation:1", package, Some("attested")));
    // Version 1 never served here.
    let numerics_id = highroad_task::raw::numerics_id();
    assert!(highroad_serve::attestation_path(&rig.home.path().join("attestations"), &package, &numerics_id).exists());
    assert_eq!(version_served(&rig).await, "moderation:2");
    let metrics = rig.get("/metrics").await.text().await.unwrap();
    assert!(metrics.contains("highroad_member_way_back_attested{member=\"moderation\"} 1"), "{metrics}");
    rig.registry.promote("moderation", 1);
    eventually(async || version_served(&rig).await == "moderation:1").await;
}

#[tokio::test]
async fn a_way_back_that_would_not_serve_is_told_while_there_is_time() {
    let rig = Rig::new(&["moderation"], Options::default()).await;
    rig.registry.release("moderation", 1, TinyPackage::ClassifyA, Verdicted::None);
    rig.registry.release("moderation", 2, TinyPackage::ClassifyB, Verdicted::Pass);
    rig.registry.promote("moderation", 1);
    rig.registry.promote("moderation", 2);
    assert!(rig.portfolio.load().await.is_empty());
    let way_back = || rig.portfolio.deployment("moderation").unwrap().status().way_back;
    eventually(async || way_back().is_some()).await;
    let found = way_back().unwrap();
    assert!(found.evidence.is_none() && found.failure.as_ref().unwrap().contains("no verdict"), "{found:?}");
    let fires = async || {
        let alerts: Value = rig.get("/v1/highroad/alerts").await.json().await.unwrap();
        alerts["alerts"].as_array().unwrap().iter().any(|alert| alert["alert"] == "no_way_back")
    };
    eventually(fires).await;
    assert_eq!(rig.get("/ready").await.status(), 200);
}

#[tokio::test]
async fn errors_say_too_where_they_come_from() {
    let rig = Rig::ready().await;
    let whole = rig.post_json("/v1/embeddings", json!({ "model": "embedder", "input": "a" })).await;
    let named = ["x-highroad-package", "x-highroad-version", "x-highroad-evidence"].map(|name| header(&whole, name));
    assert!(named.iter().all(|value| !value.is_empty()), "{named:?}");
    for (path, body, status) in [
        ("/v1/embeddings", json!({ "model": "embedder", "input": "" }), 400),
        ("/v1/embeddings", json!({ "model": "embedder", "input": "a", "dimensions": 3 }), 400),
        ("/v1/moderations", json!({ "model": "embedder", "input": "a" }), 400),
        ("/tei/embedder/embed", json!({ "inputs": "a", "dimensions": 3 }), 422),
        (
            "/v2/models/embedder/infer",
            json!({ "inputs": [{ "name": "x", "datatype": "FP32", "shape": [1], "data": [1] }] }),
            400,
        ),
    ] {
        let refused = rig.post_json(path, body.clone()).await;
        assert_eq!(refused.status(), status, "{path} {body}");
        let told =
            ["x-highroad-package", "x-highroad-version", "x-highroad-evidence"].map(|name| header(&refused, name));
        // What is refused before anybody is asked comes from nobody.
        if body["input"] != "" {
            assert_eq!(told, named, "{path} {body}");
        }
        assert!(!header(&refused, "x-request-id").is_empty());
    }
    let metadata = rig.get("/v2/models/embedder").await;
    assert_eq!(header(&metadata, "x-highroad-package"), named[0]);
    let unknown = rig.post_json("/v1/embeddings", json!({ "model": "nobody", "input": "a" })).await;
    assert!(unknown.status() == 404 && header(&unknown, "x-highroad-package").is_empty());
}

#[tokio::test]
async fn in_development_what_is_about_no_member_says_so_too() {
    let options = Options { unverified: Unverified::ServeAsDevelopment, ..Options::default() };
    let rig = Rig::ready_with(options).await;
    for path in ["/v1/models", "/v1/highroad/status", "/v2", "/v1/nothing"] {
        let response = rig.get(path).await;
        assert_eq!(header(&response, "x-highroad-development"), "members may serve without a verdict", "{path}");
    }
    let admitted = rig.post_json("/v1/embeddings", json!({ "model": "embedder", "input": "a" })).await;
    assert_eq!(header(&admitted, "x-highroad-development"), "");
}

#[tokio::test]
async fn a_released_revision_frees_its_memory() {
    let rig = Rig::ready_with(Options { warm_s: 0, ..Options::default() }).await;
    let revision = std::sync::Arc::downgrade(&rig.portfolio.revision("moderation").unwrap());
    rig.registry.release("moderation", 2, TinyPackage::ClassifyB, Verdicted::Pass);
    rig.registry.promote("moderation", 2);
    eventually(async || revision.upgrade().is_none()).await;
}

#[tokio::test]
async fn the_version_before_stays_loaded_so_that_the_way_back_is_a_switch() {
    let rig = Rig::ready().await;
    let before = rig.portfolio.revision("moderation").unwrap();
    rig.registry.release("moderation", 2, TinyPackage::ClassifyB, Verdicted::Pass);
    rig.registry.promote("moderation", 2);
    eventually(async || version_served(&rig).await == "moderation:2").await;
    let after = rig.portfolio.revision("moderation").unwrap();
    rig.registry.promote("moderation", 1);
    eventually(async || version_served(&rig).await == "moderation:1").await;
    assert!(
        std::sync::Arc::ptr_eq(&before, &rig.portfolio.revision("moderation").unwrap()),
        "it was never loaded again"
    );
    // The switch to a version that was warm leaves the one that it left warm, so that forth is a switch again.
    rig.registry.promote("moderation", 2);
    eventually(async || version_served(&rig).await == "moderation:2").await;
    let again = rig.portfolio.revision("moderation").unwrap();
    assert!(std::sync::Arc::ptr_eq(&after, &again), "it was kept");
}

/// Changes the program of a package in the store, as a failing disk would.
fn damage(rig: &Rig, package: &highroad_package::Digest) {
    let dir = rig.registry.store.get(package).unwrap().dir().to_owned();
    let program = dir.join("program.pt2");
    std::fs::remove_file(&program).unwrap();
    std::fs::write(program, b"rust").unwrap();
}

#[tokio::test]
async fn a_way_back_whose_bytes_were_changed_is_told_and_so_is_who_refuses_it() {
    let rig = Rig::ready_with(Options { warm_s: 0, ..Options::default() }).await;
    let package = rig.registry.release("moderation", 2, TinyPackage::ClassifyB, Verdicted::Pass);
    let status = || rig.portfolio.deployment("moderation").unwrap().status();
    let told = || {
        let tags = rig.registry.tags.lock().unwrap().get("moderation").cloned().unwrap_or_default();
        let [follower] = <[Follower; 1]>::try_from(Follower::all(&tags, "champion")).ok()?;
        Some(follower)
    };
    for version in [2, 1] {
        rig.registry.promote("moderation", version);
        eventually(async || told().is_some_and(|told| told.serving == Some(version))).await;
    }
    eventually(async || status().way_back.is_some_and(|way_back| way_back.evidence == Some("bit-exact"))).await;
    let follower = told().unwrap();
    assert_eq!((follower.member.as_str(), follower.process), ("moderation", std::process::id()));
    assert!(follower.is_running(follower.at.parse().unwrap()) && follower.refused.is_none(), "{follower:?}");

    damage(&rig, &package);
    rig.registry.promote("moderation", 2);
    eventually(async || told().is_some_and(|told| told.refused.is_some())).await;
    let Follower { serving, refused, .. } = told().unwrap();
    let refused = refused.unwrap();
    assert_eq!((serving, refused.version), (Some(1), 2));
    assert!(refused.reason.contains("program.pt2"), "{}", refused.reason);
    let way_back = status().way_back.unwrap();
    assert_eq!((way_back.version.as_str(), way_back.evidence), ("moderation:2", None));
    assert!(way_back.failure.as_ref().is_some_and(|failure| failure.contains("program.pt2")), "{way_back:?}");
    assert_eq!(version_served(&rig).await, "moderation:1");

    // A server that ends in order takes back what it told.
    rig.portfolio.withdraw().await;
    assert_eq!(told(), None);
}

#[tokio::test]
async fn a_reference_that_means_nothing_is_an_error_or_a_wait() {
    let rig = Rig::new(&["moderation"], Options::default()).await;
    assert!(matches!(rig.portfolio.load().await[..], [(_, DeployError::NotFound(_))]));
    assert!(rig.portfolio.load_what_exists().await.is_empty());
    rig.registry.release("moderation", 1, TinyPackage::ClassifyA, Verdicted::Pass);
    rig.registry.promote("moderation", 1);
    eventually(async || version_served(&rig).await == "moderation:1").await;
}
