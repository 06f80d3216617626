use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus, Stdio};

use anyhow::{Context as _, bail};
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use crate::repo::{GitState, PROVENANCE, Python, file_digest};
use crate::runs::{EndedAs, Runs};
use crate::standard::Standard;
use crate::tracking::{self, Tracking, TrackingArgs};

/// `highroad train [-- ARGS]`
#[derive(clap::Args)]
pub struct Args {
    /// Script to launch [default: `training.script` of highroad.toml]
    #[arg(long)]
    script: Option<PathBuf>,
    /// Where weights and checkpoints go [default: `training.output` of highroad.toml]
    #[arg(long)]
    output: Option<PathBuf>,
    /// Go on from the checkpoint in the output directory, in the same tracked run
    #[arg(long)]
    resume: bool,
    /// Name of the run
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    tracking: TrackingArgs,
    /// Options of the script, such as `-- --epochs 3`
    #[arg(last = true)]
    script_args: Vec<String>,
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

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let tracking = tracking::client(&self.tracking)?;
        tracking.block_on(self.train(&tracking))
    }

    async fn train(&self, tracking: &Tracking) -> anyhow::Result<ExitCode> {
        let root = Path::new(".");
        let standard = Standard::load(root)?;
        let python = Python::find(root)?;
        let script = self.script.clone().unwrap_or_else(|| standard.training.script.clone().into());
        if !script.is_file() {
            bail!("there is no `{}` here", script.display());
        }
        let output = self.output.clone().unwrap_or_else(|| standard.training.output.clone().into());
        let git = GitState::of(root);
        if git.as_ref().is_none_or(|git| git.commit.is_none()) {
            eprintln!("warning: no git commit here: the run and its package will not name their code");
        }

        let command = self.command_line(&script, &output);
        let runs = Runs::new(tracking.uri());
        let resumed = if self.resume { TrainedBy::read(&output)? } else { None };
        let run_id = match &resumed {
            Some(trained) => runs.reopen(&trained.run_id).await.map(|()| trained.run_id.clone())?,
            None => {
                let tags = tags(root, &standard, git.as_ref(), &command.join(" "))?;
                runs.create(standard.experiment(), self.name.as_deref(), &tags).await?
            }
        };
        let git_commit = git.as_ref().and_then(GitState::described);
        TrainedBy { run_id: run_id.clone(), git_commit: git_commit.clone(), command: command.join(" ") }
            .write(&output)?;

        let mut child = Command::new(python.path());
        child.args(&command[1..]).env("MLFLOW_TRACKING_URI", tracking.uri()).env("MLFLOW_RUN_ID", &run_id);
        child.env("HIGHROAD_GIT_COMMIT", git_commit.unwrap_or_default());
        child.env("PYTHONUNBUFFERED", "1").env("HF_HUB_OFFLINE", "1");
        // The script's prints are for people; stdout of this command is the run id.
        child.stdout(Stdio::piped()).stdin(Stdio::null()).kill_on_drop(true);
        let child = child.spawn().with_context(|| format!("cannot start {}", python.path().display()))?;
        let status = watch(child).await?;
        runs.end(&run_id, EndedAs::of(status)).await?;
        if status.success() {
            writeln!(std::io::stdout(), "{run_id}")?;
        }
        Ok(exit_code(status))
    }

    fn command_line(&self, script: &Path, output: &Path) -> Vec<String> {
        let mut command: Vec<String> =
            ["python", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
                .map(str::to_owned)
                .into();
        command.push(script.display().to_string());
        command.extend(["--output".to_owned(), output.display().to_string()]);
        command.extend(self.resume.then(|| "--resume".to_owned()));
        command.extend(self.script_args.iter().cloned());
        command
    }
}

/// What the run is told about itself, in MLflow's names where it has some.
fn tags(
    root: &Path,
    standard: &Standard,
    git: Option<&GitState>,
    command: &str,
) -> anyhow::Result<BTreeMap<String, String>> {
    let lock = file_digest(&root.join(&standard.environment.lock))?;
    let seed = standard.training.parameters.get("seed").map(ToString::to_string);
    let n_cores = std::thread::available_parallelism().map_or(1, usize::from);
    let all = [
        ("mlflow.source.type", Some("LOCAL".to_owned())),
        ("mlflow.source.name", Some(standard.training.script.clone())),
        ("mlflow.source.git.commit", git.and_then(|git| git.commit.clone())),
        ("mlflow.source.git.branch", git.and_then(|git| git.branch.clone())),
        ("mlflow.user", std::env::var("USER").ok()),
        ("highroad.git.dirty", git.map(|git| git.is_dirty.to_string())),
        ("highroad.command", Some(command.to_owned())),
        ("highroad.environment", lock.map(|digest| digest.to_string())),
        ("highroad.seed", seed),
        ("highroad.hardware.cores", Some(n_cores.to_string())),
        ("highroad.hardware.cpu", cpu_model()),
        ("highroad.hardware.features", Some(super::doctor::cpu_features().join(" "))),
        ("highroad.version", Some(env!("CARGO_PKG_VERSION").to_owned())),
    ];
    Ok(all.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect())
}

fn cpu_model() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    line.split_once(':').map(|(_, model)| model.trim().to_owned())
}

/// Shows the script's output until it ends; SIGTERM and SIGINT go on to it, so that it can save where it is.
async fn watch(mut child: Child) -> anyhow::Result<ExitStatus> {
    let pid = child.id().and_then(|pid| rustix::process::Pid::from_raw(pid.cast_signed()));
    let mut lines = BufReader::new(child.stdout.take().context("the script's output is piped")?).lines();
    let (mut terminated, mut interrupted) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let progress = Progress::new();
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
    }
    progress.finish();
    Ok(child.wait().await?)
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
fn exit_code(status: ExitStatus) -> ExitCode {
    use std::os::unix::process::ExitStatusExt as _;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    #[test]
    fn progress_lines_are_told_from_other_lines() {
        assert_eq!(step("step 10/347 train/loss=0.5"), Some((10, 347, "train/loss=0.5")));
        assert_eq!(step("step 1/2"), Some((1, 2, "")));
        assert_eq!(step("stepping stones 1/2"), None);
        assert_eq!(step("Loading weights"), None);
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
