//! `highroad run`: a program on tensors from a file.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;

use anyhow::{Context as _, bail};
use highroad_runtime::{Program, RunOptions, TensorSpec};
use highroad_tensor::Tensor;

use crate::tensors;

/// Run a program on tensors from a file.
#[derive(clap::Args)]
pub struct Args {
    /// The program, as `torch.export.save` wrote it.
    program: PathBuf,
    /// Safetensors file with the inputs: the tensor leaves of the user's arguments by position (`0`, `1`, …) or name.
    #[arg(long, value_name = "FILE")]
    inputs: PathBuf,
    /// Safetensors file to write the outputs to, named `0`, `1`, … in order.
    #[arg(long, value_name = "FILE")]
    outputs: PathBuf,
    /// Threads to use [default: all cores]. The result does not depend on it.
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
}

impl Args {
    /// Runs the subcommand.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let path = self.program.display();
        let program = Program::open(&self.program).with_context(|| format!("cannot load `{path}`"))?;
        let inputs = in_order(program.inputs(), tensors::read(&self.inputs)?)?;
        let options = RunOptions::with_threads(self.threads.unwrap_or_else(all_cores));
        let outputs = program.run(&inputs, &options).with_context(|| format!("`{path}` failed"))?;
        tensors::write(&self.outputs, &outputs)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Every core of the machine.
pub fn all_cores() -> NonZeroUsize {
    thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

/// The tensor of each spec, by position or by name; errors name what is missing and what is left over.
pub fn in_order(specs: &[TensorSpec], mut given: Vec<(String, Tensor)>) -> anyhow::Result<Vec<Tensor>> {
    let mut inputs = Vec::with_capacity(specs.len());
    for (index, spec) in specs.iter().enumerate() {
        let position = index.to_string();
        let Some(at) = given.iter().position(|(name, _)| *name == position || *name == spec.name) else {
            bail!("the inputs lack `{position}` (`{}`): the program takes {}", spec.name, list(specs));
        };
        inputs.push(given.swap_remove(at).1);
    }
    if let Some((name, _)) = given.first() {
        bail!("the inputs hold `{name}`, which the program does not take: it takes {}", list(specs));
    }
    Ok(inputs)
}

fn list(specs: &[TensorSpec]) -> String {
    let one = |(index, spec): (usize, &TensorSpec)| format!("{index} `{}` {spec}", spec.name);
    specs.iter().enumerate().map(one).collect::<Vec<_>>().join(", ")
}
