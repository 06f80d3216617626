//! Monitoring: whether what members are asked, and what they answer, is as in their package's baseline; and, where right answers come
//! later, how often they are right.
//!
//! One input of each request is looked at by a thread of its own, past the answer; a queue that is full drops it and counts it. What is
//! kept are counts in bins that the baseline fixes: kilobytes, whatever the traffic, and no text.

mod book;
mod config;
mod finding;
mod labels;
mod panes;
mod report;
mod watch;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, Thread};
use std::time::Duration;

use highroad_package::{Baselines, Digest};
use metrics::{counter, gauge};
use tracing::{error, info, warn};

pub use config::MonitorConfig;
pub(crate) use config::{MONITOR_KEYS, MonitorTable};
pub use finding::{Finding, FindingKind};
pub use labels::{Given, LabelOutcome, Labelled, MAX_LABELS_AT_ONCE};
pub use report::{MemberReport, Quality, Series, SignalReport, State};
pub(crate) use watch::{Seen, Watch};

use crate::monitor::book::Book;
use crate::monitor::labels::Labels;
use crate::request_log::Record;
use crate::telemetry::{
    MONITOR_ACCURACY, MONITOR_DRIFTED, MONITOR_DROPPED, MONITOR_EFFECT, MONITOR_LABELS, MONITOR_VIOLATIONS,
};

/// Observations that may wait to be counted.
const QUEUE: usize = 4096;
/// How long observations gather before they are counted: a thread that woke for each would take its turn on the core from the requests.
const GATHER: Duration = Duration::from_millis(50);
/// How often books are looked through when nothing comes.
const TICK: Duration = Duration::from_millis(500);
/// Most books of one member that are kept in memory: of what serves, of a candidate, of what served before.
const MAX_BOOKS: usize = 8;

/// The monitoring of one serving process.
pub struct Monitor {
    dir: PathBuf,
    baselines: Baselines,
    members: Mutex<BTreeMap<String, Arc<Member>>>,
    worker: OnceLock<Worker>,
}

/// The way to the thread that counts, and the thread, if it could be started.
struct Worker {
    sender: SyncSender<Message>,
    thread: Option<Thread>,
}

enum Message {
    Seen(Box<Seen>),
    /// Write everything down, then say so.
    Flush(SyncSender<()>),
}

/// The monitoring of one member.
pub(crate) struct Member {
    name: String,
    /// May change with the portfolio.
    config: Mutex<MonitorConfig>,
    dir: PathBuf,
    baselines: Baselines,
    /// What serves last.
    books: Mutex<Vec<Arc<Mutex<Book>>>>,
    labels: Mutex<Labels>,
    /// Findings that were told in the log, by id.
    told: Mutex<BTreeMap<String, Finding>>,
}

impl Monitor {
    /// Keeps its state in `dir`, and finds baselines in `baselines`. Nothing is written before something is seen.
    pub fn new(dir: PathBuf, baselines: Baselines) -> Arc<Self> {
        Arc::new(Self { dir, baselines, members: Mutex::default(), worker: OnceLock::new() })
    }

    /// The monitoring as it was last written in `dir`, to be read only.
    pub fn left_in(dir: PathBuf, baselines: Baselines, config: &MonitorConfig) -> Arc<Self> {
        let monitor = Self::new(dir, baselines);
        let entries = std::fs::read_dir(&monitor.dir).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        for name in names.filter(|name| crate::config::is_member_name(name)) {
            let files = std::fs::read_dir(monitor.dir.join(&name)).into_iter().flatten().flatten();
            let mut files: Vec<_> = files
                .filter(|file| file.path().extension().is_some_and(|extension| extension == "json"))
                .filter_map(|file| Some((file.metadata().ok()?.modified().ok()?, file.path())))
                .collect();
            files.sort();
            for (version, package, pane_s) in files.iter().filter_map(|(_, path)| book::left_in(path)) {
                let config = MonitorConfig { pane_s, ..config.clone() };
                let member = monitor.member(&name, &config);
                member.open(&version, package);
                member.serves(&version, &package);
            }
        }
        monitor
    }

