//! Who may ask what: API keys with scopes, tenants and rates, from a file that is read again when it changes.
//!
//! The file holds SHA-256 digests of keys, never keys: a key is 256 random bits, so its digest cannot be searched for, and a table by
//! digest compares nothing byte by byte. A request brings its key as `Authorization: Bearer KEY`, as the password of `Authorization:
//! Basic` (MLflow's clients and browsers), or as `x-api-key` or `api-key` (clients of Azure's flavour of the OpenAI protocol).

mod shared;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use governor::clock::{Clock as _, DefaultClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::{Kind, Problem, ServiceError};

pub use shared::{METER, RateKeeper, WantedRate};

use shared::{SharedRate, Sharing};

/// Largest access file, in bytes.
pub const MAX_FILE_BYTES: u64 = 4 << 20;

/// Longest name of servers that share rates, in bytes.
const MAX_POOL_BYTES: usize = 200;

/// Longest key a request may bring, in bytes.
const MAX_KEY_BYTES: usize = 512;

/// How every key begins, so that scanners for secrets know one when they see it.
pub const KEY_PREFIX: &str = "hr_";

const REFUSED: &str = "highroad_access_refused_total";

/// What a key may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Scope {
    /// Ask models.
    Infer,
    /// Read status, metrics and the request log.
    Observe,
    /// Read and write runs, artifacts and the registry, but move nothing that production follows.
    Track,
    /// Move production: aliases, promotion, rollback, rollouts.
    Deploy,
}

impl Scope {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Infer, Self::Observe, Self::Track, Self::Deploy];

    /// Its name in the access file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Infer => "infer",
            Self::Observe => "observe",
            Self::Track => "track",
            Self::Deploy => "deploy",
        }
    }
}

/// How urgent a request may be; a higher class goes before a lower one where both wait for a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Priority {
    Low,
    Normal,
    High,
}

impl Priority {
    /// The class of that name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Low, Self::Normal, Self::High].into_iter().find(|class| class.name() == name)
    }

    /// Its name in headers and the access file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
        }
    }
}

/// What a path asks of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Nothing: probes.
    Nothing,
    /// Any key that is known.
    AnyKey,
    /// A key with this scope.
    Scope(Scope),
}

/// What each path of a server needs.
pub type Rules = fn(&Method, &str) -> Needs;

/// The access file, `access.toml`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AccessFile {
    /// Keys by the name that logs and metrics use.
    pub keys: BTreeMap<String, KeyEntry>,
    /// What all keys of a tenant share.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tenants: BTreeMap<String, TenantEntry>,
    /// How rates are kept.
    #[serde(skip_serializing_if = "is_default")]
    pub rates: Rates,
    /// What pages of other origins may do.
    #[serde(skip_serializing_if = "is_default")]
    pub cors: Cors,
}

/// How rates are kept.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rates {
    /// The servers that keep rates together, by a name of theirs; each keeps its own unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared: Option<String>,
}

/// One key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyEntry {
    /// SHA-256 of the key, 64 hex digits.
    pub sha256: String,
    /// Whose it is; the key's own name unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// What it may do.
    pub scopes: BTreeSet<Scope>,
    /// The members it may ask; all unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub members: Option<BTreeSet<String>>,
    /// Most requests a minute; a minute's worth may come at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<NonZeroU32>,
    /// The highest class its requests may ask; what asks more gets this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    /// When it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<jiff::Timestamp>,
}

/// What all keys of one tenant share.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantEntry {
    /// Most requests a minute over all its keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<NonZeroU32>,
}

/// Which pages may call from a browser.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cors {
    /// Origins, as `https://app.example.com`.
    #[serde(default)]
    pub origins: BTreeSet<String>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// The key's name.
    pub key: String,
    /// The key's tenant.
    pub tenant: String,
    scopes: Arc<BTreeSet<Scope>>,
    /// The highest class it may ask.
    pub priority: Priority,
    members: Option<Arc<BTreeSet<String>>>,
    /// Whether it sees what other tenants asked.
    sees_all: bool,
}

tokio::task_local! {
    static PRINCIPAL: Principal;
}

