//! Starting a training script under torchrun, tracked, and what is recorded about it.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, bail};
use highroad_package::registry::{NewRun, RegistryClient, Run, RunStatus};
use highroad_torch::without_secrets;
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, ChildStderr, Command};
use tokio::signal::unix::{SignalKind, signal};

use crate::engine::{Engine, EngineArgs};
use crate::out::tell;
use crate::record::{self, Record, Started};
use crate::repo::{GitState, PROVENANCE, Python};
use crate::standard::{FOR_SCRIPTS, Standard};
use crate::tracking::Held;

/// What is started in place of `python -m torch.distributed.run`: the same, and it ends with this process.
const LAUNCH: &str = include_str!("launch.py");
/// Variable that tells a script what the earlier starts of its run took; `highroad.run` adds to it.
pub const SPENT: &str = "HIGHROAD_SPENT";
/// How much of the end of a script's stderr is looked through for the reason of a failure.
const MAX_SAID_BYTES: usize = 64 << 10;
/// Longest reason that a run records, and how many lines it takes where there is no traceback.
const MAX_ERROR_CHARS: usize = 2000;
const LAST_LINES: usize = 5;
/// How torchrun tells of the process that failed.
const FAILED: &str = "failed (exitcode: ";
/// How long the end of a script's stderr is waited for when it has ended.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// Port of the rendezvous where its endpoint names none; torchrun's own.
pub const RENDEZVOUS_PORT: u16 = 29500;

/// A training script and everything that is said to it.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The repo; script and output are relative to it.
    pub root: PathBuf,
    pub script: PathBuf,
    pub output: PathBuf,
    /// Go on from the checkpoint in `output`, in the same run.
    pub resume: bool,
    /// Options of the script.
    pub script_args: Vec<String>,
    pub processes: Processes,
    /// Threads of each process; the cores divided among the processes if it is `None`.
    pub n_threads: Option<usize>,
    /// Name of the run.
    pub name: Option<String>,
    /// Tags of the run beside what is recorded anyway.
    pub tags: BTreeMap<String, String>,
}

/// How many processes train together.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct Processes {
    /// Processes on this machine, one for each GPU where there are GPUs
    #[arg(long = "nproc", visible_alias = "nproc-per-node", value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=64))]
    pub per_node: u32,
    /// Machines; start the same command on each, with another --node-rank
    #[arg(long = "nnodes", value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub n_nodes: u32,
    /// Which of the machines this is; the first, 0, opens the run
    #[arg(long, value_name = "I", default_value_t = 0, requires = "rendezvous")]
    pub node_rank: u32,
    /// HOST[:PORT] of the first machine, where the processes of all machines meet
    #[arg(long = "rdzv-endpoint", value_name = "HOST[:PORT]", id = "rendezvous")]
    pub rendezvous: Option<String>,
}

impl Default for Processes {
    fn default() -> Self {
        Self { per_node: 1, n_nodes: 1, node_rank: 0, rendezvous: None }
    }
}

impl Processes {
    /// Options of torchrun.
    fn torchrun(&self) -> anyhow::Result<Vec<String>> {
        let per_node = ["--nproc-per-node".to_owned(), self.per_node.to_string()];
        if self.n_nodes == 1 {
            return Ok(["--standalone".to_owned()].into_iter().chain(per_node).collect());
        }
        let Some(endpoint) = &self.rendezvous else {
            bail!("{} machines must know where to meet: give --rdzv-endpoint HOST[:PORT] of the first", self.n_nodes);
        };
        if self.node_rank >= self.n_nodes {
            bail!("--node-rank {} of {} machines: they count from 0", self.node_rank, self.n_nodes);
        }
        let endpoint = if endpoint.contains(':') { endpoint.clone() } else { format!("{endpoint}:{RENDEZVOUS_PORT}") };
        // With fixed ranks the first process runs where the run was opened, which no elastic rendezvous promises.
        let meet = ["--nnodes", &self.n_nodes.to_string(), "--node-rank", &self.node_rank.to_string()]
            .map(str::to_owned)
            .into_iter()
            .chain(["--rdzv-backend".to_owned(), "static".to_owned(), "--rdzv-endpoint".to_owned(), endpoint]);
        Ok(meet.chain(per_node).collect())
    }

