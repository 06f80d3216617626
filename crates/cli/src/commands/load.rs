use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::thread::available_parallelism;

use anyhow::{Context as _, bail};
use highroad_assess::report::traffic_facts;
use highroad_assess::{GoldenSet, Mix, Replicas, SystemClock, load, saturate};
use highroad_eval::{Decision, Gates, Loads, Run, Traffic, TrafficEvidence, judge_load};
use highroad_package::VerifiedPackage;
use highroad_task::{Predictor, PredictorOptions};
use serde::{Deserialize, Serialize};

use super::bench::peak_rss_bytes;
use super::eval::print_json;
use super::gate::read_gates;
use super::golden::{self, Unblessed};
use crate::outln;
use crate::progress;
use crate::resolve::{Home, Target};

/// Load a package as the [traffic] of gates.toml declares: latency at the declared rate, the most requests a second, memory and cost.
#[derive(clap::Args)]
pub struct Args {
    /// A package directory, a digest in the local store, or a reference such as `router@champion`.
    package: Target,
    #[command(flatten)]
    files: Files,
    /// Threads; all cores unless told.
    #[arg(long)]
    threads: Option<NonZeroUsize>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Answer at most load for a moment and print the peak memory of this process: what the command starts itself.
    #[arg(long, hide = true)]
    footprint: bool,
}

/// What a load test reads.
#[derive(Clone, Debug, clap::Args)]
pub struct Files {
    /// The golden set (JSONL); the one of highroad.toml unless told.
    #[arg(long, value_name = "FILE")]
    pub golden: Option<PathBuf>,
    /// The rules; those of highroad.toml unless told, else gates.toml.
    #[arg(long, value_name = "FILE")]
    pub gates: Option<PathBuf>,
}

/// What a process that measures its memory prints.
#[derive(Serialize, Deserialize)]
struct Footprint {
    peak_rss_bytes: u64,
}

/// Processes that measure their memory, one after the other.
const N_FOOTPRINTS: usize = 3;
/// How long each answers at most load; at least one batch of every replica.
const FOOTPRINT_S: f64 = 2.0;

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let (_, gates) = read_gates(self.files.gates.as_deref())?;
        let traffic =
            gates.traffic.as_ref().context("there is no [traffic] in the rules, so there is nothing to load")?;
        let golden = golden::read(self.files.golden.as_deref(), Unblessed::Warn)?;
        let package = self.package.resolve(&Home::find())?.package;
        let test = LoadTest { files: &self.files, threads: self.threads, gates: &gates, traffic, golden: &golden };
        if self.footprint {
            print_json(&test.footprint(&package)?)?;
            return Ok(ExitCode::SUCCESS);
        }
        let (_, evidence) = judge_load(&gates, traffic, &test.run(&package, None)?);
        if self.json {
            print_json(&evidence)?;
        } else {
            print(&evidence);
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The decision with the checks that need load, and what they rest on; as it is where the rules declare no traffic.
pub fn under_load(
    decision: Decision,
    files: &Files,
    threads: Option<NonZeroUsize>,
    gates: &Gates,
    golden: &GoldenSet,
    [candidate, baseline]: [Option<&VerifiedPackage>; 2],
) -> anyhow::Result<(Decision, Option<TrafficEvidence>)> {
    let (Some(traffic), Some(candidate)) = (&gates.traffic, candidate) else { return Ok((decision, None)) };
    let baseline = baseline.filter(|_| gates.compares_latency());
    let loads = LoadTest { files, threads, gates, traffic, golden }.run(candidate, baseline)?;
    let (checks, evidence) = judge_load(gates, traffic, &loads);
    Ok((decision.with_checks(checks), Some(evidence)))
}

struct LoadTest<'a> {
    files: &'a Files,
    threads: Option<NonZeroUsize>,
    gates: &'a Gates,
    traffic: &'a Traffic,
    golden: &'a GoldenSet,
}

/// A package, ready to be loaded.
struct Ready {
    predictor: Predictor,
    mix: Mix,
}

