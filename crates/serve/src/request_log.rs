//! The request log: one JSON line for every answer, never its input.
//!
//! A thread of its own writes, some milliseconds' records at once; a request only puts its record into a bounded queue. When the disk
//! cannot keep up, records are dropped and counted, never silently and never at the request's expense.

mod caller;
mod pipeline;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, BufWriter, Write as _};
use std::iter;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use highroad_package::Digest;
use highroad_service::{Kind, Problem};
use highroad_task::Cut;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use crate::hosted::{Ended, HostedRecord};
pub use caller::Caller;
pub use pipeline::{PipelineRecord, StepRecord};

use crate::telemetry::LOG_DROPPED;

/// What is kept of one answered request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "RequestRecord")]
pub struct Record {
    /// The id in the response's `x-request-id`.
    pub request_id: String,
    #[serde(flatten)]
    #[allow(missing_docs, reason = "its fields have theirs")]
    pub caller: Caller,
    /// When it was answered, RFC 3339 in UTC.
    pub time: String,
    /// The member that answered.
    pub member: String,
    /// The route it was asked on.
    pub route: String,
    /// The version that answered: `name:7`, or the package's digest where it came from a directory.
    pub version: String,
    /// The package that answered.
    pub package: Digest,
    /// The verdict that admitted it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Digest>,
    /// What the verdict is worth, `override` or `development`.
    pub evidence: String,
    /// The override that let it serve without a verdict.
    #[serde(rename = "override", default, skip_serializing_if = "Option::is_none")]
    pub overridden: Option<Digest>,
    /// Why it was served without a verdict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub development: Option<String>,
    /// What decided the bits: kernel set, instruction path and precision.
    pub numerics_id: String,
    /// One digest for each input, in order; for program tensors one digest over all outputs.
    pub outputs: Vec<Digest>,
    /// The label of each input, where the answer is one: what right answers that come later are compared with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// Documents in the order of their relevance, from 0, where the answer is one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub order: Vec<u32>,
    /// Tokens of each input, after truncation.
    pub n_tokens: Vec<usize>,
    /// Inputs that were cut.
    pub n_truncated: usize,
    /// What happened to those that were too long.
    #[serde(default, skip_serializing_if = "at_end")]
    pub cut: Cut,
    /// Tokens that documents of a reranking were cut to before, where any was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document_tokens: Option<NonZeroUsize>,
    /// Names of the package's prompts that went before its texts, each once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prompts: Vec<String>,
    /// Of a member that keeps answers, where these came from: `hit`, `coalesced`, `partial` or `miss`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<String>,
    /// Longest wait of a row for its batch.
    pub queue_ms: f64,
    /// Longest batch.
    pub compute_ms: f64,
    /// From the parsed request to the finished answer.
    pub total_ms: f64,
    /// Of a member that somebody else hosts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hosted: Option<HostedRecord>,
    /// The pipeline that this is a step of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_of: Option<String>,
    /// Of a whole request to a pipeline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pipeline: Option<PipelineRecord>,
}

impl Record {
    /// The id that this server made, or before there were such the request's.
    pub fn own_id(&self) -> &str {
        self.caller.unique_id.as_deref().unwrap_or(&self.request_id)
    }

