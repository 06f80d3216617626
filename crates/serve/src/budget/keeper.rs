//! A ledger that survives: a journal that is only added to, and from time to time a snapshot in its place.
//!
//! Every line carries a checksum and a number. A crash can cut the last line off, which is then left out; any other line that does not
//! fit is damage, and the server does not start on it. A thread of its own writes. What costs money waits until its reservation is
//! written; tokens of our own models do not wait.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use highroad_package::Digest;
use highroad_service::access::Principal;
use metrics::counter;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Number;
use tokio::sync::oneshot;

use super::shared::{Granted, Held, LEASE_TIMEOUT, Leases, Sharing, Wanted};
use super::{
    Amount, Books, BudgetsConfig, Course, Entry, HISTORY_DAYS, Ledger, Meter, Most, Payer, Refused, Scope, courses_of,
    first_day, spent,
};
use crate::error::AskError;
use crate::telemetry::{BUDGET_LOST, BUDGET_REFUSED};

const JOURNAL: &str = "journal.log";
const SNAPSHOT: &str = "snapshot.json";
const LOCK: &str = "lock";
/// Size at which a snapshot takes the journal's place.
const JOURNAL_BYTES: u64 = 4 << 20;
/// Largest files that are read.
const MAX_FILE_BYTES: u64 = 1 << 30;
/// Entries that may wait for the disk.
const WAITING: usize = 16 << 10;
/// How much a power cut can lose; what a killed process wrote is safe at once.
const SYNC_EVERY: Duration = Duration::from_secs(1);
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// Why budgets cannot be kept.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum BudgetError {
    #[error("cannot keep budgets in `{}`: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("another process keeps the budgets in `{}`", path.display())]
    Locked { path: PathBuf },
    #[error(
        "`{}` is damaged ({reason}), so nobody knows what was spent\nhint: moved away, all budgets begin at nothing again", path.display()
    )]
    Damaged { path: PathBuf, reason: String },
}

/// The budgets of a process. Clones are cheap and share them.
#[derive(Clone)]
pub struct Budgets {
    shared: Arc<Shared>,
    to_writer: SyncSender<Message>,
}

struct Shared {
    state: Mutex<State>,
    sharing: Option<Sharing>,
}

struct State {
    ledger: Ledger,
    /// Number of the last entry.
    seq: u64,
    /// Entries were not written; a snapshot makes that good.
    lost: bool,
}

enum Message {
    Entry { line: String, written: Option<oneshot::Sender<bool>> },
    Flush(SyncSender<()>),
}

#[derive(Serialize, Deserialize)]
struct Line {
    seq: u64,
    entry: Entry,
}

#[derive(Default, Serialize, Deserialize)]
struct Snapshot {
    highroad_budgets: u32,
    seq: u64,
    books: Books,
}

/// What a request may take, set aside. Dropped unsettled it counts as whatever [`Hold::on_drop`] said last, at first as nothing.
pub struct Hold {
    budgets: Budgets,
    id: u64,
    on_drop: Amount,
}

tokio::task_local! {
    static CURRENT: Budgets;
    /// The pipeline that asks now.
    static PIPELINE: String;
}

impl Budgets {
    /// The budgets kept in `dir`, which is made if needed. Errors if it cannot be written, belongs to another process, or what was spent
    /// cannot be read.
    pub fn open(dir: &Path, config: BudgetsConfig) -> Result<Self, BudgetError> {
        Self::open_shared(dir, config, None)
    }

