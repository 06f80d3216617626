//! Answers that were computed before, and answers that are being computed: the same input is computed once.
//!
//! The key of an answer is a digest of everything that decides it: the package, the numerics id, and the row as the program takes it, after
//! tokenisation, truncation or decoding. An answer depends on nothing else (no batch, no padding, no threads), so what is found has the
//! bits that would be computed. Answers of different packages never meet: a candidate's, and those of a version that serves no more, have
//! keys of their own. Unless the member shares them, so have those of different tenants, who could otherwise find out by the time an
//! answer takes what others have asked.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use highroad_service::access::{Principal, Priority};
use highroad_task::{Answer, Prepared};
use metrics::{Counter, Gauge, counter, gauge};
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tokio::sync::{oneshot, watch};

use crate::batcher::{Done, RowError, Ticket};
use crate::model::{ModelError, Yield};
use crate::telemetry::{CACHE_BYTES, CACHE_COALESCED, CACHE_HITS, CACHE_MISSES};

/// Which answers a member keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct CacheConfig {
    /// Most memory, with everything that belongs to an entry.
    pub bytes: u64,
    /// How long an answer is given again, in seconds; as long as there is room unless told.
    pub ttl_s: Option<u64>,
    /// Whether a tenant gets what was computed for another.
    pub shared_by_tenants: bool,
}

/// The answers of one member, of all its versions together.
pub(crate) struct AnswerCache {
    config: CacheConfig,
    answers: Cache<Key, Entry, Bytes>,
    flights: Mutex<Flights>,
    hits: Counter,
    misses: Counter,
    coalesced: Counter,
    bytes: Gauge,
}

/// SHA-256: whoever can ask must not be able to make two inputs meet.
pub(crate) type Key = [u8; 32];

#[derive(Clone)]
struct Entry {
    answer: Answer,
    since: Instant,
}

/// What an entry weighs.
#[derive(Clone)]
struct Bytes;

/// Of the tables that find an entry, and of its allocations.
const OVERHEAD_BYTES: usize = 96;

impl Weighter<Key, Entry> for Bytes {
    fn weight(&self, _: &Key, entry: &Entry) -> u64 {
        let heap = match &entry.answer {
            Answer::Class { label, scores } => label.len() + size_of_val(scores.as_slice()),
            Answer::Labels { labels, scores } => {
                labels.iter().map(|label| label.len() + size_of::<String>()).sum::<usize>()
                    + size_of_val(scores.as_slice())
            }
            Answer::Embedding { vector } => size_of_val(vector.as_slice()),
            Answer::Relevance { .. } => 0,
            Answer::Tensors(outputs) => outputs.iter().map(|output| output.name.len() + output.bytes.len()).sum(),
        };
        (size_of::<Key>() + size_of::<Entry>() + heap + OVERHEAD_BYTES) as u64
    }
}

#[derive(Default)]
struct Flights {
    by_key: HashMap<Key, Flight>,
    n_begun: u64,
}

/// A row that is being computed.
struct Flight {
    number: u64,
    priority: Priority,
    landed: Arc<watch::Sender<Landed>>,
}

/// How a flight ended; `Some(None)` is a row that has to be computed anew.
pub(crate) type Landed = Option<Option<Answer>>;

/// What to do for a row.
pub(crate) enum Turn {
    /// Nothing: here it is.
    Hit(Answer),
    /// Wait for who computes it.
    Follow(watch::Receiver<Landed>),
    /// Compute it for everybody.
    Lead(Leader),
    /// Compute it, and do not make anybody wait for it.
    Alone,
}

/// Where the answers of a request came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheUse {
    /// Rows that were computed before.
    pub n_hits: usize,
    /// Rows that another request was computing.
    pub n_coalesced: usize,
    /// Rows that were computed for this request.
    pub n_computed: usize,
}