impl Principal {
    /// Who asks in the request that this task answers; `None` outside of requests and where no keys are asked for.
    ///
    /// Kept with the task and not handed down, so that no handler can forget to ask.
    pub fn current() -> Option<Self> {
        PRINCIPAL.try_with(Clone::clone).ok()
    }

    /// Whether the request that this task answers may ask `member`.
    pub fn current_may_ask(member: &str) -> bool {
        PRINCIPAL.try_with(|principal| principal.may_ask(member)).unwrap_or(true)
    }

    /// Whether the request that this task answers may ask every member; yes where it answers none, or where no keys are asked for.
    pub fn current_may_ask_all() -> bool {
        PRINCIPAL.try_with(|principal| principal.members.is_none()).unwrap_or(true)
    }

    /// Whether it may see a request of `tenant`: its own tenant's. Of any tenant, and of what came before keys were asked for, where it may
    /// move production, or where its tenant has no key that asks models, and so watches over others.
    pub fn may_see(&self, tenant: Option<&str>) -> bool {
        self.sees_all || tenant == Some(self.tenant.as_str())
    }

    /// Does `work` for the request that this task answers with every member, because what was asked for is theirs together.
    pub async fn with_all_members<T>(work: impl Future<Output = T>) -> T {
        match Self::current() {
            None => work.await,
            Some(principal) => PRINCIPAL.scope(Self { members: None, ..principal }, work).await,
        }
    }

    /// What it may do.
    pub fn scopes(&self) -> &BTreeSet<Scope> {
        &self.scopes
    }

    /// The members it may ask; `None` for all.
    pub fn members(&self) -> Option<&BTreeSet<String>> {
        self.members.as_deref()
    }

    /// Whether it may ask `member`.
    pub fn may_ask(&self, member: &str) -> bool {
        self.members.as_ref().is_none_or(|members| members.contains(member))
    }
}

/// The guard of a server. Cheap to clone; all clones follow the file.
#[derive(Clone)]
pub struct Access {
    file: Arc<Watched>,
    rules: Rules,
}

struct Watched {
    path: PathBuf,
    table: ArcSwap<Table>,
    stamp: std::sync::Mutex<Option<Stamp>>,
    /// A key of this process alone, with every scope.
    own: Option<String>,
    /// Who keeps the whole of shared rates, where this process asks for parts.
    sharing: OnceLock<Sharing>,
}

type Stamp = (SystemTime, u64);

#[derive(Default)]
struct Table {
    keys: HashMap<[u8; 32], Key>,
    /// By the names of keys and of tenants, so that a file read again goes on where the last one was: saving it fills no bucket.
    key_limits: Limits,
    tenant_limits: Limits,
    origins: BTreeSet<String>,
    pool: Option<String>,
}

type Limits = HashMap<String, Arc<Limit>>;

struct Key {
    principal: Principal,
    expires: Option<jiff::Timestamp>,
    limits: Vec<Arc<Limit>>,
}

/// A bucket of one minute's requests that fills evenly (GCRA).
struct Limit {
    per_minute: NonZeroU32,
    limiter: RateLimiter<NotKeyed, InMemoryState, DefaultClock, StateInformationMiddleware>,
    /// What is let through of it together with other servers.
    shared: Option<SharedRate>,
}

impl Limit {
    /// `whose` is `key` or `tenant`.
    fn of(before: &Limits, [whose, name]: [&str; 2], per_minute: NonZeroU32, pool: Option<&str>) -> Arc<Self> {
        let is_same = |limit: &&Arc<Self>| {
            let is_shared_alike = match (&limit.shared, pool) {
                (Some(shared), Some(pool)) => shared.is_of(pool),
                (shared, pool) => shared.is_none() && pool.is_none(),
            };
            limit.per_minute == per_minute && is_shared_alike
        };
        if let Some(limit) = before.get(name).filter(is_same) {
            return Arc::clone(limit);
        }
        let limiter = RateLimiter::direct(Quota::per_minute(per_minute)).with_middleware();
        let shared = pool.map(|pool| SharedRate::new(pool, format!("{whose}:{name}"), per_minute.get().into()));
        Arc::new(Self { per_minute, limiter, shared })
    }