    /// [`Budgets::open`] of budgets that are shared, where the file names a pool and `keeper` keeps it. [`Budgets::tend_leases`] has to
    /// run beside it.
    pub fn open_shared(
        dir: &Path,
        config: BudgetsConfig,
        keeper: Option<Arc<dyn Leases>>,
    ) -> Result<Self, BudgetError> {
        let io = |source| BudgetError::Io { path: dir.to_owned(), source };
        fs::create_dir_all(dir).map_err(io)?;
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(dir.join(LOCK)).map_err(io)?;
        lock.try_lock().map_err(|error| match error {
            fs::TryLockError::WouldBlock => BudgetError::Locked { path: dir.to_owned() },
            fs::TryLockError::Error(source) => io(source),
        })?;
        let (mut books, seq) = read(dir)?;
        let n_cut_off = books.close_all(now());
        if n_cut_off > 0 {
            tracing::warn!("{n_cut_off} requests were cut off when the server last ended; they count at their dearest");
        }
        let pool = config.shared.clone().zip(keeper);
        let sharing = pool.map(|(pool, keeper)| Sharing::open(dir, pool, keeper)).transpose().map_err(io)?;
        let ledger = Ledger::new(config, books);
        let (ledger, sharing) = match sharing {
            Some((sharing, held)) => (ledger.sharing(held), Some(sharing)),
            None => (ledger, None),
        };
        let state = State { ledger, seq, lost: false };
        let shared = Arc::new(Shared { state: Mutex::new(state), sharing });
        let (to_writer, messages) = sync_channel(WAITING);
        let mut writer = Writer::new(dir, Arc::clone(&shared), lock).map_err(io)?;
        writer.snapshot().map_err(io)?;
        std::thread::Builder::new().name("budgets".to_owned()).spawn(move || writer.run(&messages)).map_err(io)?;
        Ok(Self { shared, to_writer })
    }

    /// Runs `future` so that [`hold_here`] in it counts here.
    pub async fn scope<F: Future>(self, future: F) -> F::Output {
        CURRENT.scope(self, future).await
    }

    /// Sets aside `most` for a request to `member` by whoever asks now. Of shared budgets what is held here has to suffice.
    pub fn hold(&self, member: &str, most: Most) -> Result<Hold, AskError> {
        self.reserve(member, most, None)
    }

    /// [`Budgets::hold`], after more was leased where that is needed.
    pub async fn hold_leased(&self, member: &str, most: Most) -> Result<Hold, AskError> {
        self.lease_for(member, most).await;
        self.hold(member, most)
    }

    /// Leases what a request may take where too little is held.
    async fn lease_for(&self, member: &str, most: Most) {
        let Some(sharing) = &self.shared.sharing else { return };
        let payer = payer(member);
        let fits = self.shared.lock().ledger.fits(now(), &payer, most);
        if fits || sharing.was_denied(&payer) {
            return;
        }
        // Where the keeper is away, what is held decides.
        let _told = tokio::time::timeout(LEASE_TIMEOUT, self.lease(Some((&payer, most)))).await;
        if !self.shared.lock().ledger.fits(now(), &payer, most) {
            sharing.deny(payer);
        }
    }

    /// Makes what is held fit what is used; `asked` is what waits for it. Errors, in words, where the keeper gives no answer.
    async fn lease(&self, asked: Option<(&Payer, Most)>) -> Result<(), String> {
        let Some(sharing) = &self.shared.sharing else { return Ok(()) };
        let _one_at_a_time = sharing.asking.lock().await;
        let wanted = self.shared.lock().wanted(asked);
        if wanted.is_empty() {
            return Ok(());
        }
        let granted = sharing.keeper.lease(&sharing.pool, &sharing.replica, &wanted).await;
        sharing.tell(granted.as_ref().map(|_granted| ()).map_err(String::as_str));
        let granted = granted?;
        let held = self.shared.lock().take(granted);
        if let Err(error) = sharing.write(&held) {
            tracing::warn!("Cannot keep what is leased of shared budgets: {error}");
        }
        Ok(())
    }

    /// Brings what is held of shared budgets near what is used; to be asked every [`LOOK_EVERY`](super::shared::LOOK_EVERY).
    pub async fn tend_leases(&self) {
        // Told where it happened.
        let _told = self.lease(None).await;
        if let Some(sharing) = &self.shared.sharing {
            let now = now();
            sharing.tell_spent(first_day(now), || spent(&self.shared.lock().ledger.courses(now), now)).await;
        }
    }

    /// [`Budgets::hold`] for what costs money: it is written down before this returns. Errors also where it cannot be.
    pub async fn hold_written(&self, member: &str, most: Most) -> Result<Hold, AskError> {
        self.lease_for(member, most).await;
        let (done, written) = oneshot::channel();
        let hold = self.reserve(member, most, Some(done))?;
        match tokio::time::timeout(FLUSH_TIMEOUT, written).await {
            Ok(Ok(true)) => Ok(hold),
            _ => Err(AskError::Unwritable),
        }
    }

