//! What runs the program that a golden set is asked of.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use highroad_assess::OnTorch;
use highroad_task::Predictor;
use highroad_torch::{Compile, Device, TorchOptions};

use crate::repo::Python;

/// Until PyTorch has imported itself and loaded the program.
const START_TIMEOUT: Duration = Duration::from_secs(300);
/// Until it has answered one batch.
const RUN_TIMEOUT: Duration = Duration::from_secs(300);

/// What runs the program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// This process, with the bits that `highroad serve` answers
    #[default]
    Native,
    /// PyTorch, in a Python process of its own
    Torch,
}

/// The engine, as a person names it.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct EngineArgs {
    /// What runs the program; tokens in and answers out are the same code either way.
    #[arg(long, value_enum, default_value = "native")]
    engine: Kind,
    /// With `--engine torch`: where PyTorch computes: `cpu` (unless told), `cuda`, `cuda:1`, or `auto`.
    #[arg(long)]
    device: Option<Device>,
    /// With `--engine torch`: how the program is compiled first: `eager` (not at all), `inductor` or `aot`.
    #[arg(long)]
    compile: Option<Compile>,
    /// With `--engine torch`: the interpreter; that of the repo or the active environment unless told.
    #[arg(long, value_name = "FILE")]
    python: Option<PathBuf>,
}

impl EngineArgs {
    /// Whether it is this process. Errors where an option is about another engine than the one that is asked for.
    pub fn is_native(&self) -> anyhow::Result<bool> {
        if self.engine == Kind::Native && (self.python.is_some() || self.device.is_some() || self.compile.is_some()) {
            bail!("--device, --compile and --python are PyTorch's\nhint: add `--engine torch`");
        }
        Ok(self.engine == Kind::Native)
    }

    /// Starts PyTorch on the package of `predictor`.
    pub fn start_torch(&self, predictor: Predictor, n_threads: usize) -> anyhow::Result<OnTorch> {
        let python = self.python.clone().map_or_else(|| Python::find(Path::new(".")), |path| Ok(Python::at(path)))?;
        let options = TorchOptions {
            python: python.path().to_owned(),
            device: self.device.clone().unwrap_or_else(Device::cpu),
            n_threads,
            compile: self.compile.unwrap_or_default(),
            memory_bytes: None,
            start_timeout: START_TIMEOUT,
            run_timeout: RUN_TIMEOUT,
        };
        OnTorch::start(predictor, &options)
            .with_context(|| format!("cannot load the program with the PyTorch of `{}`", python.path().display()))
    }
}