    fn is_first_node(&self) -> bool {
        self.node_rank == 0
    }
}

/// How a training script ended.
pub struct Trained {
    /// The tracked run; `None` on machines after the first.
    pub run_id: Option<String>,
    pub status: ExitStatus,
}

impl Launch {
    /// `script` of the repo in the current directory, in one process here, with nothing said to it.
    pub fn new(script: impl Into<PathBuf>) -> Self {
        Self {
            root: PathBuf::from("."),
            script: script.into(),
            output: PathBuf::from("runs"),
            resume: false,
            script_args: Vec::new(),
            processes: Processes::default(),
            n_threads: None,
            name: None,
            tags: BTreeMap::new(),
        }
    }

    /// Opens a run, starts the script in it and waits; SIGTERM and SIGINT go on to the script.
    pub async fn train(&self, client: &RegistryClient) -> anyhow::Result<Trained> {
        self.train_with(&Python::find(&self.root)?, client).await
    }

    /// The same with another interpreter than the repo's own.
    pub async fn train_with(&self, python: &Python, client: &RegistryClient) -> anyhow::Result<Trained> {
        let standard = Standard::load(&self.root)?;
        if let Some(asked) = self.check(python)? {
            return Ok(asked);
        }
        let command = self.command_line()?;
        let opened = match self.processes.is_first_node() {
            true => Some(self.open_run(client, &standard, python, &command).await?),
            false => None,
        };
        let ended = match self.start(python, &command, opened.as_ref(), client.uri()) {
            Ok(child) => watch(child).await,
            Err(error) => Err(error),
        };
        self.close(client, opened, ended).await
    }

