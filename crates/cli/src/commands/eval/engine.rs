//! What runs the program that a golden set is asked of.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use highroad_assess::{OnTorch, TorchOptions};
use highroad_task::Predictor;

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
    /// With `--engine torch`: where PyTorch computes: `cpu` (unless told), `cuda` or `cuda:1`.
    #[arg(long, value_parser = device)]
    device: Option<String>,
    /// With `--engine torch`: the interpreter; that of the repo or the active environment unless told.
    #[arg(long, value_name = "FILE")]
    python: Option<PathBuf>,
}

impl EngineArgs {
    /// Whether it is this process. Errors where an option is about another engine than the one that is asked for.
    pub fn is_native(&self) -> anyhow::Result<bool> {
        if self.engine == Kind::Native && (self.python.is_some() || self.device.is_some()) {
            bail!("--device and --python are PyTorch's\nhint: add `--engine torch`");
        }
        Ok(self.engine == Kind::Native)
    }

    /// Starts PyTorch on the package of `predictor`.
    pub fn start_torch(&self, predictor: Predictor, n_threads: usize) -> anyhow::Result<OnTorch> {
        let python = self.python.clone().map_or_else(|| Python::find(Path::new(".")), |path| Ok(Python::at(path)))?;
        let options = TorchOptions {
            device: self.device.clone().unwrap_or_else(|| "cpu".to_owned()),
            n_threads,
            start_timeout: START_TIMEOUT,
            run_timeout: RUN_TIMEOUT,
        };
        OnTorch::start(predictor, python.command(), &options)
            .with_context(|| format!("cannot load the program with the PyTorch of `{}`", python.path().display()))
    }
}

fn device(text: &str) -> Result<String, String> {
    let index = text.strip_prefix("cuda").map(|rest| rest.strip_prefix(':').unwrap_or(rest));
    let is_cuda = index.is_some_and(|digits| digits.len() <= 2 && digits.bytes().all(|byte| byte.is_ascii_digit()));
    match text == "cpu" || is_cuda {
        true => Ok(text.to_owned()),
        false => Err("expected `cpu`, `cuda` or `cuda:1`".to_owned()),
    }
}