    fn take(&self) -> Result<Allowance, Refusal> {
        match self.limiter.check() {
            Ok(state) => Ok(Allowance { limit: self.per_minute.get(), remaining: state.remaining_burst_capacity() }),
            Err(until) => Err(Refusal::Rate(until.wait_time_from(DefaultClock::default().now()))),
        }
    }
}

/// What is left of the narrowest limit that a request met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Allowance {
    limit: u32,
    remaining: u32,
}

/// A new key: 256 bits of the system's random numbers, told once, and the digest to keep.
pub fn new_key() -> Result<(String, String), ServiceError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| ServiceError::Random { reason: error.to_string() })?;
    let key = format!("{KEY_PREFIX}{}", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes));
    let digest = hex(&digest(&key));
    Ok((key, digest))
}

impl AccessFile {
    /// Reads and checks `path`.
    ///
    /// Errors name the first thing wrong: unreadable, over [`MAX_FILE_BYTES`], not TOML, an unknown key, a digest that is none or is there
    /// twice, a tenant nobody belongs to, an origin that is none.
    pub fn read(path: &Path) -> Result<Self, ServiceError> {
        let fail = |reason: String| ServiceError::Access { path: path.to_owned(), reason };
        let size = std::fs::metadata(path).map_err(|error| fail(error.to_string()))?.len();
        if size > MAX_FILE_BYTES {
            return Err(fail(format!("it has {size} bytes, over the limit of {MAX_FILE_BYTES}")));
        }
        let text = std::fs::read_to_string(path).map_err(|error| fail(error.to_string()))?;
        let file: Self = toml::from_str(&text).map_err(|error| fail(error.to_string()))?;
        file.check().map_err(fail)?;
        Ok(file)
    }

    fn check(&self) -> Result<(), String> {
        let mut seen = HashMap::new();
        for (name, key) in &self.keys {
            if name == OWN {
                return Err(format!("[keys.{OWN}] is the name of a server's key for itself"));
            }
            let digest = key.digest().ok_or_else(|| format!("[keys.{name}] `sha256` is not 64 hex digits"))?;
            if let Some(other) = seen.insert(digest, name) {
                return Err(format!("[keys.{name}] is the same key as [keys.{other}]"));
            }
            if key.scopes.is_empty() {
                return Err(format!("[keys.{name}] has no scope"));
            }
        }
        let tenants: BTreeSet<&str> = self.keys.iter().map(|(name, key)| key.tenant(name)).collect();
        if let Some(name) = self.tenants.keys().find(|name| !tenants.contains(name.as_str())) {
            return Err(format!("[tenants.{name}] has no key"));
        }
        if self.rates.shared.as_ref().is_some_and(|pool| !(1..=MAX_POOL_BYTES).contains(&pool.len())) {
            return Err(format!("[rates] `shared` is a name of 1 to {MAX_POOL_BYTES} bytes"));
        }
        match self.cors.origins.iter().find(|origin| !is_origin(origin)) {
            Some(origin) => Err(format!("[cors] `{origin}` is no origin: write `https://host` or `https://host:port`")),
            None => Ok(()),
        }
    }
}

impl KeyEntry {
    fn digest(&self) -> Option<[u8; 32]> {
        let text = self.sha256.as_bytes();
        let mut digest = [0; 32];
        if text.len() != 64 || !text.is_ascii() {
            return None;
        }
        for (byte, pair) in digest.iter_mut().zip(self.sha256.as_bytes().chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(digest)
    }

    fn tenant<'a>(&'a self, name: &'a str) -> &'a str {
        self.tenant.as_deref().unwrap_or(name)
    }
}

fn is_origin(text: &str) -> bool {
    let Some((scheme, authority)) = text.split_once("://") else { return false };
    matches!(scheme, "http" | "https") && !authority.is_empty() && !authority.contains(['/', '?', '#', '@', ' ', '*'])
}

impl Access {
    /// Guards by the keys of `path`; `rules` says what each path needs.
    ///
    /// `own` is a key of this process, for its requests to itself; it is in no file and has every scope.
    pub fn open(path: &Path, rules: Rules, own: Option<String>) -> Result<Self, ServiceError> {
        let stamp = stamp(path);
        let table = Table::new(AccessFile::read(path)?, own.as_deref(), &Table::default());
        let (path, table) = (path.to_owned(), ArcSwap::from_pointee(table));
        let file = Watched { path, table, stamp: stamp.into(), own, sharing: OnceLock::new() };
        Ok(Self { file: Arc::new(file), rules })
    }

