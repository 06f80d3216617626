//! Starting a training script under torchrun, tracked, and what is recorded about it.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus, Stdio};

use anyhow::{Context as _, bail};
use highroad_package::registry::{NewRun, RegistryClient, RunStatus};
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use crate::engine::{Engine, EngineArgs};
use crate::record::{self, Record, Started};
use crate::repo::{GitState, PROVENANCE, Python};
use crate::standard::{FOR_SCRIPTS, Standard};

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
        if !self.root.join(&self.script).is_file() {
            bail!("there is no `{}` here", self.script.display());
        }
        let command = self.command_line()?;
        let run_id = match self.processes.is_first_node() {
            true => Some(self.open_run(client, &standard, python, &command).await?),
            false => None,
        };
        let status = watch(self.start(python, &command, run_id.as_deref(), client.uri())?).await?;
        if let Some(run_id) = &run_id {
            self.close_run(client, run_id, status).await?;
        }
        Ok(Trained { run_id, status })
    }

    /// Opens a run and hands the training over to an engine's client; waits where the client does.
    pub async fn train_on(
        &self,
        engine: Engine,
        args: &EngineArgs,
        client: &RegistryClient,
    ) -> anyhow::Result<Trained> {
        let (standard, python) = (Standard::load(&self.root)?, Python::find(&self.root)?);
        // What cannot be written is refused before a run is opened.
        let job = args.job(engine, self, &python, client.uri(), None)?;
        let run_id = self.open_run(client, &standard, &python, &[job.client_line()]).await?;
        let described = args.job(engine, self, &python, client.uri(), Some(&run_id))?;
        let mut command = described.command(&run_id)?;
        command.stdout(Stdio::piped()).stdin(Stdio::null()).kill_on_drop(true);
        let started = command.spawn().with_context(|| format!("cannot start {}", job.client_name()));
        let status = match started {
            Ok(child) => watch(child).await?,
            Err(error) => {
                client.update_run(&run_id, RunStatus::Failed, Some(now_ms())).await?;
                return Err(error);
            }
        };
        if job.waits || !status.success() {
            self.close_run(client, &run_id, status).await?;
        }
        Ok(Trained { run_id: Some(run_id), status })
    }

    /// The run that weights in `output` belong to, or a new one with its record.
    async fn open_run(
        &self,
        client: &RegistryClient,
        standard: &Standard,
        python: &Python,
        command: &[String],
    ) -> anyhow::Result<String> {
        let git = GitState::of(&self.root);
        if git.as_ref().is_none_or(|git| git.commit.is_none()) {
            eprintln!("warning: no git commit here: the run and its package will not name their code");
        }
        let output = self.root.join(&self.output);
        let resumed = if self.resume { TrainedBy::read(&output)? } else { None };
        let run_id = match resumed {
            Some(trained) => {
                client.update_run(&trained.run_id, RunStatus::Running, None).await?;
                trained.run_id
            }
            None => self.new_run(client, standard, python, command).await?,
        };
        let git_commit = git.as_ref().and_then(GitState::described);
        TrainedBy { run_id: run_id.clone(), git_commit, command: command.join(" ") }.write(&output)?;
        Ok(run_id)
    }

    async fn new_run(
        &self,
        client: &RegistryClient,
        standard: &Standard,
        python: &Python,
        command: &[String],
    ) -> anyhow::Result<String> {
        let arguments = self.arguments();
        let started = Started { command: &command.join(" "), arguments: &arguments, n_threads: self.n_threads() };
        let mut record = Record::of(&self.root, standard, python, &started)?;
        record.tags.extend(self.tags.clone());
        let experiment = standard.experiment().to_owned();
        let new = NewRun { experiment, name: self.name.clone(), start_ms: now_ms(), tags: record.tags };
        let run_id = client.create_run(&new).await?;
        let run = client.get_run(&run_id).await?;
        for (path, content) in record.files {
            if let Err(error) = client.put_run_file(&run, &path, content).await {
                eprintln!("warning: {}", crate::describe(&error.into()));
                break;
            }
        }
        Ok(run_id)
    }

    async fn close_run(&self, client: &RegistryClient, run_id: &str, status: ExitStatus) -> anyhow::Result<()> {
        let output = self.root.join(&self.output);
        // A cluster's output may be out of this machine's reach.
        if status.success() && output.is_dir() {
            client.tag_run(run_id, &record::weights(&output)?).await?;
        }
        client.update_run(run_id, ended_as(status), Some(now_ms())).await?;
        Ok(())
    }

    fn start(
        &self,
        python: &Python,
        command: &[String],
        run_id: Option<&str>,
        tracking_uri: &str,
    ) -> anyhow::Result<Child> {
        let mut child = Command::new(python.path());
        child.args(&command[1..]).current_dir(&self.root);
        if let Some(run_id) = run_id {
            child.env("MLFLOW_TRACKING_URI", tracking_uri).env("MLFLOW_RUN_ID", run_id);
        }
        child.envs(self.variables()?);
        // The script's prints are for people; stdout of this command is the run id.
        child.stdout(Stdio::piped()).stdin(Stdio::null()).kill_on_drop(true);
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

    fn write(&self, output: &Path) -> anyhow::Result<()> {
        std::fs::create_dir_all(output)?;
        let mut file = tempfile::NamedTempFile::new_in(output)?;
        serde_json::to_writer_pretty(&mut file, self)?;
        file.persist(output.join(PROVENANCE))?;
        Ok(())
    }
}

/// Shows the script's output until it ends; SIGTERM and SIGINT go on to it, so that it can save where it is.
///
/// A script that fails after such a signal ended by it: torchrun itself ends with 1 then.
async fn watch(mut child: Child) -> anyhow::Result<ExitStatus> {
    let pid = child.id().and_then(|pid| rustix::process::Pid::from_raw(pid.cast_signed()));
    let mut lines = BufReader::new(child.stdout.take().context("the script's output is piped")?).lines();
    let (mut terminated, mut interrupted) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let progress = Progress::new();
    let mut stopped_by = None;
    loop {
        let forwarded = tokio::select! {
            line = lines.next_line() => match line? {
                Some(line) => { progress.show(&line); continue }
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
    Ok(match stopped_by {
        Some(signal) if !status.success() => ExitStatus::from_raw(signal.as_raw()),
        _ => status,
    })
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
            (None, _) => eprintln!("{line}"),
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
                break ended.unwrap().unwrap();
            }
        };
        assert_eq!((exit_code(status), ended_as(status)), (ExitCode::from(143), RunStatus::Killed));
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
