//! Threads between a training loop and a tracking server.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rand::RngExt as _;

use crate::client::Batch;
use crate::journal::{Reader, Writer, frame, journals};
use crate::{Client, ClientError, Entry, Header, JournalError, Sampler};

/// Calls that wait to be written; more than this wait for the disk.
const MAX_QUEUED: usize = 1 << 16;
/// Calls that are written with one `fsync`.
const MAX_GROUP: usize = 4096;
/// MLflow's limits on one `log-batch`.
const MAX_METRICS: usize = 1000;
const MAX_PARAMS: usize = 100;
const MAX_TAGS: usize = 100;
const MAX_BATCH: usize = 1000;
/// MLflow takes 1 MB of JSON; what a batch holds beside its entries fits into the rest.
const MAX_BATCH_BYTES: u64 = 800_000;
/// Deliveries are at least so far apart, so that a loop that logs each step makes few requests.
const PACE: Duration = Duration::from_millis(250);
/// Waits after failures: doubled each time, half of it by chance.
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// How long each journal of an earlier process is tried for.
const LEFTOVER_PATIENCE: Duration = Duration::from_secs(60);

/// Where a recorder writes and delivers to.
pub struct RecorderOptions {
    /// Folder of the journals.
    pub root: PathBuf,
    /// The run.
    pub header: Header,
    /// How often system metrics are taken; `None` for never.
    pub sample_every: Option<Duration>,
}

/// Takes what a run logs. [`Recorder::log`] does not wait for disk or network.
pub struct Recorder {
    commands: SyncSender<Command>,
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    sampler: Mutex<Option<Sampler>>,
    run_id: String,
    dir: PathBuf,
}

enum Command {
    Log(Entry),
    Artifact { source: PathBuf, path: String, done: Sender<Result<(), String>> },
    Flush(Sender<Result<(), String>>),
    Stop,
}

#[derive(Default)]
struct Shared {
    progress: Mutex<Progress>,
    changed: Condvar,
}

#[derive(Clone, Debug, Default)]
struct Progress {
    /// Offset up to which entries are on the disk, and at the server.
    durable: u64,
    delivered: u64,
    n_refused: u64,
    /// Why the journal cannot be written; nothing is acknowledged any more.
    broken: Option<String>,
    /// Why the last delivery failed.
    trouble: Option<String>,
    /// Set when nothing more is logged: deliver without pacing, and give up then.
    deadline: Option<Instant>,
    is_done: bool,
}

/// What became of a journal that another process left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Synced {
    /// Its run; empty where the journal does not tell.
    pub run_id: String,
    /// Its folder.
    pub dir: PathBuf,
    /// Entries that the server would not take; they are kept in `refused.jsonl` there.
    pub n_refused: u64,
    /// Why it is not delivered, if it is not.
    pub trouble: Option<String>,
}

