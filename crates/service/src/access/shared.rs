//! Rates that several servers share: in each minute every one lets through only what it has leased of it, from whoever keeps the whole.
//!
//! The keeper (`highroad track`) never gives out more than the rate, so all servers together let no more than that through in a minute. A
//! twentieth is leased at a time, so what lies idle with others is at most that of each. A server that cannot reach the keeper lets through
//! what it was given in the last minute that it could: keys are not locked out because the tracking server is away.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A twentieth of a rate is leased at a time.
const SLICE: u64 = 20;
/// Longest wait for the keeper while a client waits.
const LEASE_TIMEOUT: Duration = Duration::from_secs(2);
/// A flood beyond a rate must not become one of questions, and a keeper that is away is not waited for by every request.
const ASK_AGAIN: Duration = Duration::from_millis(100);
const ASK_AGAIN_AWAY: Duration = Duration::from_secs(5);
/// Names of shared rates at the keeper.
pub const METER: &str = "requests_per_minute";

/// Who keeps the whole of shared rates.
pub trait RateKeeper: Send + Sync + 'static {
    /// Asks for a part of one rate and gives how much is held of it then; the error says in words why nobody answered.
    fn lease<'a>(&'a self, wanted: &'a WantedRate) -> Pin<Box<dyn Future<Output = Result<u64, String>> + Send + 'a>>;
}

/// A part of a rate that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedRate {
    /// Which servers share it.
    pub pool: String,
    /// Which of them asks.
    pub replica: String,
    /// Whose rate: `key:web`, `tenant:acme`.
    pub account: String,
    /// First second of the minute, since 1970.
    pub since: i64,
    /// The rate.
    pub most: u64,
    /// Requests that were let through already.
    pub used: u64,
    /// What is to be held in this minute, those included.
    pub wants: u64,
}

/// The keeper, and what this server is to it.
pub(super) struct Sharing {
    keeper: Arc<dyn RateKeeper>,
    replica: String,
    is_away: AtomicBool,
}

impl Sharing {
    pub(super) fn new(keeper: Arc<dyn RateKeeper>) -> Self {
        Self { keeper, replica: uuid::Uuid::now_v7().to_string(), is_away: AtomicBool::new(false) }
    }

    async fn lease(&self, wanted: &WantedRate) -> Result<u64, String> {
        let answer = tokio::time::timeout(LEASE_TIMEOUT, self.keeper.lease(wanted)).await;
        let answer = answer.unwrap_or_else(|_| Err(format!("no answer within {} s", LEASE_TIMEOUT.as_secs())));
        match (&answer, self.is_away.swap(answer.is_err(), Ordering::Relaxed)) {
            (Err(error), false) => tracing::warn!("Shared rates go on with what was held last: {error}"),
            (Ok(_), true) => tracing::info!("Shared rates are leased again"),
            _ => {}
        }
        answer
    }
}

/// One rate of those that are shared.
pub(super) struct SharedRate {
    pool: String,
    account: String,
    most: u64,
    part: Mutex<Part>,
    // Many requests at once ask once.
    asking: tokio::sync::Mutex<()>,
}

/// What is held of one minute.
#[derive(Clone, Copy, Debug, Default)]
struct Part {
    minute: i64,
    held: u64,
    used: u64,
    /// What was held at the end of the last minute in which the keeper answered.
    before: Option<u64>,
    is_told: bool,
    not_before: Option<Instant>,
}

impl SharedRate {
    pub(super) fn new(pool: &str, account: String, most: u64) -> Self {
        let (part, asking) = (Mutex::default(), tokio::sync::Mutex::default());
        Self { pool: pool.to_owned(), account, most, part, asking }
    }

    pub(super) fn is_of(&self, pool: &str) -> bool {
        self.pool == pool
    }

    /// Counts a request in the minute of `now_s`, seconds since 1970. Errors with how long to wait where its rate is spent.
    pub(super) async fn take(&self, sharing: &Sharing, now_s: i64) -> Result<(), Duration> {
        if self.take_held(now_s) {
            return Ok(());
        }
        let _one = self.asking.lock().await;
        if self.take_held(now_s) {
            return Ok(());
        }
        if let Some(wanted) = self.wanted(&sharing.replica) {
            let answer = sharing.lease(&wanted).await;
            self.put(wanted.since, answer);
            if self.take_held(now_s) {
                return Ok(());
            }
        }
        Err(Duration::from_secs(60 - now_s.rem_euclid(60) as u64))
    }

    /// Counts a request where enough is held.
    fn take_held(&self, now_s: i64) -> bool {
        let mut part = self.part();
        let minute = now_s - now_s.rem_euclid(60);
        // A clock that is set back must not give a minute anew.
        if minute > part.minute {
            let before = if part.is_told { Some(part.held) } else { part.before };
            *part = Part { minute, before, ..Part::default() };
        }
        let fits = part.used < part.held;
        part.used += u64::from(fits);
        fits
    }

