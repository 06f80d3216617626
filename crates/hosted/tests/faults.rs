//! What a real server cannot be made to do: refuse with a wait, break off, babble, flood, stall.

#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use highroad_hosted::{Budget, Client, Hosted, HostedError, Question, Said, Usage};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// A server that answers connection after connection as it is told, the last thing again and again.
struct Faulty {
    url: String,
    /// Heads of the requests, and when they came.
    seen: Arc<Mutex<Vec<(String, Instant)>>>,
}

#[derive(Clone)]
enum Act {
    Say(Vec<u8>),
    Stall,
}

const ANSWER: &str = r#"{"choices": [{"message": {"content": "Paris"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 2}, "model": "m", "system_fingerprint": "b1", "more": [1]}"#;

fn reply(status: &str, headers: &str, body: &str) -> Act {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n{body}");
    Act::Say(head.into_bytes())
}

fn answer() -> Act {
    reply("200 OK", "", ANSWER)
}

async fn serve(acts: Vec<Act>) -> Faulty {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let heard = seen.clone();
    tokio::spawn(async move {
        let mut n_served = 0;
        while let Ok((mut stream, _)) = listener.accept().await {
            let act = acts[n_served.min(acts.len() - 1)].clone();
            n_served += 1;
            let heard = heard.clone();
            tokio::spawn(async move {
                let mut bytes = vec![0; 64 << 10];
                let n = stream.read(&mut bytes).await.unwrap_or(0);
                heard.lock().unwrap().push((String::from_utf8_lossy(&bytes[..n]).into_owned(), Instant::now()));
                match act {
                    Act::Say(text) => drop(stream.write_all(&text).await),
                    Act::Stall => tokio::time::sleep(Duration::from_secs(60)).await,
                }
            });
        }
    });
    Faulty { url, seen }
}

impl Faulty {
    fn hosted(&self, more: &str) -> Hosted {
        let least = format!("highroad_hosted = 1\ntask = 'generate'\nbase_url = '{}'\nmodel = 'm'\n", self.url);
        Hosted::parse(&format!("{least}max_tokens = 100\n{more}")).unwrap()
    }

    fn n_asked(&self) -> usize {
        self.seen.lock().unwrap().len()
    }
}

async fn ask(hosted: Hosted, budget: &Budget) -> Result<highroad_hosted::Reply, HostedError> {
    let question = Question::chat(&hosted, &[("user", "What is the capital of France?")], 0, None);
    Client::new(hosted).unwrap().ask(&question, budget).await
}

