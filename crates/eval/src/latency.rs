use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF as _, StudentsT};

use crate::cost::{self, CostEvidence};
use crate::gate::three_way;
use crate::interval::normal_cdf;
use crate::{Bootstrap, CheckResult, Gates, LatencyRule, Lengths, MemoryRule, Outcome, Resamples, Traffic, Units};

/// What a load test of a candidate, and of its baseline, measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Loads {
    /// How.
    pub run: Run,
    /// The candidate.
    pub candidate: Load,
    /// The baseline, where a rule compares with it; loaded in turns with the candidate on the same machine.
    pub baseline: Option<Load>,
    /// Peak resident set of processes that held the candidate only, one after the other; empty if none was measured.
    pub peak_rss_bytes: Vec<u64>,
}

/// How a load test was run, where the rules leave it open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Threads of one program run.
    pub threads: usize,
    /// Largest number of tokens in a batch.
    pub batch_tokens: usize,
    /// Machine and method, in words.
    pub measured: String,
}

/// What one package did under load.
#[derive(Clone, Debug, PartialEq)]
pub struct Load {
    /// Consecutive stretches in which something always waited.
    pub saturated: Vec<BlockSaturated>,
    /// CPUs that the process kept busy meanwhile, on average.
    pub cpus_used: f64,
    /// What became of the declared rate.
    pub at_rate: AtRate,
}

/// A stretch between the ends of two batches in which something always waited.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct BlockSaturated {
    pub n_requests: usize,
    pub seconds: f64,
}

/// What became of a package at the declared rate.
#[derive(Clone, Debug, PartialEq)]
pub enum AtRate {
    /// Every block ended with an empty queue. The i-th block of candidate and baseline were asked the same at the same times.
    Steady(Vec<BlockAtRate>),
    /// The load was stopped when a request had waited this long for its turn.
    RanAway {
        /// Seconds.
        waited_s: f64,
    },
    /// The rate is beyond what the package answers when something always waits.
    NotTried,
}

/// One block of requests at the declared rate.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockAtRate {
    /// From the scheduled arrival to the last answer, of the requests that arrived after the warm-up, in any order.
    pub latencies_ms: Vec<f64>,
    /// All requests, those of the warm-up included.
    pub n_requests: usize,
    /// Rows of all requests, and the batches they ran in.
    pub n_rows: usize,
    #[allow(missing_docs)]
    pub n_batches: usize,
    /// CPU time of the process while it answered them.
    pub cpu_s: f64,
}

/// A value, and bounds that each err with the probability alpha of the gate.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub struct Estimated {
    pub value: f64,
    pub interval: [f64; 2],
}

/// What a gate saw at the declared traffic: the part of a verdict that latency, throughput, memory and cost rest on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrafficEvidence {
    /// The declared traffic; `threads` and `batch_tokens` are always told.
    pub declared: Traffic,
    /// The candidate under load.
    pub candidate: LoadEvidence,
    /// The baseline under load, where a rule compares with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<LoadEvidence>,
    /// Candidate's latency as a multiple of the baseline's, where both were steady.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ratios: Vec<Percentile>,
    /// Peak memory of each process that was started to measure it, ascending.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peak_mib: Vec<f64>,
    /// What serving costs at the declared prices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<CostEvidence>,
    /// Machine and method, in words.
    pub measured: String,
}

/// One package under load.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoadEvidence {
    /// Most requests a second, when something always waits; absent if too few batches ended to tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_s: Option<Estimated>,
    /// CPUs that the process kept busy meanwhile, on average: far below replicas times threads, the machine was busy with
    /// something else, or the model has too little to do for its threads.
    pub cpus_used: f64,
    /// Requests whose latency counts; 0 if the declared rate was not carried.
    pub n_requests: usize,
    /// Latency at the declared rate; empty if it was not carried.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub latency_ms: Vec<Percentile>,
    /// CPU seconds of one request at the declared rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_s_per_request: Option<Estimated>,
    /// Mean number of rows in a batch at the declared rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows_per_batch: Option<f64>,
}