    /// Leases rates that the file says are shared from `keeper`; without one this process keeps its own.
    pub fn share_with(&self, keeper: Arc<dyn RateKeeper>) {
        _ = self.file.sharing.set(Sharing::new(keeper));
    }

    /// The servers that share rates, by their name, where the file says so.
    pub fn pool(&self) -> Option<String> {
        self.file.table.load().pool.clone()
    }

    /// Reads the file again if it has changed. One that cannot be read or is wrong leaves the keys as they were and is told in the log.
    pub fn reload(&self) {
        let now = stamp(&self.file.path);
        {
            let Ok(mut seen) = self.file.stamp.lock() else { return };
            if *seen == now {
                return;
            }
            *seen = now;
        }
        match AccessFile::read(&self.file.path) {
            Ok(file) => {
                let table = Table::new(file, self.file.own.as_deref(), &self.file.table.load());
                tracing::info!(access.keys = table.keys.len(), "Read `{}` again", self.file.path.display());
                self.file.table.store(Arc::new(table));
            }
            Err(error) => tracing::error!("The keys stay as they were: {error}"),
        }
    }

    /// Whether pages of `origin` may call.
    pub fn allows_origin(&self, origin: &str) -> bool {
        self.file.table.load().origins.contains(origin)
    }

    fn admit(&self, method: &Method, path: &str, headers: &HeaderMap) -> Result<Option<Admitted>, Refusal> {
        let needs = (self.rules)(method, path);
        if needs == Needs::Nothing {
            return Ok(None);
        }
        let table = self.file.table.load();
        let offered = offered(headers).ok_or(Refusal::NoKey)?;
        let key = table.keys.get(&digest(&offered)).ok_or(Refusal::UnknownKey)?;
        if key.expires.is_some_and(|expires| expires <= jiff::Timestamp::now()) {
            return Err(Refusal::Expired);
        }
        if let Needs::Scope(scope) = needs
            && !key.principal.scopes.contains(&scope)
        {
            return Err(Refusal::Scope(scope));
        }
        let allowances = key.limits.iter().map(|limit| limit.take()).collect::<Result<Vec<_>, _>>()?;
        let allowance = allowances.into_iter().min_by_key(|allowance| allowance.remaining);
        let shared = key.limits.iter().filter(|limit| limit.shared.is_some()).cloned().collect();
        Ok(Some(Admitted { principal: key.principal.clone(), allowance, shared }))
    }

    /// Counts an admitted request in the rates that are shared. Errors where one is spent.
    async fn count(&self, admitted: &Admitted) -> Result<(), Refusal> {
        let Some(sharing) = self.file.sharing.get() else { return Ok(()) };
        for shared in admitted.shared.iter().filter_map(|limit| limit.shared.as_ref()) {
            shared.take(sharing, jiff::Timestamp::now().as_second()).await.map_err(Refusal::Rate)?;
        }
        Ok(())
    }
}

struct Admitted {
    principal: Principal,
    allowance: Option<Allowance>,
    /// Rates that other servers count too.
    shared: Vec<Arc<Limit>>,
}

#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    NoKey,
    UnknownKey,
    Expired,
    Scope(Scope),
    Rate(Duration),
}

impl Refusal {
    fn reason(&self) -> &'static str {
        match self {
            Self::NoKey => "no_key",
            Self::UnknownKey => "unknown_key",
            Self::Expired => "expired",
            Self::Scope(_) => "scope",
            Self::Rate(_) => "rate",
        }
    }

    fn problem(&self) -> Problem {
        match self {
            Self::NoKey => Problem::new(Kind::Unauthenticated, "an API key is needed: `Authorization: Bearer KEY`"),
            Self::UnknownKey => Problem::new(Kind::Unauthenticated, "this API key is not known here"),
            Self::Expired => Problem::new(Kind::Unauthenticated, "this API key has expired"),
            Self::Scope(scope) => {
                Problem::new(Kind::Forbidden, format!("this API key has no scope `{}`, which this needs", scope.name()))
            }
            Self::Rate(wait) => Problem::new(Kind::Overloaded, "too many requests with this API key or of its tenant")
                .retry_after(*wait),
        }
    }
}