#[tokio::test]
async fn a_host_that_asks_to_wait_is_obeyed_and_then_answers() {
    let busy = reply("429 Too Many Requests", "Retry-After: 1\r\n", r#"{"error": {"message": "slow down"}}"#);
    let server = serve(vec![busy, reply("503 Service Unavailable", "retry-after-ms: 10\r\n", ""), answer()]).await;
    let reply = ask(server.hosted(""), &Budget::default()).await.unwrap();
    let Said::Text { text, cut: false, likelihood: None, refused: false, .. } = &reply.said else {
        panic!("{:?}", reply.said)
    };
    assert_eq!(text, "Paris");
    assert_eq!((reply.n_tries, reply.usage), (3, Some(Usage { input: 7, output: 2 })));
    assert_eq!(reply.served_by.as_deref(), Some("m b1"));
    let seen = server.seen.lock().unwrap();
    assert!(seen[1].1 - seen[0].1 >= Duration::from_secs(1));
}

#[tokio::test]
async fn a_longer_wait_than_the_description_allows_is_an_error_at_once() {
    let server = serve(vec![reply("429 Too Many Requests", "Retry-After: 3600\r\n", "")]).await;
    let error = ask(server.hosted(""), &Budget::default()).await.unwrap_err();
    assert!(matches!(error, HostedError::Wait { wait_s: 3600.0, most_s: 120, .. }), "{error}");
    assert_eq!(server.n_asked(), 1);
}

#[tokio::test]
async fn half_an_answer_and_babble_are_asked_again() {
    let whole = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{ANSWER}", ANSWER.len());
    let half = Act::Say(whole.as_bytes()[..whole.len() - 40].to_vec());
    let server = serve(vec![half, reply("200 OK", "", "<html>"), answer()]).await;
    assert_eq!(ask(server.hosted(""), &Budget::default()).await.unwrap().n_tries, 3);
}

#[tokio::test]
async fn a_host_that_stays_broken_is_given_up_with_its_reason() {
    let broken = reply("500 Internal Server Error", "", r#"{"error": {"message": "out of\nmemory"}}"#);
    let server = serve(vec![broken]).await;
    let error = ask(server.hosted("[limits]\nretries = 1"), &Budget::default()).await.unwrap_err();
    assert!(error.to_string().ends_with("answered 500, after 2 tries: out of memory"), "{error}");
    assert_eq!(server.n_asked(), 2);
}

#[tokio::test]
async fn a_refusal_is_final_and_the_key_is_in_no_error() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("key");
    std::fs::write(&file, "sk-secret-1\n").unwrap();
    let quoting = r#"{"error": {"message": "Incorrect API key provided: sk-secret-1"}}"#;
    let server = serve(vec![reply("401 Unauthorized", "", quoting)]).await;
    let hosted = server.hosted(&format!("api_key_file = '{}'", file.display()));
    let error = ask(hosted, &Budget::default()).await.unwrap_err();
    assert!(error.to_string().contains("refused the key with 401: Incorrect API key provided: [the key]"), "{error}");
    assert!(!format!("{error:?}").contains("sk-secret"));
    let seen = server.seen.lock().unwrap();
    assert_eq!(seen.len(), 1);
    assert!(seen[0].0.contains("authorization: Bearer sk-secret-1"), "{}", seen[0].0);
}

#[tokio::test]
async fn another_host_is_not_followed_to() {
    let server = serve(vec![reply("302 Found", "Location: http://127.0.0.1:1/v1\r\n", "")]).await;
    let error = ask(server.hosted(""), &Budget::default()).await.unwrap_err();
    assert!(matches!(error, HostedError::Refused { status: 302, .. }), "{error}");
}

#[tokio::test]
async fn a_flood_is_cut_off() {
    let mut flood = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n".to_vec();
    flood.resize(40 << 20, b' ');
    let server = serve(vec![Act::Say(flood)]).await;
    let error = ask(server.hosted(""), &Budget::default()).await.unwrap_err();
    assert!(matches!(error, HostedError::TooLarge { limit, .. } if limit == 32 << 20), "{error}");
}

#[tokio::test]
async fn a_stalled_request_counts_as_its_dearest_and_the_budget_stops_the_next() {
    let server = serve(vec![Act::Stall]).await;
    let price = "[price]\ncurrency = 'USD'\ninput_per_million = 0\noutput_per_million = 10_000\n";
    let budget = Budget::new(Some(1.5));
    let error = ask(server.hosted(&format!("[limits]\ntimeout_s = 1\n{price}")), &budget).await.unwrap_err();
    // 100 tokens at 0.01 each: one try may have cost 1, a second would pass 1.5.
    assert!(matches!(error, HostedError::OverBudget { most: 1.5, spent: 1.0, next: 1.0, .. }), "{error}");
    assert_eq!((server.n_asked(), budget.spent()), (1, 1.0));
}

#[tokio::test]
async fn a_limit_on_the_cost_needs_a_price_and_answers_cost_what_was_counted() {
    let server = serve(vec![answer()]).await;
    let error = ask(server.hosted(""), &Budget::new(Some(1.0))).await.unwrap_err();
    assert_eq!((error, server.n_asked()), (HostedError::NoPrice { model: "m".to_owned() }, 0));
    let budget = Budget::new(Some(1.0));
    let price = "[price]\ncurrency = 'USD'\ninput_per_million = 1000\noutput_per_million = 2000\n";
    ask(server.hosted(price), &budget).await.unwrap();
    assert!((budget.spent() - 0.011).abs() < 1e-12, "{}", budget.spent());
}

#[tokio::test]
async fn nobody_there_is_said_without_delay_of_a_refused_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let seen = Arc::default();
    let server = Faulty { url: format!("http://{}/v1", listener.local_addr().unwrap()), seen };
    drop(listener);
    let budget = Budget::new(None);
    let error = ask(server.hosted("[limits]\nretries = 1"), &budget).await.unwrap_err();
    assert!(matches!(error, HostedError::Unreachable { n_tries: 2, .. }), "{error}");
    assert_eq!(budget.spent(), 0.0);
}