    /// Begins to watch a version of a member.
    pub(crate) fn watch(
        self: &Arc<Self>,
        member: &str,
        config: &MonitorConfig,
        version: &str,
        package: Digest,
        unknown_id: Option<u32>,
    ) -> Option<Watch> {
        if !config.enabled {
            return None;
        }
        let member = self.member(member, config);
        *lock(&member.config) = config.clone();
        let book = member.open(version, package);
        Some(Watch::new(Arc::clone(self), book, unknown_id))
    }

    /// Has a member's report be about the version that serves from now on.
    pub(crate) fn serves(&self, member: &str, version: &str, package: &Digest) {
        if let Some(member) = self.members().get(member) {
            member.serves(version, package);
        }
    }

    /// Writes down what a member met that is not served any more.
    pub(crate) fn forget(&self, member: &str) {
        let member = self.members().remove(member);
        member.iter().for_each(|member| member.each(Book::save));
    }

    fn member(&self, name: &str, config: &MonitorConfig) -> Arc<Member> {
        let mut members = self.members();
        let new = || {
            let dir = self.dir.join(name);
            let labels = Labels::open(&dir);
            Arc::new(Member {
                name: name.to_owned(),
                config: Mutex::new(config.clone()),
                dir,
                baselines: self.baselines.clone(),
                books: Mutex::default(),
                labels: Mutex::new(labels),
                told: Mutex::default(),
            })
        };
        Arc::clone(members.entry(name.to_owned()).or_insert_with(new))
    }

    /// Hands an observation to the thread that counts; drops and counts it if too many wait.
    pub(crate) fn put(self: &Arc<Self>, seen: Box<Seen>) {
        let worker = self.worker.get_or_init(|| self.start());
        if let Err(TrySendError::Full(Message::Seen(seen)) | TrySendError::Disconnected(Message::Seen(seen))) =
            worker.sender.try_send(Message::Seen(seen))
        {
            seen.dropped();
            counter!(MONITOR_DROPPED).increment(1);
        }
    }

    fn start(self: &Arc<Self>) -> Worker {
        let (sender, messages) = sync_channel(QUEUE);
        // The thread ends with the last sender, which is in the monitor: it must not hold the monitor itself.
        let monitor = Arc::downgrade(self);
        let run = move || {
            while let Some(first) = next(&messages) {
                if first.is_some() {
                    thread::park_timeout(GATHER);
                }
                for message in first.into_iter().chain(messages.try_iter()).take(QUEUE) {
                    match message {
                        Message::Seen(seen) => count(seen),
                        Message::Flush(done) => {
                            monitor.upgrade().iter().for_each(|monitor| monitor.save());
                            let _ = done.send(());
                        }
                    }
                }
                monitor.upgrade().iter().for_each(|monitor| monitor.turn());
            }
        };
        let started = thread::Builder::new().name("monitor".to_owned()).spawn(run);
        let started = started.inspect_err(|error| error!("Nothing is monitored: no thread can be started: {error}"));
        Worker { sender, thread: started.ok().map(|started| started.thread().clone()) }
    }

    /// Ends what is over of every book and writes down what has changed.
    fn turn(&self) {
        let now_s = now_s();
        for member in self.all() {
            if member.turn(now_s) {
                member.tell();
            }
        }
    }

    fn save(&self) {
        for member in self.all() {
            member.each(Book::save);
        }
    }

    /// Waits until everything seen is on the disk, at most a few seconds.
    pub fn flush(&self) {
        let (done, is_done) = sync_channel(1);
        let Some(worker) = self.worker.get() else { return };
        if worker.sender.send(Message::Flush(done)).is_ok() {
            worker.thread.iter().for_each(Thread::unpark);
            let _ = is_done.recv_timeout(Duration::from_secs(5));
        }
    }