impl Table {
    fn new(file: AccessFile, own: Option<&str>, before: &Self) -> Self {
        let mut table = Self { origins: file.cors.origins, pool: file.rates.shared, ..Self::default() };
        for (name, tenant) in file.tenants {
            if let Some(rate) = tenant.requests_per_minute {
                let limit = Limit::of(&before.tenant_limits, ["tenant", &name], rate, table.pool.as_deref());
                table.tenant_limits.insert(name, limit);
            }
        }
        let asks = |(_, entry): &(&String, &KeyEntry)| entry.scopes.contains(&Scope::Infer);
        let asking = file.keys.iter().filter(asks).map(|(name, entry)| entry.tenant(name).to_owned());
        let asking: BTreeSet<String> = asking.collect();
        for (name, entry) in file.keys {
            let sees_all = entry.scopes.contains(&Scope::Deploy) || !asking.contains(entry.tenant(&name));
            table.add(name, entry, sees_all, &before.key_limits);
        }
        if let Some(own) = own {
            let scopes = Arc::new(Scope::ALL.into());
            let (key, tenant) = (OWN.to_owned(), OWN.to_owned());
            let principal = Principal { key, tenant, scopes, priority: Priority::High, members: None, sees_all: true };
            table.keys.insert(digest(own), Key { principal, expires: None, limits: Vec::new() });
        }
        table
    }

    fn add(&mut self, name: String, entry: KeyEntry, sees_all: bool, before: &Limits) {
        let Some(digest) = entry.digest() else { return };
        if let Some(rate) = entry.requests_per_minute {
            let limit = Limit::of(before, ["key", &name], rate, self.pool.as_deref());
            self.key_limits.insert(name.clone(), limit);
        }
        let tenant = entry.tenant(&name).to_owned();
        let limits = self.key_limits.get(&name).into_iter().chain(self.tenant_limits.get(&tenant)).cloned().collect();
        let (scopes, members) = (Arc::new(entry.scopes), entry.members.map(Arc::new));
        let priority = entry.priority.unwrap_or(Priority::High);
        let principal = Principal { key: name, tenant, scopes, priority, members, sees_all };
        self.keys.insert(digest, Key { principal, expires: entry.expires, limits });
    }
}

/// The name of the key that a process has for itself.
const OWN: &str = "this-process";

fn digest(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn stamp(path: &Path) -> Option<Stamp> {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.modified().ok()?, meta.len()))
}

/// The key that a request brings.
fn offered(headers: &HeaderMap) -> Option<String> {
    let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let own = [HeaderName::from_static("x-api-key"), HeaderName::from_static("api-key")];
    let key = match text(&header::AUTHORIZATION).and_then(|value| value.split_once(' ')) {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Some(token.trim().to_owned()),
        Some((scheme, pair)) if scheme.eq_ignore_ascii_case("basic") => password(pair.trim()),
        _ => own.iter().find_map(text).map(|key| key.trim().to_owned()),
    };
    key.filter(|key| (1..=MAX_KEY_BYTES).contains(&key.len()))
}

fn password(pair: &str) -> Option<String> {
    if pair.len() > 2 * MAX_KEY_BYTES {
        return None;
    }
    let pair = String::from_utf8(STANDARD.decode(pair).ok()?).ok()?;
    pair.split_once(':').map(|(_, password)| password.to_owned())
}

/// What the guard's middleware knows.
#[derive(Clone)]
pub(crate) struct Guard {
    pub access: Access,
    pub shape: ErrorShape,
}

/// The body of a refusal, in the shape of the protocol that `path` belongs to.
pub type ErrorShape = fn(&str, &Problem) -> Value;

