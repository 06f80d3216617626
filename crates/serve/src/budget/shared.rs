//! Budgets that several servers share: each spends only what it has leased of a limit, from whoever keeps the whole.
//!
//! A lease is a part of one limit in one stretch of time. The keeper (`highroad track`) never gives out more than the limit, so all servers
//! together stay within it, also while the keeper is away: then each goes on with what it holds. The price is what lies idle: a server that
//! died keeps its last part until the time is over, at most a [`SLICE`] and what it had set aside.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{Meter, Payer, Scope};
use crate::registry::BoxFuture;

/// A twentieth of a limit is leased at a time.
pub(super) const SLICE: u64 = 20;
/// Pause between two looks at what is held.
pub const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Longest wait for the keeper while a client waits.
pub(super) const LEASE_TIMEOUT: Duration = Duration::from_secs(2);

/// Pause before a payer who was given too little is asked for again.
const ASK_AGAIN: Duration = Duration::from_millis(100);
const MOST_DENIED: usize = 1000;

/// Pause between two times that what was spent is told, where it changed.
const TELL_EVERY: Duration = Duration::from_secs(5);
/// Most days of accounts that are told at once: what the keeper takes.
const MOST_TOLD: usize = 1000;

/// Who keeps the whole of shared budgets.
pub trait Leases: Send + Sync + 'static {
    /// Asks for parts; the error says in words why there are none now.
    fn lease<'a>(
        &'a self,
        pool: &'a str,
        replica: &'a str,
        wanted: &'a [Wanted],
    ) -> BoxFuture<'a, Result<Vec<Granted>, String>>;

    /// Tells what `replica` spent, in the place of what it told of the same accounts and days before, and gives what all of `pool` spent on
    /// each day from `from` on; the error says in words why that is not known now.
    fn spent<'a>(
        &'a self,
        pool: &'a str,
        replica: &'a str,
        from: i64,
        spent: &'a [Spent],
    ) -> BoxFuture<'a, Result<Vec<Spent>, String>>;
}

/// What an account spent on a day.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Spent {
    /// `member:chat`
    pub account: String,
    /// First second of the day, since 1970.
    pub since: i64,
    /// Billionths of the currency.
    pub nanos: u64,
    /// Tokens.
    pub tokens: u64,
}

/// A part that is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct Wanted {
    pub account: String,
    pub meter: Meter,
    pub since: i64,
    pub most: u64,
    pub used: u64,
    pub wants: u64,
}

/// A part that is held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Granted {
    pub account: String,
    pub meter: Meter,
    pub since: i64,
    pub granted: u64,
}

/// What one server holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Held(BTreeMap<(String, Meter), (i64, u64)>);

impl Held {
    /// What is held of a limit in the time that begins at `since`.
    pub(super) fn of(&self, scope: Scope, name: &str, meter: Meter, since: i64) -> u64 {
        let held = self.0.get(&(account(scope, name), meter));
        held.filter(|(at, _)| *at == since).map_or(0, |(_, granted)| *granted)
    }

    /// Whether less is wanted of a part than is held.
    pub(super) fn is_lowered_by(&self, wanted: &Wanted) -> bool {
        let held = self.0.get(&(wanted.account.clone(), wanted.meter));
        held.is_some_and(|(since, granted)| *since == wanted.since && *granted > wanted.wants)
    }

    pub(super) fn put(&mut self, granted: Granted) {
        self.0.insert((granted.account, granted.meter), (granted.since, granted.granted));
    }

    fn all(&self) -> Vec<Granted> {
        let one = |((account, meter), (since, granted)): (&(String, Meter), &(i64, u64))| Granted {
            account: account.clone(),
            meter: *meter,
            since: *since,
            granted: *granted,
        };
        self.0.iter().map(one).collect()
    }
}

/// `member:chat`
pub(super) fn account(scope: Scope, name: &str) -> String {
    format!("{}:{name}", scope.name())
}

/// The keeper, and what this server is to it.
pub(super) struct Sharing {
    pub(super) keeper: Arc<dyn Leases>,
    pub(super) pool: String,
    pub(super) replica: String,
    file: PathBuf,
    // Two answers at once could be taken in the wrong order.
    pub(super) asking: tokio::sync::Mutex<()>,
    denied: Mutex<HashMap<Payer, Instant>>,
    is_away: AtomicBool,
    told: tokio::sync::Mutex<Told>,
}