    /// What finds this record and no other.
    fn name(&self) -> String {
        self.caller.unique_id.clone().unwrap_or_else(|| format!("{}@{}", self.request_id, self.time))
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
fn at_end(cut: &Cut) -> bool {
    *cut == Cut::End
}

/// How much of the log is kept, and how much may wait to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLimits {
    /// Size at which the next file is begun.
    pub file_bytes: u64,
    /// Files kept, this process's and earlier ones'; the oldest go first.
    pub files: usize,
    /// Records that may wait for the disk.
    pub waiting: usize,
}

impl Default for LogLimits {
    /// 16 files of 64 MiB, 16384 records waiting.
    fn default() -> Self {
        Self { file_bytes: 64 << 20, files: 16, waiting: 16 << 10 }
    }
}

/// How long records gather before they are written: a thread that woke for each would take its turn on the core from the requests.
const GATHER: Duration = Duration::from_millis(20);

/// The way into the log. Cloning is cheap; the writer ends when the last clone is dropped.
#[derive(Clone)]
pub struct RequestLog {
    to_writer: SyncSender<Message>,
    writer: Thread,
    dir: PathBuf,
}

enum Message {
    Record(Box<Record>),
    Flush(SyncSender<()>),
}

impl RequestLog {
    /// Begins a file in `dir`, making the directory if needed. Errors if neither can be made.
    pub fn open(dir: &Path, limits: LogLimits) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let (to_writer, messages) = sync_channel(limits.waiting);
        let writer = Writer::new(dir.to_owned(), limits)?;
        let thread = thread::Builder::new().name("request-log".to_owned()).spawn(move || writer.run(&messages))?;
        Ok(Self { to_writer, writer: thread.thread().clone(), dir: dir.to_owned() })
    }

    /// Queues a record; drops and counts it if the queue is full.
    pub fn put(&self, record: Record) {
        match self.to_writer.try_send(Message::Record(Box::new(record))) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => metrics::counter!(LOG_DROPPED).increment(1),
        }
    }

    /// Waits until everything put before is in the file, at most a few seconds.
    pub fn flush(&self) {
        let (done, is_done) = sync_channel(1);
        if self.to_writer.send(Message::Flush(done)).is_ok() {
            self.writer.unpark();
            let _ = is_done.recv_timeout(Duration::from_secs(5));
        }
    }

    /// [`find_all`], after a flush.
    pub fn find_all(
        &self,
        ids: &BTreeSet<String>,
        may: impl Fn(&Record) -> bool,
    ) -> io::Result<BTreeMap<String, Vec<Record>>> {
        self.flush();
        find_all(&self.dir, ids, may)
    }

    /// [`find`], after a flush.
    pub fn find(&self, id: &str, may: impl Fn(&Record) -> bool) -> Result<Option<Record>, FindError> {
        self.flush();
        find(&self.dir, id, may)
    }
}

/// Why no record is found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum FindError {
    #[error(transparent)]
    Unreadable(#[from] io::Error),
    #[error("{}", told_apart(id, records))]
    Several { id: String, records: Vec<Record> },
}

impl FindError {
    /// The problem in no protocol's words.
    pub fn problem(&self) -> Problem {
        match self {
            Self::Unreadable(error) => Problem::internal(error),
            Self::Several { .. } => Problem::new(Kind::Conflict, self.to_string()),
        }
    }
}

fn told_apart(id: &str, records: &[Record]) -> String {
    let more = if records.len() == MOST_OF_ONE { " or more" } else { "" };
    let mut told = format!("`{id}` is the id of {}{more} requests; name one by its own:", records.len());
    for record in records {
        let tenant = record.caller.tenant.as_ref().map(|tenant| format!(", asked by `{tenant}`")).unwrap_or_default();
        let _ = write!(told, "\n  {} at {} by `{}`{tenant}", record.name(), record.time, record.member);
    }
    told
}

/// [`find`] of anybody's request that was answered a moment ago: its record may still be on its way to the file, and is waited for up to
/// `patience` where the process that writes the newest file lives.
pub fn find_written(dir: &Path, id: &str, patience: Duration) -> Result<Option<Record>, FindError> {
    let begun = Instant::now();
    loop {
        // Asked before the look, so that what it wrote last is seen.
        let may_come = begun.elapsed() < patience && is_written(dir);
        match find(dir, id, |_| true)? {
            None if may_come => thread::sleep(LOOK_AGAIN),
            found => return Ok(found),
        }
    }
}