impl CacheUse {
    /// One word for a header and the request log.
    pub fn name(&self) -> &'static str {
        match self {
            Self { n_computed: 0, n_coalesced: 0, .. } => "hit",
            Self { n_computed: 0, .. } => "coalesced",
            Self { n_hits: 0, n_coalesced: 0, .. } => "miss",
            _ => "partial",
        }
    }
}

impl AnswerCache {
    pub(crate) fn new(member: &str, config: CacheConfig) -> Self {
        let labels = || member.to_owned();
        let n_entries = usize::try_from(config.bytes / SMALL_ENTRY_BYTES).unwrap_or(usize::MAX).min(MOST_SMALL_ENTRIES);
        Self {
            config,
            answers: Cache::with_weighter(n_entries, config.bytes, Bytes),
            flights: Mutex::default(),
            hits: counter!(CACHE_HITS, "member" => labels()),
            misses: counter!(CACHE_MISSES, "member" => labels()),
            coalesced: counter!(CACHE_COALESCED, "member" => labels()),
            bytes: gauge!(CACHE_BYTES, "member" => labels()),
        }
    }

    pub(crate) fn config(&self) -> &CacheConfig {
        &self.config
    }

    /// The key of `row` under `version`, the package and the numerics that answer it, for who asks now.
    pub(crate) fn key(&self, version: &str, row: &Prepared) -> Key {
        let tenant = if self.config.shared_by_tenants { None } else { Principal::current().map(|asker| asker.tenant) };
        let mut sha256 = Sha256::new();
        for part in [version, tenant.as_deref().unwrap_or_default()] {
            sha256.update((part.len() as u64).to_le_bytes());
            sha256.update(part.as_bytes());
        }
        row.each_byte(|bytes| sha256.update(bytes));
        sha256.finalize().into()
    }

    /// Bytes of everything that is kept.
    #[cfg(test)]
    fn weight(&self) -> u64 {
        self.answers.weight()
    }

    fn get(&self, key: &Key) -> Option<Answer> {
        let entry = self.answers.get(key)?;
        let ttl = self.config.ttl_s.map(Duration::from_secs);
        if ttl.is_none_or(|ttl| entry.since.elapsed() < ttl) {
            return Some(entry.answer);
        }
        self.answers.remove(key);
        None
    }

    fn put(&self, key: Key, answer: Answer) {
        self.answers.insert(key, Entry { answer, since: Instant::now() });
        self.bytes.set(self.answers.weight() as f64);
    }

    /// What to do for the row of `key`. A request does not wait behind one of a lower class, and one that `waits` not at all.
    pub(crate) fn turn(self: &Arc<Self>, key: Key, priority: Priority, waits: bool) -> Turn {
        let mut flights = self.flights();
        // In this order: an answer is kept before its flight ends.
        let found = flights.by_key.get(&key).filter(|flight| flight.priority >= priority);
        if let Some(flight) = found.filter(|_| waits) {
            return Turn::Follow(flight.landed.subscribe());
        }
        let is_led = found.is_some();
        if let Some(answer) = self.get(&key) {
            self.hits.increment(1);
            return Turn::Hit(answer);
        }
        self.misses.increment(1);
        if is_led {
            return Turn::Alone;
        }
        flights.n_begun += 1;
        let (number, landed) = (flights.n_begun, Arc::new(watch::Sender::new(None)));
        flights.by_key.insert(key, Flight { number, priority, landed: Arc::clone(&landed) });
        Turn::Lead(Leader { cache: Arc::clone(self), key, number, landed })
    }

    /// A row that was another request's to compute has come.
    pub(crate) fn count_coalesced(&self) {
        self.coalesced.increment(1);
    }

    fn flights(&self) -> MutexGuard<'_, Flights> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for AnswerCache {
    fn drop(&mut self) {
        self.bytes.set(0.0);
    }
}

/// For the size of a table only.
const SMALL_ENTRY_BYTES: u64 = 512;
const MOST_SMALL_ENTRIES: usize = 1 << 20;