impl LoadTest<'_> {
    fn run(&self, candidate: &VerifiedPackage, baseline: Option<&VerifiedPackage>) -> anyhow::Result<Loads> {
        // Before anything else is loaded: the processes that measure memory have the machine to themselves.
        let peak_rss_bytes = self.footprints(candidate)?;
        let candidate = self.ready(candidate)?;
        let baseline = baseline.map(|package| self.ready(package)).transpose()?;
        let sides = [Some(&candidate), baseline.as_ref()].map(|side| side.map(|ready| (&ready.predictor, &ready.mix)));
        let bar = progress::bar("loading");
        let clock = SystemClock::default();
        let loads = load(self.gates, self.traffic, self.replicas(), sides, &clock, |n_done, n_all| {
            bar.set_length(n_all as u64);
            bar.set_position(n_done as u64);
        });
        bar.finish_and_clear();
        let [candidate, baseline] = loads?;
        let candidate = candidate.context("the candidate was not loaded")?;
        Ok(Loads { run: self.description(), candidate, baseline, peak_rss_bytes })
    }

    fn ready(&self, package: &VerifiedPackage) -> anyhow::Result<Ready> {
        let options = PredictorOptions { threads: self.threads(), ..PredictorOptions::default() };
        let predictor = Predictor::open(package, &options)
            .with_context(|| format!("cannot load package {}", package.digest().short()))?;
        let mix = Mix::new(&self.traffic.lengths, self.golden, &package.manifest().task.kind, &predictor)?;
        Ok(Ready { predictor, mix })
    }

    /// Peak memory of processes of their own, if a rule is about it.
    fn footprints(&self, package: &VerifiedPackage) -> anyhow::Result<Vec<u64>> {
        let n = if self.gates.memory.is_some() || self.gates.cost.is_some() { N_FOOTPRINTS } else { 0 };
        (0..n).map(|_| self.footprint_of(package).context("cannot measure memory")).collect()
    }

    fn footprint_of(&self, package: &VerifiedPackage) -> anyhow::Result<u64> {
        let mut child = Command::new(std::env::current_exe()?);
        child.arg("load").arg(std::path::absolute(package.dir())?).arg("--footprint");
        for (option, path) in [("--golden", &self.files.golden), ("--gates", &self.files.gates)] {
            child.args(path.iter().flat_map(|path| [option.as_ref(), path.as_os_str()]));
        }
        let output = child.args(["--threads", &self.threads().to_string()]).output()?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(serde_json::from_slice::<Footprint>(&output.stdout)?.peak_rss_bytes)
    }

    fn footprint(&self, package: &VerifiedPackage) -> anyhow::Result<Footprint> {
        let Ready { predictor, mix } = self.ready(package)?;
        let moment = Traffic { warm_up_s: 0.0, saturated_s: FOOTPRINT_S, ..self.traffic.clone() };
        saturate(&moment, self.replicas(), self.gates.seed, (&predictor, &mix), &SystemClock::default())?;
        let peak_rss_bytes = peak_rss_bytes().context("this system does not tell the memory of a process")?;
        Ok(Footprint { peak_rss_bytes })
    }

    fn threads(&self) -> NonZeroUsize {
        let told = self.traffic.threads.or(self.threads);
        told.or_else(|| available_parallelism().ok()).unwrap_or(NonZeroUsize::MIN)
    }

    fn replicas(&self) -> Replicas {
        let batch_tokens = self.traffic.batch_tokens.unwrap_or(PredictorOptions::default().max_batch_tokens);
        Replicas { replicas: self.traffic.replicas, batch_tokens }
    }

    fn description(&self) -> Run {
        let n_cores = available_parallelism().map_or(0, NonZeroUsize::get);
        Run {
            threads: self.threads().get(),
            batch_tokens: self.replicas().batch_tokens.get(),
            measured: format!(
                "open loop, Poisson arrivals, from the scheduled arrival to the last answer; tokenising, queue and batches as \
                 the server has them, without HTTP; {} core(s), {}",
                n_cores,
                std::env::consts::ARCH
            ),
        }
    }
}

/// What was measured at the declared traffic, for people.
fn print(evidence: &TrafficEvidence) {
    for fact in traffic_facts(evidence) {
        outln!("{:<19} {}", fact.name, fact.value);
    }
}
