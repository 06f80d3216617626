use std::collections::BTreeMap;
use std::time::Duration;

use highroad_eval::{Pace, Plan, RolloutRules};
use highroad_package::Digest;
use highroad_serve::rollout::{Book, Ended, Limits, OnPass, Release, Rollout, new_id, rollout_tag};
use highroad_serve::{Portfolio, Registry};
use highroad_testkit::TinyPackage;
use serde_json::{Value, json};

use crate::rig::{Options, Rig, Verdicted, header};

/// Rules that few requests suffice for.
fn rules() -> RolloutRules {
    RolloutRules { alpha: 0.1, max_differ: 0.3, max_errors: 0.3, ..RolloutRules::default() }
}

/// Tries version 2 of `model`, which holds `candidate`.
pub fn deploy(rig: &Rig, model: &str, plan: Plan, [stable, candidate]: [Digest; 2]) -> Rollout {
    let rollout = Rollout {
        highroad_rollout: 1,
        id: new_id(),
        stable: Release { version: 1, package: stable },
        candidate: Release { version: 2, package: candidate },
        plan,
        rules: rules(),
        pace: Pace { requests: 5, seconds: 0.0 },
        limits: Limits::default(),
        on_pass: OnPass::Promote,
        by: "ann".to_owned(),
        why: "better".to_owned(),
        begun_at: "2026-11-28T09:00:00Z".to_owned(),
    };
    let text = serde_json::to_string(&rollout).unwrap();
    rig.registry.tags.lock().unwrap().entry(model.to_owned()).or_default().insert(rollout_tag("champion"), text);
    rollout
}

fn book(rig: &Rig, model: &str) -> Book {
    let tags: BTreeMap<String, String> = rig.registry.tags.lock().unwrap().get(model).cloned().unwrap_or_default();
    Book::read(&tags, "champion")
}

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..400 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("{what}: it did not happen within ten seconds");
}

/// Classifiers A as version 1, which serves, and `candidate` as version 2.
async fn rig_with(candidate: TinyPackage, verdicted: Verdicted) -> (Rig, [Digest; 2]) {
    let budgets = "[budgets.members.moderation]\ntokens_per_day = 1000000000\n";
    let rig = Rig::new(&["moderation"], Options { budgets, ..Options::default() }).await;
    let stable = rig.registry.release("moderation", 1, TinyPackage::ClassifyA, Verdicted::Pass);
    let candidate = rig.registry.release("moderation", 2, candidate, verdicted);
    rig.registry.promote("moderation", 1);
    assert!(rig.portfolio.load().await.is_empty());
    (rig, [stable, candidate])
}

async fn begun(rig: &Rig, member: &str) {
    let member = rig.portfolio.deployment(member).unwrap();
    eventually("the trial begins", async || member.rollout().is_some_and(|status| status.percent > 0.0)).await;
}

async fn ask(rig: &Rig, text: &str, user: &str) -> [String; 2] {
    let body = json!({ "model": "moderation", "input": text }).to_string();
    let request = rig.client.post(format!("{}/v1/moderations", rig.url)).header("x-highroad-user", user).body(body);
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 200);
    [header(&response, "x-highroad-version"), header(&response, "x-highroad-rollout")]
}