/// Who computes a row for everybody. Dropped before it has, it sends them to compute it themselves.
pub(crate) struct Leader {
    cache: Arc<AnswerCache>,
    key: Key,
    number: u64,
    landed: Arc<watch::Sender<Landed>>,
}

impl Leader {
    /// Waits for `ticket` in place of the request, so that those who follow get the answer when the client that began has left. The row is
    /// given up, before any work where its turn has not come, once nobody waits any more.
    pub(crate) fn fly(self, ticket: Ticket<Yield, ModelError>) -> Ticket<Yield, ModelError> {
        let (mut reply, mine) = oneshot::channel();
        tokio::spawn(async move {
            let result = tokio::select! {
                biased;
                result = ticket => result.unwrap_or(Err(RowError::Panicked)),
                () = self.abandoned(&mut reply) => return,
            };
            if let Ok(Done { output: Yield::Row(answer), .. }) = &result {
                self.land(answer.clone());
            }
            drop(self);
            // A send fails only when the client has left.
            let _ = reply.send(result);
        });
        mine
    }

    fn land(&self, answer: Answer) {
        // Kept before the flight ends, so that nobody finds neither.
        self.cache.put(self.key, answer.clone());
        self.end();
        self.landed.send_replace(Some(Some(answer)));
    }

    async fn abandoned<T>(&self, reply: &mut oneshot::Sender<T>) {
        reply.closed().await;
        loop {
            self.landed.closed().await;
            let mut flights = self.cache.flights();
            // Who followed since has subscribed within this lock.
            if self.landed.receiver_count() == 0 {
                self.end_in(&mut flights);
                return;
            }
        }
    }

    fn end(&self) {
        self.end_in(&mut self.cache.flights());
    }

    /// One of a higher class may have taken its place.
    fn end_in(&self, flights: &mut Flights) {
        if flights.by_key.get(&self.key).is_some_and(|flight| flight.number == self.number) {
            flights.by_key.remove(&self.key);
        }
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.end();
        self.landed.send_if_modified(|landed| {
            let pending = landed.is_none();
            if pending {
                *landed = Some(None);
            }
            pending
        });
    }
}

/// Waits for a flight; `None` where the row has to be computed after all, or where `until` has come, which is then told.
pub(crate) async fn landed(
    mut flight: watch::Receiver<Landed>,
    until: Option<Instant>,
) -> Result<Option<Answer>, Late> {
    let landing = async {
        match flight.wait_for(Option::is_some).await {
            Ok(landed) => landed.clone().flatten(),
            Err(_) => None,
        }
    };
    match until {
        None => Ok(landing.await),
        Some(until) => tokio::time::timeout_at(until.into(), landing).await.map_err(|_| Late),
    }
}

