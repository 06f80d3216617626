use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Parser as _;
use highroad_package::Digest;
use highroad_package::registry::{Point, Run};
use serde::Serialize;

use super::runs;
use crate::environment;
use crate::out::tell;
use crate::record::{self, COMMIT_TAG, DATA_TAGS, DIFF_FILE, DIFF_TAG, WEIGHTS_TAGS, tagged};
use crate::repo::{Python, file_digest, git};
use crate::standard::Standard;
use crate::tracking::{self, Tracking};
use crate::training::{Launch, Processes, exit_code};

/// The weights or metrics differ.
const MISMATCH: u8 = 1;

/// `highroad reproduce RUN`
#[derive(clap::Args)]
pub struct Args {
    /// Id of the run, its beginning, name, or `latest`
    run: String,
    #[command(flatten)]
    place: runs::Place,
    /// Python environment to train in
    #[arg(long, value_enum, default_value = "auto")]
    environment: Environment,
    /// Where the weights go, inside the checkout [default: `runs/reproduced`]
    #[arg(long, default_value = "runs/reproduced")]
    output: PathBuf,
    /// Keep the checkout, and say where it is
    #[arg(long)]
    keep: bool,
    /// Largest relative difference of a last metric that counts as reproduced where bits cannot be promised: on a GPU, or on
    /// another processor
    #[arg(long, default_value_t = 0.02, value_parser = fraction)]
    tolerance: f64,
    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Environment {
    /// The present one where it holds just what the run's lock file pins, else a new one
    Auto,
    /// A new one from the run's lock file
    Rebuild,
    /// The present one, whatever it holds
    Current,
}

/// What `highroad train` was told, as the run recorded it.
#[derive(clap::Parser)]
#[command(no_binary_name = true)]
struct Recorded {
    #[arg(long)]
    script: PathBuf,
    #[command(flatten)]
    processes: Processes,
    #[arg(last = true)]
    script_args: Vec<String>,
}

/// What became of the attempt.
#[derive(Serialize)]
struct Report {
    /// The run that was done again.
    run: String,
    /// The run that did it.
    reproduction: String,
    same_bits: bool,
    reproduced: bool,
    /// What kind of sameness could be promised here, and why.
    expected: String,
    weights: Vec<Compared>,
    metrics: Vec<Compared>,
    /// The first point that differs: metric, step and both values.
    first_difference: Option<(String, i64, f64, f64)>,
}

#[derive(Serialize)]
struct Compared {
    name: String,
    was: String,
    is: String,
    same: bool,
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let tracking = tracking::client(&self.place.tracking)?;
        let run = runs::find(&tracking, self.place.experiment.as_deref(), &self.run)?;
        let output = inside(&self.output)?;
        if let Some(changed) = changed_on_the_way(&run) {
            tell(&format!(
                "warning: the run was resumed with other {changed}: it is done again as it was at last, from the start"
            ));
        }
        let checkout = Checkout::of(&tracking, &run)?;
        tell(&format!("code      {} in {}", checkout.described, checkout.repo.display()));
        let python = self.python(&checkout, &run)?;
        check_data(&checkout, &python, &run)?;
        let launch = self.launch(&checkout, &run, output)?;
        // The checkout has an interpreter of its own choice; what it trains with is what was checked above.
        let trained = tracking.block_on(launch.train_with(&python, tracking.client()))?;
        let Some(reproduction) = trained.run_id.filter(|_| trained.status.success()) else {
            tell("error: the training failed, so there is nothing to compare");
            return Ok(exit_code(trained.status));
        };
        let again = tracking.block_on(tracking.client().get_run(&reproduction))?;
        let report = Report::of(&tracking, &run, &again, self.tolerance)?;
        let finding = BTreeMap::from([(record::REPRODUCED_TAG.to_owned(), report.in_words())]);
        tracking.block_on(tracking.client().tag_run(&reproduction, &finding))?;
        if self.keep {
            tell(&format!("checkout  {}", checkout.keep().display()));
        }
        let mut stdout = std::io::stdout().lock();
        if self.json {
            writeln!(stdout, "{}", serde_json::to_string_pretty(&report)?)?;
        } else {
            report.print(&mut stdout)?;
        }
        Ok(if report.reproduced { ExitCode::SUCCESS } else { ExitCode::from(MISMATCH) })
    }

