//! What members answered in the last minutes: how many requests, how fast, and how they ended.
//!
//! `/metrics` counts since the process began and leaves rates and windows to whoever reads it; a page that somebody has just opened has
//! nothing to subtract from. So the same moments are counted once more, for five minutes. A [`Window`] is pure: time is an argument.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::Serialize;

/// Length of one slot.
const SLOT: Duration = Duration::from_secs(5);
/// Slots that are kept: five minutes.
const N_SLOTS: u64 = 60;
/// Slots of the last minute.
const MINUTE: u64 = 12;
/// The fastest answer that is told apart, in seconds; each bucket is [`GROWTH`] times as slow as the one before.
const FASTEST: f64 = 1e-5;
const GROWTH: f64 = 1.1;
/// The last bucket begins at about 1000 seconds.
const N_BUCKETS: usize = 194;
/// Outcomes that say something of the request and nothing of the member.
const OF_THE_CLIENT: [&str; 7] =
    ["invalid", "unknown_model", "not_allowed", "over_budget", "refused", "client_left", "stopped"];

/// The last five minutes of one member.
#[derive(Debug, Default)]
pub struct Window {
    slots: VecDeque<Slot>,
}

#[derive(Debug)]
struct Slot {
    /// Number of the slot since time began.
    at: u64,
    outcomes: BTreeMap<&'static str, u64>,
    /// Answers by their duration, where there are any.
    durations: Vec<u32>,
}

/// What a window holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct Traffic {
    /// Requests in a second, over the last minute.
    pub rate: f64,
    /// Milliseconds that half of the answers of the last five minutes took at most, to a tenth of itself; `None` without answers.
    pub p50_ms: Option<f64>,
    /// The same of 99 in a hundred.
    pub p99_ms: Option<f64>,
    /// Share of the requests of the last five minutes that should have been answered and were not; `None` without requests.
    pub error_share: Option<f64>,
    /// How the requests of the last five minutes ended.
    pub outcomes: BTreeMap<&'static str, u64>,
    /// Requests in each five seconds of the last five minutes, the oldest first. The last is under way.
    pub course: Vec<u64>,
    /// Those of them that should have been answered and were not.
    pub errors: Vec<u64>,
}

impl Window {
    /// Counts a request that ended `now`, after the beginning of time. What was answered has a duration.
    pub fn add(&mut self, now: Duration, outcome: &'static str, took: Option<Duration>) {
        let at = slot_of(now);
        while self.slots.front().is_some_and(|slot| slot.at + N_SLOTS <= at) {
            self.slots.pop_front();
        }
        // A clock that stands still or is late counts into the newest.
        if self.slots.back().is_none_or(|slot| slot.at < at) {
            self.slots.push_back(Slot { at, outcomes: BTreeMap::new(), durations: Vec::new() });
        }
        let Some(slot) = self.slots.back_mut() else { return };
        *slot.outcomes.entry(outcome).or_default() += 1;
        if let Some(took) = took {
            slot.durations.resize(N_BUCKETS, 0);
            let count = &mut slot.durations[bucket(took)];
            *count = count.saturating_add(1);
        }
    }

    /// What it holds `now`.
    pub fn read(&self, now: Duration) -> Traffic {
        let newest = slot_of(now);
        let mut traffic =
            Traffic { course: vec![0; N_SLOTS as usize], errors: vec![0; N_SLOTS as usize], ..Traffic::default() };
        let mut durations = vec![0u64; N_BUCKETS];
        let mut n_last_minute = 0;
        for slot in self.slots.iter().filter(|slot| slot.at <= newest && slot.at + N_SLOTS > newest) {
            let place = (N_SLOTS - 1 - (newest - slot.at)) as usize;
            for (outcome, n) in &slot.outcomes {
                *traffic.outcomes.entry(outcome).or_default() += n;
                traffic.course[place] += n;
                traffic.errors[place] += if is_error(outcome) { *n } else { 0 };
            }
            n_last_minute += if newest - slot.at < MINUTE { traffic.course[place] } else { 0 };
            durations.iter_mut().zip(&slot.durations).for_each(|(sum, n)| *sum += u64::from(*n));
        }
        let into_slot = now.as_secs_f64() - (newest * SLOT.as_secs()) as f64;
        traffic.rate = n_last_minute as f64 / ((MINUTE - 1) as f64 * SLOT.as_secs_f64() + into_slot);
        let counted = |wanted: fn(&str) -> bool| -> u64 {
            traffic.outcomes.iter().filter(|(outcome, _)| wanted(outcome)).map(|(_, n)| n).sum()
        };
        let (n_errors, n_judged) = (counted(is_error), counted(|outcome| !OF_THE_CLIENT.contains(&outcome)));
        traffic.error_share = (n_judged > 0).then(|| n_errors as f64 / n_judged as f64);
        traffic.p50_ms = quantile_ms(&durations, 0.5);
        traffic.p99_ms = quantile_ms(&durations, 0.99);
        traffic
    }
}