    fn reserve(&self, member: &str, most: Most, written: Option<oneshot::Sender<bool>>) -> Result<Hold, AskError> {
        let payer = payer(member);
        let mut state = self.shared.lock();
        let entry = state.ledger.reserve(now(), &payer, most).map_err(refuse)?;
        let Entry::Reserve { id, .. } = entry else { unreachable!("a reservation is one") };
        self.write(&mut state, entry, written);
        Ok(Hold { budgets: self.clone(), id, on_drop: Amount::default() })
    }

    fn settle(&self, id: u64, actual: Amount) {
        let mut state = self.shared.lock();
        if let Some(entry) = state.ledger.settle(now(), id, actual) {
            self.write(&mut state, entry, None);
        }
    }

    // Within the lock, so that the journal has the entries in their order.
    fn write(&self, state: &mut State, entry: Entry, written: Option<oneshot::Sender<bool>>) {
        state.seq += 1;
        if state.lost {
            // A gap in the journal would be damage; the snapshot to come has this entry.
            return counter!(BUDGET_LOST).increment(1);
        }
        let line = seal(&Line { seq: state.seq, entry });
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) =
            self.to_writer.try_send(Message::Entry { line, written })
        {
            state.lost = true;
            counter!(BUDGET_LOST).increment(1);
        }
    }

    /// Waits until everything is in the files, at most a few seconds.
    pub fn flush(&self) {
        let (done, is_done) = sync_channel(1);
        if self.to_writer.send(Message::Flush(done)).is_ok() {
            let _ = is_done.recv_timeout(FLUSH_TIMEOUT);
        }
    }

    /// The currency of the limits of cost.
    pub fn currency(&self) -> Option<String> {
        self.shared.lock().ledger.config().currency.clone()
    }

    /// Counts under other limits from here on; what was spent stays spent, and what is under way is settled.
    pub fn set_config(&self, config: BudgetsConfig) {
        self.shared.lock().ledger.set_config(config);
    }

    /// Where every limit stands.
    pub(crate) fn standings(&self) -> Vec<super::Standing> {
        self.shared.lock().ledger.standings(now())
    }

    /// Every account with its limits and what it has spent; within a request of a key for some members theirs, its own and its tenant's.
    pub fn view(&self) -> BudgetsShown {
        let shown = self.standings().into_iter().filter(|standing| is_shown(standing.scope, &standing.name));
        BudgetsShown { currency: self.currency(), budgets: shown.map(BudgetShown::of).collect() }
    }

    /// What the same accounts spent on each of the last [`HISTORY_DAYS`] days, of those that spent anything. Of shared budgets what all servers
    /// spent, as far as they have told it; where their keeper gives no answer, what this one did.
    pub async fn history(&self) -> Spending {
        let now = now();
        let own = self.shared.lock().ledger.courses(now);
        let all = match &self.shared.sharing {
            Some(sharing) => {
                let asked = sharing.spent(first_day(now), spent(&own, now));
                tokio::time::timeout(LEASE_TIMEOUT, asked).await.ok().and_then(Result::ok)
            }
            None => None,
        };
        let of_all_servers = all.is_some();
        let courses = all.map_or(own, |all| courses_of(all, now));
        let shown = courses.into_iter().filter(|course| is_shown(course.scope, &course.name));
        let accounts = shown.map(|Course { scope, name, days }| AccountSpending {
            scope,
            name,
            cost: days.iter().map(|day| day.nanos as f64 / 1e9).collect(),
            tokens: days.iter().map(|day| day.tokens).collect(),
        });
        Spending { currency: self.currency(), days: days(now), of_all_servers, accounts: accounts.collect() }
    }
}

/// What is spent and what may be.
#[derive(Debug, Default, Serialize, JsonSchema)]
#[schemars(rename = "Budgets")]
pub struct BudgetsShown {
    /// What costs are in.
    currency: Option<String>,
    budgets: Vec<BudgetShown>,
}

/// One limit of one account: costs are in the currency, tokens are counted.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Budget")]
struct BudgetShown {
    scope: Scope,
    /// Of the member, pipeline, tenant or key.
    name: String,
    limit: Meter,
    /// What may be used; nothing where the account has no such limit.
    most: Option<Number>,
    used: Number,
    /// What requests under way may use at most.
    reserved: Number,
    /// When what is used counts from nothing again, RFC 3339 in UTC.
    resets_at: Option<String>,
}