const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Whether a process lives that writes one of the files.
fn is_written(dir: &Path) -> bool {
    let writer = |path: &PathBuf| path.file_stem()?.to_str()?.split('-').nth(1)?.parse::<i32>().ok();
    // One that we may not signal lives too.
    let lives = |pid: i32| {
        let pid = rustix::process::Pid::from_raw(pid);
        pid.is_some_and(|pid| rustix::process::test_kill_process(pid) != Err(rustix::io::Errno::SRCH))
    };
    log_files(dir).unwrap_or_default().iter().rev().filter_map(writer).any(lives)
}

/// The record that `id` names, of those that `may` be seen; `None` also where there is no such directory. Lines that are not records
/// (a crash can cut the last one) are passed over.
///
/// An id that this server made names one record, whoever brings it once more. An id that clients brought may name several,
/// which is an error that tells them apart: by their unique ids, or as `ID@TIME` where an earlier build wrote them.
pub fn find(dir: &Path, id: &str, may: impl Fn(&Record) -> bool) -> Result<Option<Record>, FindError> {
    let mut found = find_all(dir, &BTreeSet::from([id.to_owned()]), may)?.remove(id).unwrap_or_default();
    match found.len() {
        0 | 1 => Ok(found.pop()),
        _ => Err(FindError::Several { id: id.to_owned(), records: found }),
    }
}

/// The records that each of `ids` names as in [`find`], the newest ones at the end, at most 16 of one id; ids that name none are left out.
/// The files are read once.
pub fn find_all(
    dir: &Path,
    ids: &BTreeSet<String>,
    may: impl Fn(&Record) -> bool,
) -> io::Result<BTreeMap<String, Vec<Record>>> {
    let files = match log_files(dir) {
        Ok(files) => files,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(error),
    };
    let mut wanted = Wanted::new(ids);
    for path in files.iter().take_while(|_| !ids.is_empty()) {
        match File::open(path) {
            Ok(file) => wanted.read(file, &may)?,
            // The writer removes the oldest while others read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(wanted.found())
}

/// Most records that are told of one id.
const MOST_OF_ONE: usize = 16;

/// What is looked for in the files, by id without time.
struct Wanted<'a> {
    ids: BTreeMap<&'a str, Vec<Sought<'a>>>,
}

/// What was found of one id.
struct Sought<'a> {
    asked: &'a str,
    /// The time behind an `@`.
    time: Option<&'a str>,
    /// Records whose own id it is, and those whose client only brought it.
    own: VecDeque<Record>,
    brought: VecDeque<Record>,
}

impl<'a> Wanted<'a> {
    fn new(asked: &'a BTreeSet<String>) -> Self {
        let mut ids: BTreeMap<&str, Vec<Sought<'_>>> = BTreeMap::new();
        for asked in asked {
            let (id, time) = asked.split_once('@').map_or((asked.as_str(), None), |(id, time)| (id, Some(time)));
            let (own, brought) = Default::default();
            ids.entry(id).or_default().push(Sought { asked, time, own, brought });
        }
        Self { ids }
    }

    fn read(&mut self, file: File, may: impl Fn(&Record) -> bool) -> io::Result<()> {
        let mut reader = BufReader::with_capacity(1 << 20, file);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line)? > 0 {
            self.line(&line, &may);
            line.clear();
        }
        Ok(())
    }

    fn line(&mut self, line: &[u8], may: impl Fn(&Record) -> bool) {
        let Some((request_id, unique_id)) = ids_of(line) else { return };
        let ids = [Some(request_id), unique_id].into_iter().flatten();
        if !ids.clone().any(|id| self.ids.contains_key(id)) {
            return;
        }
        let Some(record) = serde_json::from_slice::<Record>(line).ok().filter(|record| may(record)) else { return };
        for id in ids {
            self.ids.get_mut(id).into_iter().flatten().for_each(|sought| sought.put(id, &record));
        }
    }

    fn found(self) -> BTreeMap<String, Vec<Record>> {
        let found = |sought: Sought<'_>| {
            let records = if sought.own.is_empty() { sought.brought } else { sought.own };
            (sought.asked.to_owned(), Vec::from(records))
        };
        self.ids.into_values().flatten().map(found).filter(|(_, records)| !records.is_empty()).collect()
    }
}

