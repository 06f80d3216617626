//! What both versions of a rollout took for the same requests, and what these cost.

use highroad_assess::report::{TimesReport, TimesRow};
use highroad_eval::{CostRule, Percentile};
use highroad_serve::rollout::{Latencies, Spent};

use crate::commands::gate;

const MS_AN_HOUR: f64 = 3_600_000.0;

/// The price of a CPU for an hour and its currency, where the rules of the gate here declare one.
pub(super) fn declared_price() -> Option<(f64, String)> {
    let (_, gates) = gate::read_gates(None).ok()?;
    gates.cost.map(|CostRule { per_cpu_hour, currency, .. }| (per_cpu_hour, currency))
}

/// `None` where nothing was timed. `price` is that of a CPU for an hour, for the processor time of own models.
pub(super) fn report(latency: Option<&Latencies>, spent: &Spent, price: Option<&(f64, String)>) -> Option<TimesReport> {
    let Latencies { of_processor, latency } = latency?;
    let measured = if *of_processor {
        "processor time of each version with the request alone, on one thread that nobody waits for"
    } else {
        "time of each version from the question to the whole answer"
    };
    let n = latency.n_requests;
    let bounds = if latency.ratios.iter().any(|ratio| ratio.interval.is_some()) {
        "; bounds are 95 % intervals of one look and decide nothing"
    } else {
        "; too few for bounds"
    };
    let how = format!("Of {n} request{}: {measured}{bounds}.", if n == 1 { "" } else { "s" });
    let sides = latency.stable_ms.iter().zip(&latency.candidate_ms).zip(&latency.ratios);
    let mut rows: Vec<TimesRow> =
        sides.map(|((stable, candidate), ratio)| percentile(stable, candidate, ratio)).collect();
    let means = [latency.stable_mean_ms, latency.candidate_mean_ms];
    rows.push(row("latency, mean", means, |ms| format!("{ms:.2} ms")));
    if spent.n_counted > 0 {
        let tokens = spent.tokens.map(|tokens| tokens as f64 / spent.n_counted as f64);
        rows.push(row("tokens of a request, mean", tokens, |tokens| format!("{tokens:.1}")));
    }
    if spent.n_priced > 0 {
        let cost = spent.cost.map(|cost| 1000.0 * cost / spent.n_priced as f64);
        rows.push(row("cost of 1,000 answers, as declared", cost, money));
    } else if let Some((per_cpu_hour, currency)) = price.filter(|_| *of_processor) {
        let cost = means.map(|ms| 1000.0 * ms / MS_AN_HOUR * per_cpu_hour);
        let what = format!("processors for 1,000 requests, {currency}");
        rows.push(row(&what, cost, money));
    }
    Some(TimesReport { how, rows, ratios: latency.ratios.clone() })
}

fn percentile(stable: &Percentile, candidate: &Percentile, ratio: &Percentile) -> TimesRow {
    let what = match stable.percentile {
        50 => "latency, median".to_owned(),
        percentile => format!("latency, p{percentile}"),
    };
    let bounds =
        |interval: Option<[f64; 2]>| interval.map_or(String::new(), |[low, high]| format!(" ({low:.2} to {high:.2})"));
    let ms = |side: &Percentile| format!("{:.2} ms{}", side.value, bounds(side.interval));
    let ratio = if ratio.value.is_finite() {
        format!("{:.2} times{}", ratio.value, bounds(ratio.interval))
    } else {
        "-".to_owned()
    };
    TimesRow { what, stable: ms(stable), candidate: ms(candidate), ratio }
}

fn row(what: &str, [stable, candidate]: [f64; 2], told: impl Fn(f64) -> String) -> TimesRow {
    let ratio = if stable > 0.0 { format!("{:.2} times", candidate / stable) } else { "-".to_owned() };
    TimesRow { what: what.to_owned(), stable: told(stable), candidate: told(candidate), ratio }
}

/// Amounts are small: four digits that count.
fn money(amount: f64) -> String {
    if amount == 0.0 {
        return "0".to_owned();
    }
    let digits = (3 - amount.abs().log10().floor() as i32).clamp(2, 12) as usize;
    format!("{amount:.digits$}")
}

#[cfg(test)]
mod tests {
    use highroad_serve::rollout::Timed;

    use super::*;

    fn latencies(of_processor: bool) -> Latencies {
        let timed = |n: u32| {
            let stable_ms = f64::from(n % 10 + 1);
            Timed { stable_ms, candidate_ms: 2.0 * stable_ms, of_processor }
        };
        Latencies::of(&(0..600).map(timed).collect::<Vec<_>>()).expect("there are some")
    }

    fn cells(report: &TimesReport, what: &str) -> [String; 3] {
        let row = report.rows.iter().find(|row| row.what.starts_with(what)).expect("it is told");
        [row.stable.clone(), row.candidate.clone(), row.ratio.clone()]
    }

    #[test]
    fn latency_tokens_and_the_price_of_processors_are_told() {
        let spent = Spent { n_counted: 600, tokens: [6000, 9000], ..Spent::default() };
        let report_of = |price| report(Some(&latencies(true)), &spent, price).expect("it was timed");
        let price = (3.6, "USD".to_owned());
        let told = report_of(Some(&price));
        let [stable, candidate, ratio] = cells(&told, "latency, median");
        assert!(stable.starts_with("5.50 ms (") && candidate.starts_with("11.00 ms ("), "{stable} {candidate}");
        assert_eq!(ratio, "2.00 times (2.00 to 2.00)");
        assert_eq!(cells(&told, "tokens"), ["10.0", "15.0", "1.50 times"]);
        // 5.5 ms of a processor that costs 3.6 an hour, which is a millionth a millisecond.
        assert_eq!(cells(&told, "processors for 1,000 requests, USD"), ["0.005500", "0.01100", "2.00 times"]);
        assert!(told.how.starts_with("Of 600 requests: processor time"), "{}", told.how);
        assert!(!report_of(None).rows.iter().any(|row| row.what.contains("1,000")));
    }

    #[test]
    fn hosted_models_cost_what_they_declare_and_what_was_not_timed_is_not_told() {
        let spent = Spent { n_priced: 4, cost: [0.02, 0.01], ..Spent::default() };
        let told = report(Some(&latencies(false)), &spent, Some(&(3.6, "USD".to_owned()))).expect("it was timed");
        assert_eq!(cells(&told, "cost of 1,000 answers"), ["5.000", "2.500", "0.50 times"]);
        assert!(!told.rows.iter().any(|row| row.what.starts_with("processors")));
        assert!(report(None, &spent, None).is_none());
    }
}
