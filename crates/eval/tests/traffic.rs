//! Rules about declared traffic, judged on loads that are simulated with fixed seeds: no clock runs here.

#![allow(clippy::unwrap_used)]

use highroad_eval::{
    AtRate, BlockAtRate, BlockSaturated, CheckResult, Gates, GatesError, Load, Loaded, Loads, Outcome, Run, Verdict,
    judge_load, pair_orders, poisson_arrivals,
};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

const ACCURACY: &str = "[[rule]]\nmetric = 'accuracy'\nfloor = 0.5\n";

fn gates(more: &str) -> Gates {
    Gates::parse(&format!("{ACCURACY}{more}")).unwrap()
}

const TRAFFIC: &str = "[traffic]\nrequests_per_s = 20\nduration_s = 100\n";

fn run() -> Run {
    Run { threads: 2, batch_tokens: 4096, measured: "by a simulation".to_owned() }
}

/// A process that answers `rate` requests a second when something always waits, give or take a tenth.
fn saturated(rate: f64) -> Vec<BlockSaturated> {
    let seconds = |idx: usize| [0.95, 1.0, 1.05][idx % 3] * 100.0 / rate;
    (0..10).map(|idx| BlockSaturated { n_requests: 100, seconds: seconds(idx) }).collect()
}

fn block(latencies_ms: Vec<f64>) -> BlockAtRate {
    let n_requests = latencies_ms.len();
    BlockAtRate { latencies_ms, n_requests, n_rows: n_requests, n_batches: n_requests, cpu_s: 0.01 * n_requests as f64 }
}

/// Blocks of `n` requests around `ms`, which differ a little.
fn steady(ms: f64, n: usize) -> AtRate {
    let latency = |block: usize, idx: usize| ms * (0.5 + idx as f64 / n as f64) * (1.0 + 0.002 * (block % 5) as f64);
    AtRate::Steady((0..10).map(|idx| block((0..n).map(|request| latency(idx, request)).collect())).collect())
}

fn loads(candidate: AtRate, baseline: Option<AtRate>) -> Loads {
    let load = |at_rate| Load { saturated: saturated(100.0), cpus_used: 2.0, at_rate };
    Loads { run: run(), candidate: load(candidate), baseline: baseline.map(load), peak_rss_bytes: Vec::new() }
}

fn judged(gates: &Gates, loads: &Loads) -> Vec<CheckResult> {
    judge_load(gates, gates.traffic.as_ref().unwrap(), loads).0
}

/// The outcome of the only check whose rule starts with `rule`, and its reason.
#[track_caller]
fn the(checks: &[CheckResult], rule: &str) -> (Outcome, String) {
    let found: Vec<_> = checks.iter().filter(|check| check.rule.starts_with(rule)).collect();
    assert_eq!(found.len(), 1, "{rule}: {checks:#?}");
    (found[0].outcome, found[0].reason.clone())
}

#[test]
fn a_percentile_at_declared_traffic_passes_fails_or_asks_for_a_longer_run() {
    // The p95 of requests spread evenly from 5 to 15 ms is 14.5 ms; from block to block it differs by up to 0.1 ms.
    let of = |max_ms: f64| {
        let gates = gates(&format!("[[latency]]\npercentile = 95\nmax_ms = {max_ms}\n{TRAFFIC}"));
        the(&judged(&gates, &loads(steady(10.0, 200), None)), "latency p95 at 20 requests/s: at most")
    };
    assert_eq!(of(15.0).0, Outcome::Pass);
    assert_eq!(of(14.0).0, Outcome::Fail);
    let (outcome, reason) = of(14.54);
    assert_eq!(outcome, Outcome::Inconclusive, "{reason}");
    assert!(
        reason.starts_with("14.5 ms over 2000 requests; the true value lies within 14.5 to 14.6 ms; `duration_s = "),
        "{reason}"
    );
}

#[test]
fn too_few_requests_beyond_a_percentile_are_inconclusive_and_say_how_long_a_run_would_do() {
    let gates = gates(&format!("[[latency]]\npercentile = 99\nmax_ms = 1000\n{TRAFFIC}"));
    // 990 requests leave 9.9 beyond a p99; 1000 requests at 20 a second take 50 seconds.
    let (outcome, reason) = the(&judged(&gates, &loads(steady(10.0, 99), None)), "latency p99");
    assert_eq!(outcome, Outcome::Inconclusive);
    assert!(reason.ends_with("too few to judge a p99 by; `duration_s = 56` would do"), "{reason}");
    assert_eq!(the(&judged(&gates, &loads(steady(10.0, 100), None)), "latency p99").0, Outcome::Pass);
}