/// The row was not there in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Late;

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: CacheConfig = CacheConfig { bytes: 64 << 10, ttl_s: None, shared_by_tenants: false };

    fn cache(config: CacheConfig) -> Arc<AnswerCache> {
        Arc::new(AnswerCache::new("test", config))
    }

    fn key(n: u64) -> Key {
        Sha256::digest(n.to_le_bytes()).into()
    }

    fn answer(n: u64, width: usize) -> Answer {
        Answer::Embedding { vector: vec![n as f32; width] }
    }

    fn done(answer: Answer) -> Done<Yield> {
        Done { output: Yield::Row(answer), queued: Duration::ZERO, computed: Duration::ZERO, batch_rows: 1 }
    }

    fn lead(cache: &Arc<AnswerCache>, n: u64) -> Leader {
        match cache.turn(key(n), Priority::Normal, true) {
            Turn::Lead(leader) => leader,
            _ => panic!("somebody computes it already"),
        }
    }

    fn follow(cache: &Arc<AnswerCache>, n: u64) -> watch::Receiver<Landed> {
        match cache.turn(key(n), Priority::Normal, true) {
            Turn::Follow(flight) => flight,
            _ => panic!("nobody computes it"),
        }
    }

    #[test]
    fn memory_stays_within_its_limit_whatever_is_put() {
        let cache = cache(CONFIG);
        for n in 0..20_000 {
            cache.put(key(n), answer(n, (n % 700) as usize));
            assert!(cache.weight() <= CONFIG.bytes, "{} after {n}", cache.weight());
        }
        assert!(cache.weight() > CONFIG.bytes / 2, "and is used: {}", cache.weight());
        // What is larger than all of it is not kept.
        cache.put(key(1 << 40), answer(0, 1 << 20));
        assert!(cache.get(&key(1 << 40)).is_none() && cache.weight() <= CONFIG.bytes);
    }

    #[test]
    fn an_answer_is_given_again_until_it_is_too_old() {
        let kept = cache(CONFIG);
        kept.put(key(1), answer(1, 4));
        assert_eq!(kept.get(&key(1)), Some(answer(1, 4)));
        let none = cache(CacheConfig { ttl_s: Some(0), ..CONFIG });
        none.put(key(1), answer(1, 4));
        assert_eq!((none.get(&key(1)), none.weight()), (None, 0));
    }

    #[tokio::test]
    async fn who_follows_gets_what_the_leader_computes_though_it_has_left() {
        let cache = cache(CONFIG);
        let (compute, ticket) = oneshot::channel();
        let mine = lead(&cache, 1).fly(ticket);
        let flight = follow(&cache, 1);
        drop(mine);
        tokio::task::yield_now().await;
        assert!(compute.send(Ok(done(answer(1, 4)))).is_ok(), "somebody waits for it");
        assert_eq!(landed(flight, None).await, Ok(Some(answer(1, 4))));
        assert!(matches!(cache.turn(key(1), Priority::Normal, true), Turn::Hit(hit) if hit == answer(1, 4)));
    }

    #[tokio::test]
    async fn a_row_that_nobody_waits_for_is_given_up() {
        let cache = cache(CONFIG);
        let (mut compute, ticket) = oneshot::channel();
        let mine = lead(&cache, 1).fly(ticket);
        let flight = follow(&cache, 1);
        drop((mine, flight));
        tokio::time::timeout(Duration::from_secs(10), compute.closed()).await.unwrap();
        assert!(matches!(cache.turn(key(1), Priority::Normal, true), Turn::Lead(_)));
    }

    #[tokio::test]
    async fn an_error_is_not_kept_and_sends_who_follows_to_compute() {
        let cache = cache(CONFIG);
        let (compute, ticket) = oneshot::channel();
        let mine = lead(&cache, 1).fly(ticket);
        let flight = follow(&cache, 1);
        assert!(compute.send(Err(RowError::Expired)).is_ok());
        assert!(matches!(mine.await, Ok(Err(RowError::Expired))));
        assert_eq!(landed(flight, None).await, Ok(None));
        // A leader that never got into the queue, too.
        let leader = lead(&cache, 2);
        let flight = follow(&cache, 2);
        drop(leader);
        assert_eq!(landed(flight, None).await, Ok(None));
        assert!(cache.get(&key(1)).is_none() && cache.get(&key(2)).is_none());
    }

    #[tokio::test]
    async fn nobody_waits_behind_a_lower_class_or_past_its_deadline() {
        let cache = cache(CONFIG);
        let (_compute, ticket) = oneshot::channel();
        let _mine = lead(&cache, 1).fly(ticket);
        let past = Instant::now();
        assert_eq!(landed(follow(&cache, 1), Some(past)).await, Err(Late));
        assert!(matches!(cache.turn(key(1), Priority::Low, true), Turn::Follow(_)));
        assert!(matches!(cache.turn(key(1), Priority::Normal, false), Turn::Alone));
        let Turn::Lead(leader) = cache.turn(key(1), Priority::High, true) else { panic!("it waits behind another") };
        assert!(matches!(cache.turn(key(1), Priority::High, true), Turn::Follow(_)));
        leader.land(answer(1, 4));
        assert!(matches!(cache.turn(key(1), Priority::Low, true), Turn::Hit(_)));
    }
}