/// A percentile, or the ratio of two.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Percentile {
    /// Between 1 and 99.
    pub percentile: u8,
    /// Milliseconds or a ratio.
    pub value: f64,
    /// Bounds that each err with probability alpha; absent where too few requests lie beyond the percentile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<[f64; 2]>,
}

/// The percentiles that evidence tells.
const TOLD: [u8; 3] = [50, 95, 99];
/// Fewer blocks than this are too few to tell how much they vary.
const FEWEST_BLOCKS: usize = 6;
/// Fewer requests than this on the far side of a percentile are too few for a bootstrap of it.
const FEWEST_BEYOND: f64 = 10.0;
/// Most blocks that paired requests are cut into, and fewest requests of one.
const MOST_PAIRED_BLOCKS: usize = 50;
const FEWEST_OF_A_BLOCK: usize = 5;
/// How bounds of paired latencies are drawn, and the probability with which each errs.
const PAIRED_RESAMPLES: Resamples = Resamples { n: 10_000, seed: 0 };
const PAIRED_ALPHA: f64 = 0.025;
/// Longest run that an undecided check asks for.
const LONGEST_RUN_S: f64 = 3600.0;

/// Judges the rules that need load: whether the declared rate is carried, latency at that rate, throughput, memory and cost.
///
/// Latency rules are left out where the rate was not carried, as there is none to judge, and `max_ratio` where there is no
/// baseline. Deterministic: the bootstrap's seed is in the rules.
pub fn judge_load(gates: &Gates, traffic: &Traffic, loads: &Loads) -> (Vec<CheckResult>, TrafficEvidence) {
    let judge = Judge { gates, traffic, loads };
    let evidence = judge.evidence();
    let capacity = evidence.candidate.requests_per_s;
    let mut checks = vec![judge.carries(capacity)];
    if let AtRate::Steady(blocks) = &loads.candidate.at_rate {
        for rule in &gates.latency {
            checks.extend(rule.max_ms.map(|max_ms| judge.latency(rule, max_ms, blocks)));
            checks.extend(rule.max_ratio.and_then(|max_ratio| judge.ratio(rule, max_ratio, blocks)));
        }
    }
    checks.extend(gates.throughput.map(|rule| judge.throughput(rule.min_requests_per_s, capacity)));
    checks.extend(gates.memory.and_then(|rule| memory(rule, &evidence.peak_mib)));
    if let (Some(rule), Some(cost)) = (&gates.cost, &evidence.cost) {
        checks.extend(cost::checks(rule, cost));
    }
    (checks.into_iter().map(|check| check.settled(gates.inconclusive)).collect(), evidence)
}

/// Most requests a second, with bounds that each err with probability `alpha`: a bootstrap over the blocks. `None` if there are too few
/// blocks to tell.
pub fn capacity(gates: &Gates, blocks: &[BlockSaturated], alpha: f64) -> Option<Estimated> {
    ratio_of_sums(gates, alpha, blocks, |block| [block.n_requests as f64, block.seconds])
}

struct Judge<'a> {
    gates: &'a Gates,
    traffic: &'a Traffic,
    loads: &'a Loads,
}