impl Sought<'_> {
    fn put(&mut self, id: &str, record: &Record) {
        if self.time.is_some_and(|time| time != record.time) {
            return;
        }
        let records = if record.own_id() == id { &mut self.own } else { &mut self.brought };
        if records.len() == MOST_OF_ONE {
            records.pop_front();
        }
        records.push_back(record.clone());
    }
}

/// The request's id and the unique one, with which a line begins as [`Record`] is written: cheaper than reading all of it. No id has what
/// JSON escapes.
fn ids_of(line: &[u8]) -> Option<(&str, Option<&str>)> {
    let (request_id, rest) = quoted(line.strip_prefix(b"{\"request_id\":\"")?)?;
    let unique_id = rest.strip_prefix(b",\"unique_id\":\"").and_then(quoted);
    Some((request_id, unique_id.map(|(unique_id, _)| unique_id)))
}

/// What is before the quote, and what is after it.
fn quoted(text: &[u8]) -> Option<(&str, &[u8])> {
    let end = text.iter().position(|byte| *byte == b'"')?;
    Some((str::from_utf8(&text[..end]).ok()?, &text[end + 1..]))
}

// Names begin with the time of creation, so that sorting by name sorts by age.
fn log_files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "jsonl") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

const WARN_EVERY: Duration = Duration::from_secs(30);

struct Writer {
    dir: PathBuf,
    limits: LogLimits,
    file: BufWriter<File>,
    written_bytes: u64,
    n_files: u32,
    warned: Option<Instant>,
}

impl Writer {
    fn new(dir: PathBuf, limits: LogLimits) -> io::Result<Self> {
        let file = begin_file(&dir, 0)?;
        let writer = Self { dir, limits, file, written_bytes: 0, n_files: 1, warned: None };
        writer.remove_old_files()?;
        Ok(writer)
    }

    fn run(mut self, messages: &Receiver<Message>) {
        while let Ok(first) = messages.recv() {
            thread::park_timeout(GATHER);
            for message in iter::once(first).chain(messages.try_iter()) {
                match message {
                    Message::Record(record) => self.report(|writer| writer.write(&record)),
                    Message::Flush(done) => {
                        self.report(|writer| writer.file.flush());
                        let _ = done.send(());
                    }
                }
            }
            self.report(|writer| writer.file.flush());
        }
    }

    fn write(&mut self, record: &Record) -> io::Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        if self.written_bytes > 0 && self.written_bytes + line.len() as u64 > self.limits.file_bytes {
            self.file.flush()?;
            self.file = begin_file(&self.dir, self.n_files)?;
            self.n_files += 1;
            self.written_bytes = 0;
            self.remove_old_files()?;
        }
        self.written_bytes += line.len() as u64;
        self.file.write_all(&line)
    }

    fn remove_old_files(&self) -> io::Result<()> {
        let files = log_files(&self.dir)?;
        for path in files.iter().take(files.len().saturating_sub(self.limits.files)) {
            fs::remove_file(path)?;
        }
        Ok(())
    }

    // A full disk must not stop the server; it is told, and each lost record is counted.
    fn report(&mut self, action: impl FnOnce(&mut Self) -> io::Result<()>) {
        let Err(error) = action(self) else { return };
        metrics::counter!(LOG_DROPPED).increment(1);
        if self.warned.is_none_or(|at| at.elapsed() > WARN_EVERY) {
            self.warned = Some(Instant::now());
            tracing::error!(path = %self.dir.display(), "Cannot write the request log: {error}");
        }
    }
}

