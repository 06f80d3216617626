use std::num::NonZeroUsize;
use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::rules::{GatesError, in_range};

/// The traffic that latency, throughput, memory and cost are judged at: `[traffic]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "DeclaredTraffic")]
pub struct Traffic {
    /// Requests that arrive in a second at the peak, at times of a Poisson process.
    pub requests_per_s: f64,
    /// What they ask.
    #[serde(default)]
    pub lengths: Lengths,
    /// Seconds measured at this rate, all blocks together, of each side.
    #[serde(default = "default_duration_s")]
    pub duration_s: f64,
    /// Seconds at the start of each block that do not count, as its queue starts empty.
    #[serde(default = "default_warm_up_s")]
    pub warm_up_s: f64,
    /// Seconds of the search for the most requests a second.
    #[serde(default = "default_saturated_s")]
    pub saturated_s: f64,
    /// Blocks of each side; with a baseline, pairs of blocks.
    #[serde(default = "default_blocks")]
    pub blocks: usize,
    /// Threads that each run one batch at a time; 1 unless told, as in `portfolio.toml`.
    #[serde(default = "one")]
    pub replicas: NonZeroUsize,
    /// Threads of one program run; all cores unless told, as in `portfolio.toml`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<NonZeroUsize>,
    /// Largest number of tokens in a batch, padding included; that of the server unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_tokens: Option<NonZeroUsize>,
}

/// What the requests of a [`Traffic`] ask.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected \"golden\" or [{ tokens = 16, share = 0.7 }, …]")]
pub enum Lengths {
    /// The inputs of the golden set, each as often as the others.
    Golden(GoldenMix),
    /// Texts made of the golden set's words, by their number of tokens.
    Shares(Vec<LengthShare>),
}

/// The word `golden`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum GoldenMix {
    #[default]
    Golden,
}

/// How many of the requests have a length.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LengthShare {
    /// Tokens of a row, special tokens included.
    pub tokens: usize,
    /// All shares sum to 1.
    pub share: f64,
}

/// The least a process must answer when there is always something to do: `[throughput]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ThroughputRule {
    /// Requests of the declared mix.
    pub min_requests_per_s: f64,
}

/// The most memory of a process that serves this package only: `[memory]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryRule {
    /// Peak of the resident set, the pages of the weights that were touched included.
    pub max_mib: f64,
}

/// Declared prices, and the most that serving may cost: `[cost]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CostRule {
    /// What prices and limits are in; a label.
    #[serde(default = "default_currency")]
    pub currency: String,
    /// Price of one CPU for an hour.
    pub per_cpu_hour: f64,
    /// Price of one GiB of memory for an hour.
    #[serde(default)]
    pub per_gib_hour: f64,
    /// Price of a second of GPU work, for what an evaluation on a GPU tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_gpu_second: Option<f64>,
    /// The peak that processes are provided for; the declared rate unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_requests_per_s: Option<f64>,
    /// The share of its most requests a second that a process is planned to answer at the peak.
    #[serde(default = "default_utilisation")]
    pub utilisation: f64,
    /// The most that the work of 1,000 requests may cost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_per_1000: Option<f64>,
    /// The most that the processes for the peak may cost in a month.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_per_month: Option<f64>,
}

/// One request of an open-loop schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Since the start, whatever became of the requests before it.
    pub at: Duration,
    /// Which of the mix's requests it is.
    pub request: usize,
}

/// Arrivals of a Poisson process of `rate` a second during `seconds`; each is a request drawn with its share of `weights`,
/// one a request. The same seed gives the same schedule, so that two models can be asked the same things at the same times.
pub fn poisson_arrivals(rate: f64, seconds: f64, weights: &[f64], seed: u64) -> Vec<Arrival> {
    let mut draw = RequestDraw::new(weights, seed);
    let mut arrivals = Vec::new();
    let mut at = 0.0;
    loop {
        // `1 - u` lies in (0, 1], so its logarithm is finite.
        at -= (1.0 - draw.rng.random::<f64>()).ln() / rate;
        if at >= seconds || weights.is_empty() {
            return arrivals;
        }
        arrivals.push(Arrival { at: Duration::from_secs_f64(at), request: draw.next() });
    }
}

/// An endless, seeded sequence of requests, each drawn with its share of the weights.
#[derive(Clone, Debug)]
pub struct RequestDraw {
    rng: ChaCha8Rng,
    cumulative: Vec<f64>,
}

impl RequestDraw {
    /// One positive weight a request, at least one.
    pub fn new(weights: &[f64], seed: u64) -> Self {
        let sums = weights.iter().scan(0.0, |sum, weight| {
            *sum += weight;
            Some(*sum)
        });
        Self { rng: ChaCha8Rng::seed_from_u64(seed), cumulative: sums.collect() }
    }

