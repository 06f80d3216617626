use highroad_eval::{CostEvidence, Estimated, LoadEvidence, Percentile, TrafficEvidence};

use super::{Fact, fact};

/// What was measured at the declared traffic, a fact a line.
pub fn traffic_facts(evidence: &TrafficEvidence) -> Vec<Fact> {
    let declared = &evidence.declared;
    let per_run = |n: Option<std::num::NonZeroUsize>| n.map_or_else(|| "any number of".to_owned(), |n| n.to_string());
    let mut facts = vec![
        fact("traffic", format!("{} requests/s of {}", declared.requests_per_s, declared.lengths)),
        fact(
            "served by",
            format!(
                "{} replica(s) of {} thread(s), batches of up to {} tokens",
                declared.replicas,
                per_run(declared.threads),
                per_run(declared.batch_tokens),
            ),
        ),
        fact(
            "loaded",
            format!(
                "{} blocks of {:.1} s of warm-up and {:.1} s counted; {}",
                declared.blocks,
                declared.warm_up_s,
                declared.block_s() - declared.warm_up_s,
                evidence.measured
            ),
        ),
        fact("under load", side(&evidence.candidate)),
    ];
    facts.extend(evidence.baseline.as_ref().map(|baseline| fact("baseline under load", side(baseline))));
    if !evidence.ratios.is_empty() {
        facts.push(fact("ratio", percentiles(&evidence.ratios, 2, "")));
    }
    facts.extend(evidence.peak_mib.last().map(|peak| fact("memory", format!("{peak:.0} MiB at its peak"))));
    facts.extend(evidence.cost.iter().flat_map(cost));
    facts
}

fn side(load: &LoadEvidence) -> String {
    let latency = match load.latency_ms.as_slice() {
        [] => "the rate was not carried".to_owned(),
        told => format!("{} over {} requests", percentiles(told, 1, " ms"), load.n_requests),
    };
    let most = load
        .requests_per_s
        .map(|most| format!("at most {} requests/s, with {:.1} CPU(s) busy", between(most, 1), load.cpus_used));
    let cpu = load.cpu_s_per_request.map(|cpu_s| format!("{:.2} ms of CPU a request", cpu_s.value * 1e3));
    let rows = load.rows_per_batch.map(|rows| format!("{rows:.1} rows a batch"));
    [Some(latency), most, cpu, rows].into_iter().flatten().collect::<Vec<_>>().join("; ")
}

fn percentiles(told: &[Percentile], digits: usize, unit: &str) -> String {
    let one = |told: &Percentile| {
        let interval = match told.interval {
            Some(interval) => between(Estimated { value: told.value, interval }, digits),
            None => format!("{:.digits$}", told.value),
        };
        format!("p{} {interval}{unit}", told.percentile)
    };
    told.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// `31.2 (30.1 to 33.9)`.
fn between(Estimated { value, interval: [low, high] }: Estimated, digits: usize) -> String {
    format!("{value:.digits$} ({low:.digits$} to {high:.digits$})")
}

fn cost(cost: &CostEvidence) -> [Fact; 3] {
    let CostEvidence { currency, per_cpu_hour, per_gib_hour, cpus, gib, .. } = cost;
    [
        fact("cost", format!("{} {currency} for the work of 1,000 requests", between(cost.per_1000, 6))),
        fact(
            "cost a month",
            format!(
                "{} {currency} for {} process(es) of {cpus} CPU(s) and {gib:.2} GiB, each at {:.0} % of its most, at {} requests/s",
                between(cost.per_month, 2),
                between(cost.processes, 0),
                100.0 * cost.utilisation,
                cost.peak_requests_per_s
            ),
        ),
        fact("prices", format!("{per_cpu_hour} {currency} a CPU hour, {per_gib_hour} {currency} a GiB hour")),
    ]
}
