use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use highroad_serve::config::PortfolioConfig;
use highroad_task::Input;
use highroad_testkit::TinyPackage;
use serde_json::{Value, json};

use crate::rig::{Options, Rig, Verdicted, header};

async fn rig(keys: &str) -> Arc<Rig> {
    let rig = Arc::new(Rig::new(&[], Options::default()).await);
    for (version, package) in [(1, TinyPackage::ClassifyA), (2, TinyPackage::ClassifyB)] {
        rig.registry.release("moderation", version, package, Verdicted::Pass);
    }
    rig.registry.promote("moderation", 1);
    edit(&rig, keys).await;
    rig
}

async fn edit(rig: &Rig, keys: &str) {
    let text = format!(
        "poll_interval_ms = 50\n[members.moderation]\nmodel = 'moderation@champion'\nthreads = 1\n{keys}\n\
         [budgets.members.moderation]\ntokens_per_day = 1000000\n"
    );
    rig.portfolio.reload(PortfolioConfig::parse(&text, Path::new("")).unwrap()).await.unwrap();
}

async fn ask(rig: &Rig, inputs: Value) -> (String, String, Vec<Vec<u32>>) {
    let response = rig.post_json("/v1/moderations", json!({ "model": "moderation", "input": inputs })).await;
    assert_eq!(response.status(), 200);
    let told = (header(&response, "x-highroad-cache"), header(&response, "x-request-id"));
    let reply: Value = response.json().await.unwrap();
    let scores = |result: &Value| {
        let scores = &result["highroad"]["scores"];
        let bits = |label| serde_json::from_value::<f32>(scores[label].clone()).unwrap().to_bits();
        ["benign", "injection"].map(bits).to_vec()
    };
    (told.0, told.1, reply["results"].as_array().unwrap().iter().map(scores).collect())
}

fn bits(rig: &Rig, package: TinyPackage, text: &str) -> Vec<u32> {
    let answers = rig.predictor(package).predict(&[Input::Text(text.to_owned())]).unwrap();
    answers[0].values().iter().map(|value| value.to_bits()).collect()
}

async fn metric(rig: &Rig, name: &str) -> f64 {
    let page = rig.get("/metrics").await.text().await.unwrap();
    let line = page.lines().find_map(|line| line.strip_prefix(&format!("{name}{{member=\"moderation\"}} ")));
    line.map_or(0.0, |value| value.parse().unwrap())
}

async fn spent(rig: &Rig) -> u64 {
    let view: Value = rig.get("/v1/highroad/budgets").await.json().await.unwrap();
    let rows = view["budgets"].as_array().unwrap();
    rows.iter().find(|row| row["limit"] == "tokens_per_day").unwrap()["used"].as_u64().unwrap()
}

#[tokio::test]
async fn an_answer_is_computed_once_and_given_again_with_the_same_bits() {
    let rig = rig("cache = { bytes = '1MiB', ttl_s = 600 }").await;
    let expected = ["hello", "the road"].map(|text| bits(&rig, TinyPackage::ClassifyA, text));
    let (told, first, answers) = ask(&rig, json!("hello")).await;
    assert_eq!((told.as_str(), &answers[0]), ("miss", &expected[0]));
    let after_one = spent(&rig).await;
    assert!(after_one > 0);
    let (told, second, answers) = ask(&rig, json!(["hello", "hello"])).await;
    assert_eq!((told.as_str(), answers), ("hit", vec![expected[0].clone(); 2]));
    assert_eq!(spent(&rig).await, after_one, "what is not computed takes nothing");
    let (told, _, answers) = ask(&rig, json!(["hello", "the road"])).await;
    assert_eq!((told.as_str(), answers), ("partial", expected.to_vec()));
    // Both are in the log, with the digests that `highroad replay` compares.
    let record = |id: &str| rig.log.find(id, |_| true).unwrap().unwrap();
    assert_eq!((record(&first).cache.as_deref(), record(&second).cache.as_deref()), (Some("miss"), Some("hit")));
    assert_eq!(record(&second).outputs, vec![record(&first).outputs[0]; 2]);
    assert_eq!(record(&second).n_tokens, vec![record(&first).n_tokens[0]; 2]);
    let counts = (metric(&rig, "highroad_cache_hits_total").await, metric(&rig, "highroad_cache_misses_total").await);
    assert_eq!(counts, (3.0, 2.0));
    assert!(metric(&rig, "highroad_cache_bytes").await > 100.0);
}

#[tokio::test]
async fn versions_have_answers_of_their_own_and_find_them_again() {
    let rig = rig("cache = { bytes = 1048576 }").await;
    assert_eq!(ask(&rig, json!("hello")).await.0, "miss");
    let serves = async |version: u64, package| {
        rig.registry.promote("moderation", version);
        for _ in 0..400 {
            let facts = rig.portfolio.revision("moderation").unwrap().facts().version.clone();
            if facts == format!("moderation:{version}") {
                let (told, _, answers) = ask(&rig, json!("hello")).await;
                assert_eq!(answers[0], bits(&rig, package, "hello"));
                return told;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("version {version} never served");
    };
    assert_eq!(serves(2, TinyPackage::ClassifyB).await, "miss");
    assert_eq!(serves(1, TinyPackage::ClassifyA).await, "hit", "after a rollback they are still there");
    edit(&rig, "replicas = 2\ncache = { bytes = 1048576 }").await;
    assert_eq!(ask(&rig, json!("hello")).await.0, "hit", "and after an edit of something else");
    edit(&rig, "cache = { bytes = 65536 }").await;
    assert_eq!(ask(&rig, json!("hello")).await.0, "miss");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_for_the_same_at_once_are_computed_once_and_a_client_that_leaves_takes_nothing_along() {
    let rig = rig("cache = { bytes = '1MiB' }").await;
    for round in 0..20 {
        let text = format!("hello {round} {}", "the road goes on ".repeat(6));
        // This one may begin, and leaves.
        let client = rig.client.post(format!("{}/v1/moderations", rig.url)).timeout(Duration::from_micros(700));
        let leaves = client.body(json!({ "model": "moderation", "input": text }).to_string()).send();
        let asking = (0..12).map(|_| {
            let (rig, text) = (Arc::clone(&rig), text.clone());
            tokio::spawn(async move { ask(&rig, json!(text)).await })
        });
        let asking: Vec<_> = asking.collect();
        let _left = leaves.await;
        let mut answers = Vec::new();
        for asked in asking {
            answers.push(asked.await.unwrap().2);
        }
        assert!(answers.iter().all(|answer| answer[0] == bits(&rig, TinyPackage::ClassifyA, &text)));
    }
    let misses = metric(&rig, "highroad_cache_misses_total").await;
    assert!((20.0..=40.0).contains(&misses), "one computes for all, and one that left may have: {misses}");
    let others = metric(&rig, "highroad_cache_hits_total").await + metric(&rig, "highroad_cache_coalesced_total").await;
    assert!(others >= 11.0 * 20.0, "{others}");
}

#[tokio::test]
async fn without_a_cache_nothing_is_said_of_one() {
    let rig = rig("").await;
    for _ in 0..2 {
        assert_eq!(ask(&rig, json!("hello")).await.0, "");
    }
    assert_eq!(metric(&rig, "highroad_cache_misses_total").await, 0.0);
}