impl Judge<'_> {
    fn evidence(&self) -> TrafficEvidence {
        let Loads { run, candidate, baseline, peak_rss_bytes } = self.loads;
        let mut peak_mib: Vec<f64> = peak_rss_bytes.iter().map(|&bytes| bytes as f64 / f64::from(1 << 20)).collect();
        peak_mib.sort_by(f64::total_cmp);
        let ratios = match (&candidate.at_rate, baseline.as_ref().map(|load| &load.at_rate)) {
            (AtRate::Steady(candidate), Some(AtRate::Steady(baseline))) => {
                let pair = [Pooled::of(candidate), Pooled::of(baseline)];
                TOLD.map(|percentile| self.percentile(percentile, &pair)).to_vec()
            }
            _ => Vec::new(),
        };
        TrafficEvidence {
            declared: Traffic {
                threads: std::num::NonZero::new(run.threads),
                batch_tokens: std::num::NonZero::new(run.batch_tokens),
                ..self.traffic.clone()
            },
            candidate: self.load_evidence(candidate),
            baseline: baseline.as_ref().map(|load| self.load_evidence(load)),
            ratios,
            cost: self.gates.cost.as_ref().and_then(|rule| cost::evidence(self.gates, self.traffic, rule, self.loads)),
            peak_mib,
            measured: run.measured.clone(),
        }
    }

    fn load_evidence(&self, load: &Load) -> LoadEvidence {
        let blocks: &[BlockAtRate] = if let AtRate::Steady(blocks) = &load.at_rate { blocks } else { &[] };
        let pooled = [Pooled::of(blocks)];
        let (n_rows, n_batches) =
            blocks.iter().fold((0, 0), |(rows, batches), block| (rows + block.n_rows, batches + block.n_batches));
        LoadEvidence {
            requests_per_s: capacity(self.gates, &load.saturated, self.gates.alpha),
            cpus_used: load.cpus_used,
            n_requests: pooled[0].n,
            latency_ms: match pooled[0].n {
                0 => Vec::new(),
                _ => TOLD.map(|percentile| self.percentile(percentile, &pooled)).to_vec(),
            },
            cpu_s_per_request: cpu_s_per_request(self.gates, &load.at_rate, self.gates.alpha),
            rows_per_batch: (n_batches > 0).then(|| n_rows as f64 / n_batches as f64),
        }
    }

    fn percentile<const SIDES: usize>(&self, percentile: u8, sides: &[Pooled; SIDES]) -> Percentile {
        percentile_of(resamples(self.gates), self.gates.alpha, percentile, &sides.each_ref())
    }

    /// Whether the declared rate is below what the candidate answers when something always waits: else its queue has no end.
    fn carries(&self, capacity: Option<Estimated>) -> CheckResult {
        let rate = self.traffic.requests_per_s;
        let rule = format!("traffic: {} are carried", per_s(rate));
        let n_cases = self.loads.candidate.saturated.iter().map(|block| block.n_requests).sum();
        let (outcome, reason) = match (&self.loads.candidate.at_rate, capacity) {
            (AtRate::RanAway { waited_s }, _) => (
                Outcome::Fail,
                format!("a request waited {waited_s:.0} s for its turn, so the queue grows without limit"),
            ),
            (_, None) => (Outcome::Inconclusive, self.too_few_batches()),
            (_, Some(capacity)) => {
                let [low, high] = capacity.interval;
                let outcome = three_way(low > rate, high < rate);
                let then = match outcome {
                    Outcome::Pass => "",
                    Outcome::Fail => ", so the queue would grow without limit",
                    Outcome::Inconclusive => ", which is too close to tell",
                };
                (outcome, format!("{}{then}", in_words(capacity)))
            }
        };
        check(rule, outcome, n_cases, capacity.unwrap_or(NOTHING), reason)
    }

    fn throughput(&self, least: f64, capacity: Option<Estimated>) -> CheckResult {
        let rule = format!("throughput: at least {}", per_s(least));
        let n_cases = self.loads.candidate.saturated.iter().map(|block| block.n_requests).sum();
        let Some(capacity) = capacity else {
            return check(rule, Outcome::Inconclusive, n_cases, NOTHING, self.too_few_batches());
        };
        let [low, high] = capacity.interval;
        let outcome = three_way(low >= least, high < least);
        let longer = match outcome {
            Outcome::Inconclusive => run_needed("saturated_s", self.traffic.saturated_s, growth(capacity, least)),
            _ => String::new(),
        };
        check(rule, outcome, n_cases, capacity, format!("{}{longer}", in_words(capacity)))
    }

    fn too_few_batches(&self) -> String {
        let seconds = self.traffic.saturated_s;
        format!("too few batches ended in {seconds} s to tell; raise `saturated_s`, or lower `batch_tokens`")
    }

    fn latency(&self, rule: &LatencyRule, max_ms: f64, blocks: &[BlockAtRate]) -> CheckResult {
        let measured = self.percentile(rule.percentile, &[Pooled::of(blocks)]);
        let name = format!("{}: at most {max_ms} ms", self.latency_of(rule));
        let n_cases = blocks.iter().map(|block| block.latencies_ms.len()).sum();
        let seen = format!("{:.1} ms over {n_cases} requests", measured.value);
        self.against(Limit { name, most: max_ms, n_cases, seen, unit: Unit::Milliseconds }, measured)
    }

    fn ratio(&self, rule: &LatencyRule, most: f64, blocks: &[BlockAtRate]) -> Option<CheckResult> {
        let name = format!("{}: at most {most} times the baseline's", self.latency_of(rule));
        let n_cases = blocks.iter().map(|block| block.latencies_ms.len()).sum();
        let baseline = match &self.loads.baseline.as_ref()?.at_rate {
            AtRate::Steady(baseline) => baseline,
            AtRate::RanAway { .. } | AtRate::NotTried => {
                let reason = "the candidate carries the declared rate, the baseline does not".to_owned();
                return Some(check(name, Outcome::Pass, n_cases, NOTHING, reason));
            }
        };
        let pair = [Pooled::of(blocks), Pooled::of(baseline)];
        let [of_candidate, of_baseline] = pair.each_ref().map(|side| side.observed(f64::from(rule.percentile) / 100.0));
        let measured = self.percentile(rule.percentile, &pair);
        let seen = format!(
            "{:.2} times ({of_candidate:.1} ms against {of_baseline:.1} ms) over {n_cases} requests each in {} pairs of blocks",
            measured.value,
            blocks.len(),
        );
        Some(self.against(Limit { name, most, n_cases, seen, unit: Unit::Times }, measured))
    }

    fn latency_of(&self, rule: &LatencyRule) -> String {
        format!("latency p{} at {}", rule.percentile, per_s(self.traffic.requests_per_s))
    }

    fn against(&self, limit: Limit, measured: Percentile) -> CheckResult {
        let Limit { name, most, n_cases, seen, unit } = limit;
        let Some(interval) = measured.interval else {
            let q = f64::from(measured.percentile) / 100.0;
            let needed = (FEWEST_BEYOND / q.min(1.0 - q)).ceil();
            let longer = run_needed("duration_s", needed / self.traffic.requests_per_s, Some(1.0));
            let reason = format!("{seen}, which are too few to judge a p{} by{longer}", measured.percentile);
            let value = Estimated { value: measured.value, interval: [measured.value; 2] };
            let check = check(name, Outcome::Inconclusive, n_cases, value, reason);
            return CheckResult { interval: None, cases_needed: Some(needed as u64), ..check };
        };
        let estimated = Estimated { value: measured.value, interval };
        let [low, high] = interval;
        let outcome = three_way(high <= most, low > most);
        let longer = match outcome {
            Outcome::Inconclusive => run_needed("duration_s", self.traffic.duration_s, growth(estimated, most)),
            _ => String::new(),
        };
        let range = match unit {
            Unit::Milliseconds => format!("{low:.1} to {high:.1} ms"),
            Unit::Times => format!("{low:.2} to {high:.2} times"),
        };
        check(name, outcome, n_cases, estimated, format!("{seen}; the true value lies within {range}{longer}"))
    }
}