/// What the keeper knows of what was spent here.
#[derive(Default)]
struct Told {
    spent: HashSet<Spent>,
    at: Option<Instant>,
}

#[derive(Default, Serialize, Deserialize)]
struct File {
    highroad_leases: u32,
    pool: String,
    replica: String,
    held: Vec<Granted>,
}

impl Sharing {
    /// Of the budgets in `dir`: after a restart the same server, with what it held.
    pub(super) fn open(dir: &Path, pool: String, keeper: Arc<dyn Leases>) -> io::Result<(Self, Held)> {
        let file = dir.join("leases.json");
        let found = fs::read(&file).ok().and_then(|bytes| serde_json::from_slice::<File>(&bytes).ok());
        let found = found.filter(|found| found.highroad_leases == 1 && found.pool == pool);
        let found = found.unwrap_or_else(|| File { replica: crate::rollout::new_id(), ..File::default() });
        let mut held = Held::default();
        found.held.into_iter().for_each(|granted| held.put(granted));
        let sharing = Self {
            keeper,
            pool,
            replica: found.replica,
            file,
            asking: tokio::sync::Mutex::default(),
            denied: Mutex::default(),
            is_away: AtomicBool::new(false),
            told: tokio::sync::Mutex::default(),
        };
        // Before anything is leased under the name, so that what is leased is never lost with it.
        sharing.write(&held)?;
        Ok((sharing, held))
    }

    /// Whether this payer was just given too little: a flood of requests beyond a limit must not become one of questions.
    pub(super) fn was_denied(&self, payer: &Payer) -> bool {
        self.denied().get(payer).is_some_and(|at| at.elapsed() < ASK_AGAIN)
    }

    /// Tells, once, that the keeper went away, or that it is back.
    pub(super) fn tell(&self, answer: Result<(), &str>) {
        match (answer, self.is_away.swap(answer.is_err(), Ordering::Relaxed)) {
            (Err(error), false) => tracing::warn!("Shared budgets go on with what is held here: {error}"),
            (Ok(()), true) => tracing::info!("Shared budgets are leased again"),
            _ => {}
        }
    }

    /// Tells the keeper what was spent here from `from` on, as far as it does not know it, and gives what all servers spent.
    pub(super) async fn spent(&self, from: i64, spent: Vec<Spent>) -> Result<Vec<Spent>, String> {
        let mut told = self.told.lock().await;
        let news: Vec<Spent> = spent.iter().filter(|spent| !told.spent.contains(spent)).cloned().collect();
        // At least once, for what the others spent.
        let mut all = Vec::new();
        for at in (0..news.len().max(1)).step_by(MOST_TOLD) {
            let some = &news[at..news.len().min(at + MOST_TOLD)];
            all = self.keeper.spent(&self.pool, &self.replica, from, some).await?;
        }
        *told = Told { spent: spent.into_iter().collect(), at: Some(Instant::now()) };
        Ok(all)
    }

    /// The same where it is time for it and something changed.
    pub(super) async fn tell_spent(&self, from: i64, spent: impl FnOnce() -> Vec<Spent>) {
        let news = {
            let mut told = self.told.lock().await;
            if told.at.is_some_and(|at| at.elapsed() < TELL_EVERY) {
                return;
            }
            told.at = Some(Instant::now());
            Some(spent()).filter(|spent| spent.iter().any(|spent| !told.spent.contains(spent)))
        };
        if let Some(Err(error)) = match news {
            Some(spent) => Some(self.spent(from, spent).await),
            None => None,
        } {
            tracing::debug!("What was spent is not told to the keeper of shared budgets: {error}");
        }
    }

    pub(super) fn deny(&self, payer: Payer) {
        let mut denied = self.denied();
        if denied.len() >= MOST_DENIED {
            denied.clear();
        }
        denied.insert(payer, Instant::now());
    }