#[test]
fn a_candidate_is_compared_with_the_baseline_at_the_same_rate() {
    let gates = gates(&format!("[[latency]]\npercentile = 95\nmax_ratio = 1.1\n{TRAFFIC}"));
    let of = |ms| the(&judged(&gates, &loads(steady(ms, 200), Some(steady(10.0, 200)))), "latency p95");
    let (outcome, reason) = of(10.5);
    assert_eq!(outcome, Outcome::Pass);
    assert!(
        reason.starts_with("1.05 times (15.3 ms against 14.5 ms) over 2000 requests each in 10 pairs of blocks"),
        "{reason}"
    );
    assert_eq!(of(11.5).0, Outcome::Fail);
    // Without a baseline there is nothing to compare with, and no check that claims so.
    let alone = judged(&gates, &loads(steady(10.0, 200), None));
    assert!(alone.iter().all(|check| check.rule.starts_with("traffic: ")), "{alone:?}");
    // A baseline that drowns where the candidate does not is slower by any factor.
    let drowned = loads(steady(10.0, 200), Some(AtRate::NotTried));
    assert_eq!(the(&judged(&gates, &drowned), "latency p95").0, Outcome::Pass);
}

#[test]
fn a_rate_that_is_not_carried_fails_and_leaves_no_latency_to_judge() {
    let rules = "[[latency]]\npercentile = 95\nmax_ms = 1000\n[traffic]\nrequests_per_s = 150";
    let checks = judged(&gates(rules), &loads(AtRate::NotTried, None));
    let (outcome, reason) = the(&checks, "traffic: 150 requests/s are carried");
    assert_eq!((outcome, checks.len()), (Outcome::Fail, 1));
    assert!(reason.contains("so the queue would grow without limit"), "{reason}");

    let checks = judged(&gates(&rules.replace("150", "100")), &loads(AtRate::RanAway { waited_s: 30.2 }, None));
    let told = (Outcome::Fail, "a request waited 30 s for its turn, so the queue grows without limit".to_owned());
    assert_eq!(the(&checks, "traffic: 100 requests/s"), told);

    let close = judged(&gates(&rules.replace("150", "100")), &loads(steady(10.0, 200), None));
    assert_eq!(the(&close, "traffic: 100 requests/s").0, Outcome::Inconclusive);
}

#[test]
fn throughput_and_memory_are_judged_by_what_was_measured() {
    let of = |least: f64, most: f64| {
        let gates = gates(&format!("{TRAFFIC}[throughput]\nmin_requests_per_s = {least}\n[memory]\nmax_mib = {most}"));
        let loads =
            Loads { peak_rss_bytes: [300, 310, 305].map(|mib| mib << 20).to_vec(), ..loads(steady(10.0, 200), None) };
        let checks = judged(&gates, &loads);
        [the(&checks, "throughput").0, the(&checks, "memory").0]
    };
    assert_eq!(of(90.0, 310.0), [Outcome::Pass; 2]);
    assert_eq!(of(110.0, 299.0), [Outcome::Fail; 2]);
    assert_eq!(of(100.5, 305.0), [Outcome::Inconclusive; 2]);
}

#[test]
fn a_few_batches_do_not_tell_throughput() {
    let gates = gates(&format!("{TRAFFIC}[throughput]\nmin_requests_per_s = 1"));
    let mut few = loads(steady(10.0, 200), None);
    few.candidate.saturated.truncate(5);
    let checks = judged(&gates, &few);
    assert_eq!([the(&checks, "traffic").0, the(&checks, "throughput").0], [Outcome::Inconclusive; 2]);
}

#[test]
fn cost_is_work_at_declared_prices_and_processes_for_the_peak() {
    let prices = "[cost]\nper_cpu_hour = 0.036\nper_gib_hour = 0.0036\npeak_requests_per_s = 200\nutilisation = 0.5\n";
    let gates = gates(&format!("{TRAFFIC}{prices}max_per_1000 = 0.02\nmax_per_month = 100\n"));
    let exact = Loads {
        candidate: Load {
            saturated: vec![BlockSaturated { n_requests: 50, seconds: 1.0 }; 10],
            cpus_used: 2.0,
            at_rate: steady(10.0, 200),
        },
        peak_rss_bytes: vec![2 << 30],
        ..loads(AtRate::NotTried, None)
    };
    let (checks, evidence) = judge_load(&gates, gates.traffic.as_ref().unwrap(), &exact);
    let cost = evidence.cost.unwrap();
    // 10 ms of CPU a request at 0.036 an hour are 1e-7; 2 GiB for 1 / (50 * 0.5) s at 0.0036 an hour are 8e-8.
    assert!((cost.per_1000.value - 1.8e-4).abs() < 1e-12, "{cost:?}");
    // 200 requests a second at 25 a process; 2 CPUs and 2 GiB cost 0.0792 an hour.
    assert_eq!((cost.processes.value, cost.cpus), (8.0, 2));
    assert!((cost.per_month.value - 8.0 * 0.0792 * 730.0).abs() < 1e-9, "{cost:?}");
    assert_eq!(the(&checks, "cost of 1,000 requests: at most 0.0200 USD").0, Outcome::Pass);
    let (outcome, reason) = the(&checks, "cost of a month");
    assert_eq!(outcome, Outcome::Fail);
    let told = "462.53 USD for 8 process(es) of 2 CPU(s) and 2.00 GiB at 200 requests/s; the true value lies within";
    assert!(reason.starts_with(told), "{reason}");
}