/// Latency of two versions of one model on the same requests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PairedLatency {
    /// Requests that both were timed on.
    pub n_requests: usize,
    /// Mean of the stable version, milliseconds.
    pub stable_mean_ms: f64,
    /// Mean of the candidate, milliseconds.
    pub candidate_mean_ms: f64,
    /// Percentiles of the stable version, milliseconds.
    pub stable_ms: Vec<Percentile>,
    /// Percentiles of the candidate, milliseconds.
    pub candidate_ms: Vec<Percentile>,
    /// The candidate's percentiles as multiples of the stable version's.
    pub ratios: Vec<Percentile>,
}

/// What two versions took for the same requests, `[stable, candidate]` in milliseconds and in the order of time: medians, 95th and
/// 99th percentiles and their ratios. `None` if there are no requests.
///
/// Bounds are those of the latency rule of a gate, with up to 50 stretches of consecutive requests as its blocks, and each err with
/// the probability 2.5 %. They hold for one look, and decide nothing.
pub fn paired_latency(pairs_ms: &[[f64; 2]]) -> Option<PairedLatency> {
    let n_requests = pairs_ms.len();
    if n_requests == 0 {
        return None;
    }
    let block_size = n_requests.div_ceil(MOST_PAIRED_BLOCKS).max(FEWEST_OF_A_BLOCK);
    let side = |side: usize| {
        Pooled::of_blocks(pairs_ms.chunks(block_size).map(|pairs| pairs.iter().map(|pair| pair[side]).collect()))
    };
    let (stable, candidate) = (side(0), side(1));
    let mean = |side: usize| pairs_ms.iter().map(|pair| pair[side]).sum::<f64>() / n_requests as f64;
    let [of_stable, of_candidate] = [&stable, &candidate]
        .map(|side| TOLD.map(|percentile| percentile_of(PAIRED_RESAMPLES, PAIRED_ALPHA, percentile, &[side])));
    let ratios =
        TOLD.map(|percentile| percentile_of(PAIRED_RESAMPLES, PAIRED_ALPHA, percentile, &[&candidate, &stable]));
    Some(PairedLatency {
        n_requests,
        stable_mean_ms: mean(0),
        candidate_mean_ms: mean(1),
        stable_ms: of_stable.to_vec(),
        candidate_ms: of_candidate.to_vec(),
        ratios: ratios.to_vec(),
    })
}

