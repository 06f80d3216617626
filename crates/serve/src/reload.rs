//! `portfolio.toml` while it is served: an edit is checked and loaded whole, then taken up at once, or not at all.
//!
//! The file is looked at, not listened to: twice a second its text is read, and that of every file it names. What editors and Kubernetes do
//! (another file renamed onto it, a link `..data` set to another folder) is then the same as a write, as it is on disks that tell nobody of
//! changes. An edit counts once two looks have seen it alike, so that a file half written is not read.

mod locate;
mod settings;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use highroad_package::Digest;
use highroad_service::access::Principal;
use jiff::Timestamp;
use metrics::{counter, gauge};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::Notify;

pub use locate::{ConfigProblem, locate};
pub use settings::{Change, differences, settings};

use crate::config::PortfolioConfig;
use crate::deployment::pause_after;
use crate::index::DESCRIPTION;
use crate::portfolio::Portfolio;
use crate::telemetry::{RELOAD_SUCCESS, RELOAD_TIME, RELOADS};

/// Largest file that is read.
const MAX_FILE_BYTES: u64 = 4 << 20;
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Time in which an edit must not have changed again.
const SETTLES_IN: Duration = Duration::from_millis(200);

/// What a file says must hold that only the caller can check.
pub type Check = Box<dyn Fn(&PortfolioConfig) -> Result<(), String> + Send + Sync>;

/// A `portfolio.toml`.
pub struct PortfolioFile {
    path: PathBuf,
    check: Check,
}

/// A file that was read and means something.
#[derive(Clone, Debug)]
pub struct Read {
    /// What it says.
    pub config: PortfolioConfig,
    digest: Digest,
    stamp: Digest,
}

/// What is known of the file that is served.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct FileStatus {
    /// Where it is.
    pub file: String,
    /// Digest of the text that serves; `None` while no text of it ever did.
    pub digest: Option<Digest>,
    /// Since when, RFC 3339 in UTC.
    pub loaded_at: Option<String>,
    /// Why a newer text does not serve.
    pub last_error: Option<LastError>,
}

/// Why an edit was not taken up.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct LastError {
    /// When that was told first, RFC 3339 in UTC.
    pub at: String,
    /// Everything that is wrong; nothing for a key that may not ask every member, as reasons name others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<ConfigProblem>,
}

