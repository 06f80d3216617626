use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};

use anyhow::Context as _;

use crate::repo::Python;
use crate::standard::Standard;
use crate::training::{check_options, exit_code};

/// `highroad profile-train [-- ARGS]`
#[derive(clap::Args)]
pub struct Args {
    /// Steps to measure, after three that warm up
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    steps: u32,
    /// Processes on this machine
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    nproc: u32,
    /// Measure the same steps again through torch.compile, and say whether it pays
    #[arg(long)]
    compile: bool,
    /// Where the trace goes
    #[arg(long, default_value = "runs/profile")]
    output: PathBuf,
    /// Print the shares as JSON
    #[arg(long)]
    json: bool,
    /// Options of the script, such as `-- --batch_size 64`
    #[arg(last = true)]
    script_args: Vec<String>,
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let root = Path::new(".");
        let (standard, python) = (Standard::load(root)?, Python::find(root)?);
        let mut line = vec![standard.training.script.clone()];
        line.extend(self.script_args.iter().cloned());
        let help = check_options(&python, root, &line)?;
        if !help.is_empty() {
            crate::outln!("{}", help.trim_end());
            return Ok(ExitCode::SUCCESS);
        }
        let mut profiler = python.command();
        profiler.args(["-m", "highroad.training.profile_train", "--script", &standard.training.script]);
        profiler.args(["--steps", &self.steps.to_string(), "--nproc", &self.nproc.to_string(), "--output"]);
        profiler.arg(&self.output);
        profiler.args(self.compile.then_some("--compile")).args(self.json.then_some("--json"));
        profiler.arg("--").args(&self.script_args).stdin(Stdio::null());
        // A profiled run is no run: nothing is tracked.
        profiler.env_remove("MLFLOW_TRACKING_URI").env("HF_HUB_OFFLINE", "1").env("PYTHONUNBUFFERED", "1");
        let status = profiler.status().with_context(|| format!("cannot start {}", python.path().display()))?;
        Ok(exit_code(status))
    }
}