/// A percentile of one side, or the ratio of two sides whose blocks are pairs.
fn percentile_of<const SIDES: usize>(
    resamples: Resamples,
    alpha: f64,
    percentile: u8,
    sides: &[&Pooled; SIDES],
) -> Percentile {
    let q = f64::from(percentile) / 100.0;
    let statistic = |counts: &[u32]| match sides.as_slice() {
        [candidate, baseline] => candidate.quantile(q, counts) / baseline.quantile(q, counts),
        _ => sides[0].quantile(q, counts),
    };
    let n_blocks = sides[0].block_sizes.len();
    let enough = sides.iter().all(|side| side.n_beyond(q) >= FEWEST_BEYOND);
    let estimated = if enough { over_blocks(resamples, alpha, n_blocks, statistic) } else { None };
    let value = statistic(&vec![1; n_blocks]);
    Percentile { percentile, value, interval: estimated.map(|estimated| estimated.interval) }
}

fn resamples(gates: &Gates) -> Resamples {
    Resamples { n: gates.resamples, seed: gates.seed }
}

/// The most that a percentile or a ratio of percentiles may be, and what was seen of it.
struct Limit {
    name: String,
    most: f64,
    n_cases: usize,
    seen: String,
    unit: Unit,
}

enum Unit {
    Milliseconds,
    Times,
}

/// What a check says of a value that was not measured.
const NOTHING: Estimated = Estimated { value: 0.0, interval: [0.0; 2] };

fn memory(rule: MemoryRule, peak_mib: &[f64]) -> Option<CheckResult> {
    let (low, high) = (*peak_mib.first()?, *peak_mib.last()?);
    let outcome = three_way(high <= rule.max_mib, low > rule.max_mib);
    let reason = format!("{high:.0} MiB at most in {} processes ({low:.0} to {high:.0})", peak_mib.len());
    let name = format!("memory: at most {:.0} MiB at its peak", rule.max_mib);
    Some(check(name, outcome, peak_mib.len(), Estimated { value: high, interval: [low, high] }, reason))
}

pub(crate) fn check(rule: String, outcome: Outcome, n_cases: usize, seen: Estimated, reason: String) -> CheckResult {
    CheckResult {
        rule,
        outcome,
        n_cases,
        candidate: seen.value,
        baseline: None,
        interval: (seen != NOTHING).then_some(seen.interval),
        p_value: None,
        test: None,
        adjusted_p_value: None,
        minimum_detectable_effect: None,
        pass_power: None,
        cases_needed: None,
        power_note: None,
        waivable: false,
        regressions: None,
        undecided: false,
        improved: false,
        reason,
    }
}

