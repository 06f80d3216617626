//! An HTTP load generator for `benches/load.py`: requests go out when the schedule says so, whatever became of those before them.
//!
//! Reads a [`Plan`] as JSON from stdin and writes one JSON array a request to stdout, in the order of their ends: when it was due (ms since
//! the start), which body it had, the status (0: no answer), how long after it was due the answer was whole (ms), and its `x-request-id`.
//! A latency counts from the moment the request was due, so a generator or a server that falls behind cannot hide it
//! (Tene, "How NOT to measure latency", 2013).

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use highroad_eval::{RequestDraw, poisson_arrivals};
use reqwest::Client;
use reqwest::header::CONTENT_TYPE;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

#[derive(Deserialize)]
struct Plan {
    /// Where every body is sent by POST, or the one of its index where there are several.
    urls: Vec<String>,
    bodies: Vec<Box<RawValue>>,
    /// Sent with every request.
    #[serde(default)]
    headers: Vec<(String, String)>,
    /// Poisson arrivals a second; without it `connections` ask in turn, each as soon as it is answered.
    rate: Option<f64>,
    #[serde(default = "one")]
    connections: usize,
    /// Of the schedule; answers may come later.
    seconds: f64,
    /// Closed loops end after so many requests, too.
    most: Option<usize>,
    seed: u64,
    timeout_s: f64,
    /// Whether each request is told, or only how many got which status.
    #[serde(default = "yes")]
    each: bool,
}

fn one() -> usize {
    1
}

fn yes() -> bool {
    true
}

struct Told {
    due: Duration,
    body: usize,
    status: u16,
    latency: Duration,
    id: String,
}

struct Generator {
    plan: Plan,
    bodies: Vec<bytes::Bytes>,
    client: Client,
    begun: Instant,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let plan: Plan = serde_json::from_reader(std::io::stdin().lock())?;
    let bodies = plan.bodies.iter().map(|body| bytes::Bytes::copy_from_slice(body.get().as_bytes())).collect();
    let client = Client::builder()
        .timeout(Duration::from_secs_f64(plan.timeout_s))
        .pool_max_idle_per_host(usize::MAX)
        .tcp_nodelay(true)
        .no_proxy()
        .build()?;
    let each = plan.each;
    let generator = Arc::new(Generator { plan, bodies, client, begun: Instant::now() });
    let (told, mut answers) = unbounded_channel();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let senders = runtime.handle().clone();
    let schedule = std::thread::spawn(move || match generator.plan.rate {
        Some(rate) => open(&generator, rate, &senders, &told),
        None => closed(&generator, &senders, &told),
    });
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut counts = std::collections::BTreeMap::<u16, usize>::new();
    while let Some(Told { due, body, status, latency, id }) = answers.blocking_recv() {
        *counts.entry(status).or_default() += 1;
        if each {
            let ms = |time: Duration| time.as_secs_f64() * 1e3;
            serde_json::to_writer(&mut out, &(ms(due), body, status, ms(latency), id))?;
            out.write_all(b"\n")?;
        }
    }
    if !each {
        serde_json::to_writer(&mut out, &counts)?;
    }
    out.flush()?;
    schedule.join().map_err(|_| "the schedule panicked".into())
}

/// Tokio's timer has a resolution of a millisecond, a sleeping thread's is that of the system.
fn open(generator: &Arc<Generator>, rate: f64, senders: &tokio::runtime::Handle, told: &UnboundedSender<Told>) {
    let weights = vec![1.0; generator.bodies.len()];
    for arrival in poisson_arrivals(rate, generator.plan.seconds, &weights, generator.plan.seed) {
        std::thread::sleep(arrival.at.saturating_sub(generator.begun.elapsed()));
        let (generator, told) = (Arc::clone(generator), told.clone());
        senders.spawn(async move {
            let answer = generator.ask(arrival.at, arrival.request).await;
            let _gone = told.send(answer);
        });
    }
}

fn closed(generator: &Arc<Generator>, senders: &tokio::runtime::Handle, told: &UnboundedSender<Told>) {
    let n_sent = Arc::new(AtomicUsize::new(0));
    for connection in 0..generator.plan.connections {
        let (generator, told, n_sent) = (Arc::clone(generator), told.clone(), Arc::clone(&n_sent));
        senders.spawn(async move {
            let weights = vec![1.0; generator.bodies.len()];
            let mut draw = RequestDraw::new(&weights, generator.plan.seed.wrapping_add(connection as u64));
            let most = generator.plan.most.unwrap_or(usize::MAX);
            while generator.begun.elapsed().as_secs_f64() < generator.plan.seconds
                && n_sent.fetch_add(1, Ordering::Relaxed) < most
            {
                let _gone = told.send(generator.ask(generator.begun.elapsed(), draw.next()).await);
            }
        });
    }
}

impl Generator {
    async fn ask(&self, due: Duration, body: usize) -> Told {
        let url = &self.plan.urls[body.min(self.plan.urls.len() - 1)];
        let mut request =
            self.client.post(url).header(CONTENT_TYPE, "application/json").body(self.bodies[body].clone());
        for (name, value) in &self.plan.headers {
            request = request.header(name, value);
        }
        let (status, id) = match request.send().await {
            Err(_) => (0, String::new()),
            Ok(response) => {
                let status = response.status().as_u16();
                let id =
                    response.headers().get("x-request-id").and_then(|id| id.to_str().ok()).unwrap_or("").to_owned();
                let whole = response.bytes().await;
                (if whole.is_ok() { status } else { 0 }, id)
            }
        };
        Told { due, body, status, latency: self.begun.elapsed().saturating_sub(due), id }
    }
}