/// Lets through who may, with a [`Principal`]; others get 401, 403 or 429.
pub(crate) async fn guard(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let admitted = match guard.access.admit(request.method(), path, request.headers()) {
        Ok(Some(admitted)) => guard.access.count(&admitted).await.map(|()| Some(admitted)),
        unlimited => unlimited,
    };
    let admitted = match admitted {
        Ok(admitted) => admitted,
        Err(refusal) => {
            metrics::counter!(REFUSED, "reason" => refusal.reason()).increment(1);
            let browser = request.headers().get(header::ACCEPT).is_some_and(|accept| contains(accept, "text/html"));
            return refused(&refusal, |problem| (guard.shape)(path, problem), browser);
        }
    };
    let Some(Admitted { principal, allowance, .. }) = admitted else { return next.run(request).await };
    let mut response = PRINCIPAL.scope(principal, next.run(request)).await;
    if let Some(allowance) = allowance {
        response.headers_mut().insert("x-ratelimit-limit-requests", allowance.limit.into());
        response.headers_mut().insert("x-ratelimit-remaining-requests", allowance.remaining.into());
    }
    response
}

fn contains(value: &HeaderValue, part: &str) -> bool {
    value.to_str().is_ok_and(|text| text.contains(part))
}

/// A browser is told to ask for the key; programs would only be confused by a prompt.
fn refused(refusal: &Refusal, shape: impl FnOnce(&Problem) -> Value, browser: bool) -> Response {
    let problem = refusal.problem();
    let mut response = problem.respond(shape);
    if problem.kind == Kind::Unauthenticated {
        let scheme = if browser { "Basic realm=\"highroad\", charset=\"UTF-8\"" } else { "Bearer" };
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(scheme));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(_: &Method, path: &str) -> Needs {
        match path {
            "/health" => Needs::Nothing,
            "/docs" => Needs::AnyKey,
            "/promote" => Needs::Scope(Scope::Deploy),
            _ => Needs::Scope(Scope::Infer),
        }
    }

    struct Rig {
        dir: tempfile::TempDir,
        key: String,
    }

    impl Rig {
        fn new(more: &str) -> Self {
            let (key, sha256) = new_key().unwrap();
            let rig = Self { dir: tempfile::tempdir().unwrap(), key };
            rig.write(&format!("[keys.web]\nsha256 = \"{sha256}\"\nscopes = [\"infer\"]\n{more}"));
            rig
        }

        fn write(&self, text: &str) {
            std::fs::write(self.path(), text).unwrap();
        }

        fn path(&self) -> PathBuf {
            self.dir.path().join("access.toml")
        }

        fn access(&self) -> Access {
            Access::open(&self.path(), rules, Some("hr_own".to_owned())).unwrap()
        }
    }

    fn ask(access: &Access, path: &str, name: &str, value: &str) -> Result<Option<Principal>, Refusal> {
        let headers =
            HeaderMap::from_iter([(HeaderName::try_from(name).unwrap(), HeaderValue::from_str(value).unwrap())]);
        Ok(access.admit(&Method::POST, path, &headers)?.map(|admitted| admitted.principal))
    }

    fn bearer(access: &Access, path: &str, key: &str) -> Result<Option<Principal>, Refusal> {
        ask(access, path, "authorization", &format!("Bearer {key}"))
    }

    #[test]
    fn a_key_is_known_however_a_client_brings_it() {
        let rig = Rig::new("");
        let access = rig.access();
        let basic = STANDARD.encode(format!("anyone:{}", rig.key));
        for (name, value) in [
            ("authorization", format!("Bearer {}", rig.key)),
            ("authorization", format!("bearer {}", rig.key)),
            ("authorization", format!("Basic {basic}")),
            ("x-api-key", rig.key.clone()),
            ("api-key", rig.key.clone()),
        ] {
            assert_eq!(ask(&access, "/v1/embeddings", name, &value).unwrap().unwrap().key, "web", "{name}");
        }
        for (name, value) in [
            ("authorization", "Bearer hr_wrong".to_owned()),
            ("authorization", format!("Bearer {}", rig.key.to_uppercase())),
            ("authorization", "Basic !!!".to_owned()),
            ("authorization", "Bearer".to_owned()),
            ("x-api-key", "a".repeat(10_000)),
            ("cookie", rig.key.clone()),
        ] {
            assert!(ask(&access, "/v1/embeddings", name, &value).is_err(), "{name}: {value}");
        }
    }

    #[test]
    fn probes_need_no_key_and_all_else_one_with_its_scope() {
        let rig = Rig::new("");
        let access = rig.access();
        assert_eq!(ask(&access, "/health", "accept", "*/*"), Ok(None));
        assert_eq!(ask(&access, "/docs", "accept", "*/*"), Err(Refusal::NoKey));
        assert!(bearer(&access, "/docs", &rig.key).is_ok());
        assert_eq!(bearer(&access, "/promote", &rig.key), Err(Refusal::Scope(Scope::Deploy)));
        assert_eq!(bearer(&access, "/promote", "hr_own").unwrap().unwrap().key, OWN);
    }

    #[test]
    fn an_expired_key_is_refused_and_members_are_those_named() {
        let rig = Rig::new("expires = \"2020-01-01T00:00:00Z\"");
        assert_eq!(bearer(&rig.access(), "/ask", &rig.key), Err(Refusal::Expired));
        let rig = Rig::new("members = [\"router\"]");
        let principal = bearer(&rig.access(), "/ask", &rig.key).unwrap().unwrap();
        assert!(principal.may_ask("router") && !principal.may_ask("other"));
    }

    #[test]
    fn a_key_sees_the_requests_of_its_tenant_and_who_watches_or_deploys_those_of_all() {
        let entry = |name: &str, tenant: &str, scopes: &str| {
            let (key, sha256) = new_key().unwrap();
            (key, format!("[keys.{name}]\nsha256 = \"{sha256}\"\nscopes = [{scopes}]\ntenant = \"{tenant}\"\n"))
        };
        let (acme, first) = entry("acme", "acme", "\"infer\", \"observe\"");
        let (board, second) = entry("board", "acme", "\"observe\"");
        let (watcher, third) = entry("watcher", "ops", "\"observe\"");
        let (release, fourth) = entry("release", "acme", "\"infer\", \"deploy\"");
        let rig = Rig::new(&[first, second, third, fourth].concat());
        let access = rig.access();
        for (key, path, others) in
            [(&acme, "/ask", false), (&board, "/docs", false), (&watcher, "/docs", true), (&release, "/ask", true)]
        {
            let principal = bearer(&access, path, key).unwrap().unwrap();
            assert_eq!(principal.may_see(Some("acme")), others || principal.tenant == "acme", "{principal:?}");
            assert_eq!([principal.may_see(Some("beta")), principal.may_see(None)], [others; 2], "{principal:?}");
        }
    }

    #[test]
    fn a_rate_is_kept_over_an_edit_and_shared_by_a_tenants_keys() {
        let (second, sha256) = new_key().unwrap();
        let rest = |rate: u32| {
            format!(
                "tenant = \"acme\"\n[keys.two]\nsha256 = \"{sha256}\"\nscopes = [\"infer\"]\ntenant = \"acme\"\n[tenants.acme]\nrequests_per_minute = {rate}\n"
            )
        };
        let rig = Rig::new(&rest(2));
        let access = rig.access();
        assert!(bearer(&access, "/ask", &rig.key).is_ok() && bearer(&access, "/ask", &second).is_ok());
        let Err(Refusal::Rate(wait)) = bearer(&access, "/ask", &second) else { panic!("not refused") };
        assert!(wait <= Duration::from_secs(30), "{wait:?}");
        let text = std::fs::read_to_string(rig.path()).unwrap();
        rig.write(&format!("# again\n{text}"));
        access.reload();
        assert!(matches!(bearer(&access, "/ask", &rig.key), Err(Refusal::Rate(_))));
        rig.write(&text.replace("= 2", "= 200"));
        access.reload();
        assert!(bearer(&access, "/ask", &rig.key).is_ok());
    }

    #[test]
    fn a_wrong_edit_leaves_the_keys_as_they_were() {
        let rig = Rig::new("");
        let access = rig.access();
        for wrong in
            ["", "[keys", "[keys.a]\nsha256 = \"00\"\nscopes = [\"infer\"]", "[cors]\norigins = [\"*\"]", "colour = 1"]
        {
            rig.write(wrong);
            access.reload();
            assert_eq!(bearer(&access, "/ask", &rig.key).is_ok(), !wrong.is_empty(), "{wrong}");
            if wrong.is_empty() {
                // A file without keys is a valid one that lets nobody in.
                let sha256 = hex(&digest(&rig.key));
                rig.write(&format!("# back\n[keys.web]\nsha256 = \"{sha256}\"\nscopes = [\"infer\"]\n"));
                access.reload();
            }
        }
    }
}