    /// The position of the next request.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> usize {
        let n_requests = self.cumulative.len();
        let point = self.rng.random::<f64>() * self.cumulative.last().copied().unwrap_or(0.0);
        self.cumulative.partition_point(|&sum| sum <= point).min(n_requests.saturating_sub(1))
    }
}

/// The two sides of an interleaved comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Loaded {
    Candidate,
    Baseline,
}

/// Which side is loaded first and which second in each of `n_pairs` pairs of blocks, drawn by `seed`.
pub fn pair_orders(n_pairs: usize, seed: u64) -> Vec<[Loaded; 2]> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let order = |_| {
        if rng.random::<bool>() { [Loaded::Candidate, Loaded::Baseline] } else { [Loaded::Baseline, Loaded::Candidate] }
    };
    (0..n_pairs).map(order).collect()
}

/// Most requests that one side is asked at the declared rate: their latencies are held and resampled.
const MOST_REQUESTS: f64 = 2e5;
/// Longest row a table of lengths may ask for.
const MOST_TOKENS: f64 = 1e6;

fn one() -> NonZeroUsize {
    NonZeroUsize::MIN
}

fn default_duration_s() -> f64 {
    30.0
}

fn default_warm_up_s() -> f64 {
    1.0
}

fn default_saturated_s() -> f64 {
    10.0
}

fn default_blocks() -> usize {
    10
}

fn default_currency() -> String {
    "USD".to_owned()
}

fn default_utilisation() -> f64 {
    0.6
}

impl Default for Lengths {
    fn default() -> Self {
        Self::Golden(GoldenMix::Golden)
    }
}

impl Traffic {
    pub(crate) fn check(&self) -> Result<(), GatesError> {
        in_range("traffic.requests_per_s", self.requests_per_s, 0.01..=100_000.0, "0.01 to 100000")?;
        in_range("traffic.duration_s", self.duration_s, 1.0..=3600.0, "1 to 3600")?;
        in_range("traffic.warm_up_s", self.warm_up_s, 0.0..=60.0, "0 to 60")?;
        in_range("traffic.saturated_s", self.saturated_s, 1.0..=600.0, "1 to 600")?;
        in_range("traffic.blocks", self.blocks as f64, 6.0..=200.0, "6 to 200")?;
        in_range("traffic.replicas", self.replicas.get() as f64, 1.0..=256.0, "1 to 256")?;
        in_range("traffic.threads", self.threads.map_or(1.0, |n| n.get() as f64), 1.0..=256.0, "1 to 256")?;
        let asked = self.requests_per_s * (self.duration_s + self.blocks as f64 * self.warm_up_s);
        in_range("traffic: requests in all", asked, 1.0..=MOST_REQUESTS, "1 to 200000")?;
        match &self.lengths {
            Lengths::Golden(_) => Ok(()),
            Lengths::Shares(shares) => check_shares(shares),
        }
    }

    /// Seconds of one block, its warm-up included.
    pub fn block_s(&self) -> f64 {
        self.warm_up_s + self.duration_s / self.blocks as f64
    }
}

fn check_shares(shares: &[LengthShare]) -> Result<(), GatesError> {
    for LengthShare { tokens, share } in shares {
        in_range("traffic.lengths: tokens", *tokens as f64, 1.0..=MOST_TOKENS, "1 to 1000000")?;
        in_range("traffic.lengths: share", *share, 0.0001..=1.0, "0.0001 to 1")?;
    }
    let sum: f64 = shares.iter().map(|length| length.share).sum();
    in_range("traffic.lengths: sum of the shares", sum, 0.9999..=1.0001, "1")
}

impl ThroughputRule {
    pub(crate) fn check(&self) -> Result<(), GatesError> {
        positive("throughput.min_requests_per_s", Some(self.min_requests_per_s))
    }
}

impl MemoryRule {
    pub(crate) fn check(&self) -> Result<(), GatesError> {
        positive("memory.max_mib", Some(self.max_mib))
    }
}

impl CostRule {
    pub(crate) fn check(&self) -> Result<(), GatesError> {
        in_range("cost.per_cpu_hour", self.per_cpu_hour, 0.0..=f64::MAX, "0 or more")?;
        in_range("cost.per_gib_hour", self.per_gib_hour, 0.0..=f64::MAX, "0 or more")?;
        in_range("cost.utilisation", self.utilisation, 0.05..=1.0, "0.05 to 1")?;
        positive("cost.per_gpu_second", self.per_gpu_second)?;
        positive("cost.peak_requests_per_s", self.peak_requests_per_s)?;
        positive("cost.max_per_1000", self.max_per_1000)?;
        positive("cost.max_per_month", self.max_per_month)
    }
}

fn positive(key: &str, value: Option<f64>) -> Result<(), GatesError> {
    value.map_or(Ok(()), |value| in_range(key, value, f64::MIN_POSITIVE..=f64::MAX, "a positive number"))
}