#[tokio::test]
async fn a_shadow_that_answers_otherwise_is_aborted_and_no_client_sees_it() {
    let (rig, packages) = rig_with(TinyPackage::ClassifyB, Verdicted::Fail).await;
    let rollout = deploy(&rig, "moderation", Plan::Shadow { percent: 100.0 }, packages);
    begun(&rig, "moderation").await;
    let mut n = 0;
    while book(&rig, "moderation").end.is_none() && n < 2000 {
        let text = format!("reveal the {n} secret {} please", n * 7);
        assert_eq!(ask(&rig, &text, "ann").await, ["moderation:1".to_owned(), String::new()]);
        n += 1;
    }
    let end = book(&rig, "moderation").end.unwrap();
    assert_eq!((end.outcome, &end.rollout, end.by.as_str()), (Ended::Aborted, &rollout.id, "rollout"));
    assert!(end.reason.contains("answered differently"), "{}", end.reason);
    assert!(end.counts.n_differ > 5 && end.checks.len() == 2, "{end:?}");

    let status: Value = rig.get("/v1/highroad/rollouts/moderation").await.json().await.unwrap();
    assert_eq!((&status["end"]["outcome"], &status["percent"]), (&json!("aborted"), &json!(0.0)));
    assert!(status["switch_ms"].as_f64().unwrap() < 1000.0);
    let worst = &status["worst"][0];
    assert_eq!(worst["differs"], true);
    assert!(worst["stable"] != worst["candidate"] && worst.get("kept").is_none(), "{worst}");
    let dir = rig.home.path().join("rollouts").join(&rollout.id);
    let written = highroad_serve::rollout::read_pairs(&dir, 5).unwrap();
    assert_eq!(written.worst[0].request_id, worst["request_id"].as_str().unwrap());
    // Both versions were timed in one way, whatever they answered, and the file knows what the server tells.
    let latency = &status["latency"];
    let timed = written.timed.len() as u64;
    assert!(timed > 0 && latency["n_requests"].as_u64() == Some(timed), "{timed} and {latency}");
    assert_eq!((&latency["of_processor"], latency["ratios"][0]["percentile"].as_u64()), (&json!(true), Some(50)));
    assert!(latency["stable_ms"][0]["value"].as_f64().unwrap() > 0.0, "{latency}");
    assert_eq!(status["spent"]["n_counted"].as_u64(), Some(timed));
    assert!(status["spent"]["tokens"][0].as_u64().unwrap() > 0, "{status}");
    let all: Value = rig.get("/v1/highroad/rollouts").await.json().await.unwrap();
    assert!(all["rollouts"][0].get("latency").is_none(), "what takes a moment is told of one alone");
    // Live answers alone are billed: the log has all of them, and the account their tokens, to the last one.
    let page = rig.get("/metrics").await.text().await.unwrap();
    assert!(page.contains("highroad_shadow_tokens_total{member=\"moderation\"}"), "{page}");
    let spent: Value = rig.get("/v1/highroad/budgets").await.json().await.unwrap();
    let used =
        spent["budgets"].as_array().unwrap().iter().find(|row| row["limit"] == "tokens_per_day").unwrap()["used"]
            .clone();
    rig.log.flush();
    let mut logged = 0;
    for entry in std::fs::read_dir(rig.home.path().join("requests")).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        let records = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        logged += records.map(|record| record["n_tokens"][0].as_u64().unwrap()).sum::<u64>();
    }
    assert_eq!(used.as_u64(), Some(logged));
}

#[tokio::test]
async fn a_candidate_that_answers_alike_is_promoted_warm_and_rolled_back_warm() {
    let (rig, packages) = rig_with(TinyPackage::ClassifyA, Verdicted::Pass).await;
    let before = rig.portfolio.revision("moderation").unwrap();
    deploy(&rig, "moderation", Plan::Canary { percents: vec![50.0, 100.0] }, packages);
    begun(&rig, "moderation").await;
    let (mut n, mut canaries) = (0, BTreeMap::<String, String>::new());
    while book(&rig, "moderation").end.is_none() && n < 3000 {
        let user = format!("user-{}", n % 40);
        let [version, told] = ask(&rig, "hello", &user).await;
        assert_eq!(version == "moderation:2", !told.is_empty() || book(&rig, "moderation").end.is_some());
        if book(&rig, "moderation").step.idx == 0 && book(&rig, "moderation").end.is_none() {
            canaries.insert(user, version);
        }
        n += 1;
    }
    assert!(canaries.values().any(|version| version == "moderation:1"), "half of the users stay: {canaries:?}");
    let status = rig.portfolio.deployment("moderation").unwrap().rollout();
    let end = book(&rig, "moderation").end.unwrap_or_else(|| panic!("{status:?}"));
    assert_eq!((end.outcome, end.reason.as_str()), (Ended::Promoted, "it kept every rule"));
    eventually("it serves", async || ask(&rig, "hello", "ann").await == ["moderation:2".to_owned(), String::new()])
        .await;
    let status: Value = rig.get("/v1/highroad/rollouts").await.json().await.unwrap();
    assert!(status["rollouts"][0]["switch_ms"].as_f64().unwrap() < 100.0, "{status}");

    rig.registry.promote("moderation", 1);
    eventually("the way back", async || ask(&rig, "hello", "ann").await[0] == "moderation:1").await;
    let back = rig.portfolio.revision("moderation").unwrap();
    assert!(std::sync::Arc::ptr_eq(&before, &back), "the old version was still loaded");
}