fn in_words(capacity: Estimated) -> String {
    let [low, high] = capacity.interval;
    format!(
        "{} at most, when there is always something to do; the true value lies within {low:.1} to {high:.1}",
        per_s(capacity.value)
    )
}

fn per_s(rate: f64) -> String {
    let digits = if rate < 10.0 && rate.fract() != 0.0 { 2 } else { usize::from(rate.fract() != 0.0) };
    format!("{rate:.digits$} requests/s")
}

/// How much longer a run should be for the bound to reach `limit`, as bounds close in with the square root of its length;
/// `None` if the value is the limit.
fn growth(estimated: Estimated, limit: f64) -> Option<f64> {
    let [low, high] = estimated.interval;
    let room = limit - estimated.value;
    let bound = if room > 0.0 { high - estimated.value } else { estimated.value - low };
    (room != 0.0).then(|| (bound / room).powi(2).max(1.0))
}

/// What would settle an undecided check: `; duration_s = 120 would do`.
fn run_needed(key: &str, seconds: f64, growth: Option<f64>) -> String {
    // One step more than computed, as both the value and its bounds will move.
    let needed = growth.map_or(f64::INFINITY, |growth| seconds * growth * 1.1);
    let unit = 10f64.powf(needed.max(1.0).log10().floor() - 1.0).max(1.0);
    match (needed / unit).ceil() * unit {
        needed if needed <= LONGEST_RUN_S => format!("; `{key} = {needed:.0}` would do"),
        _ => "; it is too close to the limit to tell in an hour".to_owned(),
    }
}

/// CPU seconds of one request at the declared rate; `None` where it was not carried.
pub(crate) fn cpu_s_per_request(gates: &Gates, at_rate: &AtRate, alpha: f64) -> Option<Estimated> {
    let AtRate::Steady(blocks) = at_rate else { return None };
    ratio_of_sums(gates, alpha, blocks, |block| [block.cpu_s, block.n_requests as f64])
}

fn ratio_of_sums<T>(gates: &Gates, alpha: f64, blocks: &[T], parts: impl Fn(&T) -> [f64; 2]) -> Option<Estimated> {
    let parts: Vec<[f64; 2]> = blocks.iter().map(parts).collect();
    over_blocks(resamples(gates), alpha, parts.len(), |counts| {
        let sum = |part: usize| counts.iter().zip(&parts).map(|(&n, parts)| f64::from(n) * parts[part]).sum::<f64>();
        sum(0) / sum(1)
    })
}

/// A bootstrap over whole blocks, as latencies of neighbours depend on each other through the queue: the batch means of
/// simulation studies (Law 2015, chapter 9). `None` for fewer than [`FEWEST_BLOCKS`] or where the statistic is undefined.
///
/// The bounds, each wrong with probability `alpha`, are the expanded percentile interval (Hesterberg 2015): few blocks make a
/// plain percentile interval as much too narrow as a normal interval without Student's t.
fn over_blocks(
    resamples: Resamples,
    alpha: f64,
    n_blocks: usize,
    statistic: impl Fn(&[u32]) -> f64 + Sync,
) -> Option<Estimated> {
    if n_blocks < FEWEST_BLOCKS {
        return None;
    }
    let sample = Bootstrap::new(&Units::cases(n_blocks), resamples, statistic);
    let interval = sample.percentile(1.0 - 2.0 * expanded_tail(alpha, n_blocks));
    let is_defined = sample.observed.is_finite() && interval.iter().all(|bound| bound.is_finite());
    is_defined.then_some(Estimated { value: sample.observed, interval })
}

/// The share of resamples beyond each bound of an expanded percentile interval over `n` units.
fn expanded_tail(alpha: f64, n: usize) -> f64 {
    let (n, degrees) = (n as f64, n as f64 - 1.0);
    let t = StudentsT::new(0.0, 1.0, degrees).expect("there are at least two units").inverse_cdf(1.0 - alpha);
    normal_cdf(-t * (n / degrees).sqrt())
}

