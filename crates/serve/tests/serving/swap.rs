use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use highroad_task::Input;
use highroad_testkit::TinyPackage;
use serde_json::{Value, json};

use crate::rig::{Rig, Verdicted, header};

const N_REQUESTS: usize = 10_000;
const N_CLIENTS: usize = 16;
const SWAP_EVERY: usize = 2500;

/// The scores of every text under each package's digest, from a predictor in process.
type Expected = BTreeMap<String, BTreeMap<String, Vec<u32>>>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_requests_across_swaps_each_carry_one_packages_bits() {
    let rig = Arc::new(Rig::ready().await);
    rig.registry.release("moderation", 2, TinyPackage::ClassifyB, Verdicted::Pass);
    let texts: Arc<Vec<String>> = Arc::new((0..64).map(|i| words(i, 1 + i % 24)).collect());
    let expected = Arc::new(expected(&rig, &texts));
    let n_begun = Arc::new(AtomicUsize::new(0));

    let mut clients = Vec::new();
    for client_idx in 0..N_CLIENTS {
        let (rig, texts, expected, n_begun) = (rig.clone(), texts.clone(), expected.clone(), n_begun.clone());
        clients.push(tokio::spawn(async move {
            let mut served = BTreeMap::<String, usize>::new();
            loop {
                let request_idx = n_begun.fetch_add(1, Ordering::Relaxed);
                if request_idx >= N_REQUESTS {
                    return served;
                }
                if request_idx % SWAP_EVERY == SWAP_EVERY / 2 {
                    rig.registry.promote("moderation", 1 + (request_idx / SWAP_EVERY + 1) as u64 % 2);
                }
                let text = &texts[(request_idx * 7 + client_idx) % texts.len()];
                let package = ask_and_compare(&rig, text, &expected).await;
                *served.entry(package).or_default() += 1;
            }
        }));
    }
    let mut served = BTreeMap::<String, usize>::new();
    for client in clients {
        for (package, n) in client.await.unwrap() {
            *served.entry(package).or_default() += n;
        }
    }
    assert_eq!(served.values().sum::<usize>(), N_REQUESTS);
    assert_eq!(served.len(), 2, "both versions took traffic: {served:?}");
}

async fn ask_and_compare(rig: &Rig, text: &str, expected: &Expected) -> String {
    let body = json!({ "model": "moderation", "input": text });
    let response = rig.post_json("/v1/moderations", body).await;
    assert_eq!(response.status(), 200);
    let package = header(&response, "x-highroad-package");
    let reply: Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
    let scores = &reply["results"][0]["highroad"]["scores"];
    let bits = ["benign", "injection"]
        .map(|label| serde_json::from_value::<f32>(scores[label].clone()).unwrap().to_bits())
        .to_vec();
    assert_eq!(Some(&bits), expected[&package].get(text), "package {package}");
    package
}

fn expected(rig: &Rig, texts: &[String]) -> Expected {
    let of_package = |package: TinyPackage| {
        let predictor = rig.predictor(package);
        let alone = |text: &String| {
            let answers = predictor.predict(&[Input::Text(text.clone())]).unwrap();
            (text.clone(), answers[0].values().iter().map(|value| value.to_bits()).collect())
        };
        (predictor.digest().to_string(), texts.iter().map(alone).collect())
    };
    let expected: Expected = [TinyPackage::ClassifyA, TinyPackage::ClassifyB].map(of_package).into();
    let answers: Vec<_> = expected.values().collect();
    assert_ne!(answers[0], answers[1], "the two packages answer differently, or the test shows nothing");
    expected
}

fn words(seed: usize, n_words: usize) -> String {
    const WORDS: [&str; 8] = ["ignore", "the", "previous", "road", "system", "hello", "prompt", "please"];
    (0..n_words).map(|i| WORDS[(seed * 5 + i * 3) % WORDS.len()]).collect::<Vec<_>>().join(" ")
}