    /// Opens a run and hands the training over to an engine's client; waits where the client does.
    pub async fn train_on(
        &self,
        engine: Engine,
        args: &EngineArgs,
        client: &RegistryClient,
    ) -> anyhow::Result<Trained> {
        let (standard, python) = (Standard::load(&self.root)?, Python::find(&self.root)?);
        if let Some(asked) = self.check(&python)? {
            return Ok(asked);
        }
        // What cannot be written is refused before a run is opened.
        let job = args.job(engine, self, &python, client.uri(), None)?;
        let opened = self.open_run(client, &standard, &python, &[job.client_line()]).await?;
        let described = args.job(engine, self, &python, client.uri(), Some((&opened.run_id, &opened.spent)))?;
        let mut command = described.command(&opened.run_id)?;
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).stdin(Stdio::null()).kill_on_drop(true);
        let started = command.spawn().with_context(|| format!("cannot start {}", job.client_name()));
        let ended = match started {
            Ok(child) => watch(child).await,
            Err(error) => Err(error),
        };
        if let (false, Ok(Ended { status, .. })) = (job.waits, &ended)
            && status.success()
        {
            client.tag_run(&opened.run_id, &opened.record.tags).await?;
            return Ok(Trained { run_id: Some(opened.run_id), status: *status });
        }
        self.close(client, Some(opened), ended).await
    }

    /// Errors if there is no script here or it would not take its options; `Some` if it was asked for its help, and has given it.
    ///
    /// Only scripts that take their options through `highroad.training` can be asked without starting them.
    fn check(&self, python: &Python) -> anyhow::Result<Option<Trained>> {
        if !self.root.join(&self.script).is_file() {
            bail!("there is no `{}` here", self.script.display());
        }
        let told = check_options(python, &self.root, &self.script_line())?;
        if told.is_empty() {
            return Ok(None);
        }
        crate::outln!("{}", told.trim_end());
        Ok(Some(Trained { run_id: None, status: ExitStatus::default() }))
    }

    /// The run that weights in `output` belong to, or a new one with its record.
    async fn open_run(
        &self,
        client: &RegistryClient,
        standard: &Standard,
        python: &Python,
        command: &[String],
    ) -> anyhow::Result<Opened> {
        let git = GitState::of(&self.root);
        if git.as_ref().is_none_or(|git| git.commit.is_none()) {
            tell("warning: no git commit here: the run and its package will not name their code");
        }
        let arguments = self.arguments();
        let started = Started { command: &command.join(" "), arguments: &arguments, n_threads: self.n_threads() };
        let mut record = Record::of(&self.root, standard, python, &started)?;
        let output = self.root.join(&self.output);
        let resumed = if self.resume { TrainedBy::read(&output)? } else { None };
        let (held, before, spent) = match resumed {
            Some(trained) => {
                let held = Held::take(&trained.run_id)?;
                let run = client.get_run(&trained.run_id).await?;
                client.update_run(&run.id, RunStatus::Running, None).await?;
                record.tags = record::resumed(&run, &record.tags);
                let had_failed = run.tags.contains_key(record::ERROR_TAG);
                let before = Before { status: run.status, end_ms: run.end_ms, had_failed, trained };
                (held, Some(before), Spent::of(&run))
            }
            None => {
                record.tags.extend(self.tags.clone());
                (Held::take(&self.new_run(client, standard, &record).await?)?, None, Spent::default())
            }
        };
        let run_id = held.run_id().to_owned();
        let git_commit = git.as_ref().and_then(GitState::described);
        let since = TrainedBy { run_id: run_id.clone(), git_commit, command: command.join(" ") }.write(&output)?;
        let price = standard.tracking.price_per_hour;
        Ok(Opened { run_id, record, before, spent, price, since, began: Instant::now(), _held: held })
    }

    async fn new_run(&self, client: &RegistryClient, standard: &Standard, record: &Record) -> anyhow::Result<String> {
        let experiment = standard.experiment().to_owned();
        let new = NewRun { experiment, name: self.name.clone(), start_ms: now_ms(), tags: record.tags.clone() };
        let run_id = client.create_run(&new).await?;
        put_files(client, &run_id, record).await?;
        Ok(run_id)
    }

    /// Ends the run as its script ended. A resume that its script refused before it wrote anything leaves the run as it was.
    async fn close(
        &self,
        client: &RegistryClient,
        opened: Option<Opened>,
        ended: anyhow::Result<Ended>,
    ) -> anyhow::Result<Trained> {
        let Some(opened) = opened else { return Ok(Trained { run_id: None, status: ended?.status }) };
        let output = self.root.join(&self.output);
        let (status, error) = match &ended {
            Ok(Ended { status, .. }) if status.success() => (RunStatus::Finished, String::new()),
            Ok(ended) => (ended_as(ended.status), ended.reason()),
            Err(error) => (RunStatus::Failed, without_secrets(&crate::describe(error))),
        };
        if let Some(before) = &opened.before
            && status != RunStatus::Finished
            && before.status != RunStatus::Running
            && !is_written_since(&output, opened.since)
        {
            before.trained.write(&output)?;
            client.update_run(&opened.run_id, before.status, before.end_ms).await?;
            return Ok(Trained { run_id: Some(opened.run_id), status: ended?.status });
        }
        let mut tags = opened.spent.tags(opened.began.elapsed(), opened.price);
        // A tag cannot be taken back: an empty one tells that a later start went well.
        if !error.is_empty() || opened.before.as_ref().is_some_and(|before| before.had_failed) {
            tags.insert(record::ERROR_TAG.to_owned(), error);
        }
        if opened.before.is_some() {
            tags.extend(opened.record.tags.clone());
            put_files(client, &opened.run_id, &opened.record).await?;
        }
        // A cluster's output may be out of this machine's reach.
        if status == RunStatus::Finished && output.is_dir() {
            tags.extend(record::weights(&output)?);
        }
        client.tag_run(&opened.run_id, &tags).await?;
        client.update_run(&opened.run_id, status, Some(now_ms())).await?;
        Ok(Trained { run_id: Some(opened.run_id), status: ended?.status })
    }

    fn start(
        &self,
        python: &Python,
        command: &[String],
        opened: Option<&Opened>,
        tracking_uri: &str,
    ) -> anyhow::Result<Child> {
        let mut child = Command::new(python.path());
        // In place of `-m torch.distributed.run`.
        child.args(["-c", LAUNCH]).args(&command[3..]).current_dir(&self.root);
        if let Some(opened) = opened {
            child.env("MLFLOW_TRACKING_URI", tracking_uri).env("MLFLOW_RUN_ID", &opened.run_id);
            child.env(SPENT, opened.spent.told());
        }
        child.envs(self.variables()?);
        // The script's prints are for people; stdout of this command is the run id.
        child.stdout(Stdio::piped()).stderr(Stdio::piped()).stdin(Stdio::piped()).kill_on_drop(true);
        child.spawn().with_context(|| format!("cannot start {}", python.path().display()))
    }

    /// What each process is told in its environment, wherever it runs.
    pub fn variables(&self) -> anyhow::Result<Vec<(&'static str, String)>> {
        let git_commit = GitState::of(&self.root).and_then(|git| git.described());
        let standard = Standard::find(&self.root)?.map(|standard| standard.for_scripts()).transpose()?;
        let mut variables = vec![
            ("HIGHROAD_GIT_COMMIT", git_commit.unwrap_or_default()),
            // torchrun would give each of several processes one thread, and the number decides the last bits of a sum.
            ("OMP_NUM_THREADS", self.n_threads().to_string()),
            ("PYTHONUNBUFFERED", "1".to_owned()),
            ("HF_HUB_OFFLINE", "1".to_owned()),
        ];
        variables.extend(standard.map(|standard| (FOR_SCRIPTS, standard)));
        Ok(variables)
    }

    /// Threads of each process.
    pub fn n_threads(&self) -> usize {
        let chosen = || std::env::var("OMP_NUM_THREADS").ok()?.parse().ok().filter(|&n| n > 0);
        let n_cores = std::thread::available_parallelism().map_or(1, usize::from);
        let shared = || (n_cores / usize::try_from(self.processes.per_node).unwrap_or(n_cores)).max(1);
        self.n_threads.or_else(chosen).unwrap_or_else(shared)
    }

    fn command_line(&self) -> anyhow::Result<Vec<String>> {
        let mut command: Vec<String> = ["python", "-m", "torch.distributed.run"].map(str::to_owned).into();
        command.extend(self.processes.torchrun()?);
        command.extend(self.script_line());
        Ok(command)
    }

    /// The script and its options, as torchrun takes them.
    pub fn script_line(&self) -> Vec<String> {
        let mut line = vec![self.script.display().to_string()];
        line.extend(["--output".to_owned(), self.output.display().to_string()]);
        line.extend(self.resume.then(|| "--resume".to_owned()));
        line.extend(self.script_args.iter().cloned());
        line
    }

    /// What `highroad train` must be told to do the same again elsewhere.
    fn arguments(&self) -> Vec<String> {
        let mut arguments: Vec<String> = vec!["--script".into(), self.script.display().to_string()];
        arguments.extend(["--nproc".to_owned(), self.processes.per_node.to_string()]);
        arguments.push("--".into());
        arguments.extend(self.script_args.iter().cloned());
        arguments
    }
}