impl BudgetShown {
    fn of(standing: super::Standing) -> Self {
        let number = |value: u64| {
            let cost = standing.meter.is_cost().then(|| Number::from_f64(value as f64 / 1e9)).flatten();
            cost.unwrap_or_else(|| value.into())
        };
        Self {
            scope: standing.scope,
            limit: standing.meter,
            most: standing.most.map(number),
            used: number(standing.used),
            reserved: number(standing.reserved),
            resets_at: jiff::Timestamp::from_second(standing.resets_at).ok().map(|time| time.to_string()),
            name: standing.name,
        }
    }
}

/// What accounts spent on each of the last days, of those that spent anything.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Spending {
    /// What costs are in.
    currency: Option<String>,
    /// The days, as `2026-11-29`, the oldest first; today is the last.
    days: Vec<String>,
    /// Whether it is what all servers spent that share these budgets, as far as they have told it.
    of_all_servers: bool,
    accounts: Vec<AccountSpending>,
}

/// What one account spent on each of the days.
#[derive(Debug, Serialize, JsonSchema)]
struct AccountSpending {
    scope: Scope,
    /// Of the member, pipeline, tenant or key.
    name: String,
    cost: Vec<f64>,
    tokens: Vec<u64>,
}

impl Default for Spending {
    /// Nothing on any of the days.
    fn default() -> Self {
        Self { currency: None, days: days(now()), of_all_servers: false, accounts: Vec::new() }
    }
}

/// A key for some members must not learn of others by what they spend, nor who else asks.
fn is_shown(scope: Scope, name: &str) -> bool {
    let Some(principal) = Principal::current().filter(|principal| principal.members().is_some()) else { return true };
    match scope {
        Scope::Member | Scope::Pipeline => principal.may_ask(name),
        Scope::Tenant => principal.tenant == name,
        Scope::Key => principal.key == name,
    }
}

/// Sets aside `tokens` of a model of our own for the request that this task answers; `None` where nothing is counted.
///
/// Kept with the task and not handed down, so that no route can forget it, and what is no request (a shadow's second answer, a warm-up) is
/// never charged to anybody.
pub async fn hold_here(member: &str, tokens: usize) -> Result<Option<Hold>, AskError> {
    let Ok(budgets) = CURRENT.try_with(Clone::clone) else { return Ok(None) };
    budgets.hold_leased(member, Most { nanos: Some(0), tokens: tokens as u64 }).await.map(Some)
}

/// Who pays for a request to `member` now.
fn payer(member: &str) -> Payer {
    let (tenant, key) = Principal::current().map(|asker| (asker.tenant, asker.key)).unzip();
    Payer { member: member.to_owned(), pipeline: PIPELINE.try_with(Clone::clone).ok(), tenant, key }
}

/// Charges what `asking` takes to the pipeline `name` too.
pub async fn charged_to_pipeline<F: Future>(name: &str, asking: F) -> F::Output {
    PIPELINE.scope(name.to_owned(), asking).await
}

fn refuse(refused: Refused) -> AskError {
    let (scope, meter) = match &refused {
        Refused::Over { scope, meter, .. }
        | Refused::Never { scope, meter, .. }
        | Refused::UnknownPrice { scope, meter, .. } => (*scope, *meter),
    };
    counter!(BUDGET_REFUSED, "scope" => scope.name(), "limit" => Meter::name(meter)).increment(1);
    AskError::Budget(refused)
}

impl Hold {
    /// Counts what the request took.
    pub fn settle(mut self, actual: Amount) {
        self.on_drop = actual;
        drop(self);
    }

    /// Where it is counted.
    pub fn budgets(&self) -> &Budgets {
        &self.budgets
    }

    /// What to count if nothing else is said.
    pub fn on_drop(&mut self, amount: Amount) {
        self.on_drop = amount;
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.budgets.settle(self.id, self.on_drop);
    }
}