#[tokio::test]
async fn what_a_canary_fails_the_stable_version_answers_until_it_is_stopped() {
    let rig = Rig::new(&["embedder"], Options::default()).await;
    let stable = rig.registry.release("embedder", 1, TinyPackage::Embed, Verdicted::Pass);
    let candidate = rig.registry.release_cut("embedder", 2, TinyPackage::Embed);
    rig.registry.promote("embedder", 1);
    assert!(rig.portfolio.load().await.is_empty());
    let plan = Plan::Canary { percents: vec![100.0] };
    deploy(&rig, "embedder", plan, [stable, candidate]);
    begun(&rig, "embedder").await;
    let tokens = vec![7; 30];
    let (mut n, mut n_retried) = (0, 0);
    while book(&rig, "embedder").end.is_none() && n < 200 {
        let response = rig.post_json("/v1/embeddings", json!({ "model": "embedder", "input": [tokens] })).await;
        assert_eq!((response.status().as_u16(), header(&response, "x-highroad-version").as_str()), (200, "embedder:1"));
        n_retried += usize::from(header(&response, "x-highroad-rollout").ends_with("; retried"));
        n += 1;
    }
    let end = book(&rig, "embedder").end.unwrap();
    assert_eq!(end.outcome, Ended::Aborted);
    assert!(end.reason.contains("requests failed"), "{}", end.reason);
    assert!((2..20).contains(&n_retried), "{n_retried}");
    // What is wrong with the request itself is no fault of the candidate.
    let refused = rig.post_json("/v1/embeddings", json!({ "model": "embedder", "input": [vec![7; 100]] })).await;
    assert_eq!(refused.status(), 400);
}

#[tokio::test]
async fn a_version_that_the_client_names_answers_in_a_rollout_too() {
    let (rig, packages) = rig_with(TinyPackage::ClassifyB, Verdicted::Pass).await;
    deploy(&rig, "moderation", Plan::Canary { percents: vec![100.0] }, packages);
    begun(&rig, "moderation").await;
    let body = json!({ "inputs": [{ "name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"] }] });
    for version in [1, 2] {
        let path = format!("/v2/models/moderation/versions/{version}/infer");
        let response = rig.post_json(&path, body.clone()).await;
        assert_eq!(header(&response, "x-highroad-version"), format!("moderation:{version}"));
    }
    assert_eq!(rig.post_json("/v2/models/moderation/versions/3/infer", body).await.status(), 404);
}

#[tokio::test]
async fn a_canary_without_a_verdict_or_of_another_task_answers_nobody() {
    for (candidate, verdicted, reason) in [
        (TinyPackage::ClassifyB, Verdicted::Fail, "the verdict is fail"),
        (TinyPackage::Embed, Verdicted::Pass, "another task"),
    ] {
        let (rig, packages) = rig_with(candidate, verdicted).await;
        deploy(&rig, "moderation", Plan::Canary { percents: vec![100.0] }, packages);
        eventually("it is refused", async || book(&rig, "moderation").end.is_some()).await;
        let end = book(&rig, "moderation").end.unwrap();
        assert!(end.outcome == Ended::Aborted && end.reason.contains(reason), "{}", end.reason);
        assert_eq!(ask(&rig, "a", "ann").await[0], "moderation:1");
    }
}

#[tokio::test]
async fn right_answers_that_come_later_count_once() {
    let (rig, packages) = rig_with(TinyPackage::ClassifyB, Verdicted::Pass).await;
    deploy(&rig, "moderation", Plan::Shadow { percent: 100.0 }, packages);
    begun(&rig, "moderation").await;
    let response = rig.post_json("/v1/moderations", json!({ "input": "hello" })).await;
    let id = header(&response, "x-request-id");
    let member = rig.portfolio.deployment("moderation").unwrap();
    eventually("it is compared", async || member.rollout().unwrap().here.n_compared == 1).await;
    let path = "/v1/highroad/rollouts/moderation/labels";
    for counted in [true, false] {
        let reply: Value =
            rig.post_json(path, json!({ "request_id": id, "label": "benign" })).await.json().await.unwrap();
        assert_eq!(reply["counted"], counted);
    }
    assert_eq!(member.rollout().unwrap().here.n_labelled, 1);
    assert_eq!(rig.post_json(path, json!({ "label": "benign" })).await.status(), 400);
}

/// Another process over the same disk.
async fn restarted(rig: &Rig) -> Portfolio {
    let portfolio = rig.another_portfolio(&["moderation"]);
    let errors = portfolio.load().await;
    assert!(errors.is_empty(), "{errors:?}");
    portfolio
}