    /// Counts a request that `member` was asked in a way it does not take, by kind; of a member that is not watched nothing.
    pub(crate) fn violation(&self, member: &str, kind: &'static str) {
        let Some(member) = self.members().get(member).cloned() else { return };
        counter!(MONITOR_VIOLATIONS, "member" => member.name.clone(), "kind" => kind).increment(1);
        if let Some(book) = member.newest() {
            lock(&book).violation(kind);
        }
    }

    /// How the members stand that `may` lets through, in the order of their names.
    pub fn reports(&self, may: impl Fn(&str) -> bool) -> Vec<MemberReport> {
        self.all().iter().filter(|member| may(&member.name)).filter_map(|member| member.report()).collect()
    }

    /// How every version stands that holds `package`, of all members.
    pub fn reports_of(&self, package: &Digest) -> Vec<MemberReport> {
        let of = |member: &Arc<Member>| {
            let books: Vec<_> = lock(&member.books).clone();
            let book = books.iter().rev().map(|book| lock(book).snapshot()).find(|book| book.package == *package)?;
            Some(member.report_on(&book))
        };
        self.all().iter().filter_map(of).collect()
    }

    /// How one member stands; `None` if it is not watched.
    pub fn report(&self, member: &str) -> Option<MemberReport> {
        self.members().get(member).cloned().and_then(|member| member.report())
    }

    /// Everything that differs now. Ids are stable for as long as it does.
    pub fn findings(&self) -> Vec<Finding> {
        self.reports(|_| true).into_iter().flat_map(|report| report.findings).collect()
    }

    /// What [`Monitor::findings`] said as the last pane ended, without any arithmetic.
    pub(crate) fn last_findings(&self) -> Vec<Finding> {
        self.all().iter().flat_map(|member| lock(&member.told).values().cloned().collect::<Vec<_>>()).collect()
    }

    /// Takes in right answers. `records` are those that the request log has under each id.
    pub fn label(&self, given: &[Given], records: &BTreeMap<String, Vec<Record>>) -> Vec<Labelled> {
        let of = |id: &str| records.get(id).map(Vec::as_slice).unwrap_or_default();
        given.iter().map(|given| self.label_one(given, of(&given.request_id))).collect()
    }

    fn label_one(&self, given: &Given, records: &[Record]) -> Labelled {
        let mut records =
            records.iter().filter(|record| given.member.as_ref().is_none_or(|member| *member == record.member));
        let (record, another) = (records.next(), records.next());
        let member = record.and_then(|record| self.members().get(&record.member).cloned());
        let labelled = match (record, member) {
            _ if another.is_some() => given.answered(LabelOutcome::Ambiguous, None),
            (Some(record), Some(member)) => member.labels().take(given, record),
            (Some(_), None) => given.answered(LabelOutcome::NotWatched, None),
            (None, _) => given.answered(LabelOutcome::Unknown, None),
        };
        let member = record.map_or("unknown".to_owned(), |record| record.member.clone());
        counter!(MONITOR_LABELS, "member" => member, "outcome" => labelled.outcome.word()).increment(1);
        labelled
    }

    fn all(&self) -> Vec<Arc<Member>> {
        self.members().values().cloned().collect()
    }

    fn members(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Member>>> {
        lock(&self.members)
    }
}

/// Counts an observation; a panic loses it alone, and not all that come after.
fn count(seen: Box<Seen>) {
    if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| seen.count())).is_err() {
        counter!(MONITOR_DROPPED).increment(1);
        error!("A request was not looked at: monitoring panicked");
    }
}

/// The next message; `Some(None)` where none came for a while, `None` once there can be no more.
fn next(messages: &Receiver<Message>) -> Option<Option<Message>> {
    match messages.recv_timeout(TICK) {
        Ok(message) => Some(Some(message)),
        Err(RecvTimeoutError::Timeout) => Some(None),
        Err(RecvTimeoutError::Disconnected) => None,
    }
}