fn begin_file(dir: &Path, file_idx: u32) -> io::Result<BufWriter<File>> {
    let time = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%S%3f");
    // As wide as a `u32` gets: files of one millisecond are put in order by their names too.
    let path = dir.join(format!("{time}-{}-{file_idx:010}.jsonl", std::process::id()));
    Ok(BufWriter::new(OpenOptions::new().create(true).append(true).open(path)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(request_id: &str) -> Record {
        Record {
            request_id: request_id.to_owned(),
            caller: Caller::default(),
            time: "2026-11-23T09:00:00Z".to_owned(),
            member: "moderation".to_owned(),
            route: "/v1/moderations".to_owned(),
            version: "moderation:7".to_owned(),
            package: Digest::of(b"package"),
            verdict: Some(Digest::of(b"verdict")),
            evidence: "bit-exact".to_owned(),
            overridden: None,
            development: None,
            numerics_id: "highroad-1/avx512/f32".to_owned(),
            outputs: vec![Digest::of(b"output")],
            labels: vec!["benign".to_owned()],
            order: Vec::new(),
            n_tokens: vec![5],
            n_truncated: 0,
            cache: None,
            queue_ms: 0.1,
            compute_ms: 1.5,
            total_ms: 1.7,
            cut: Cut::End,
            document_tokens: None,
            prompts: Vec::new(),
            hosted: None,
            step_of: None,
            pipeline: None,
        }
    }

    #[test]
    fn a_record_put_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let log = RequestLog::open(dir.path(), LogLimits::default()).unwrap();
        log.put(record("one"));
        log.put(record("two"));
        assert_eq!(log.find("two", |_| true).unwrap(), Some(record("two")));
        assert_eq!(log.find("three", |_| true).unwrap(), None);
        assert_eq!(find(dir.path(), "one", |_| true).unwrap(), Some(record("one")));
    }

    /// A record of a client that brought the id itself.
    fn brought(request_id: &str, unique_id: &str, tenant: &str) -> Record {
        let [unique_id, tenant] = [unique_id, tenant].map(|text| Some(text.to_owned()));
        Record { caller: Caller { unique_id, key: tenant.clone(), tenant }, ..record(request_id) }
    }

    #[test]
    fn an_id_that_is_brought_again_takes_nobodys_answer_away() {
        let dir = tempfile::tempdir().unwrap();
        let log = RequestLog::open(dir.path(), LogLimits { file_bytes: 1000, ..LogLimits::default() }).unwrap();
        let (first, second) = (brought("id", "u1", "acme"), brought("id", "u2", "acme"));
        // The id that the server made for somebody else, or for this very client, is as good as any.
        for record in
            [record("made"), first.clone(), brought("id", "u3", "beta"), second.clone(), brought("made", "u4", "beta")]
        {
            log.put(record);
        }
        let of = |tenant: &'static str| move |record: &Record| record.caller.tenant.as_deref() == Some(tenant);
        assert_eq!(log.find("made", |_| true).unwrap(), Some(record("made")));
        assert_eq!(log.find("made", of("beta")).unwrap(), Some(brought("made", "u4", "beta")));
        assert_eq!(log.find("id", of("beta")).unwrap(), Some(brought("id", "u3", "beta")));
        assert_eq!(
            [log.find("u1", of("acme")).unwrap(), log.find("u2", of("acme")).unwrap()],
            [Some(first), Some(second)]
        );
        assert_eq!(log.find("u1", of("beta")).unwrap(), None);
        let error = log.find("id", of("acme")).unwrap_err();
        assert_eq!(error.problem().kind, Kind::Conflict);
        assert_eq!(
            error.to_string(),
            "`id` is the id of 2 requests; name one by its own:
  u1 at 2026-11-23T09:00:00Z by `moderation`, asked by `acme`
  u2 at 2026-11-23T09:00:00Z by `moderation`, asked by `acme`"
        );
        let found = log.find_all(&["id", "u3", "made"].map(str::to_owned).into(), |_| true).unwrap();
        assert_eq!(found.values().map(Vec::len).collect::<Vec<_>>(), [3, 1, 1]);
    }

    #[test]
    fn records_of_earlier_builds_are_told_apart_by_their_time() {
        let dir = tempfile::tempdir().unwrap();
        let log = RequestLog::open(dir.path(), LogLimits::default()).unwrap();
        log.put(record("id"));
        log.put(Record { time: "2026-11-23T09:00:01Z".to_owned(), ..record("id") });
        let error = log.find("id", |_| true).unwrap_err().to_string();
        assert!(error.ends_with("\n  id@2026-11-23T09:00:01Z at 2026-11-23T09:00:01Z by `moderation`"), "{error}");
        assert_eq!(log.find("id@2026-11-23T09:00:00Z", |_| true).unwrap(), Some(record("id")));
    }

    #[test]
    fn of_an_id_that_came_ever_again_the_newest_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let log = RequestLog::open(dir.path(), LogLimits::default()).unwrap();
        (0..=MOST_OF_ONE).for_each(|n| log.put(brought("id", &format!("u{n:02}"), "acme")));
        let error = log.find("id", |_| true).unwrap_err().to_string();
        assert!(error.contains("16 or more requests") && !error.contains("u00") && error.contains("u16"), "{error}");
    }

    #[test]
    fn many_records_are_found_in_one_reading() {
        let dir = tempfile::tempdir().unwrap();
        let log = RequestLog::open(dir.path(), LogLimits { file_bytes: 1000, ..LogLimits::default() }).unwrap();
        ["one", "two", "three"].into_iter().for_each(|id| log.put(record(id)));
        let found = log.find_all(&["one", "two", "four"].map(str::to_owned).into(), |_| true).unwrap();
        assert_eq!(
            found,
            [("one", vec![record("one")]), ("two", vec![record("two")])].map(|(id, of)| (id.to_owned(), of)).into()
        );
    }

    #[test]
    fn files_rotate_and_the_oldest_go() {
        let dir = tempfile::tempdir().unwrap();
        let limits = LogLimits { file_bytes: 1000, files: 3, ..LogLimits::default() };
        let log = RequestLog::open(dir.path(), limits).unwrap();
        for i in 0..20 {
            log.put(record(&format!("id-{i}")));
            log.flush();
        }
        let files = log_files(dir.path()).unwrap();
        assert_eq!(files.len(), 3);
        assert!(files.iter().all(|file| fs::metadata(file).unwrap().len() <= 1000));
        assert_eq!(log.find("id-0", |_| true).unwrap(), None);
        assert!(log.find("id-19", |_| true).unwrap().is_some());
    }

    #[test]
    fn a_line_cut_by_a_crash_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let whole = serde_json::to_string(&record("id")).unwrap();
        fs::write(dir.path().join("1.jsonl"), format!("{whole}\n{}", &whole[..whole.len() / 2])).unwrap();
        assert_eq!(find(dir.path(), "id", |_| true).unwrap(), Some(record("id")));
    }

    #[test]
    fn a_record_on_its_way_is_waited_for_where_its_writer_lives() {
        let dir = tempfile::tempdir().unwrap();
        let path = begin_file(dir.path(), 0).unwrap().into_parts().0;
        let line = format!("{}\n", serde_json::to_string(&record("id")).unwrap());
        let writer = thread::spawn(move || {
            let mut file = path;
            let (first, rest) = line.split_at(40);
            file.write_all(first.as_bytes()).unwrap();
            thread::sleep(Duration::from_millis(60));
            file.write_all(rest.as_bytes()).unwrap();
        });
        assert_eq!(find_written(dir.path(), "id", Duration::from_secs(20)).unwrap(), Some(record("id")));
        writer.join().unwrap();
        let gone = tempfile::tempdir().unwrap();
        // No process has a number this large.
        fs::write(gone.path().join("20260101T000000000-4194304999-0000000000.jsonl"), "").unwrap();
        fs::write(gone.path().join("20260101T000000000-2147483647-0000000000.jsonl"), "").unwrap();
        let begun = Instant::now();
        assert_eq!(find_written(gone.path(), "id", Duration::from_secs(20)).unwrap(), None);
        assert!(begun.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_directory_that_is_not_there_holds_no_records() {
        assert_eq!(find(Path::new("/nonexistent/requests"), "id", |_| true).unwrap(), None);
    }
}