impl PortfolioFile {
    /// The file at `path`; `check` is asked about everything in it that can be read.
    pub fn new(path: PathBuf, check: Check) -> Self {
        Self { path, check }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads and checks it. Errors with everything that is wrong, with its line.
    pub fn read(&self) -> Result<Read, Vec<ConfigProblem>> {
        let text = text(&self.path).map_err(|reason| vec![ConfigProblem { line: None, reason }])?;
        let base = self.path.parent().unwrap_or(Path::new(""));
        let config = PortfolioConfig::parse(&text, base)
            .map_err(|errors| errors.0.iter().map(|problem| locate(&text, problem)).collect::<Vec<_>>())?;
        (self.check)(&config).map_err(|reason| vec![locate(&text, &reason)])?;
        let stamp = stamp(&self.path, &config);
        Ok(Read { config, digest: Digest::of(text.as_bytes()), stamp })
    }

    /// The same with the line of each that has none yet.
    pub fn located(&self, problems: Vec<ConfigProblem>) -> Vec<ConfigProblem> {
        let text = text(&self.path).unwrap_or_default();
        let located = |problem: ConfigProblem| match problem.line {
            Some(_) => problem,
            None => ConfigProblem { line: locate(&text, &problem.reason).line, reason: problem.reason },
        };
        problems.into_iter().map(located).collect()
    }

    /// `problems` as a compiler would tell them.
    pub fn told(&self, problems: &[ConfigProblem]) -> String {
        let mut told = String::new();
        for problem in problems {
            let line = problem.line.map(|line| format!(":{line}")).unwrap_or_default();
            let _ = write!(
                told,
                "{}{}{line}: {}",
                if told.is_empty() { "" } else { "\n" },
                self.path.display(),
                problem.reason
            );
        }
        told
    }

    /// Follows the file for as long as the future is polled; after `now` is notified it is read at once. `first` is what `portfolio`
    /// was made of, `None` where the file was not there; [`Portfolio::told`] knows of it once this returns.
    pub fn follow(self, portfolio: &Portfolio, first: Option<Read>, now: Arc<Notify>) -> impl Future<Output = ()> {
        let mut follower = Follower::begin(self, portfolio, first);
        async move {
            loop {
                let pause = if follower.unsettled.is_some() { SETTLES_IN } else { LOOK_EVERY };
                let look = tokio::select! {
                    () = tokio::time::sleep(pause) => Look::Usual,
                    () = now.notified() => Look::AtOnce,
                };
                follower.look(look).await;
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Look {
    Usual,
    AtOnce,
}

struct Follower<'a> {
    file: PortfolioFile,
    portfolio: &'a Portfolio,
    /// What the last attempt was about.
    seen: Digest,
    /// A change that may go on.
    unsettled: Option<Digest>,
    failed: Option<Failed>,
}

/// Attempts that failed alike.
struct Failed {
    problems: Vec<ConfigProblem>,
    attempts: u32,
    again_at: Instant,
}

impl<'a> Follower<'a> {
    fn begin(file: PortfolioFile, portfolio: &'a Portfolio, first: Option<Read>) -> Self {
        for outcome in ["ok", "failed"] {
            counter!(RELOADS, "outcome" => outcome).increment(0);
        }
        let seen = first.as_ref().map_or_else(|| stamp(&file.path, &portfolio.config()), |first| first.stamp);
        gauge!(RELOAD_SUCCESS).set(1.0);
        let follower = Self { file, portfolio, seen, unsettled: None, failed: None };
        follower.tell(first.map(|first| first.digest), None);
        follower
    }

    async fn look(&mut self, look: Look) {
        let stamp = self.stamp().await;
        let settled = self.unsettled == Some(stamp);
        let changed = stamp != self.seen;
        self.unsettled = Some(stamp).filter(|_| changed && !settled);
        let again = self.failed.as_ref().is_some_and(|failed| failed.again_at <= Instant::now());
        if look == Look::AtOnce || again || (changed && settled) {
            self.unsettled = None;
            self.seen = stamp;
            self.attempt(look).await;
        }
    }

    async fn stamp(&self) -> Digest {
        let (path, config) = (self.file.path.clone(), self.portfolio.config());
        tokio::task::spawn_blocking(move || stamp(&path, &config)).await.unwrap_or(self.seen)
    }

    async fn attempt(&mut self, look: Look) {
        let before = settings(&self.portfolio.config());
        let result = match self.file.read() {
            Ok(read) => self.take_up(read).await,
            Err(problems) => Err(problems),
        };
        match result {
            Ok(read) => {
                let changes = differences(&before, &settings(&read.config));
                let names: Vec<&str> = changes.iter().map(|change| change.path.as_str()).collect();
                tracing::info!(
                    portfolio.digest = %read.digest, portfolio.changes = changes.len(),
                    "Took up `{}`: {}", self.file.path.display(), if names.is_empty() { "nothing changed".to_owned() } else { names.join(", ") }
                );
                counter!(RELOADS, "outcome" => "ok").increment(1);
                gauge!(RELOAD_SUCCESS).set(1.0);
                self.failed = None;
                // Files that it names now and did not name before.
                self.seen = read.stamp;
                self.tell(Some(read.digest), None);
            }
            Err(problems) => self.fail(problems, look),
        }
    }

    async fn take_up(&self, read: Read) -> Result<Read, Vec<ConfigProblem>> {
        let config = read.config.clone();
        match self.portfolio.reload(config).await {
            Ok(()) => Ok(read),
            Err(problems) => {
                let problems = problems.into_iter().map(|reason| ConfigProblem { line: None, reason }).collect();
                Err(self.file.located(problems))
            }
        }
    }

    /// The same failure again and again is one event, unless somebody asked.
    fn fail(&mut self, problems: Vec<ConfigProblem>, look: Look) {
        let known = self.failed.take().filter(|failed| failed.problems == problems);
        let attempts = known.as_ref().map_or(1, |failed| failed.attempts.saturating_add(1));
        if known.is_none() || look == Look::AtOnce {
            tracing::error!(
                "An edit of `{}` is not taken up, everything goes on as it was: {}",
                self.file.path.display(),
                self.file.told(&problems).replace('\n', "; ")
            );
            counter!(RELOADS, "outcome" => "failed").increment(1);
            gauge!(RELOAD_SUCCESS).set(0.0);
            self.tell(None, Some(LastError { at: now(), problems: problems.clone() }));
        }
        self.failed = Some(Failed { problems, attempts, again_at: Instant::now() + pause_after(attempts) });
    }

    /// Notes for who asks what serves and why not more.
    fn tell(&self, digest: Option<Digest>, last_error: Option<LastError>) {
        let before = self.portfolio.file.load_full();
        let status = match (digest, before) {
            (None, Some(before)) => FileStatus { last_error, ..FileStatus::clone(&before) },
            (digest, _) => {
                if digest.is_some() {
                    gauge!(RELOAD_TIME).set(Timestamp::now().as_second() as f64);
                }
                let loaded_at = digest.map(|_| now());
                FileStatus { file: self.file.path.display().to_string(), digest, loaded_at, last_error }
            }
        };
        self.portfolio.file.store(Some(Arc::new(status)));
    }
}

impl Portfolio {
    /// What the file says that is served, and what became of its last edit; of that what the request's key may see.
    pub(crate) fn told(&self) -> FileTold {
        let mut file = self.file.load_full().map(Arc::unwrap_or_clone);
        let mut settings = settings(&self.config());
        if !Principal::current_may_ask_all() {
            for part in ["members", "hosted", "pipelines"] {
                if let Some(part) = settings[part].as_object_mut() {
                    part.retain(|name, _| Principal::current_may_ask(name));
                }
            }
            for part in ["indexes", "budgets"] {
                settings[part] = json!({});
            }
            // Reasons name members and files of others.
            if let Some(error) = file.as_mut().and_then(|file| file.last_error.as_mut()) {
                error.problems.clear();
            }
        }
        let file = file.map_or(MaybeFile::None { file: () }, MaybeFile::Read);
        FileTold { file, settings }
    }
}

/// What the portfolio's file says, and what became of its last edit.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "PortfolioFile")]
pub(crate) struct FileTold {
    #[serde(flatten)]
    file: MaybeFile,
    /// Everything that it says, by its keys; of what may hold secrets the digest.
    #[schemars(with = "BTreeMap<String, Value>")]
    settings: Value,
}

#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
enum MaybeFile {
    Read(FileStatus),
    /// A server of one package has no file.
    None {
        file: (),
    },
}

fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn text(path: &Path) -> Result<String, String> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|error| format!("cannot be read: {error}"))?;
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(|error| format!("cannot be read: {error}"))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(format!("has over {MAX_FILE_BYTES} bytes"));
    }
    String::from_utf8(bytes).map_err(|_| "is not UTF-8".to_owned())
}

/// Digest of everything that decides what `path` means: its text and that of the descriptions `config` names.
fn stamp(path: &Path, config: &PortfolioConfig) -> Digest {
    let hosted = config.hosted.values().map(|hosted| hosted.file.clone());
    let indexes = config.indexes.values().map(|index| index.path.join(DESCRIPTION));
    let mut parts = String::new();
    for path in [path.to_owned()].into_iter().chain(hosted).chain(indexes) {
        let part = text(&path).map_or_else(|reason| reason, |text| Digest::of(text.as_bytes()).to_string());
        let _ = writeln!(parts, "{} {part}", path.display());
    }
    Digest::of(parts.as_bytes())
}