    fn launch(&self, checkout: &Checkout, run: &Run, output: PathBuf) -> anyhow::Result<Launch> {
        let recorded = run.tags.get(record::ARGUMENTS_TAG).context("the run did not record how it was started")?;
        let arguments: Vec<String> = serde_json::from_str(recorded).context("the run's record is damaged")?;
        let recorded =
            Recorded::try_parse_from(arguments).context("this version cannot start what the run recorded")?;
        let mut tags = BTreeMap::from([(record::REPRODUCES_TAG.to_owned(), run.id.clone())]);
        tags.insert("mlflow.parentRunId".to_owned(), run.id.clone());
        Ok(Launch {
            root: checkout.repo.clone(),
            output,
            script_args: recorded.script_args,
            processes: recorded.processes,
            n_threads: run.tags.get(record::THREADS_TAG).and_then(|text| text.parse().ok()),
            name: Some(format!("{} again", run.name)),
            tags,
            ..Launch::new(recorded.script)
        })
    }

    /// An interpreter with the packages that the run's lock file pins.
    fn python(&self, checkout: &Checkout, run: &Run) -> anyhow::Result<Python> {
        let standard = Standard::load(&checkout.repo)?;
        let lock = checkout.repo.join(&standard.environment.lock);
        let digest = file_digest(&lock)?.with_context(|| format!("the commit has no {}", standard.environment.lock))?;
        if let Some(recorded) =
            run.tags.get(record::ENVIRONMENT_TAG).filter(|recorded| **recorded != digest.to_string())
        {
            bail!("{} of the commit is {digest}, and the run recorded {recorded}", standard.environment.lock);
        }
        let current = Python::find(Path::new("."))?;
        let differing = super::doctor::differing_from_lock(&std::fs::read_to_string(&lock)?, &current.installed()?);
        match (self.environment, differing.first()) {
            (Environment::Current, Some(first)) => {
                tell(&format!("warning: {} packages differ from the lock file, first {first}", differing.len()));
                Ok(current)
            }
            (Environment::Current | Environment::Auto, None) => {
                tell(&format!("packages  {} holds what the lock file pins", current.path().display()));
                Ok(current)
            }
            _ => environment::build(&current, &lock, &digest),
        }
    }
}

/// The run's code in a work tree of its own, which goes away with this value unless it is kept.
struct Checkout {
    dir: tempfile::TempDir,
    is_kept: bool,
    /// Top of the repo that the work tree belongs to.
    origin: PathBuf,
    /// The model repo inside the work tree.
    repo: PathBuf,
    described: String,
}

impl Checkout {
    fn of(tracking: &Tracking, run: &Run) -> anyhow::Result<Self> {
        let commit = run.tags.get(COMMIT_TAG).context("the run recorded no commit, so its code is not known")?;
        if !commit.bytes().all(|byte| byte.is_ascii_hexdigit()) || commit.len() < 40 {
            bail!("`{commit}` is no commit");
        }
        let origin = PathBuf::from(git(Path::new("."), &["rev-parse", "--show-toplevel"])?);
        let has_commit = git(&origin, &["cat-file", "-e", &format!("{commit}^{{commit}}")]).is_ok();
        if !has_commit {
            bail!("this repo lacks commit {commit} of the run: fetch it, for example with `git fetch origin {commit}`");
        }
        if let Some(files) = run.tags.get(record::UNTRACKED_TAG).filter(|files| !files.is_empty()) {
            tell(&format!(
                "warning: when the run began these files were not tracked, and are not in its record:\n{files}"
            ));
        }
        let dir = tempfile::Builder::new().prefix("highroad-reproduce-").tempdir()?;
        let tree = dir.path().join("code");
        git(&origin, &["worktree", "add", "--quiet", "--detach", path_text(&tree)?, commit])?;
        let prefix = run.tags.get(record::PREFIX_TAG).map_or("", String::as_str);
        if Path::new(prefix).components().any(|part| !matches!(part, Component::Normal(_))) {
            bail!("`{prefix}` is no folder inside a repo");
        }
        let mut checkout =
            Self { dir, is_kept: false, origin, repo: tree.join(prefix), described: commit[..12].to_owned() };
        if let Some(expected) = run.tags.get(DIFF_TAG).filter(|digest| !digest.is_empty()) {
            checkout.apply(tracking, run, &tree, expected)?;
        }
        Ok(checkout)
    }