#[test]
fn a_schedule_is_a_poisson_process_that_its_seed_repeats() {
    let arrivals = poisson_arrivals(50.0, 200.0, &[3.0, 1.0], 1);
    assert_eq!(arrivals, poisson_arrivals(50.0, 200.0, &[3.0, 1.0], 1));
    assert_ne!(arrivals, poisson_arrivals(50.0, 200.0, &[3.0, 1.0], 2));
    // 10,000 expected with a standard deviation of 100.
    assert!((9_600..10_400).contains(&arrivals.len()), "{}", arrivals.len());
    assert!(arrivals.windows(2).all(|pair| pair[0].at <= pair[1].at));
    let gaps: Vec<f64> = arrivals.windows(2).map(|pair| (pair[1].at - pair[0].at).as_secs_f64()).collect();
    let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
    let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
    // The gaps of a Poisson process vary as much as their mean; those of a constant rate do not vary.
    assert!((variance.sqrt() / mean - 1.0).abs() < 0.05, "{mean} {variance}");
    let share = arrivals.iter().filter(|arrival| arrival.request == 0).count() as f64 / arrivals.len() as f64;
    assert!((share - 0.75).abs() < 0.02, "{share}");
}

#[test]
fn the_order_within_pairs_is_random() {
    let orders = pair_orders(100, 5);
    let n_first = orders.iter().filter(|order| order[0] == Loaded::Candidate).count();
    assert!((35..65).contains(&n_first) && orders.iter().all(|order| order[0] != order[1]), "{n_first}");
}

#[test]
fn unusable_traffic_is_refused_by_name() {
    let problem = |text: &str| Gates::parse(&format!("{ACCURACY}{text}")).unwrap_err().to_string();
    let traffic = |more: &str| problem(&format!("[traffic]\nrequests_per_s = 20\n{more}"));
    assert!(problem("[traffic]").contains("missing field `requests_per_s`"));
    assert!(traffic("rps = 1").contains("unknown field `rps`"));
    assert!(traffic("lengths = 'gold'").contains("expected \"golden\" or [{ tokens = 16, share = 0.7 }, …]"));
    assert!(traffic("lengths = [{ tokens = 9, share = 0.5 }]").starts_with("traffic.lengths: sum of the shares = 0.5"));
    assert!(traffic("duration_s = 1e9").starts_with("traffic.duration_s = 1000000000 is out of range"));
    assert!(traffic("blocks = 3").starts_with("traffic.blocks = 3 is out of range: expected 6 to 200"));
    assert!(traffic("[cost]\nper_cpu_hour = -1").starts_with("cost.per_cpu_hour = -1 is out of range"));
    assert!(traffic("[cost]\nper_cpu_hour = 1\nutilisation = 2").starts_with("cost.utilisation = 2"));
    assert!(traffic("[memory]\nmax_mib = nan").starts_with("memory.max_mib = NaN"));
    assert_eq!(problem("[[latency]]\npercentile = 9"), "[[latency]] 1: needs a `max_ms` or a `max_ratio`");
    for rule in ["[memory]\nmax_mib = 1", "[throughput]\nmin_requests_per_s = 1", "[cost]\nper_cpu_hour = 1"] {
        let error = Gates::parse(&format!("{ACCURACY}{rule}")).unwrap_err();
        assert!(matches!(error, GatesError::NoTraffic(_)), "{error}");
    }
    let ratio = problem("[[latency]]\npercentile = 9\nmax_ratio = 1.1");
    assert_eq!(ratio, "`max_ratio` needs [traffic], which says what is asked, how often, and of how many threads");
}