impl Recorder {
    /// Makes a journal and starts the threads. Nothing is sent yet, so the server may be away.
    pub fn start(options: RecorderOptions) -> Result<Self, JournalError> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let RecorderOptions { root, header, sample_every } = options;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let dir = root.join(format!("{}-{}-{}-{number}", header.run_id, std::process::id(), since.as_millis()));
        let writer = Writer::create(&dir, &header)?;
        let (reader, header) = writer.reader()?;
        let shared = Arc::<Shared>::default();
        let (commands, queue) = sync_channel(MAX_QUEUED);
        let writing = {
            let (shared, dir) = (shared.clone(), dir.clone());
            std::thread::spawn(move || write_all(writer, &queue, &shared, &dir))
        };
        let run_id = header.run_id.clone();
        let delivering = {
            let shared = shared.clone();
            std::thread::spawn(move || deliver_all(reader, &header, &shared))
        };
        // What earlier processes left goes its own way; it ends with this process, and what is then left stays on the disk.
        std::thread::spawn(move || drop(sync(&root, LEFTOVER_PATIENCE)));
        let recorder = Self {
            commands,
            shared,
            threads: Mutex::new(vec![writing, delivering]),
            sampler: Mutex::default(),
            run_id,
            dir,
        };
        if let Some(every) = sample_every {
            let commands = recorder.commands.clone();
            let sampler = Sampler::start(every, move |metrics| {
                // A full queue means a stuck disk: a sample is worth less than the loop's own points.
                let _ = commands.try_send(Command::Log(Entry::Metrics(metrics)));
            });
            *lock(&recorder.sampler) = Some(sampler);
        }
        Ok(recorder)
    }

    /// Queues an entry; it is on the disk a few milliseconds later, and when [`Recorder::flush`] has returned. Errors if an
    /// earlier entry could not be written.
    pub fn log(&self, entry: Entry) -> Result<(), String> {
        self.check()?;
        match entry {
            Entry::Metrics(all) => self.log_parts(all, MAX_METRICS, Entry::Metrics),
            Entry::Params(all) => self.log_parts(all, MAX_PARAMS, Entry::Params),
            Entry::Tags(all) => self.log_parts(all, MAX_TAGS, Entry::Tags),
            other => self.send(Command::Log(other)),
        }
    }

    fn log_parts<T: Clone>(&self, all: Vec<T>, limit: usize, entry: fn(Vec<T>) -> Entry) -> Result<(), String> {
        if all.len() <= limit {
            return self.send(Command::Log(entry(all)));
        }
        all.chunks(limit).try_for_each(|part| self.send(Command::Log(entry(part.to_vec()))))
    }

    /// Copies a file into the journal, to be uploaded; it may change or vanish when this has returned.
    pub fn log_artifact(&self, source: &Path, path: &str) -> Result<(), String> {
        self.check()?;
        let (done, answer) = channel();
        self.send(Command::Artifact { source: source.to_owned(), path: path.to_owned(), done })?;
        answer.recv().map_err(|_| stopped())?
    }

    /// Waits until everything that was logged before is on the disk.
    pub fn flush(&self) -> Result<(), String> {
        let (done, answer) = channel();
        self.send(Command::Flush(done))?;
        answer.recv().map_err(|_| stopped())?
    }

    /// Ends the logging: writes everything, then delivers for at most `patience`. Gives what is left to say.
    pub fn close(&self, patience: Duration) -> Synced {
        drop(lock(&self.sampler).take());
        let flushed = self.flush();
        // The writer leaves when it meets this; an error means that it has left.
        let _ = self.commands.send(Command::Stop);
        self.shared.change(|progress| progress.deadline = Some(Instant::now() + patience));
        for thread in lock(&self.threads).drain(..) {
            let _ = thread.join();
        }
        let progress = self.shared.lock().clone();
        let undelivered =
            (!progress.is_done).then(|| progress.trouble.unwrap_or_else(|| "there was no time".to_owned()));
        let run_id = self.run_id.clone();
        Synced { run_id, dir: self.dir.clone(), n_refused: progress.n_refused, trouble: flushed.err().or(undelivered) }
    }

    fn check(&self) -> Result<(), String> {
        self.shared.lock().broken.clone().map_or(Ok(()), Err)
    }

    fn send(&self, command: Command) -> Result<(), String> {
        self.commands.send(command).map_err(|_| stopped())
    }
}

/// What a panicking holder left is whole: nothing here panics half-way through a change.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn stopped() -> String {
    "the journal is closed".to_owned()
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Progress> {
        lock(&self.progress)
    }

    fn change(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// Waits until `ready`, at most for `time`.
    fn wait(&self, time: Duration, ready: impl Fn(&Progress) -> bool) -> Progress {
        let waiting = self.changed.wait_timeout_while(self.lock(), time, |progress| !ready(progress));
        waiting.unwrap_or_else(PoisonError::into_inner).0.clone()
    }
}

/// The writing thread: a group of calls, one `fsync`, their acknowledgements.
fn write_all(mut writer: Writer, queue: &Receiver<Command>, shared: &Shared, dir: &Path) {
    let mut n_files = 0;
    while let Ok(first) = queue.recv() {
        let mut frames = Vec::new();
        let mut waiting = Vec::new();
        let mut stop = false;
        for command in std::iter::once(first).chain(queue.try_iter()).take(MAX_GROUP) {
            match command {
                Command::Log(entry) => add(&mut frames, &entry, shared),
                Command::Artifact { source, path, done } => {
                    n_files += 1;
                    let copy = format!("file-{n_files}");
                    match keep(&source, &dir.join(&copy)) {
                        Ok(()) => {
                            add(&mut frames, &Entry::Artifact { copy, path }, shared);
                            waiting.push(done);
                        }
                        Err(error) => {
                            let _ = done.send(Err(format!("cannot keep `{}`: {error}", source.display())));
                        }
                    }
                }
                Command::Flush(done) => waiting.push(done),
                Command::Stop => stop = true,
            }
        }
        if !frames.is_empty() && shared.lock().broken.is_none() {
            match writer.write(&frames) {
                Ok(end) => shared.change(|progress| progress.durable = end),
                Err(error) => shared.change(|progress| progress.broken = Some(error.to_string())),
            }
        }
        let result = shared.lock().broken.clone().map_or(Ok(()), Err);
        waiting.into_iter().for_each(|done| drop(done.send(result.clone())));
        if stop {
            return;
        }
    }
}