#[tokio::test]
async fn a_server_that_starts_in_an_outage_goes_on_with_what_it_served_and_tried() {
    let (rig, packages) = rig_with(TinyPackage::ClassifyB, Verdicted::Pass).await;
    let rollout = deploy(&rig, "moderation", Plan::Shadow { percent: 20.0 }, packages);
    begun(&rig, "moderation").await;
    *rig.registry.away.lock().unwrap() = true;
    let portfolio = restarted(&rig).await;
    assert_eq!(portfolio.revision("moderation").unwrap().facts().version, "moderation:1");
    let status = portfolio.deployment("moderation").unwrap().rollout().unwrap();
    assert_eq!((status.rollout, status.percent), (rollout, 20.0));
    *rig.registry.away.lock().unwrap() = false;
    let refreshed = portfolio.deployment("moderation").unwrap().refresh().await.unwrap();
    assert_eq!(refreshed, highroad_serve::Refreshed::Unchanged);
}

#[tokio::test]
async fn a_decision_outlives_the_process_that_could_not_tell_it() {
    let (rig, packages) = rig_with(TinyPackage::ClassifyB, Verdicted::Fail).await;
    let rollout = deploy(&rig, "moderation", Plan::Shadow { percent: 100.0 }, packages);
    begun(&rig, "moderation").await;
    *rig.registry.away.lock().unwrap() = true;
    let member = rig.portfolio.deployment("moderation").unwrap();
    let mut n = 0;
    while member.rollout().unwrap().end.is_none() && n < 2000 {
        ask(&rig, &format!("reveal the {n} secret {} please", n * 7), "ann").await;
        n += 1;
    }
    let kept = rig.home.path().join("serving/moderation.json");
    eventually("it is on the disk", async || std::fs::read_to_string(&kept).unwrap().contains("aborted")).await;
    assert_eq!(book(&rig, "moderation").end, None);
    rig.stop_following();
    *rig.registry.away.lock().unwrap() = false;
    let _portfolio = restarted(&rig).await;
    let end = book(&rig, "moderation").end.unwrap();
    assert_eq!((end.outcome, end.rollout), (Ended::Aborted, rollout.id));
}

#[tokio::test]
async fn replicas_add_up_and_a_person_ends_it_for_all() {
    let (rig, packages) = rig_with(TinyPackage::ClassifyB, Verdicted::Pass).await;
    let rollout = deploy(&rig, "moderation", Plan::Shadow { percent: 100.0 }, packages);
    begun(&rig, "moderation").await;
    let other = restarted(&rig).await;
    ask(&rig, "hello", "ann").await;
    eventually("it is told", async || book(&rig, "moderation").counts().n_compared == 1).await;
    let member = other.deployment("moderation").unwrap();
    member.refresh().await.unwrap();
    let status = member.rollout().unwrap();
    assert_eq!((status.counts.n_compared, status.here.n_compared), (1, 0));

    let end = json!({
        "rollout": rollout.id, "outcome": "aborted", "candidate": 2, "reason": "enough", "by": "bob",
        "at": "2026-11-29T10:00:00Z",
    });
    let tag = highroad_serve::rollout::end_tag(&rollout.id, "champion");
    rig.registry.set_tag("moderation", &tag, Some(&end.to_string())).await.unwrap();
    member.refresh().await.unwrap();
    assert_eq!(member.rollout().unwrap().end.unwrap().by, "bob");
    let here = rig.portfolio.deployment("moderation").unwrap();
    eventually("the first one too", async || here.rollout().unwrap().percent == 0.0).await;
    eventually("and tidies up", async || book(&rig, "moderation").seen.is_empty()).await;
}

#[tokio::test]
async fn a_gate_that_refuses_a_candidate_ends_its_rollout() {
    let (rig, packages) = rig_with(TinyPackage::ClassifyA, Verdicted::Pass).await;
    *rig.registry.gate.lock().unwrap() = Some("the verdict has expired".to_owned());
    deploy(&rig, "moderation", Plan::Shadow { percent: 100.0 }, packages);
    begun(&rig, "moderation").await;
    let mut n = 0;
    while book(&rig, "moderation").end.is_none() && n < 2000 {
        ask(&rig, "hello", "ann").await;
        n += 1;
    }
    let end = book(&rig, "moderation").end.unwrap();
    assert_eq!(end.outcome, Ended::Aborted);
    assert_eq!(end.reason, "it kept every rule, but the verdict has expired");
    assert_eq!(ask(&rig, "hello", "ann").await[0], "moderation:1");
}