    /// Puts what was not committed on top of the commit.
    fn apply(&mut self, tracking: &Tracking, run: &Run, tree: &Path, expected: &str) -> anyhow::Result<()> {
        let diff = tracking.block_on(tracking.client().run_file(run, DIFF_FILE))?;
        let found = Digest::of(&diff).to_string();
        if found != expected {
            bail!("{DIFF_FILE} of the run is {found}, and the run recorded {expected}");
        }
        let patch = self.dir.path().join("code.diff");
        std::fs::write(&patch, &diff)?;
        git(tree, &["apply", "--binary", "--whitespace=nowarn", path_text(&patch)?])?;
        self.described.push_str(" and what was not committed");
        Ok(())
    }

    fn keep(mut self) -> PathBuf {
        self.is_kept = true;
        self.dir.disable_cleanup(true);
        self.repo.clone()
    }
}

impl Drop for Checkout {
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        let tree = self.dir.path().join("code");
        if let Err(error) = git(&self.origin, &["worktree", "remove", "--force", &tree.display().to_string()]) {
            tell(&format!("warning: {error}\nhint: `git worktree prune` forgets it"));
        }
    }
}

/// `output` as a path below the checkout. Errors where it would lead out of it.
fn inside(output: &Path) -> anyhow::Result<PathBuf> {
    let is_inside = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    if output.as_os_str().is_empty() || !output.components().all(is_inside) {
        bail!(
            "--output `{}` leads out of the checkout: name a folder inside it, such as `runs/again`",
            output.display()
        );
    }
    Ok(output.to_owned())
}

/// What another start of a resumed run had otherwise than its last, where that decides the result.
fn changed_on_the_way(run: &Run) -> Option<&'static str> {
    let earlier: Vec<BTreeMap<String, String>> = serde_json::from_str(run.tags.get(record::EARLIER_TAG)?).ok()?;
    let of_last = |tag: &str| run.tags.get(tag).map_or("", String::as_str);
    let changed =
        |tag: &&(&str, &str)| earlier.iter().any(|start| start.get(tag.0).map_or("", String::as_str) != of_last(tag.0));
    let parts = [
        (COMMIT_TAG, "code"),
        (DIFF_TAG, "code"),
        (record::ENVIRONMENT_TAG, "packages"),
        (record::THREADS_TAG, "threads"),
    ];
    parts.iter().find(changed).map(|(_, what)| *what)
}

fn path_text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().with_context(|| format!("{} is not valid UTF-8", path.display()))
}

