use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::bail;

use crate::standard::Standard;
use crate::tracking::{self, TrackingArgs};
use crate::training::{Launch, Processes, exit_code};

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
    processes: Processes,
    #[command(flatten)]
    tracking: TrackingArgs,
    /// Options of the script, such as `-- --epochs 3`
    #[arg(last = true)]
    script_args: Vec<String>,
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let tracking = tracking::client(&self.tracking)?;
        if self.processes.n_nodes > 1 && tracking.is_embedded() {
            bail!("several machines need one tracking server: give --tracking-uri, or set `[tracking] uri`");
        }
        let root = Path::new(".");
        let standard = Standard::load(root)?;
        let launch = Launch {
            root: root.to_owned(),
            script: self.script.unwrap_or_else(|| standard.training.script.into()),
            output: self.output.unwrap_or_else(|| standard.training.output.into()),
            resume: self.resume,
            script_args: self.script_args,
            processes: self.processes,
            n_threads: None,
            name: self.name,
            tags: BTreeMap::new(),
        };
        let trained = tracking.block_on(launch.train(tracking.client()))?;
        if let (Some(run_id), true) = (&trained.run_id, trained.status.success()) {
            writeln!(std::io::stdout(), "{run_id}")?;
        }
        Ok(exit_code(trained.status))
    }
}