/// The latencies of all blocks of a side, ascending, each with its block.
struct Pooled {
    samples: Vec<(f64, usize)>,
    block_sizes: Vec<u64>,
    n: usize,
}

impl Pooled {
    fn of(blocks: &[BlockAtRate]) -> Self {
        Self::of_blocks(blocks.iter().map(|block| block.latencies_ms.clone()))
    }

    fn of_blocks(blocks: impl Iterator<Item = Vec<f64>>) -> Self {
        let (mut samples, mut block_sizes) = (Vec::new(), Vec::new());
        for (idx, latencies_ms) in blocks.enumerate() {
            block_sizes.push(latencies_ms.len() as u64);
            samples.extend(latencies_ms.into_iter().map(|latency| (latency, idx)));
        }
        samples.sort_by(|a: &(f64, usize), b| a.0.total_cmp(&b.0));
        Self { n: samples.len(), samples, block_sizes }
    }

    /// Expected number of samples on the far side of the `q` quantile.
    fn n_beyond(&self, q: f64) -> f64 {
        // Rounded, as 1 - 0.95 is a little more than 0.05.
        (self.n as f64 * q.min(1.0 - q) * 1e6).round() / 1e6
    }

    fn observed(&self, q: f64) -> f64 {
        self.quantile(q, &vec![1; self.block_sizes.len()])
    }

    /// The `q` quantile of the samples with each block repeated as often as `counts` says, interpolated linearly as
    /// `numpy.quantile` does. NaN if nothing is left.
    fn quantile(&self, q: f64, counts: &[u32]) -> f64 {
        let n: u64 = self.block_sizes.iter().zip(counts).map(|(&size, &count)| size * u64::from(count)).sum();
        let Some(last) = n.checked_sub(1) else { return f64::NAN };
        let position = q * last as f64;
        let (low, high) = (position.floor(), position.ceil());
        let [low_value, high_value] = self.down_from_top([last - low as u64, last - high as u64], counts);
        low_value + (high_value - low_value) * (position - low)
    }

    /// The values that `n_above` repeated samples lie above; the first is at least as far down as the second.
    fn down_from_top(&self, [n_above_low, n_above_high]: [u64; 2], counts: &[u32]) -> [f64; 2] {
        let (mut n_passed, mut high) = (0, None);
        // From the top, as rules are about the upper tail.
        for &(value, block) in self.samples.iter().rev() {
            n_passed += u64::from(counts[block]);
            if n_passed > n_above_high && high.is_none() {
                high = Some(value);
            }
            if n_passed > n_above_low {
                return [value, high.unwrap_or(value)];
            }
        }
        [f64::NAN; 2]
    }
}

