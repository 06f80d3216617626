//! The request log: one JSON line for every answer, never its input.
//!
//! A thread of its own writes, some milliseconds' records at once; a request only puts its record into a bounded queue. When the disk
//! cannot keep up, records are dropped and counted, never silently and never at the request's expense.

mod pipeline;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, BufWriter, Write as _};
use std::iter;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use highroad_package::Digest;
use highroad_task::Cut;
use serde::{Deserialize, Serialize};

pub use crate::hosted::{Ended, HostedRecord};
pub use pipeline::{PipelineRecord, StepRecord};

use crate::telemetry::LOG_DROPPED;

/// What is kept of one answered request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The id in the response's `x-request-id`.
    pub request_id: String,
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

    /// The newest record of each of `request_ids`, after a flush and one reading of the files. Errors if they cannot be read.
    pub fn find_all(&self, request_ids: &BTreeSet<String>) -> io::Result<BTreeMap<String, Record>> {
        self.flush();
        find_all(&self.dir, request_ids)
    }

    /// The newest record of `request_id`, after a flush. Errors if the files cannot be read.
    pub fn find(&self, request_id: &str) -> io::Result<Option<Record>> {
        self.flush();
        find(&self.dir, request_id)
    }
}

/// [`find`] of a request that was answered a moment ago: its record may still be on its way to the file, and is waited for up to
/// `patience` where the process that writes the newest file lives.
pub fn find_written(dir: &Path, request_id: &str, patience: Duration) -> io::Result<Option<Record>> {
    let begun = Instant::now();
    loop {
        // Asked before the look, so that what it wrote last is seen.
        let may_come = begun.elapsed() < patience && is_written(dir);
        match find(dir, request_id)? {
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

/// The newest record of `request_id` in the log files of `dir`; `None` also where there is no such directory. Lines that
/// are not records (a crash can cut the last one) are passed over.
pub fn find(dir: &Path, request_id: &str) -> io::Result<Option<Record>> {
    let files = match log_files(dir) {
        Ok(files) => files,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    for path in files.iter().rev() {
        match find_in_file(path, request_id) {
            Ok(Some(record)) => return Ok(Some(record)),
            Ok(None) => {}
            // The writer removes the oldest while others read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// The newest record of each of `request_ids` in the log files of `dir`, which are read once, the newest first; those that are not
/// there are left out.
pub fn find_all(dir: &Path, request_ids: &BTreeSet<String>) -> io::Result<BTreeMap<String, Record>> {
    let files = match log_files(dir) {
        Ok(files) => files,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(error),
    };
    let (mut found, mut missing) = (BTreeMap::new(), request_ids.clone());
    for path in files.iter().rev().take_while(|_| !request_ids.is_empty()) {
        if missing.is_empty() {
            break;
        }
        let mut here = BTreeMap::new();
        let mut reader = BufReader::with_capacity(1 << 20, File::open(path)?);
        let mut line = String::new();
        while reader.read_line(&mut line)? > 0 {
            if let Some(id) = id_of(&line).filter(|id| missing.contains(*id))
                && let Ok(record) = serde_json::from_str::<Record>(&line)
                && record.request_id == id
            {
                here.insert(id.to_owned(), record);
            }
            line.clear();
        }
        missing.retain(|id| !here.contains_key(id));
        found.extend(here);
    }
    Ok(found)
}

/// The id that a line begins with, as [`Record`] is written: cheaper than reading all of it.
fn id_of(line: &str) -> Option<&str> {
    line.strip_prefix("{\"request_id\":\"")?.split_once('"').map(|(id, _)| id)
}

fn find_in_file(path: &Path, request_id: &str) -> io::Result<Option<Record>> {
    // Ids are free of characters that JSON escapes, so a line without the bare id cannot be its record.
    let needle = format!("\"{request_id}\"");
    let mut found = None;
    let mut reader = BufReader::with_capacity(1 << 20, File::open(path)?);
    let mut line = String::new();
    while reader.read_line(&mut line)? > 0 {
        if line.contains(&needle) {
            let record = serde_json::from_str::<Record>(&line).ok().filter(|record| record.request_id == request_id);
            found = record.or(found);
        }
        line.clear();
    }
    Ok(found)
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
        assert_eq!(log.find("two").unwrap(), Some(record("two")));
        assert_eq!(log.find("three").unwrap(), None);
        assert_eq!(find(dir.path(), "one").unwrap(), Some(record("one")));
    }

    #[test]
    fn the_newest_record_of_a_reused_id_counts() {
        let dir = tempfile::tempdir().unwrap();
        let log = RequestLog::open(dir.path(), LogLimits::default()).unwrap();
        log.put(record("id"));
        log.put(Record { version: "moderation:8".to_owned(), ..record("id") });
        assert_eq!(log.find("id").unwrap().unwrap().version, "moderation:8");
    }

    #[test]
    fn many_records_are_found_in_one_reading_the_newest_of_each() {
        let dir = tempfile::tempdir().unwrap();
        let log = RequestLog::open(dir.path(), LogLimits { file_bytes: 1000, ..LogLimits::default() }).unwrap();
        for id in ["one", "two", "three", "one"] {
            log.put(Record { total_ms: if id == "one" { 9.0 } else { 1.0 }, ..record(id) });
        }
        log.put(Record { version: "moderation:8".to_owned(), ..record("one") });
        let wanted = ["one", "two", "four"].map(str::to_owned).into();
        let found = log.find_all(&wanted).unwrap();
        assert_eq!(found.keys().collect::<Vec<_>>(), ["one", "two"]);
        assert_eq!(found["one"].version, "moderation:8");
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
        assert_eq!(log.find("id-0").unwrap(), None);
        assert!(log.find("id-19").unwrap().is_some());
    }

    #[test]
    fn a_line_cut_by_a_crash_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let whole = serde_json::to_string(&record("id")).unwrap();
        fs::write(dir.path().join("1.jsonl"), format!("{whole}\n{}", &whole[..whole.len() / 2])).unwrap();
        assert_eq!(find(dir.path(), "id").unwrap(), Some(record("id")));
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
        assert_eq!(find(Path::new("/nonexistent/requests"), "id").unwrap(), None);
    }
}