/// Refuses to train on other data than the run read, before anything is spent.
fn check_data(checkout: &Checkout, python: &Python, run: &Run) -> anyhow::Result<()> {
    const FINGERPRINTS: &str = "import json, data\nfrom highroad._provenance import data_digests\n\
        print(json.dumps(data_digests(data.files())))";
    let recorded = tagged(run, DATA_TAGS);
    if recorded.is_empty() || !checkout.repo.join("data.py").is_file() {
        tell("warning: the run recorded no data, so the data cannot be checked");
        return Ok(());
    }
    let mut script = python.command();
    script.args(["-c", FINGERPRINTS]).current_dir(&checkout.repo).env("HF_HUB_OFFLINE", "1");
    let output = script.output()?;
    if !output.status.success() {
        bail!("the data cannot be read: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let found: BTreeMap<String, String> =
        serde_json::from_slice(&output.stdout).context("`data.files()` does not name files")?;
    for (name, digest) in &recorded {
        match found.get(name) {
            Some(found) if found == digest => {}
            Some(found) => bail!("`{name}` is {found} here, and the run read {digest}"),
            None => bail!("`{name}` is not here, and the run read it"),
        }
    }
    tell(&format!("data      {} files have the digests that the run recorded", recorded.len()));
    Ok(())
}

impl Report {
    fn of(tracking: &Tracking, run: &Run, again: &Run, tolerance: f64) -> anyhow::Result<Self> {
        let (was, is) = (tagged(run, WEIGHTS_TAGS), tagged(again, WEIGHTS_TAGS));
        let digest = |digests: &BTreeMap<String, String>, name: &String| {
            digests.get(name).cloned().unwrap_or_else(|| "not recorded".to_owned())
        };
        let weights: Vec<Compared> = was
            .iter()
            .map(|(name, was)| Compared {
                name: name.clone(),
                was: was.clone(),
                is: digest(&is, name),
                same: is.get(name) == Some(was),
            })
            .collect();
        let metrics = compare_metrics(run, again, tolerance);
        let first_difference = first_difference(tracking, run, again)?;
        let same_bits = !weights.is_empty() && weights.iter().all(|file| file.same);
        let (bits_are_promised, expected) = promise(run, again);
        let close = metrics.iter().all(|metric| metric.same);
        let reproduced = if bits_are_promised { same_bits } else { same_bits || close };
        let (run, reproduction) = (run.id.clone(), again.id.clone());
        Ok(Self { run, reproduction, same_bits, reproduced, expected, weights, metrics, first_difference })
    }

    /// For the record of the run that reproduces.
    fn in_words(&self) -> String {
        match (self.same_bits, self.reproduced) {
            (true, _) => "the same bits".to_owned(),
            (false, true) => "within tolerance".to_owned(),
            (false, false) => {
                let differing = self.weights.iter().chain(&self.metrics).filter(|compared| !compared.same);
                let names: Vec<&str> = differing.map(|compared| compared.name.as_str()).collect();
                format!("no: other {}", names.join(", "))
            }
        }
    }

    fn print(&self, out: &mut impl std::io::Write) -> std::io::Result<()> {
        let verdict = match (self.same_bits, self.reproduced) {
            (true, _) => "reproduced: the weights are bit for bit the same",
            (false, true) => "reproduced: the weights differ, the last metrics are within the tolerance",
            (false, false) => "not reproduced",
        };
        writeln!(out, "{verdict}\nexpected  {}", self.expected)?;
        for file in &self.weights {
            writeln!(out, "weights   {} {}", file.name, told(file))?;
        }
        for metric in &self.metrics {
            writeln!(out, "metric    {} {}", metric.name, told(metric))?;
        }
        if let Some((name, step, was, is)) = &self.first_difference {
            writeln!(out, "first difference: {name} at step {step} was {was}, is {is}")?;
        }
        writeln!(out, "run       {}", self.reproduction)
    }
}

fn told(compared: &Compared) -> String {
    if compared.was == compared.is { compared.is.clone() } else { format!("was {}, is {}", compared.was, compared.is) }
}

fn fraction(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|value| (0.0..1.0).contains(value))
        .ok_or_else(|| "give a number from 0 to below 1".to_owned())
}

/// Whether bits can be promised, and why.
fn promise(run: &Run, again: &Run) -> (bool, String) {
    let tag = |run: &Run, name: &str| run.tags.get(name).cloned().unwrap_or_default();
    let other = |name: &str| tag(run, name) != tag(again, name);
    if [run, again].iter().any(|run| run.tags.contains_key(record::GPU_TAG)) {
        return (false, "close metrics: GPU kernels do not promise bits across devices and drivers".to_owned());
    }
    if other(record::CPU_TAG) || other("highroad.hardware.features") {
        let (was, is) = (tag(run, record::CPU_TAG), tag(again, record::CPU_TAG));
        return (false, format!("close metrics: the run had `{was}`, this machine is `{is}`"));
    }
    if other("highroad.torch") {
        return (false, "close metrics: torch is another build than the run had".to_owned());
    }
    (true, "the same bits: the same processor kind, threads and build of torch".to_owned())
}

/// The last value of each metric of both runs; `same` means within the relative tolerance.
fn compare_metrics(run: &Run, again: &Run, tolerance: f64) -> Vec<Compared> {
    let of_training = run.metrics.iter().filter(|(name, _)| !name.starts_with("system/"));
    of_training
        .filter_map(|(name, &was)| {
            let is = *again.metrics.get(name)?;
            let same = was.to_bits() == is.to_bits() || (was - is).abs() <= tolerance * was.abs().max(is.abs());
            Some(Compared { name: name.clone(), was: was.to_string(), is: is.to_string(), same })
        })
        .collect()
}

/// The earliest step at which a metric of the two runs differs in any bit.
fn first_difference(tracking: &Tracking, run: &Run, again: &Run) -> anyhow::Result<Option<(String, i64, f64, f64)>> {
    let mut first: Option<(String, i64, f64, f64)> = None;
    for name in run.metrics.keys().filter(|name| !name.starts_with("system/") && again.metrics.contains_key(*name)) {
        let history = |run: &Run| tracking.block_on(tracking.client().metric_history(&run.id, name));
        let by_step: BTreeMap<i64, f64> = history(again)?.iter().map(|point| (point.step, point.value)).collect();
        let differs = |point: &&Point| by_step.get(&point.step).is_some_and(|is| is.to_bits() != point.value.to_bits());
        let Some(point) = history(run)?.iter().find(differs).copied() else { continue };
        if first.as_ref().is_none_or(|(_, step, ..)| point.step < *step) {
            first = Some((name.clone(), point.step, point.value, by_step[&point.step]));
        }
    }
    Ok(first)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_run_recorded_starts_the_same_script() {
        let arguments = ["--script", "train.py", "--nproc", "2", "--", "--epochs", "3"];
        let recorded = Recorded::try_parse_from(arguments).expect("recorded by `highroad train`");
        assert_eq!((recorded.script, recorded.processes.per_node), (PathBuf::from("train.py"), 2));
        assert_eq!(recorded.script_args, ["--epochs", "3"]);
    }

    #[test]
    fn weights_go_nowhere_but_into_the_checkout() {
        for output in ["runs/again", "./runs", "a"] {
            assert_eq!(inside(Path::new(output)).expect("inside"), PathBuf::from(output));
        }
        for output in ["../escape", "runs/../../escape", "/tmp/escape", ""] {
            assert!(inside(Path::new(output)).is_err(), "{output}");
        }
    }

    #[test]
    fn bits_are_promised_only_on_the_same_processor_and_build() {
        let run = |cpu: &str, gpu: Option<&str>| {
            let mut tags = BTreeMap::from([(record::CPU_TAG.to_owned(), cpu.to_owned())]);
            tags.extend(gpu.map(|gpu| (record::GPU_TAG.to_owned(), gpu.to_owned())));
            let info = json!({"run_id": "7f", "status": "FINISHED"});
            let tags: Vec<_> = tags.iter().map(|(key, value)| json!({"key": key, "value": value})).collect();
            Run::parse(json!({"info": info, "data": {"tags": tags}})).expect("a run")
        };
        assert!(promise(&run("EPYC", None), &run("EPYC", None)).0);
        assert!(!promise(&run("EPYC", None), &run("Xeon", None)).0);
        assert!(!promise(&run("EPYC", None), &run("EPYC", Some("H100"))).0);
    }
}
