//! The metrics page as OpenMetrics, with exemplars: for each bucket of a histogram the last request that fell into it, by its id and its trace.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};

/// Series that have exemplars at most.
const MOST_SERIES: usize = 1024;
/// Longest request id in an exemplar, whose labels may have 128 characters together.
const MOST_ID_BYTES: usize = 64;

type Labels = BTreeMap<String, String>;

/// A request that fell into a bucket.
#[derive(Clone, Debug, PartialEq)]
struct Exemplar {
    request_id: String,
    trace_id: Option<String>,
    seconds: f64,
    at_s: f64,
}

/// The last request of each bucket of each series.
#[derive(Debug, Default)]
pub(super) struct Exemplars(Mutex<BTreeMap<(String, Labels), Buckets>>);

type Buckets = Vec<Option<Exemplar>>;

impl Exemplars {
    pub(super) const fn new() -> Self {
        Self(Mutex::new(BTreeMap::new()))
    }

    /// Remembers a request for the bucket that `seconds` falls into, of those that end at `bounds`.
    pub(super) fn put(
        &self,
        name: &str,
        labels: &[(&str, &str)],
        bounds: &[f64],
        seconds: f64,
        (request_id, trace_id, at_s): (&str, Option<String>, f64),
    ) {
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let bucket = bounds.iter().position(|bound| seconds <= *bound).unwrap_or(bounds.len());
        let request_id = if request_id.len() <= MOST_ID_BYTES { request_id.to_owned() } else { String::new() };
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (name.to_owned(), labels);
        if all.len() >= MOST_SERIES && !all.contains_key(&key) {
            return;
        }
        let buckets = all.entry(key).or_insert_with(|| vec![None; bounds.len() + 1]);
        if let Some(place) = buckets.get_mut(bucket) {
            *place = Some(Exemplar { request_id, trace_id, seconds, at_s });
        }
    }

    fn of(&self, name: &str, mut labels: Labels, bounds: &[f64]) -> Option<Exemplar> {
        let end = labels.remove("le")?;
        let bucket = match end.as_str() {
            "+Inf" => bounds.len(),
            end => bounds.iter().position(|bound| end.parse() == Ok(*bound))?,
        };
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(&(name.to_owned(), labels))?.get(bucket)?.clone()
    }
}

/// `page`, which is in Prometheus' text format, as OpenMetrics 1.0. Buckets of histograms of seconds end at `bounds`.
pub(super) fn converted(page: &str, exemplars: &Exemplars, bounds: &[f64]) -> String {
    let mut out = String::with_capacity(page.len() + page.len() / 8);
    let counters: std::collections::BTreeSet<&str> =
        page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter")).collect();
    for line in page.lines().filter(|line| !line.is_empty()) {
        match line.strip_prefix("# ") {
            Some(told) => out.push_str(&family(told, &counters)),
            None => sample(line, exemplars, bounds, &mut out),
        }
        out.push('\n');
    }
    out.push_str("# EOF\n");
    out
}

/// A family of counters is called what its samples are without `_total`.
fn family(told: &str, counters: &std::collections::BTreeSet<&str>) -> String {
    let mut words = told.splitn(3, ' ');
    let (kind, name, rest) = (words.next().unwrap_or_default(), words.next().unwrap_or_default(), words.next());
    let short = if counters.contains(name) { name.strip_suffix("_total").unwrap_or(name) } else { name };
    format!("# {kind} {short} {}", rest.unwrap_or_default()).trim_end().to_owned()
}