fn add(frames: &mut Vec<u8>, entry: &Entry, shared: &Shared) {
    match frame(entry) {
        Ok(frame) => frames.extend(frame),
        Err(error) => shared.change(|progress| progress.broken = Some(error.to_string())),
    }
}

/// A durable copy.
fn keep(source: &Path, copy: &Path) -> std::io::Result<()> {
    std::fs::copy(source, copy)?;
    std::fs::File::open(copy)?.sync_all()
}

/// The delivering thread: whatever is on the disk, until told to stop.
fn deliver_all(reader: Reader, header: &Header, shared: &Shared) {
    let mut delivery = match Delivery::new(reader, header) {
        Ok(delivery) => delivery,
        Err(error) => return shared.change(|progress| progress.trouble = Some(error.to_string())),
    };
    let mut n_failures = 0;
    loop {
        let has_more = |progress: &Progress| progress.durable > progress.delivered;
        let progress = shared.wait(Duration::MAX, |progress| has_more(progress) || progress.deadline.is_some());
        if !has_more(&progress) {
            let removed = delivery.reader.remove();
            return shared.change(|progress| {
                progress.is_done = removed.is_ok();
                progress.trouble = removed.err().map(|error| error.to_string());
            });
        }
        let time_left = progress.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let wait = match delivery.step(progress.durable) {
            Ok(delivered) => {
                n_failures = 0;
                shared.change(|progress| {
                    (progress.delivered, progress.n_refused) = (delivered, delivery.n_refused);
                    progress.trouble = None;
                });
                PACE
            }
            Err(error) => {
                n_failures += 1;
                shared.change(|progress| progress.trouble = Some(error.to_string()));
                wait_after(n_failures)
            }
        };
        match time_left {
            Some(left) if left.is_zero() => return,
            Some(left) if n_failures > 0 => std::thread::sleep(wait.min(left)),
            Some(_) => {}
            None => drop(shared.wait(wait, |progress| progress.deadline.is_some())),
        }
    }
}

/// Doubled with each failure up to a limit, half of it by chance, so that many runs do not come back at once.
fn wait_after(n_failures: u32) -> Duration {
    let longest = FIRST_WAIT.saturating_mul(1 << n_failures.min(10)).min(LONGEST_WAIT);
    longest.mul_f64(rand::rng().random_range(0.5..1.0))
}

/// Entries on their way from a journal to its server.
struct Delivery {
    reader: Reader,
    client: Client,
    run_id: String,
    n_refused: u64,
    /// Entries that were read and not yet delivered.
    read: Vec<(Entry, u64)>,
}

impl Delivery {
    fn new(reader: Reader, header: &Header) -> Result<Self, ClientError> {
        let client = Client::new(&header.server)?;
        Ok(Self { reader, client, run_id: header.run_id.clone(), n_refused: 0, read: Vec::new() })
    }

    /// Delivers the next entries before offset `end`, as many as fit into one call; gives the offset behind them.
    fn step(&mut self, end: u64) -> Result<u64, DeliveryError> {
        self.fill(end)?;
        let Some(&(_, last)) = self.read.last() else { return Ok(end) };
        match self.send(&self.read) {
            Err(error) if error.is_temporary() => return Err(error.into()),
            // One of them is at fault; the others must not suffer.
            Err(_) => self.send_each()?,
            Ok(()) => {}
        }
        for (entry, _) in self.read.drain(..) {
            if let Entry::Artifact { copy, .. } = entry {
                // A copy that stays does no harm.
                let _ = std::fs::remove_file(self.reader.path(&copy));
            }
        }
        self.reader.note_delivered(last)?;
        Ok(last)
    }