#[test]
fn evidence_survives_its_file_and_a_verdict_without_it_is_still_read() {
    let gates = gates(&format!("[[latency]]\npercentile = 95\nmax_ratio = 1.1\n{TRAFFIC}[cost]\nper_cpu_hour = 0.04"));
    let measured = loads(steady(10.0, 200), Some(steady(11.0, 200)));
    let (checks, evidence) = judge_load(&gates, gates.traffic.as_ref().unwrap(), &measured);
    let old = serde_json::json!({
        "highroad_verdict": 1, "outcome": "pass", "package": "sha256:00", "baseline": {"kind": "trivial", "name": "majority"},
        "golden_set": {"name": "g", "digest": "sha256:00", "n_cases": 1}, "gates": "sha256:00", "numerics_id": "x",
        "evidence": "bit-exact", "answers": "sha256:00", "checks": checks, "flips": [],
        "created_at": "2026-11-23T10:00:00Z", "created_by": "Ada",
    });
    let old: Verdict = serde_json::from_value(old).unwrap();
    assert_eq!(old.traffic, None);
    let new = Verdict { traffic: Some(evidence), ..old };
    let read: Verdict = serde_json::from_str(&serde_json::to_string(&new).unwrap()).unwrap();
    let [read, new] = [read, new].map(|verdict| verdict.traffic.unwrap());
    assert_eq!((&read.declared, read.candidate.n_requests, read.cost), (&new.declared, 2000, new.cost));
    assert!((read.ratios[1].value - new.ratios[1].value).abs() < 1e-12);
}

/// One block of a queue with one server that starts empty: latencies of the requests after the warm-up. Arrivals are `seed`'s;
/// service times are lognormal around `ms`, drawn from `rng`.
fn queue(rng: &mut ChaCha8Rng, seed: u64, ms: f64) -> BlockAtRate {
    const WARM_UP_S: f64 = 1.0;
    let (mut free_at, mut latencies_ms) = (0.0f64, Vec::new());
    let arrivals = poisson_arrivals(60.0, WARM_UP_S + 5.0, &[1.0], seed);
    for arrival in &arrivals {
        let at = arrival.at.as_secs_f64();
        let normal = (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0;
        free_at = free_at.max(at) + ms / 1000.0 * (0.5 * normal).exp();
        if at >= WARM_UP_S {
            latencies_ms.push((free_at - at) * 1000.0);
        }
    }
    block(latencies_ms)
}

/// The share of `n_trials` comparisons of a package with itself that end in each outcome: a service time of `ms` at 60 requests a
/// second, where a true ratio of 1 is exactly the limit.
fn rates_of_equals(percentile: u8, ms: f64, n_trials: u64, pooled_as_one: bool) -> [f64; 2] {
    let mut gates = gates(&format!("[[latency]]\npercentile = {percentile}\nmax_ratio = 1.0\n{TRAFFIC}"));
    gates.resamples = 300;
    let mut rng = ChaCha8Rng::seed_from_u64(31);
    let (mut n_passed, mut n_failed) = (0, 0);
    for trial in 0..n_trials {
        let mut side = || {
            let blocks: Vec<_> = (0..10).map(|pair| queue(&mut rng, 1000 * trial + pair, ms)).collect();
            if pooled_as_one { scattered(&blocks) } else { blocks }
        };
        let (candidate, baseline) = (AtRate::Steady(side()), AtRate::Steady(side()));
        match the(&judged(&gates, &loads(candidate, Some(baseline))), "latency").0 {
            Outcome::Pass => n_passed += 1,
            Outcome::Fail => n_failed += 1,
            Outcome::Inconclusive => {}
        }
    }
    [n_passed, n_failed].map(|n| f64::from(n) / n_trials as f64)
}

/// The same latencies with each request in a block of its own choosing, as if neighbours had nothing to do with each other.
fn scattered(blocks: &[BlockAtRate]) -> Vec<BlockAtRate> {
    let all: Vec<f64> = blocks.iter().flat_map(|block| block.latencies_ms.iter().copied()).collect();
    (0..200).map(|idx| block(all.iter().copied().skip(idx).step_by(200).collect())).collect()
}

#[test]
fn equal_packages_are_told_apart_in_about_alpha_of_all_comparisons_however_long_the_queue() {
    for (percentile, ms) in [(50, 5.0), (95, 5.0), (95, 11.0), (99, 11.0)] {
        let [passed, failed] = rates_of_equals(percentile, ms, 200, false);
        eprintln!("p{percentile}, {ms} ms at 60/s: a ratio at the limit passes in {passed}, fails in {failed}");
        // Three standard errors of 5 % over 200 trials are 0.046.
        assert!(passed <= 0.1 && failed <= 0.1, "p{percentile}, {ms} ms: {passed}, {failed}");
    }
}

#[test]
fn resampling_requests_as_if_they_were_independent_would_tell_equals_apart_far_too_often() {
    let [passed, failed] = rates_of_equals(95, 11.0, 60, true);
    eprintln!("requests resampled one by one: {passed}, {failed}");
    assert!(passed + failed > 0.2, "{passed}, {failed}");
}