    fn denied(&self) -> MutexGuard<'_, HashMap<Payer, Instant>> {
        self.denied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self, held: &Held) -> io::Result<()> {
        let (pool, replica) = (self.pool.clone(), self.replica.clone());
        let file = File { highroad_leases: 1, pool, replica, held: held.all() };
        let folder = self.file.parent().unwrap_or(Path::new(""));
        let mut temporary = tempfile::NamedTempFile::new_in(folder)?;
        temporary.write_all(&serde_json::to_vec_pretty(&file)?)?;
        temporary.as_file().sync_all()?;
        temporary.persist(&self.file)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Amount, Books, BudgetsConfig, Ledger, Most, Refused};
    use super::*;

    /// 2026-11-29 07:00:30 UTC
    const NOW: i64 = 1_795_935_630;
    const DAY: i64 = NOW - NOW.rem_euclid(24 * 3600);

    fn ledger() -> Ledger {
        let table: toml::Table = "[budgets.members.chat]\ntokens_per_day = 1000".parse().unwrap();
        let config = BudgetsConfig::parse(&table, &mut Vec::new());
        Ledger::new(config, Books::default()).sharing(Held::default())
    }

    fn payer() -> Payer {
        Payer { member: "chat".to_owned(), pipeline: None, tenant: None, key: None }
    }

    fn tokens(tokens: u64) -> Most {
        Most { nanos: Some(0), tokens }
    }

    fn granted(granted: u64) -> Vec<Granted> {
        vec![Granted { account: "member:chat".to_owned(), meter: Meter::TokensPerDay, since: DAY, granted }]
    }

    #[test]
    fn of_a_shared_limit_is_spent_what_is_held() {
        let mut ledger = ledger();
        assert!(matches!(ledger.reserve(NOW, &payer(), tokens(1)), Err(Refused::Over { used: 1000, .. })));
        let wanted = ledger.wanted(NOW, Some((&payer(), tokens(30))));
        assert_eq!((wanted.len(), wanted[0].most, wanted[0].used, wanted[0].wants), (1, 1000, 0, 30 + 1000 / SLICE));
        ledger.hold_parts(granted(80));
        assert!(ledger.reserve(NOW, &payer(), tokens(80)).is_ok());
        assert!(!ledger.fits(NOW, &payer(), tokens(1)));
        // What was held yesterday is nothing today.
        assert!(!ledger.fits(NOW + 24 * 3600, &payer(), tokens(1)));
        assert!(matches!(ledger.reserve(NOW, &payer(), tokens(1001)), Err(Refused::Never { .. })));
    }

    #[test]
    fn what_lies_idle_is_given_back_and_what_is_right_is_left_alone() {
        let mut ledger = ledger();
        ledger.hold_parts(granted(500));
        let wanted = ledger.wanted(NOW, Some((&payer(), tokens(10))));
        assert_eq!(wanted[0].wants, 60, "far more than is needed");
        ledger.hold_parts(granted(60));
        let entry = ledger.reserve(NOW, &payer(), tokens(10)).unwrap();
        assert!(ledger.wanted(NOW, None).is_empty());
        let super::super::Entry::Reserve { id, .. } = entry else { panic!("a reservation is one") };
        ledger.settle(NOW, id, Amount { nanos: 0, tokens: 40 });
        // A host took more than it was asked for: the part has to cover it.
        let wanted = ledger.wanted(NOW, None);
        assert_eq!((wanted[0].used, wanted[0].wants), (40, 90));
    }

    #[test]
    fn a_server_comes_back_as_itself_with_what_it_held() {
        struct Nobody;
        impl Leases for Nobody {
            fn lease<'a>(
                &'a self,
                _pool: &'a str,
                _replica: &'a str,
                _wanted: &'a [Wanted],
            ) -> BoxFuture<'a, Result<Vec<Granted>, String>> {
                Box::pin(async { Err("away".to_owned()) })
            }

            fn spent<'a>(
                &'a self,
                _pool: &'a str,
                _replica: &'a str,
                _from: i64,
                _spent: &'a [Spent],
            ) -> BoxFuture<'a, Result<Vec<Spent>, String>> {
                Box::pin(async { Err("away".to_owned()) })
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let open = |pool: &str| Sharing::open(dir.path(), pool.to_owned(), Arc::new(Nobody)).unwrap();
        let (first, mut held) = open("fleet");
        granted(70).into_iter().for_each(|granted| held.put(granted));
        first.write(&held).unwrap();
        let (again, found) = open("fleet");
        assert_eq!((again.replica, found.of(Scope::Member, "chat", Meter::TokensPerDay, DAY)), (first.replica, 70));
        // Of another pool nothing is held.
        assert_eq!(open("other").1, Held::default());
    }
}