    /// Reads entries until a call is full; an entry that needs a call of its own comes alone.
    fn fill(&mut self, end: u64) -> Result<(), JournalError> {
        let (mut counts, mut n_bytes) = (self.counts(), 0);
        while counts.iter().sum::<usize>() < MAX_BATCH && n_bytes < MAX_BATCH_BYTES {
            if self.read.len() == 1 && size(&self.read[0].0).is_none() {
                break;
            }
            let before = self.reader.position();
            let Some((entry, after)) = self.reader.next(end)? else { break };
            let fits = size(&entry).is_some_and(|size| {
                std::iter::zip(counts, size)
                    .zip([MAX_METRICS, MAX_PARAMS, MAX_TAGS])
                    .all(|((a, b), limit)| a + b <= limit)
            });
            if !self.read.is_empty() && (!fits || n_bytes + (after - before) > MAX_BATCH_BYTES) {
                self.reader.back_to(before)?;
                break;
            }
            for (count, more) in counts.iter_mut().zip(size(&entry).unwrap_or_default()) {
                *count += more;
            }
            n_bytes += after - before;
            self.read.push((entry, after));
        }
        Ok(())
    }

    fn counts(&self) -> [usize; 3] {
        let mut counts = [0; 3];
        for size in self.read.iter().filter_map(|(entry, _)| size(entry)) {
            std::iter::zip(&mut counts, size).for_each(|(count, more)| *count += more);
        }
        counts
    }

    fn send(&self, entries: &[(Entry, u64)]) -> Result<(), ClientError> {
        let mut batch = Batch::default();
        for (entry, _) in entries {
            match entry {
                Entry::Metrics(metrics) => batch.metrics.extend(metrics.iter().cloned()),
                Entry::Params(params) => batch.params.extend(params.iter().cloned()),
                Entry::Tags(tags) => batch.tags.extend(tags.iter().cloned()),
                alone => return self.client.deliver(&self.run_id, alone, |name| self.reader.path(name)),
            }
        }
        self.client.log_batch(&self.run_id, &batch)
    }

    fn send_each(&mut self) -> Result<(), DeliveryError> {
        for entry in &self.read {
            match self.send(std::slice::from_ref(entry)) {
                Ok(()) => {}
                Err(error) if error.is_temporary() => return Err(error.into()),
                Err(error) => {
                    self.reader.note_refused(&entry.0, &error.to_string())?;
                    self.n_refused += 1;
                }
            }
        }
        Ok(())
    }
}

/// Metrics, parameters and tags of an entry; `None` if it needs a call of its own.
fn size(entry: &Entry) -> Option<[usize; 3]> {
    match entry {
        Entry::Metrics(metrics) => Some([metrics.len(), 0, 0]),
        Entry::Params(params) => Some([0, params.len(), 0]),
        Entry::Tags(tags) => Some([0, 0, tags.len()]),
        _ => None,
    }
}

#[derive(Debug, thiserror::Error)]
enum DeliveryError {
    #[error("{0}")]
    Client(#[from] ClientError),
    #[error("{0}")]
    Journal(#[from] JournalError),
}

/// Delivers every journal in `root` whose process is gone; tries each for at most `patience`.
pub fn sync(root: &Path, patience: Duration) -> std::io::Result<Vec<Synced>> {
    let mut all = Vec::new();
    for dir in journals(root)? {
        let (reader, header) = match Reader::adopt(&dir) {
            Ok(adopted) => adopted,
            Err(JournalError::InUse(_)) => continue,
            Err(error) if error.is_gone() => continue,
            Err(JournalError::NoHeader(_)) => {
                std::fs::remove_dir_all(&dir)?;
                continue;
            }
            Err(error) => {
                let trouble = Some(error.to_string());
                all.push(Synced { run_id: String::new(), dir, n_refused: 0, trouble });
                continue;
            }
        };
        let mut synced = Synced { run_id: header.run_id.clone(), dir, n_refused: 0, trouble: None };
        match adopt(reader, &header, patience) {
            Ok(n_refused) => synced.n_refused = n_refused,
            Err(error) => synced.trouble = Some(error.to_string()),
        }
        all.push(synced);
    }
    Ok(all)
}

/// Delivers all of a journal that nobody writes, and removes it.
fn adopt(reader: Reader, header: &Header, patience: Duration) -> Result<u64, DeliveryError> {
    let deadline = Instant::now() + patience;
    let mut delivery = Delivery::new(reader, header)?;
    let mut n_failures = 0;
    loop {
        match delivery.step(u64::MAX) {
            Ok(u64::MAX) => {
                let n_refused = delivery.n_refused;
                delivery.reader.remove()?;
                return Ok(n_refused);
            }
            Ok(_) => n_failures = 0,
            Err(error) => {
                n_failures += 1;
                let wait = wait_after(n_failures);
                if Instant::now() + wait > deadline {
                    return Err(error);
                }
                std::thread::sleep(wait);
            }
        }
    }
}
