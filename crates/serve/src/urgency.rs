//! How urgent a request is: its class and its deadline, from headers, as far as its key may ask.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use axum::http::HeaderMap;
use highroad_service::Problem;
use highroad_service::access::{Principal, Priority};
use highroad_task::Flow;

/// `high`, `normal` or `low`.
const PRIORITY: &str = "x-highroad-priority";
/// How long the client is willing to wait for its turn, from when the request came.
pub(crate) const TIMEOUT: &str = "x-highroad-timeout-ms";
const MAX_TIMEOUT_MS: u64 = 3_600_000;

tokio::task_local! {
    static CURRENT: Urgency;
}

/// What the headers of a request ask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Urgency {
    priority: Option<Priority>,
    deadline: Option<Instant>,
}

impl Urgency {
    /// Reads the headers of a request that came at `now`. Errors name the header that means nothing.
    pub(crate) fn of(headers: &HeaderMap, now: Instant) -> Result<Self, Problem> {
        let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default());
        let wrong = |name: &str, known: &str| Problem::invalid(format!("`{name}` is {known}"));
        let priority = match text(PRIORITY) {
            None => None,
            Some(word) => Some(Priority::parse(word).ok_or_else(|| wrong(PRIORITY, "`high`, `normal` or `low`"))?),
        };
        let deadline = match text(TIMEOUT).map(str::parse) {
            None => None,
            Some(Ok(ms @ 1..=MAX_TIMEOUT_MS)) => now.checked_add(Duration::from_millis(ms)),
            Some(_) => return Err(wrong(TIMEOUT, "a number of milliseconds from 1 to 3600000")),
        };
        Ok(Self { priority, deadline })
    }

    /// Answers a request that is so urgent.
    pub(crate) async fn scope<F: Future>(self, answering: F) -> F::Output {
        CURRENT.scope(self, answering).await
    }

    /// How urgent the request is that this task answers.
    pub(crate) fn current() -> Self {
        CURRENT.try_with(|urgency| *urgency).unwrap_or_default()
    }

    /// What is left until its deadline.
    pub(crate) fn left(&self, now: Instant) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.saturating_duration_since(now))
    }

    /// Its class, where the body asks for `asked`: never above what the key may ask.
    pub(crate) fn priority(&self, asked: Option<Priority>) -> Priority {
        let most = Principal::current().map_or(Priority::High, |principal| principal.priority);
        self.priority.or(asked).unwrap_or(Priority::Normal).min(most)
    }
}

/// Whose turn a request of this class takes: its tenant's, of those in its class.
pub(crate) fn flow(priority: Priority) -> Flow {
    Flow { weight: weight(priority), owner: owner() }
}

/// Shares of the work while all classes wait.
fn weight(priority: Priority) -> NonZeroU32 {
    const HIGH: NonZeroU32 = NonZeroU32::new(16).expect("it is not zero");
    const NORMAL: NonZeroU32 = NonZeroU32::new(4).expect("it is not zero");
    match priority {
        Priority::High => HIGH,
        Priority::Normal => NORMAL,
        Priority::Low => NonZeroU32::MIN,
    }
}

/// Two tenants of one number would share a turn, nothing worse.
fn owner() -> u64 {
    let Some(principal) = Principal::current() else { return 0 };
    let mut hasher = DefaultHasher::new();
    principal.tenant.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn headers_say_how_urgent_a_request_is() {
        let now = Instant::now();
        let read = |pairs| Urgency::of(&headers(pairs), now);
        assert_eq!(read(&[]).unwrap().priority(None), Priority::Normal);
        assert_eq!(read(&[]).unwrap().priority(Some(Priority::Low)), Priority::Low);
        let high = read(&[(PRIORITY, "high"), (TIMEOUT, "250")]).unwrap();
        assert_eq!(high.priority(Some(Priority::Low)), Priority::High);
        assert_eq!(high.left(now), Some(Duration::from_millis(250)));
        assert_eq!(high.left(now + Duration::from_secs(1)), Some(Duration::ZERO));
        for (name, value) in
            [(PRIORITY, "urgent"), (TIMEOUT, "0"), (TIMEOUT, "1e3"), (TIMEOUT, "-1"), (TIMEOUT, "3600001")]
        {
            let problem = Urgency::of(&headers(&[(name, value)]), now).unwrap_err();
            assert!(problem.message.contains(name), "{value}");
        }
    }
}
