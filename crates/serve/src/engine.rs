//! What runs a member's program: this process, or PyTorch in processes beside it.

use std::path::Path;
use std::sync::Arc;

use highroad_package::{PROGRAM, VerifiedPackage};
use highroad_task::{TaskError, check_parity_on};
use highroad_torch::{Ready, TorchOptions, TorchProcess, Workers};
use highroad_worker::{Event, Tell, find_python};
use metrics::{counter, gauge};

use crate::config::MemberConfig;
use crate::error::DeployError;
use crate::telemetry::{TORCH_ENDS, TORCH_WORKERS, live};

mod config;

pub use config::{EngineConfig, TorchConfig};
pub(crate) use config::{EngineTable, KEYS};

/// Starts the PyTorch processes of a member on `package`. Each reproduces the parity cases before it is asked anything. Blocks until all are
/// ready.
pub(crate) fn start(
    member: &str,
    package: &VerifiedPackage,
    config: &MemberConfig,
    torch: &TorchConfig,
) -> Result<Workers, DeployError> {
    let python = match &torch.python {
        Some(python) => python.clone(),
        None => find_python(Path::new(".")).ok_or(DeployError::NoPython)?,
    };
    let options = TorchOptions {
        python,
        device: torch.device.clone(),
        n_threads: config.threads.get(),
        compile: torch.compile,
        memory_bytes: torch.memory_mb.map(|mb| mb.get() << 20),
        start_timeout: torch.start_timeout,
        run_timeout: torch.batch_timeout,
    };
    let program = package.path(PROGRAM)?;
    let cases = package.clone();
    let ready: Ready =
        Arc::new(move |process: &TorchProcess| check_parity_on(process, &cases, process.numerics_id()).map(drop));
    let n_workers = config.batching.replicas.get();
    Workers::start(program.as_ref(), options, n_workers, ready, tell(member)).map_err(|error| match error {
        error @ TaskError::NoParity { .. } => {
            DeployError::Parity { numerics_id: "PyTorch".to_owned(), reason: error.to_string() }
        }
        error => DeployError::Torch(error.to_string()),
    })
}

/// What happens to the processes goes to the log and the metrics. What they write holds no inputs: they never write any.
fn tell(member: &str) -> Tell {
    let member = member.to_owned();
    let live = live(gauge!(TORCH_WORKERS, "member" => member.clone()));
    for reason in ["ended", "hung", "memory", "start"] {
        counter!(TORCH_ENDS, "member" => member.clone(), "reason" => reason).increment(0);
    }
    Arc::new(move |event| match event {
        Event::Line(line) => tracing::info!(member.name = %member, "PyTorch of `{member}`: {line}"),
        Event::Ended { error, pause } => {
            counter!(TORCH_ENDS, "member" => member.clone(), "reason" => error.reason()).increment(1);
            tracing::error!(member.name = %member, "A PyTorch process of `{member}` is started again in {pause:?}: {error}");
        }
        Event::Started => tracing::info!(member.name = %member, "A PyTorch process of `{member}` is ready again"),
        Event::Failed { error, pause } => {
            counter!(TORCH_ENDS, "member" => member.clone(), "reason" => "start").increment(1);
            tracing::error!(
                member.name = %member,
                "A PyTorch process of `{member}` did not start and is tried again in {pause:?}: {error}"
            );
        }
        Event::Live(n_live) => live(n_live),
    })
}
