use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::gate::three_way;
use crate::latency::{capacity, check, cpu_s_per_request};
use crate::{CheckResult, CostRule, Estimated, Gates, Loads, Outcome, Traffic};

/// Hours of a month, as cloud bills count them: 365 days of 24 hours over 12.
pub const HOURS_A_MONTH: f64 = 730.0;

/// What serving costs at declared prices, from measured CPU time, throughput and memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CostEvidence {
    /// What prices are in.
    pub currency: String,
    /// Declared price of a CPU for an hour.
    pub per_cpu_hour: f64,
    /// Declared price of a GiB for an hour.
    pub per_gib_hour: f64,
    /// CPUs that one process is given: replicas times threads.
    pub cpus: usize,
    /// GiB that one process holds at its peak, as measured.
    pub gib: f64,
    /// The peak that processes are provided for.
    pub peak_requests_per_s: f64,
    /// The declared share of a process's most requests a second that it answers at the peak.
    pub utilisation: f64,
    /// The work of 1,000 requests: CPU seconds at the price of a CPU, and memory for as long as a process at its planned
    /// utilisation takes for them.
    pub per_1000: Estimated,
    /// Processes that carry the peak at the declared utilisation.
    pub processes: Estimated,
    /// These processes for a month, busy or not.
    pub per_month: Estimated,
}

/// What a GPU does for 1,000 inputs, and what that costs where a price is declared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GpuCost {
    /// Seconds of work, as the GPU's own events tell; waiting is not in it.
    pub seconds_per_1000: f64,
    /// Their price.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_1000: Option<f64>,
    /// What the price is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub currency: Option<String>,
}

impl GpuCost {
    /// At the price of `rule`, if it declares one.
    pub fn of(seconds_per_1000: f64, rule: Option<&CostRule>) -> Self {
        let priced = rule.and_then(|rule| Some((rule.per_gpu_second?, &rule.currency)));
        Self {
            seconds_per_1000,
            per_1000: priced.map(|(price, _)| seconds_per_1000 * price),
            currency: priced.map(|(_, currency)| currency.clone()),
        }
    }

    /// In a sentence.
    pub fn in_words(&self) -> String {
        let cost = self.per_1000.zip(self.currency.as_ref());
        let cost = cost.map(|(amount, currency)| format!(", {} {currency}", money(amount))).unwrap_or_default();
        format!("{:.4} s of GPU for 1,000 inputs in batches{cost}", self.seconds_per_1000)
    }
}

/// `None` where the declared rate was not carried or memory was not measured, as there is nothing to price then.
pub(crate) fn evidence(gates: &Gates, traffic: &Traffic, rule: &CostRule, loads: &Loads) -> Option<CostEvidence> {
    // Two measured values enter each price, so each gets half of alpha (Bonferroni).
    let alpha = gates.alpha / 2.0;
    let cpu_s = cpu_s_per_request(gates, &loads.candidate.at_rate, alpha)?;
    let most = capacity(gates, &loads.candidate.saturated, alpha)?;
    let gib = *loads.peak_rss_bytes.iter().max()? as f64 / f64::from(1 << 30);
    let cpus = traffic.replicas.get() * loads.run.threads;
    let peak = rule.peak_requests_per_s.unwrap_or(traffic.requests_per_s);
    let per_process_hour = cpus as f64 * rule.per_cpu_hour + gib * rule.per_gib_hour;
    let per_1000 = |cpu_s: f64, most: f64| {
        let memory_s = 1.0 / (most * rule.utilisation);
        1000.0 * (cpu_s * rule.per_cpu_hour + memory_s * gib * rule.per_gib_hour) / 3600.0
    };
    let processes = |most: f64| (peak / (most * rule.utilisation)).ceil().max(1.0);
    let processes = Estimated {
        value: processes(most.value),
        interval: [processes(most.interval[1]), processes(most.interval[0])],
    };
    let month = |n: f64| n * per_process_hour * HOURS_A_MONTH;
    Some(CostEvidence {
        currency: rule.currency.clone(),
        per_cpu_hour: rule.per_cpu_hour,
        per_gib_hour: rule.per_gib_hour,
        cpus,
        gib,
        peak_requests_per_s: peak,
        utilisation: rule.utilisation,
        per_1000: Estimated {
            value: per_1000(cpu_s.value, most.value),
            interval: [per_1000(cpu_s.interval[0], most.interval[1]), per_1000(cpu_s.interval[1], most.interval[0])],
        },
        processes,
        per_month: Estimated { value: month(processes.value), interval: processes.interval.map(month) },
    })
}

pub(crate) fn checks(rule: &CostRule, cost: &CostEvidence) -> Vec<CheckResult> {
    let per_1000 = rule.max_per_1000.map(|most| limit("of 1,000 requests", cost, cost.per_1000, most, String::new()));
    let provided = format!(
        " for {} process(es) of {} CPU(s) and {:.2} GiB at {} requests/s",
        cost.processes.value, cost.cpus, cost.gib, cost.peak_requests_per_s
    );
    let per_month = rule.max_per_month.map(|most| limit("of a month", cost, cost.per_month, most, provided));
    per_1000.into_iter().chain(per_month).collect()
}

fn limit(of: &str, cost: &CostEvidence, seen: Estimated, most: f64, provided: String) -> CheckResult {
    let [low, high] = seen.interval;
    let outcome = three_way(high <= most, low > most);
    let longer = if outcome == Outcome::Inconclusive { "; a longer run may tell" } else { "" };
    let [value, low, high, limit] = [seen.value, low, high, most].map(money);
    let currency = &cost.currency;
    let reason = format!("{value} {currency}{provided}; the true value lies within {low} to {high} {currency}{longer}");
    check(format!("cost {of}: at most {limit} {currency}"), outcome, 0, seen, reason)
}

/// An amount with at least two digits after the point and three that count.
fn money(amount: f64) -> String {
    let digits = if amount > 0.0 && amount < 1.0 { (2.0 - amount.log10().floor()) as usize } else { 2 };
    format!("{amount:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_costs_its_seconds_where_a_price_is_declared() {
        let rule: CostRule = toml::from_str("per_cpu_hour = 0.04\nper_gpu_second = 0.0008").expect("a rule");
        let cost = GpuCost::of(2.5, Some(&rule));
        assert_eq!((cost.per_1000, cost.currency.as_deref()), (Some(0.002), Some("USD")));
        assert_eq!(cost.in_words(), "2.5000 s of GPU for 1,000 inputs in batches, 0.00200 USD");
        let rule: CostRule = toml::from_str("per_cpu_hour = 0.04").expect("a rule");
        assert_eq!(GpuCost::of(2.5, Some(&rule)), GpuCost::of(2.5, None));
    }
}