/// A run that this command has opened.
struct Opened {
    run_id: String,
    record: Record,
    /// What it was, where it is resumed.
    before: Option<Before>,
    spent: Spent,
    /// Of an hour.
    price: Option<f64>,
    /// When `output` was told whose it is; what is written there later, the script has written.
    since: SystemTime,
    began: Instant,
    _held: Held,
}

struct Before {
    status: RunStatus,
    end_ms: Option<i64>,
    had_failed: bool,
    trained: TrainedBy,
}

/// What the earlier starts of a run took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Spent {
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    joules: Option<f64>,
}

impl Spent {
    fn of(run: &Run) -> Self {
        let is_amount = |amount: &f64| amount.is_finite() && *amount >= 0.0;
        let number = |tag: &str| run.tags.get(tag)?.parse().ok().filter(is_amount);
        Self { seconds: number(record::DURATION_TAG).unwrap_or(0.0), joules: number(record::ENERGY_TAG) }
    }

    /// The value of [`SPENT`].
    pub fn told(&self) -> String {
        serde_json::json!(self).to_string()
    }

    /// The run's tags after another start that took `more`.
    fn tags(&self, more: Duration, price: Option<f64>) -> BTreeMap<String, String> {
        let seconds = self.seconds + more.as_secs_f64();
        let cost = price.map(|price| (record::COST_TAG.to_owned(), format!("{:.6}", price * seconds / 3600.0)));
        [(record::DURATION_TAG.to_owned(), format!("{seconds:.3}"))].into_iter().chain(cost).collect()
    }
}