impl std::fmt::Display for Lengths {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Golden(_) => f.write_str("the golden set's inputs"),
            Self::Shares(shares) => {
                let words =
                    shares.iter().map(|length| format!("{:.0} % of {} tokens", 100.0 * length.share, length.tokens));
                f.write_str(&words.collect::<Vec<_>>().join(", "))
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Goldens {
        tails: Vec<Tail>,
        comparisons: Vec<Comparison>,
    }

    #[derive(Deserialize)]
    struct Tail {
        n: usize,
        alpha: f64,
        tail: f64,
    }

    #[derive(Deserialize)]
    struct Comparison {
        q: f64,
        candidate: Vec<Vec<f64>>,
        baseline: Vec<Vec<f64>>,
        counts: Vec<Vec<u32>>,
        quantiles: Vec<[f64; 2]>,
        interval: [f64; 2],
    }

    /// See conformance/make_traffic.py.
    fn goldens() -> Goldens {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../conformance/traffic.json");
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    #[track_caller]
    fn assert_close(ours: f64, reference: f64) {
        assert!((ours - reference).abs() <= 1e-9 * reference.abs(), "{ours} is not {reference}");
    }

    fn pooled(blocks: &[Vec<f64>]) -> Pooled {
        let block = |latencies_ms: &Vec<f64>| BlockAtRate {
            latencies_ms: latencies_ms.clone(),
            n_requests: latencies_ms.len(),
            n_rows: 0,
            n_batches: 0,
            cpu_s: 0.0,
        };
        Pooled::of(&blocks.iter().map(block).collect::<Vec<_>>())
    }

    #[test]
    fn tails_of_the_expanded_percentile_interval_are_those_of_scipy() {
        for Tail { n, alpha, tail } in goldens().tails {
            assert_close(expanded_tail(alpha, n), tail);
        }
    }

    #[test]
    fn quantiles_of_repeated_blocks_and_their_ratio_are_those_of_numpy_and_scipy() {
        for golden in goldens().comparisons {
            let sides = [pooled(&golden.candidate), pooled(&golden.baseline)];
            let mut ratios = Vec::new();
            for (counts, reference) in golden.counts.iter().zip(&golden.quantiles) {
                let ours = sides.each_ref().map(|side| side.quantile(golden.q, counts));
                assert_close(ours[0], reference[0]);
                assert_close(ours[1], reference[1]);
                ratios.push(ours[0] / ours[1]);
            }
            let sample = Bootstrap::from_values(1.0, ratios, Vec::new());
            let [low, high] = sample.percentile(1.0 - 2.0 * expanded_tail(0.05, golden.candidate.len()));
            assert_close(low, golden.interval[0]);
            assert_close(high, golden.interval[1]);
        }
    }

    #[test]
    fn two_versions_on_the_same_requests_have_a_ratio_with_bounds() {
        // Stable takes 1 to 20 ms in turns, the candidate half as much again; percentiles are numpy's of 1..=20 repeated.
        let pairs: Vec<[f64; 2]> = (0..1200).map(|n| f64::from(n % 20 + 1)).map(|ms| [ms, 1.5 * ms]).collect();
        let seen = paired_latency(&pairs).unwrap();
        let values = |percentiles: &[Percentile]| percentiles.iter().map(|p| p.value).collect::<Vec<_>>();
        assert_eq!(seen.n_requests, 1200);
        assert_close(seen.stable_mean_ms, 10.5);
        assert_close(seen.candidate_mean_ms, 15.75);
        values(&seen.stable_ms)
            .into_iter()
            .zip([10.5, 19.05, 20.0])
            .for_each(|(ours, theirs)| assert_close(ours, theirs));
        assert!(
            seen.ratios.iter().all(|ratio| ratio.interval.is_some() && (ratio.value - 1.5).abs() < 1e-9),
            "{seen:?}"
        );
        // Too few beyond a percentile, or in all, leave it without bounds; nothing is no latency.
        let few = paired_latency(&pairs[..100]).unwrap();
        assert_eq!(few.ratios.iter().map(|ratio| ratio.interval.is_some()).collect::<Vec<_>>(), [true, false, false]);
        assert!(paired_latency(&pairs[..20]).unwrap().ratios.iter().all(|ratio| ratio.interval.is_none()));
        assert_eq!(paired_latency(&[]), None);
    }

    /// Nineteen in twenty intervals hold the true ratio, or a few less: a bootstrap over blocks is no exact test.
    #[test]
    fn bounds_of_a_paired_ratio_hold_the_true_one() {
        use rand::{RngExt as _, SeedableRng as _};
        let mut n_held = 0;
        for seed in 0..40 {
            let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
            let mut exponential = || 1.0 - random.random::<f64>().ln();
            // Both have one part in common, which the request decides.
            let pairs: Vec<[f64; 2]> = (0..200)
                .map(|_| {
                    let common = exponential();
                    [common * exponential(), 1.25 * common * exponential()]
                })
                .collect();
            let [low, high] = paired_latency(&pairs).unwrap().ratios[0].interval.unwrap();
            n_held += u32::from(low <= 1.25 && 1.25 <= high);
        }
        assert!((34..=40).contains(&n_held), "{n_held}");
    }
}