fn is_error(outcome: &str) -> bool {
    outcome != "ok" && !OF_THE_CLIENT.contains(&outcome)
}

fn slot_of(now: Duration) -> u64 {
    now.as_secs() / SLOT.as_secs()
}

fn bucket(took: Duration) -> usize {
    let steps = (took.as_secs_f64() / FASTEST).max(1.0).ln() / GROWTH.ln();
    (steps as usize).min(N_BUCKETS - 1)
}

/// The upper end of the bucket that the quantile falls into, in milliseconds.
fn quantile_ms(durations: &[u64], quantile: f64) -> Option<f64> {
    let n: u64 = durations.iter().sum();
    let wanted = ((n as f64 * quantile).ceil() as u64).max(1);
    let mut seen = 0;
    let place = durations.iter().position(|count| {
        seen += count;
        n > 0 && seen >= wanted
    })?;
    Some(FASTEST * GROWTH.powi(place as i32 + 1) * 1e3)
}

/// One window for each name. As with metrics, names come from the configuration and never from a request.
static WINDOWS: LazyLock<Mutex<HashMap<String, Window>>> = LazyLock::new(Mutex::default);
static BEGINNING: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Counts a request to the member (or `pipelines/NAME`) `name` that has just ended.
pub(crate) fn count(name: &str, outcome: &'static str, took: Option<Duration>) {
    let now = BEGINNING.elapsed();
    let mut windows = WINDOWS.lock().unwrap_or_else(PoisonError::into_inner);
    match windows.get_mut(name) {
        Some(window) => window.add(now, outcome, took),
        None => windows.entry(name.to_owned()).or_default().add(now, outcome, took),
    }
}

/// What `name` was asked in the last five minutes.
pub(crate) fn of(name: &str) -> Traffic {
    let now = BEGINNING.elapsed();
    let windows = WINDOWS.lock().unwrap_or_else(PoisonError::into_inner);
    windows.get(name).map_or_else(|| Window::default().read(now), |window| window.read(now))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(1000) + Duration::from_secs(seconds)
    }

    #[test]
    fn a_window_tells_rates_quantiles_and_errors_and_forgets() {
        let mut window = Window::default();
        for n in 0..120 {
            window.add(at(n), "ok", Some(Duration::from_millis(if n % 50 == 49 { 400 } else { 10 })));
        }
        window.add(at(119), "failed", None);
        window.add(at(119), "invalid", None);
        let read = window.read(at(119));
        assert!((read.rate - 62.0 / 59.0).abs() < 0.06, "{}", read.rate);
        let close = |found: Option<f64>, right: f64| found.is_some_and(|ms| ms >= right && ms <= right * GROWTH);
        assert!(close(read.p50_ms, 10.0) && close(read.p99_ms, 400.0), "{read:?}");
        assert_eq!(read.error_share, Some(1.0 / 121.0));
        assert_eq!((read.course.iter().sum::<u64>(), read.errors.iter().sum::<u64>()), (122, 1));
        assert_eq!(read.errors.last(), Some(&1));
        assert_eq!(read.outcomes, BTreeMap::from([("ok", 120), ("failed", 1), ("invalid", 1)]));

        let later = window.read(at(119 + 400));
        assert_eq!((later.rate, later.p50_ms, later.error_share), (0.0, None, None));
        window.add(at(119 + 400), "ok", Some(Duration::ZERO));
        assert_eq!(window.slots.len(), 1, "what is old is let go");
    }

    #[test]
    fn durations_beyond_all_buckets_are_counted() {
        let mut window = Window::default();
        window.add(at(0), "ok", Some(Duration::from_secs(1 << 30)));
        assert!(window.read(at(0)).p99_ms > Some(9e5));
    }
}