/// What a training script would say to its options, `line` being the script and they: its help, if that is asked for, else nothing.
///
/// Errors if it would refuse them.
pub fn check_options(python: &Python, root: &Path, line: &[String]) -> anyhow::Result<String> {
    let mut asked = python.command();
    asked.args(["-m", "highroad._options"]).args(line).current_dir(root).stdin(Stdio::null());
    if let Some(standard) = Standard::find(root)? {
        asked.env(FOR_SCRIPTS, standard.for_scripts()?);
    }
    let output = asked.output().with_context(|| format!("cannot start {}", python.path().display()))?;
    // Any other code is of a Python that lacks the package, and the script itself tells what it lacks.
    if output.status.code() == Some(i32::from(crate::USAGE_OR_ENVIRONMENT)) {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(if output.status.success() { String::from_utf8_lossy(&output.stdout).into_owned() } else { String::new() })
}

async fn put_files(client: &RegistryClient, run_id: &str, record: &Record) -> anyhow::Result<()> {
    let run = client.get_run(run_id).await?;
    for (path, content) in &record.files {
        if let Err(error) = client.put_run_file(&run, path, content.clone()).await {
            tell(&format!("warning: {}", crate::describe(&error.into())));
            break;
        }
    }
    Ok(())
}

/// Whether a file below `folder`, besides the one that tells whose it is, was written after `since`.
fn is_written_since(folder: &Path, since: SystemTime) -> bool {
    let Ok(entries) = std::fs::read_dir(folder) else { return false };
    entries.flatten().any(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => is_written_since(&entry.path(), since),
        _ if entry.file_name() == PROVENANCE => false,
        _ => entry.metadata().and_then(|data| data.modified()).is_ok_and(|modified| modified > since),
    })
}

fn ended_as(status: ExitStatus) -> RunStatus {
    match status.code() {
        Some(0) => RunStatus::Finished,
        Some(_) => RunStatus::Failed,
        None => RunStatus::Killed,
    }
}

/// Milliseconds since 1970, UTC.
pub fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

/// Where the weights of an output directory come from; `highroad export` puts it into the package.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrainedBy {
    /// The tracked run.
    pub run_id: String,
    /// Commit of the training code.
    pub git_commit: Option<String>,
    /// What was started.
    pub command: String,
}

