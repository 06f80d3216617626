//! A circuit breaker and a budget of retries, both pure: time is an argument.

use std::time::{Duration, Instant};

/// When a breaker opens, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerConfig {
    /// Failures in a row after which nothing more is asked.
    pub failures: u32,
    /// How long nothing is asked at first; doubled each time that the try after it fails, to [`LONGEST_PAUSE`].
    pub pause: Duration,
}

/// The longest that a host is left alone.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Leaves a host alone that does not work. *Closed*, everything is asked; *open*, nothing is, for a while; then *half open*, one request
/// tries, and how that goes decides.
#[derive(Debug)]
pub struct Breaker {
    config: BreakerConfig,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed { n_failures: u32 },
    Open { until: Instant, pause: Duration },
    HalfOpen { pause: Duration },
}

/// Whether a request may go out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It may, as all do.
    Yes,
    /// It may, to try whether the host works again: how it went must be told.
    Try,
    /// It may not, for so long.
    No(Duration),
}

/// How a request that went out ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The host works.
    Worked,
    /// The host does not.
    Failed,
    /// Nobody knows: the client left first.
    Unknown,
}

/// A state for people and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Circuit {
    Closed,
    HalfOpen,
    Open,
}

impl Circuit {
    /// One word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }
}

impl Breaker {
    /// Closed.
    pub fn new(config: BreakerConfig) -> Self {
        Self { config, state: State::Closed { n_failures: 0 } }
    }

    /// Whether a request may go out now.
    pub fn admit(&mut self, now: Instant) -> Admission {
        match self.state {
            State::Closed { .. } => Admission::Yes,
            State::Open { until, .. } if now < until => Admission::No(until - now),
            State::Open { pause, .. } => {
                self.state = State::HalfOpen { pause };
                Admission::Try
            }
            State::HalfOpen { .. } => Admission::No(Duration::from_secs(1)),
        }
    }

    /// Takes in how an admitted request ended. Whether it opened.
    pub fn record(&mut self, admission: Admission, outcome: Outcome, now: Instant) -> bool {
        match (self.state, admission, outcome) {
            (State::HalfOpen { .. }, Admission::Try, Outcome::Worked) => self.state = State::Closed { n_failures: 0 },
            (State::HalfOpen { pause }, Admission::Try, Outcome::Failed) => {
                return self.open(now, pause.saturating_mul(2).min(LONGEST_PAUSE.max(self.config.pause)));
            }
            // The next one tries.
            (State::HalfOpen { pause }, Admission::Try, Outcome::Unknown) => {
                self.state = State::Open { until: now, pause }
            }
            (State::Closed { .. }, _, Outcome::Worked) => self.state = State::Closed { n_failures: 0 },
            (State::Closed { n_failures }, _, Outcome::Failed) if n_failures + 1 >= self.config.failures => {
                return self.open(now, self.config.pause);
            }
            (State::Closed { n_failures }, _, Outcome::Failed) => {
                self.state = State::Closed { n_failures: n_failures + 1 };
            }
            // Requests from before it opened say nothing new.
            _ => {}
        }
        false
    }

    /// Where it stands.
    pub fn circuit(&self) -> Circuit {
        match self.state {
            State::Closed { .. } => Circuit::Closed,
            State::Open { .. } => Circuit::Open,
            State::HalfOpen { .. } => Circuit::HalfOpen,
        }
    }

    fn open(&mut self, now: Instant, pause: Duration) -> bool {
        // A clock that cannot go on that far is at its end anyway.
        let until = now.checked_add(pause).unwrap_or(now);
        self.state = State::Open { until, pause };
        true
    }
}

/// Retries that all requests to a host have together: a tenth of its requests, and a few beside. Without it a host that fails would get
/// several times its load exactly then.
#[derive(Debug)]
pub struct RetryBudget {
    tenths: u32,
}

impl RetryBudget {
    /// Retries in hand at first, and the most there can be.
    const MOST: u32 = 100;

    /// Ten retries.
    pub fn new() -> Self {
        Self { tenths: Self::MOST }
    }