impl State {
    /// The parts to ask for. Of those that are to be smaller less is spent from now on: what is given back may be somebody else's at once.
    fn wanted(&mut self, asked: Option<(&Payer, Most)>) -> Vec<Wanted> {
        let wanted = self.ledger.wanted(now(), asked);
        let before = self.ledger.held().cloned().unwrap_or_default();
        let smaller = |wanted: &Wanted| {
            let Wanted { account, meter, since, wants, .. } = wanted.clone();
            Granted { account, meter, since, granted: wants }
        };
        let lowered = wanted.iter().filter(|wanted| before.is_lowered_by(wanted)).map(smaller).collect();
        self.ledger.hold_parts(lowered);
        wanted
    }

    /// Takes in what was granted, and gives all that is held.
    fn take(&mut self, granted: Vec<Granted>) -> Held {
        self.ledger.hold_parts(granted);
        self.ledger.held().cloned().unwrap_or_default()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The last [`HISTORY_DAYS`] days as `2026-11-29`, the oldest first.
fn days(now: i64) -> Vec<String> {
    let today = jiff::Timestamp::from_second(now).unwrap_or_default().to_zoned(jiff::tz::TimeZone::UTC).date();
    let days_ago = (0..HISTORY_DAYS as i64).rev();
    days_ago.map(|n| today.saturating_sub(jiff::Span::new().days(n)).to_string()).collect()
}

fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// A value on a line, behind the first 16 digits of its SHA-256.
fn seal(value: &impl Serialize) -> String {
    let json = serde_json::to_string(value).expect("it is plain data");
    format!("{} {json}\n", &Digest::of(json.as_bytes()).hex()[..16])
}

fn unseal<'a, T: Deserialize<'a>>(line: &'a str) -> Result<T, String> {
    let (check, json) = line.split_once(' ').ok_or("it has no checksum")?;
    if Digest::of(json.as_bytes()).hex()[..16] != *check {
        return Err("its checksum is another".to_owned());
    }
    serde_json::from_str(json).map_err(|error| error.to_string())
}

/// The books in `dir`, and the number of the last entry in them.
fn read(dir: &Path) -> Result<(Books, u64), BudgetError> {
    let path = dir.join(SNAPSHOT);
    let Snapshot { mut books, mut seq, .. } = match text(&path)? {
        None => Snapshot::default(),
        Some(text) => {
            let snapshot: Snapshot = unseal(text.trim_end_matches('\n'))
                .map_err(|reason| BudgetError::Damaged { path: path.clone(), reason })?;
            if snapshot.highroad_budgets != FORMAT {
                let reason = format!("it has format {}, this version reads {FORMAT}", snapshot.highroad_budgets);
                return Err(BudgetError::Damaged { path, reason });
            }
            snapshot
        }
    };
    let path = dir.join(JOURNAL);
    let text = text(&path)?.unwrap_or_default();
    let damaged = |line: usize, reason: String| BudgetError::Damaged {
        path: path.clone(),
        reason: format!("line {}: {reason}", line + 1),
    };
    let mut lines = text.split_inclusive('\n').enumerate().peekable();
    while let Some((number, line)) = lines.next() {
        let is_last = lines.peek().is_none();
        let Line { seq: found, entry } = match unseal(line.trim_end_matches('\n')) {
            Ok(line) => line,
            Err(_) if is_last => {
                tracing::warn!("The last line of `{}` was cut off by a crash and is left out", path.display());
                break;
            }
            Err(reason) => return Err(damaged(number, reason)),
        };
        // A crash between a snapshot and the emptying of the journal leaves lines that the snapshot holds.
        if found <= seq {
            continue;
        }
        if found != seq + 1 {
            return Err(damaged(number, format!("entry {} is missing", seq + 1)));
        }
        books.apply(&entry);
        seq = found;
    }
    Ok((books, seq))
}

const FORMAT: u32 = 1;

fn text(path: &Path) -> Result<Option<String>, BudgetError> {
    let io = |source| BudgetError::Io { path: path.to_owned(), source };
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
        Ok(meta) if meta.len() > MAX_FILE_BYTES => {
            return Err(BudgetError::Damaged { path: path.to_owned(), reason: "it is too large".to_owned() });
        }
        Ok(_) => {}
    }
    let bytes = fs::read(path).map_err(io)?;
    // A line that was cut off may end within a character; it is left out as one that fails its checksum.
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

struct Writer {
    dir: PathBuf,
    shared: Arc<Shared>,
    journal: File,
    n_bytes: u64,
    unsynced: bool,
    /// A line is half written: nothing may follow it, and a snapshot makes it good.
    broken: bool,
    warned: Option<Instant>,
    // Held for as long as the process writes.
    _lock: File,
}

const WARN_EVERY: Duration = Duration::from_secs(30);
/// Entries that are written at once.
const MOST_AT_ONCE: usize = 1024;

impl Writer {
    fn new(dir: &Path, shared: Arc<Shared>, lock: File) -> io::Result<Self> {
        let journal = OpenOptions::new().create(true).append(true).open(dir.join(JOURNAL))?;
        let (n_bytes, unsynced, broken, warned) = (0, false, false, None);
        Ok(Self { dir: dir.to_owned(), shared, journal, n_bytes, unsynced, broken, warned, _lock: lock })
    }

    fn run(mut self, messages: &Receiver<Message>) {
        let mut kept_up = Instant::now();
        loop {
            let mut batch = match messages.recv_timeout(SYNC_EVERY) {
                Ok(message) => vec![message],
                Err(RecvTimeoutError::Timeout) => Vec::new(),
                Err(RecvTimeoutError::Disconnected) => return self.report(Self::upkeep),
            };
            batch.extend(messages.try_iter().take(MOST_AT_ONCE));
            let flushed = self.put(batch);
            if kept_up.elapsed() >= SYNC_EVERY || self.n_bytes > JOURNAL_BYTES || !flushed.is_empty() {
                self.report(Self::upkeep);
                kept_up = Instant::now();
            }
            for done in flushed {
                let _ = done.send(());
            }
        }
    }

    /// Writes what there is, tells who waits for it, and gives back who waits for the disk.
    fn put(&mut self, batch: Vec<Message>) -> Vec<SyncSender<()>> {
        let (mut lines, mut waiting, mut flushes) = (String::new(), Vec::new(), Vec::new());
        for message in batch {
            match message {
                Message::Entry { line, written } => {
                    lines.push_str(&line);
                    waiting.extend(written);
                }
                Message::Flush(done) => flushes.push(done),
            }
        }
        if !lines.is_empty() && !self.broken {
            self.report(|writer| {
                writer.broken = true;
                writer.journal.write_all(lines.as_bytes())?;
                (writer.broken, writer.unsynced) = (false, true);
                writer.n_bytes += lines.len() as u64;
                Ok(())
            });
        }
        for written in waiting {
            let _ = written.send(!self.broken);
        }
        flushes
    }

    fn upkeep(&mut self) -> io::Result<()> {
        if self.broken || self.n_bytes > JOURNAL_BYTES || self.shared.lock().lost {
            return self.snapshot();
        }
        if self.unsynced {
            self.journal.sync_data()?;
            self.unsynced = false;
        }
        Ok(())
    }

    /// Writes the books and empties the journal. Lines that are in both are passed over when they are read.
    fn snapshot(&mut self) -> io::Result<()> {
        let line = {
            let mut state = self.shared.lock();
            state.ledger.tidy(now());
            let line =
                seal(&Snapshot { highroad_budgets: FORMAT, seq: state.seq, books: state.ledger.books().clone() });
            state.lost = false;
            line
        };
        let result = self.replace(&line);
        if result.is_err() {
            self.broken = true;
        }
        result
    }

    fn replace(&mut self, line: &str) -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(&self.dir)?;
        file.write_all(line.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(self.dir.join(SNAPSHOT)).map_err(|error| error.error)?;
        File::open(&self.dir)?.sync_all()?;
        self.journal.set_len(0)?;
        (self.n_bytes, self.unsynced, self.broken) = (0, false, false);
        Ok(())
    }

    // A full disk must not stop our own models; it is told, and what costs money is refused until it is over.
    fn report(&mut self, action: impl FnOnce(&mut Self) -> io::Result<()>) {
        let Err(error) = action(self) else { return };
        counter!(BUDGET_LOST).increment(1);
        if self.warned.is_none_or(|at| at.elapsed() > WARN_EVERY) {
            self.warned = Some(Instant::now());
            tracing::error!(path = %self.dir.display(), "Cannot write the budgets, so nothing that costs money is asked: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> BudgetsConfig {
        let text = "[budgets]\ncurrency = 'EUR'\n[budgets.members.chat]\ncost_per_month = 1\ntokens_per_day = 1000\n";
        BudgetsConfig::parse(&text.parse().unwrap(), &mut Vec::new())
    }

    fn most(tokens: u64) -> Most {
        Most { nanos: Some(tokens * 1000), tokens }
    }

    fn used(budgets: &Budgets) -> Vec<u64> {
        let standings = budgets.shared.lock().ledger.standings(now());
        standings.iter().filter(|standing| standing.meter == Meter::TokensPerDay).map(|s| s.used + s.reserved).collect()
    }

    /// Opens them again as soon as the last writer has let go.
    fn again(dir: &Path) -> Result<Budgets, BudgetError> {
        for _ in 0..500 {
            match Budgets::open(dir, config()) {
                Err(BudgetError::Locked { .. }) => std::thread::sleep(Duration::from_millis(10)),
                opened => return opened,
            }
        }
        panic!("the lock was never let go");
    }

    /// Spends 100 tokens, has 50 under way, and gives what a process that was killed then leaves behind.
    async fn spend(dir: &Path) -> tempfile::TempDir {
        let budgets = again(dir).unwrap();
        assert!(matches!(Budgets::open(dir, config()), Err(BudgetError::Locked { .. })));
        budgets.hold("chat", most(500)).unwrap().settle(Amount { nanos: 0, tokens: 100 });
        let _under_way = budgets.hold_written("chat", most(50)).await.unwrap();
        budgets.flush();
        let left = tempfile::tempdir().unwrap();
        for name in [JOURNAL, SNAPSHOT] {
            fs::copy(dir.join(name), left.path().join(name)).unwrap();
        }
        left
    }

    #[tokio::test]
    async fn what_was_spent_survives_and_what_was_cut_off_counts_at_its_dearest() {
        let mut dir = tempfile::tempdir().unwrap();
        for round in 1..=3 {
            dir = spend(dir.path()).await;
            assert_eq!(used(&again(dir.path()).unwrap()), [150 * round]);
        }
        let budgets = again(dir.path()).unwrap();
        assert!(matches!(budgets.hold("chat", most(600)), Err(AskError::Budget(Refused::Over { .. }))));
        assert_eq!(budgets.view().budgets[0].name, "chat");
    }

    #[tokio::test]
    async fn a_line_cut_off_is_left_out_and_any_other_damage_is_told() {
        let dir = spend(tempfile::tempdir().unwrap().path()).await;
        let journal = dir.path().join(JOURNAL);
        let text = fs::read_to_string(&journal).unwrap();
        let snapshot = fs::read(dir.path().join(SNAPSHOT)).unwrap();
        let lines: Vec<&str> = text.split_inclusive('\n').collect();
        assert_eq!(lines.len(), 3, "two reservations and a settlement: {text}");
        let with = |content: &str| {
            fs::write(&journal, content).unwrap();
            fs::write(dir.path().join(SNAPSHOT), &snapshot).unwrap();
            again(dir.path()).map(|budgets| used(&budgets)).map_err(|error| error.to_string())
        };
        assert_eq!(with(&text), Ok(vec![150]));
        assert_eq!(with(&text[..text.len() - 20]), Ok(vec![100]));
        assert!(
            with(&text.replace("\"tokens\":500", "\"tokens\":400"))
                .unwrap_err()
                .contains("line 1: its checksum is another")
        );
        assert!(with(&[lines[0], lines[2]].concat()).unwrap_err().contains("entry 2 is missing"));
        assert!(with(&format!("?{text}")).unwrap_err().contains("nobody knows what was spent"));
        fs::write(dir.path().join(SNAPSHOT), "{}").unwrap();
        assert!(again(dir.path()).is_err());
    }

    #[tokio::test]
    async fn what_costs_money_is_refused_while_the_disk_takes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let budgets = again(dir.path()).unwrap();
        budgets.shared.lock().lost = true;
        assert!(matches!(budgets.hold_written("chat", most(1)).await, Err(AskError::Unwritable)));
        assert!(budgets.hold("chat", most(1)).is_ok(), "tokens of our own models are counted in memory");
        budgets.flush();
        assert!(budgets.hold_written("chat", most(1)).await.is_ok(), "a snapshot has made it good");
    }
}