impl TrainedBy {
    /// What `output` says; `None` if its weights were not trained by `highroad train`.
    pub fn read(output: &Path) -> anyhow::Result<Option<Self>> {
        let path = output.join(PROVENANCE);
        match std::fs::read(&path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).map(Some).with_context(|| format!("cannot read {}", path.display()))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Gives when that was, by the clock of the file system.
    fn write(&self, output: &Path) -> anyhow::Result<SystemTime> {
        std::fs::create_dir_all(output)?;
        let mut file = tempfile::NamedTempFile::new_in(output)?;
        serde_json::to_writer_pretty(&mut file, self)?;
        let file = file.persist(output.join(PROVENANCE))?;
        Ok(file.metadata()?.modified()?)
    }
}

/// How a script ended, and the last it wrote to stderr.
struct Ended {
    status: ExitStatus,
    said: Vec<u8>,
}

impl Ended {
    /// Why, as far as its last words tell: a traceback, or else some lines. Bounded, and without the values of secret variables.
    fn reason(&self) -> String {
        let said = String::from_utf8_lossy(&self.said);
        let is_torchrun = |line: &&str| line.contains("torch/distributed/elastic/");
        // After the line that names the process which failed torchrun tells of itself.
        let lines = said.lines().take_while(|line| !line.contains(FAILED));
        let lines: Vec<&str> = lines.filter(|line| !is_torchrun(line) && !line.trim().is_empty()).collect();
        let last_words = lines.iter().rposition(|line| line.contains("Traceback (most recent call last)"));
        let told = lines[last_words.unwrap_or(lines.len().saturating_sub(LAST_LINES))..].join("\n");
        let ended_by = said.lines().find_map(|line| line.split_once(FAILED)?.1.strip_prefix('-')?.split(')').next());
        let how = match (self.status.signal(), ended_by) {
            (Some(signal), _) => format!("stopped by signal {signal}"),
            (None, Some(signal)) => format!("the script was ended by signal {signal}"),
            (None, None) => format!("exit code {}", self.status.code().unwrap_or(1)),
        };
        let told = if told.is_empty() || self.status.signal().is_some() { how } else { told };
        let told = without_secrets(&told);
        // The end of a traceback says what is wrong.
        let excess = told.chars().count().saturating_sub(MAX_ERROR_CHARS);
        told.chars().skip(excess).collect()
    }
}

/// Shows the script's output until it ends; SIGTERM and SIGINT go on to it, so that it can save where it is.
///
/// A script that fails after such a signal ended by it: torchrun itself ends with 1 then. Where nobody reads the output any more,
/// the training goes on.
async fn watch(mut child: Child) -> anyhow::Result<Ended> {
    let pid = child.id().and_then(|pid| rustix::process::Pid::from_raw(pid.cast_signed()));
    // `wait` would close it, and what is started here ends with it.
    let _alive = child.stdin.take();
    let mut lines = BufReader::new(child.stdout.take().context("the script's output is piped")?).split(b'\n');
    let errors = child.stderr.take().map(|errors| tokio::spawn(pass_on(errors)));
    let (mut terminated, mut interrupted) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let progress = Progress::new();
    let mut stopped_by = None;
    loop {
        let forwarded = tokio::select! {
            line = lines.next_segment() => match line? {
                Some(line) => { progress.show(String::from_utf8_lossy(&line).trim_end_matches('\r')); continue }
                None => break,
            },
            _ = terminated.recv() => rustix::process::Signal::TERM,
            // At a terminal the script got it already; told twice it would stop without saving.
            _ = interrupted.recv(), if !std::io::stdin().is_terminal() => rustix::process::Signal::INT,
        };
        if let Some(pid) = pid {
            rustix::process::kill_process(pid, forwarded)?;
        }
        stopped_by = Some(forwarded);
    }
    progress.finish();
    let status = child.wait().await?;
    let said = match errors {
        // A process that the script has left behind may hold the pipe.
        Some(errors) => {
            tokio::time::timeout(LAST_WORDS, errors).await.map_or_else(|_| Vec::new(), Result::unwrap_or_default)
        }
        None => Vec::new(),
    };
    let status = match stopped_by {
        Some(signal) if !status.success() => ExitStatus::from_raw(signal.as_raw()),
        _ => status,
    };
    Ok(Ended { status, said })
}

/// Writes to stderr what a process writes to its own, as it comes, and keeps the end of it.
async fn pass_on(mut from: ChildStderr) -> Vec<u8> {
    let (mut said, mut block) = (Vec::new(), vec![0; 8192]);
    while let Ok(n_bytes @ 1..) = from.read(&mut block).await {
        // Nobody may read it any more; the training goes on.
        _ = std::io::stderr().write_all(&block[..n_bytes]);
        said.extend_from_slice(&block[..n_bytes]);
        let excess = said.len().saturating_sub(MAX_SAID_BYTES);
        said.drain(..excess);
    }
    said
}

/// Lines that begin `step A/B` move a bar where there is a terminal; elsewhere they are printed as they are.
struct Progress(Option<ProgressBar>);

impl Progress {
    fn new() -> Self {
        let style = ProgressStyle::with_template("{bar:32} {pos}/{len} {elapsed} {msg}").ok();
        let bar = std::io::stderr().is_terminal().then(|| ProgressBar::new(0));
        Self(bar.zip(style).map(|(bar, style)| bar.with_style(style)))
    }

