use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::bail;

use crate::engine::EngineArgs;
use crate::repo::Python;
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
    engine: EngineArgs,
    #[command(flatten)]
    tracking: TrackingArgs,
    /// Options of the script, such as `-- --epochs 3`
    #[arg(last = true)]
    script_args: Vec<String>,
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let tracking = tracking::client(&self.tracking)?;
        if (self.processes.n_nodes > 1 || self.engine.on.is_some()) && tracking.is_embedded() {
            bail!("other machines need a tracking server they can reach: give --tracking-uri, or set `[tracking] uri`");
        }
        let root = Path::new(".");
        let standard = Standard::load_trained(root)?;
        let launch = Launch {
            output: self.output.unwrap_or_else(|| standard.training.output.into()),
            resume: self.resume,
            script_args: self.script_args,
            processes: self.processes,
            name: self.name,
            ..Launch::new(self.script.unwrap_or_else(|| standard.training.script.into()))
        };
        let trained = match self.engine.on {
            None => tracking.block_on(launch.train(tracking.client()))?,
            Some(engine) if self.engine.dry_run => {
                let job = self.engine.job(engine, &launch, &Python::find(root)?, tracking.client().uri(), None)?;
                writeln!(std::io::stdout(), "{}", job.describe())?;
                return Ok(ExitCode::SUCCESS);
            }
            Some(engine) => tracking.block_on(launch.train_on(engine, &self.engine, tracking.client()))?,
        };
        if let (Some(run_id), true) = (&trained.run_id, trained.status.success()) {
            writeln!(std::io::stdout(), "{run_id}")?;
        }
        Ok(exit_code(trained.status))
    }
}