    /// A request was made.
    pub fn deposit(&mut self) {
        self.tenths = (self.tenths + 1).min(Self::MOST);
    }

    /// Takes a retry; `false` where there is none.
    pub fn withdraw(&mut self) -> bool {
        let left = self.tenths.checked_sub(10);
        self.tenths = left.unwrap_or(self.tenths);
        left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn breaker() -> Breaker {
        Breaker::new(BreakerConfig { failures: 3, pause: 10 * SECOND })
    }

    fn fail(breaker: &mut Breaker, now: Instant) -> bool {
        let admission = breaker.admit(now);
        breaker.record(admission, Outcome::Failed, now)
    }

    fn open(breaker: &mut Breaker, now: Instant) {
        assert_eq!([0; 3].map(|_| fail(breaker, now)), [false, false, true]);
    }

    #[test]
    fn it_opens_after_failures_in_a_row_and_only_then() {
        let (mut breaker, now) = (breaker(), Instant::now());
        assert_eq!([fail(&mut breaker, now), fail(&mut breaker, now)], [false, false]);
        breaker.record(Admission::Yes, Outcome::Worked, now);
        assert_eq!([fail(&mut breaker, now), fail(&mut breaker, now), fail(&mut breaker, now)], [false, false, true]);
        assert_eq!(breaker.admit(now + 4 * SECOND), Admission::No(6 * SECOND));
        assert_eq!(breaker.circuit(), Circuit::Open);
    }

    #[test]
    fn after_its_pause_one_request_tries_and_decides() {
        let (mut breaker, now) = (breaker(), Instant::now());
        open(&mut breaker, now);
        let later = now + 10 * SECOND;
        assert_eq!((breaker.admit(later), breaker.circuit()), (Admission::Try, Circuit::HalfOpen));
        assert!(matches!(breaker.admit(later), Admission::No(_)), "one at a time");
        assert!(breaker.record(Admission::Try, Outcome::Failed, later), "open again, for twice as long");
        assert_eq!(breaker.admit(later + 19 * SECOND), Admission::No(SECOND));
        let much_later = later + 20 * SECOND;
        assert_eq!(breaker.admit(much_later), Admission::Try);
        breaker.record(Admission::Try, Outcome::Worked, much_later);
        assert_eq!((breaker.admit(much_later), breaker.circuit()), (Admission::Yes, Circuit::Closed));
        assert!(!fail(&mut breaker, much_later), "the count begins anew");
    }

    #[test]
    fn a_client_that_left_leaves_the_try_to_the_next_one() {
        let (mut breaker, now) = (breaker(), Instant::now());
        open(&mut breaker, now);
        let later = now + 10 * SECOND;
        assert_eq!(breaker.admit(later), Admission::Try);
        breaker.record(Admission::Try, Outcome::Unknown, later);
        assert_eq!(breaker.admit(later), Admission::Try);
    }

    #[test]
    fn late_news_from_before_it_opened_changes_nothing() {
        let (mut breaker, now) = (breaker(), Instant::now());
        open(&mut breaker, now);
        breaker.record(Admission::Yes, Outcome::Worked, now);
        assert_eq!(breaker.circuit(), Circuit::Open);
        assert!(!breaker.record(Admission::Yes, Outcome::Failed, now));
    }

    #[test]
    fn pauses_double_to_a_limit() {
        let (mut breaker, mut now) = (breaker(), Instant::now());
        open(&mut breaker, now);
        for _ in 0..20 {
            now += LONGEST_PAUSE;
            assert!(fail(&mut breaker, now));
        }
        assert_eq!(breaker.admit(now), Admission::No(LONGEST_PAUSE));
    }

    #[test]
    fn ten_requests_earn_one_retry() {
        let mut budget = RetryBudget::new();
        assert_eq!((0..20).filter(|_| budget.withdraw()).count(), 10);
        (0..9).for_each(|_| budget.deposit());
        assert!(!budget.withdraw());
        budget.deposit();
        assert!(budget.withdraw());
        (0..10_000).for_each(|_| budget.deposit());
        assert_eq!((0..20).filter(|_| budget.withdraw()).count(), 10);
    }
}