fn sample(line: &str, exemplars: &Exemplars, bounds: &[f64], out: &mut String) {
    let Some((name, inner, value)) = parts(line).filter(|(name, ..)| name.ends_with("_bucket")) else {
        return out.push_str(line);
    };
    let labels = labels(inner);
    // Ends of buckets are written as floating-point numbers.
    let inner = match labels.get("le").filter(|end| end.bytes().all(|byte| byte.is_ascii_digit())) {
        Some(end) => inner.replace(&format!("le=\"{end}\""), &format!("le=\"{end}.0\"")),
        None => inner.to_owned(),
    };
    let _infallible = write!(out, "{name}{{{inner}}}{value}");
    let family = name.strip_suffix("_bucket").unwrap_or(name);
    let Some(Exemplar { request_id, trace_id, seconds, at_s }) = exemplars.of(family, labels, bounds) else { return };
    let trace = trace_id.map(|trace| format!("trace_id=\"{trace}\""));
    let request = (!request_id.is_empty()).then(|| format!("request_id=\"{request_id}\""));
    let told: Vec<String> = trace.into_iter().chain(request).collect();
    let _infallible = write!(out, " # {{{}}} {seconds} {at_s:.3}", told.join(","));
}

/// `name{labels} value` as name, labels and ` value`.
fn parts(line: &str) -> Option<(&str, &str, &str)> {
    let (open, close) = (line.find('{')?, line.rfind('}')?);
    Some((&line[..open], line.get(open + 1..close)?, &line[close + 1..]))
}

fn labels(mut text: &str) -> Labels {
    let mut labels = Labels::new();
    while let Some((name, rest)) = text.split_once("=\"") {
        let mut value = String::new();
        let mut chars = rest.char_indices();
        let mut end = rest.len();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    end = at + 1;
                    break;
                }
                '\\' => value.extend(chars.next().map(|(_, c)| if c == 'n' { '\n' } else { c })),
                c => value.push(c),
            }
        }
        labels.insert(name.trim_start_matches(',').to_owned(), value);
        text = &rest[end..];
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: [f64; 3] = [0.1, 1.0, 10.0];
    const PAGE: &str = "# HELP a_total How many.\n# TYPE a_total counter\na_total{m=\"x\"} 3\n\n# TYPE b_seconds histogram\n\
        b_seconds_bucket{route=\"/v1/{model}\",le=\"0.1\"} 1\nb_seconds_bucket{route=\"/v1/{model}\",le=\"1\"} 2\n\
        b_seconds_bucket{route=\"/v1/{model}\",le=\"+Inf\"} 2\nb_seconds_sum{route=\"/v1/{model}\"} 0.5\n";

    #[test]
    fn a_page_names_the_last_request_of_a_bucket() {
        let exemplars = Exemplars::new();
        for (seconds, id) in [(0.05, "first"), (0.07, "second"), (0.4, "third")] {
            exemplars.put("b_seconds", &[("route", "/v1/{model}")], &BOUNDS, seconds, (id, None, 1_800_000_000.5));
        }
        exemplars.put("b_seconds", &[("route", "/other")], &BOUNDS, 0.1, ("elsewhere", None, 1.0));
        assert_eq!(
            converted(PAGE, &exemplars, &BOUNDS),
            "# HELP a How many.\n# TYPE a counter\na_total{m=\"x\"} 3\n# TYPE b_seconds histogram\n\
             b_seconds_bucket{route=\"/v1/{model}\",le=\"0.1\"} 1 # {request_id=\"second\"} 0.07 1800000000.500\n\
             b_seconds_bucket{route=\"/v1/{model}\",le=\"1.0\"} 2 # {request_id=\"third\"} 0.4 1800000000.500\n\
             b_seconds_bucket{route=\"/v1/{model}\",le=\"+Inf\"} 2\nb_seconds_sum{route=\"/v1/{model}\"} 0.5\n# EOF\n"
        );
    }

    #[test]
    fn labels_are_read_as_they_are_escaped() {
        let read = labels(r#"a="x,y=\"z\"",le="+Inf""#);
        assert_eq!((read["a"].as_str(), read["le"].as_str()), ("x,y=\"z\"", "+Inf"));
        assert!(labels("a=\"").contains_key("a") && labels("").is_empty() && labels("}{").is_empty());
    }
}
