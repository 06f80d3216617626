//! `highroad bench`: how fast a program answers.

use std::collections::HashMap;
use std::io::Write as _;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use highroad_runtime::{NodeTime, Program, RunOptions};
use highroad_tensor::Tensor;
use serde::Serialize;

use super::run::{all_cores, in_order};
use crate::tensors;

/// Share of the measuring time that goes to runs that are not counted.
const WARM_UP: f64 = 0.2;

/// Measure how long a program takes to load and to answer.
#[derive(clap::Args)]
pub struct Args {
    /// The program, as `torch.export.save` wrote it.
    program: PathBuf,
    /// Safetensors file with the inputs: the tensor leaves of the user's arguments by position (`0`, `1`, …) or name.
    #[arg(long, value_name = "FILE")]
    inputs: PathBuf,
    /// Threads to use [default: all cores].
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// How long to measure.
    #[arg(long, value_name = "S", default_value_t = 3.0, allow_negative_numbers = true)]
    seconds: f64,
    /// Also tell which operators take the time.
    #[arg(long)]
    profile: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What was measured; the names are a contract.
#[derive(Serialize)]
struct Report {
    /// Median time of a run.
    p50_ms: f64,
    /// Nine runs in ten were at least as fast.
    p90_ms: f64,
    /// Runs counted.
    runs: usize,
    /// Reading, checking, rewriting, planning and packing the program.
    load_ms: f64,
    /// From the start of the command to the end of the first run.
    first_answer_ms: f64,
    /// Most memory the process held at once, mapped pages that were touched included; absent where the system does not tell.
    peak_rss_bytes: Option<u64>,
    threads: usize,
    numerics_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    profile: Option<Vec<OperatorTime>>,
}

/// Time of all calls of one operator in a run.
#[derive(Serialize)]
struct OperatorTime {
    op: String,
    calls: usize,
    /// Median over the runs of the sum over its calls.
    ms: f64,
    /// Of the time of all operators.
    share: f64,
}

impl Args {
    /// Runs the subcommand.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let start = Instant::now();
        ensure!(self.seconds.is_finite() && self.seconds >= 0.0, "--seconds must be a time, not {}", self.seconds);
        let path = self.program.display();
        let program = Program::open(&self.program).with_context(|| format!("cannot load `{path}`"))?;
        let load = start.elapsed();
        let inputs = in_order(program.inputs(), tensors::read(&self.inputs)?)?;
        let threads = self.threads.unwrap_or_else(all_cores);
        let options = RunOptions::with_threads(threads);
        program.run(&inputs, &options).with_context(|| format!("`{path}` failed"))?;
        let first_answer = start.elapsed();
        let mut times = measure(&program, &inputs, &options, self.seconds)?;
        times.sort_unstable();
        let report = Report {
            p50_ms: milliseconds(quantile(&times, 0.5)),
            p90_ms: milliseconds(quantile(&times, 0.9)),
            runs: times.len(),
            load_ms: milliseconds(load),
            first_answer_ms: milliseconds(first_answer),
            peak_rss_bytes: peak_rss_bytes(),
            threads: threads.get(),
            numerics_id: program.numerics_id(),
            profile: self.profile.then(|| profile(&program, &inputs, &options)).transpose()?,
        };
        let mut stdout = std::io::stdout().lock();
        if self.json {
            serde_json::to_writer_pretty(&mut stdout, &report)?;
            writeln!(stdout)?;
        } else {
            report.print(&mut stdout)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Times of runs during `seconds`, at least one; the first part of the time warms up.
fn measure(program: &Program, inputs: &[Tensor], options: &RunOptions, seconds: f64) -> anyhow::Result<Vec<Duration>> {
    let start = Instant::now();
    let mut times = Vec::new();
    loop {
        let begin = Instant::now();
        program.run(inputs, options)?;
        let passed = start.elapsed().as_secs_f64();
        if passed >= seconds * WARM_UP {
            times.push(begin.elapsed());
        }
        if passed >= seconds && !times.is_empty() {
            return Ok(times);
        }
    }
}

/// Operators by the time they take, the slowest first.
fn profile(program: &Program, inputs: &[Tensor], options: &RunOptions) -> anyhow::Result<Vec<OperatorTime>> {
    const RUNS: usize = 15;
    let mut by_op: HashMap<String, Vec<(usize, Duration)>> = HashMap::new();
    for _ in 0..RUNS {
        let (_, times) = program.profile(inputs, options)?;
        for (op, calls, time) in sums(times) {
            by_op.entry(op).or_default().push((calls, time));
        }
    }
    let mut rows: Vec<OperatorTime> = by_op
        .into_iter()
        .map(|(op, mut runs)| {
            runs.sort_unstable_by_key(|&(_, time)| time);
            let (calls, time) = runs[runs.len() / 2];
            OperatorTime { op, calls, ms: milliseconds(time), share: 0.0 }
        })
        .collect();
    let total: f64 = rows.iter().map(|row| row.ms).sum();
    rows.iter_mut().for_each(|row| row.share = row.ms / total.max(f64::MIN_POSITIVE));
    rows.sort_by(|a, b| b.ms.total_cmp(&a.ms).then_with(|| a.op.cmp(&b.op)));
    Ok(rows)
}

/// Calls and total time of each operator.
fn sums(times: Vec<NodeTime>) -> Vec<(String, usize, Duration)> {
    let mut sums: HashMap<String, (usize, Duration)> = HashMap::new();
    for node in times {
        let (calls, time) = sums.entry(node.op).or_default();
        *calls += 1;
        *time += node.time;
    }
    sums.into_iter().map(|(op, (calls, time))| (op, calls, time)).collect()
}

impl Report {
    fn print(&self, to: &mut impl std::io::Write) -> std::io::Result<()> {
        writeln!(to, "median {:.3} ms, 90 % within {:.3} ms, {} runs", self.p50_ms, self.p90_ms, self.runs)?;
        writeln!(to, "loaded in {:.1} ms, first answer after {:.1} ms", self.load_ms, self.first_answer_ms)?;
        if let Some(bytes) = self.peak_rss_bytes {
            writeln!(to, "peak memory {:.1} MB", bytes as f64 / 1e6)?;
        }
        writeln!(to, "{} threads, {}", self.threads, self.numerics_id)?;
        for row in self.profile.iter().flatten() {
            let OperatorTime { op, calls, ms, share } = row;
            writeln!(to, "{:>5.1} %  {ms:>9.3} ms  {calls:>4} x  {op}", share * 100.0)?;
        }
        Ok(())
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The smallest of the sorted `times` that a share `q` of them does not exceed.
fn quantile(times: &[Duration], q: f64) -> Duration {
    let rank = (times.len() as f64 * q).ceil() as usize;
    times[rank.clamp(1, times.len()) - 1]
}

/// Most memory this process has held at once; `None` where the system does not tell.
pub fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_measured_times() {
        let times: Vec<Duration> = (1..=10).map(Duration::from_millis).collect();
        assert_eq!(quantile(&times, 0.5), Duration::from_millis(5));
        assert_eq!(quantile(&times, 0.9), Duration::from_millis(9));
        assert_eq!(quantile(&times[..1], 0.9), Duration::from_millis(1));
    }
}