    /// What to ask for; nothing where it was just asked for.
    fn wanted(&self, replica: &str) -> Option<WantedRate> {
        let part = self.part();
        if part.not_before.is_some_and(|at| Instant::now() < at) {
            return None;
        }
        Some(WantedRate {
            pool: self.pool.clone(),
            replica: replica.to_owned(),
            account: self.account.clone(),
            since: part.minute,
            most: self.most,
            used: part.used,
            wants: (part.used + self.slice()).min(self.most),
        })
    }

    fn put(&self, minute: i64, answer: Result<u64, String>) {
        let mut part = self.part();
        if part.minute != minute {
            return;
        }
        match answer {
            Ok(granted) => {
                (part.held, part.is_told) = (granted.min(self.most), true);
                part.not_before = (granted <= part.used).then(|| Instant::now() + ASK_AGAIN);
            }
            // Never heard of by the keeper, it is a server of its own.
            Err(_) => {
                part.held = part.held.max(part.before.map_or(self.most, |before| before.max(self.slice())));
                part.not_before = Some(Instant::now() + ASK_AGAIN_AWAY);
            }
        }
    }

    fn slice(&self) -> u64 {
        self.most.div_ceil(SLICE)
    }

    fn part(&self) -> MutexGuard<'_, Part> {
        self.part.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// 2026-11-29 07:00:00 UTC
    const NOW: i64 = 1_795_935_600;

    /// Gives out at most the rate over all replicas, as the tracking server does; nobody answers while it is away.
    #[derive(Default)]
    struct Keeper {
        granted: Mutex<Vec<(String, i64, u64)>>,
        is_away: AtomicBool,
        n_asked: Mutex<usize>,
    }

    impl RateKeeper for Keeper {
        fn lease<'a>(
            &'a self,
            wanted: &'a WantedRate,
        ) -> Pin<Box<dyn Future<Output = Result<u64, String>> + Send + 'a>> {
            Box::pin(async move {
                *self.n_asked.lock().unwrap() += 1;
                if self.is_away.load(Ordering::Relaxed) {
                    return Err("away".to_owned());
                }
                let mut granted = self.granted.lock().unwrap();
                let is_own = |lease: &(String, i64, u64)| lease.0 == wanted.replica && lease.1 == wanted.since;
                let others = granted.iter().filter(|lease| !is_own(lease) && lease.1 == wanted.since);
                let others: u64 = others.map(|lease| lease.2).sum();
                let mine = wanted.wants.min(wanted.most - others).max(wanted.used);
                granted.retain(|lease| !is_own(lease));
                granted.push((wanted.replica.clone(), wanted.since, mine));
                Ok(mine)
            })
        }
    }

    async fn n_let_through(rate: &SharedRate, sharing: &Sharing, n: usize, now_s: i64) -> usize {
        let mut n_ok = 0;
        for _ in 0..n {
            n_ok += usize::from(rate.take(sharing, now_s).await.is_ok());
        }
        n_ok
    }

    #[tokio::test]
    async fn two_servers_let_through_what_one_may_and_each_minute_anew() {
        let keeper = Arc::new(Keeper::default());
        let servers: Vec<_> = (0..2)
            .map(|_| (SharedRate::new("fleet", "key:web".to_owned(), 100), Sharing::new(Arc::clone(&keeper) as _)))
            .collect();
        for minute in [NOW, NOW + 60] {
            let (one, other) = (&servers[0], &servers[1]);
            let first = n_let_through(&one.0, &one.1, 30, minute).await;
            let second = n_let_through(&other.0, &other.1, 200, minute + 7).await;
            let rest = n_let_through(&one.0, &one.1, 200, minute + 59).await;
            assert_eq!((first, first + second + rest), (30, 100));
        }
        let asked = *keeper.n_asked.lock().unwrap();
        assert!(asked <= 2 * (20 + 4), "{asked} questions");
        assert_eq!(servers[0].0.take(&servers[0].1, NOW + 119).await, Err(Duration::from_secs(1)));
        // A clock that is set back gives nothing anew.
        assert!(servers[0].0.take(&servers[0].1, NOW).await.is_err());
    }

    #[tokio::test]
    async fn without_a_keeper_each_goes_on_with_what_it_had() {
        let keeper = Arc::new(Keeper::default());
        let rate = SharedRate::new("fleet", "tenant:acme".to_owned(), 100);
        let sharing = Sharing::new(Arc::clone(&keeper) as _);
        assert_eq!(n_let_through(&rate, &sharing, 33, NOW).await, 33);
        keeper.is_away.store(true, Ordering::Relaxed);
        // 35 were held of the last minute.
        assert_eq!(n_let_through(&rate, &sharing, 200, NOW + 60).await, 35);
        assert_eq!(n_let_through(&rate, &sharing, 200, NOW + 120).await, 35);
        // One that was never told anything is a server of its own.
        let new = SharedRate::new("fleet", "tenant:acme".to_owned(), 100);
        assert_eq!(n_let_through(&new, &sharing, 200, NOW + 120).await, 100);
    }
}