impl Member {
    /// The book of a version: the one that is open, else as it was left on the disk, else a new one.
    fn open(&self, version: &str, package: Digest) -> Arc<Mutex<Book>> {
        let config = lock(&self.config).clone();
        let mut books = lock(&self.books);
        if let Some(book) = books.iter().find(|book| lock(book).is_of(version, &package, config.pane_s)) {
            return Arc::clone(book);
        }
        // Panes of another width do not go together.
        books.retain(|book| !lock(book).is_of(version, &package, 0));
        let book = Book::open(&self.name, version, package, &self.dir, self.baselines.clone(), &config, now_s());
        let book = Arc::new(Mutex::new(book));
        // A version that is only tried, or not in service yet, is not what the member's report is about.
        let before_last = books.len().saturating_sub(1);
        books.insert(before_last, Arc::clone(&book));
        let n_more = books.len().saturating_sub(MAX_BOOKS);
        books.drain(..n_more).for_each(|old| lock(&old).save());
        book
    }

    /// Has the report be about a version from now on.
    fn serves(&self, version: &str, package: &Digest) {
        let mut books = lock(&self.books);
        if let Some(at) = books.iter().position(|book| lock(book).is_of(version, package, 0)) {
            let book = books.remove(at);
            books.push(book);
        }
    }

    fn newest(&self) -> Option<Arc<Mutex<Book>>> {
        lock(&self.books).last().cloned()
    }

    /// Whether a pane of the newest book ended.
    fn turn(&self, now_s: i64) -> bool {
        let books: Vec<_> = lock(&self.books).clone();
        books.iter().fold(false, |_, book| lock(book).turn(now_s))
    }

    /// Sets the gauges, and says in the log what began to differ and what ended.
    fn tell(&self) {
        let Some(report) = self.report() else { return };
        let member = || self.name.clone();
        for SignalReport { state, .. } in &report.signals {
            gauge!(MONITOR_EFFECT, "member" => member(), "signal" => state.signal.clone()).set(state.effect);
            let drifted = if state.alarm.is_some() { 1.0 } else { 0.0 };
            gauge!(MONITOR_DRIFTED, "member" => member(), "signal" => state.signal.clone()).set(drifted);
        }
        if let Some(accuracy) = report.quality.as_ref().and_then(|quality| quality.accuracy) {
            gauge!(MONITOR_ACCURACY, "member" => member()).set(accuracy.value);
        }
        let now: BTreeMap<String, Finding> =
            report.findings.into_iter().map(|finding| (finding.id.clone(), finding)).collect();
        let mut told = lock(&self.told);
        for (id, finding) in now.iter().filter(|(id, _)| !told.contains_key(*id)) {
            warn!(member.name = %self.name, finding.id = %id, "{}", finding.message);
        }
        for id in told.keys().filter(|id| !now.contains_key(*id)) {
            info!(member.name = %self.name, finding.id = %id, "{id} is as in the baseline again, or is not watched any more");
        }
        *told = now;
    }

    fn each(&self, with: impl Fn(&mut Book)) {
        let books: Vec<_> = lock(&self.books).clone();
        books.iter().for_each(|book| with(&mut lock(book)));
    }

    /// How the version stands that serves, with a word on the others.
    fn report(&self) -> Option<MemberReport> {
        let books: Vec<_> = lock(&self.books).clone();
        let newest = books.last()?;
        // Copied, so that no request's observation waits for the arithmetic.
        let newest = lock(newest).snapshot();
        let mut report = self.report_on(&newest);
        report.other_versions = books.iter().rev().skip(1).map(|book| lock(book).version.clone()).collect();
        Some(report)
    }

    fn report_on(&self, book: &Book) -> MemberReport {
        let config = lock(&self.config).clone();
        let mut report = book.report(&config, now_s());
        report.quality = self.labels().quality(&report.version, book.baseline_quality(), &config);
        report.findings.extend(report.quality.as_ref().and_then(|quality| quality.finding(&report)));
        report
    }

    fn labels(&self) -> MutexGuard<'_, Labels> {
        lock(&self.labels)
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Seconds since 1970, UTC.
pub(crate) fn now_s() -> i64 {
    jiff::Timestamp::now().as_second()
}