    fn show(&self, line: &str) {
        match (&self.0, step(line)) {
            (Some(bar), Some((position, length, message))) => {
                bar.set_length(length);
                bar.set_position(position);
                bar.set_message(message.to_owned());
            }
            (Some(bar), None) => bar.println(line),
            (None, _) => tell(line),
        }
    }

    fn finish(&self) {
        if let Some(bar) = &self.0 {
            bar.abandon();
        }
    }
}

/// Position, length and the rest of a line `step A/B …`.
fn step(line: &str) -> Option<(u64, u64, &str)> {
    let rest = line.strip_prefix("step ")?;
    let (count, message) = rest.split_once(' ').unwrap_or((rest, ""));
    let (position, length) = count.split_once('/')?;
    Some((position.parse().ok()?, length.parse().ok()?, message))
}

/// The script's own exit code; 128 and the signal's number where one ended it, as shells say it.
pub fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_script_that_a_signal_stops_ends_with_that_signal() {
        let mut script = Command::new("sh");
        script.args(["-c", "trap 'exit 1' TERM; while :; do sleep 0.05; done"]).stdout(Stdio::piped());
        // While somebody listens, the signal does not end this process.
        let _listening = signal(SignalKind::terminate()).unwrap();
        let mut watching = tokio::spawn(watch(script.spawn().unwrap()));
        let status = loop {
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM).unwrap();
            if let Ok(ended) = tokio::time::timeout(std::time::Duration::from_millis(50), &mut watching).await {
                break ended.unwrap().unwrap().status;
            }
        };
        assert_eq!((exit_code(status), ended_as(status)), (ExitCode::from(143), RunStatus::Killed));
    }

    fn failed(code: i32, said: &str) -> String {
        Ended { status: ExitStatus::from_raw(code), said: said.as_bytes().to_vec() }.reason()
    }

    #[test]
    fn a_failure_is_told_by_the_script_and_not_by_torchrun() {
        let torchrun = "E1130 00:01:45.955000 1 torch/distributed/elastic/multiprocessing/api.py:1002] failed (exitcode: 1) \
            local_rank: 0 (pid: 2) of binary: python\nTraceback (most recent call last):\n  File \"run.py\"\nChildFailedError:\n";
        let script = "loading\nTraceback (most recent call last):\n  File \"train.py\", line 2\nValueError: boom\n";
        let told = failed(1 << 8, &format!("{script}{torchrun}"));
        assert_eq!(told, "Traceback (most recent call last):\n  File \"train.py\", line 2\nValueError: boom");
        assert_eq!(failed(1 << 8, &format!("the loss is nan\n{torchrun}")), "the loss is nan");
        assert_eq!(
            failed(1 << 8, &torchrun.replace("exitcode: 1", "exitcode: -11")),
            "the script was ended by signal 11"
        );
        assert_eq!((failed(15, script).as_str(), failed(3 << 8, "").as_str()), ("stopped by signal 15", "exit code 3"));
        assert_eq!(failed(1 << 8, &"x".repeat(3000)).len(), MAX_ERROR_CHARS);
    }

    #[test]
    fn starts_of_a_run_add_up() {
        let first = Spent::default().tags(Duration::from_secs(10), Some(3600.0));
        assert_eq!((first[record::DURATION_TAG].as_str(), first[record::COST_TAG].as_str()), ("10.000", "10.000000"));
        let spent = Spent { seconds: 10.0, joules: Some(5.0) };
        assert_eq!(spent.told(), r#"{"joules":5.0,"seconds":10.0}"#);
        assert_eq!(spent.tags(Duration::from_secs(2), None)[record::DURATION_TAG], "12.000");
    }

    #[tokio::test]
    async fn what_is_started_ends_when_its_pipe_closes() {
        let python = Python::find(Path::new(".")).unwrap();
        let module = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(module.path().join("torch/distributed")).unwrap();
        for (name, text) in [
            ("__init__.py", ""),
            ("distributed/__init__.py", ""),
            ("distributed/run.py", "import time\nprint('up')\ntime.sleep(60)\n"),
        ] {
            std::fs::write(module.path().join("torch").join(name), text).unwrap();
        }
        let mut command = Command::new(python.path());
        command.args(["-u", "-c", LAUNCH]).env("PYTHONPATH", module.path()).env_remove("MLFLOW_RUN_ID");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("up"));
        drop(child.stdin.take());
        let ended = tokio::time::timeout(Duration::from_secs(20), child.wait()).await.expect("it ends").unwrap();
        assert!(!ended.success(), "{ended}");
    }

    #[test]
    fn what_a_script_writes_is_told_from_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("checkpoints")).unwrap();
        std::fs::write(dir.path().join("checkpoints/a"), "a").unwrap();
        let since = SystemTime::now();
        assert!(!is_written_since(dir.path(), since));
        let later = since + Duration::from_secs(1);
        std::fs::File::open(dir.path().join("checkpoints/a")).unwrap().set_modified(later).unwrap();
        assert!(is_written_since(dir.path(), since));
    }

    #[test]
    fn progress_lines_are_told_from_other_lines() {
        assert_eq!(step("step 10/347 train/loss=0.5"), Some((10, 347, "train/loss=0.5")));
        assert_eq!(step("step 1/2"), Some((1, 2, "")));
        assert_eq!(step("stepping stones 1/2"), None);
        assert_eq!(step("Loading weights"), None);
    }

    #[test]
    fn machines_meet_at_the_first_and_keep_their_ranks() {
        let processes = |n_nodes, node_rank, rendezvous: Option<&str>| Processes {
            per_node: 2,
            n_nodes,
            node_rank,
            rendezvous: rendezvous.map(str::to_owned),
        };
        assert_eq!(processes(1, 0, None).torchrun().expect("alone"), ["--standalone", "--nproc-per-node", "2"]);
        let options = processes(2, 1, Some("gpu-0")).torchrun().expect("two machines").join(" ");
        assert!(options.contains("--node-rank 1 --rdzv-backend static --rdzv-endpoint gpu-0:29500"), "{options}");
        assert!(processes(2, 0, None).torchrun().is_err());
        assert!(processes(2, 2, Some("gpu-0")).torchrun().is_err());
    }

    #[test]
    fn a_run_ends_as_its_script_does() {
        assert_eq!(ended_as(ExitStatus::from_raw(0)), RunStatus::Finished);
        assert_eq!(ended_as(ExitStatus::from_raw(1 << 8)), RunStatus::Failed);
        assert_eq!(ended_as(ExitStatus::from_raw(9)), RunStatus::Killed);
    }

    #[test]
    fn the_exit_code_of_the_script_is_kept() {
        assert_eq!(exit_code(ExitStatus::from_raw(3 << 8)), ExitCode::from(3));
        assert_eq!(exit_code(ExitStatus::from_raw(15)), ExitCode::from(143));
    }

    #[test]
    fn an_output_directory_remembers_its_run() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let trained = TrainedBy { run_id: "7f".into(), git_commit: Some("abc-dirty".into()), command: "python".into() };
        assert_eq!(TrainedBy::read(dir.path()).expect("readable"), None);
        trained.write(dir.path()).expect("written");
        assert_eq!(TrainedBy::read(dir.path()).expect("readable"), Some(trained));
    }
}
