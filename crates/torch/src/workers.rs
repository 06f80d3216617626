//! Several PyTorch processes on one program, watched: one that ends is started again, with growing pauses.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use highroad_task::raw::Tensor;
use highroad_task::{Engine, TaskError};
use highroad_worker::{Crew, Lines, Pool, Tell, WorkerError};

use crate::process::{WHAT, task_error, worker_error};
use crate::{TorchOptions, TorchProcess};

/// What a process has to do before it is asked anything: reproduce its parity cases, say.
pub type Ready = Arc<dyn Fn(&TorchProcess) -> Result<(), TaskError> + Send + Sync>;

/// Processes that run one program. Dropping it ends them.
pub struct Workers {
    pool: Pool<TorchProcess>,
    id: String,
    run_timeout: Duration,
}

/// How each of them is started.
struct Starter {
    program: PathBuf,
    options: TorchOptions,
    ready: Ready,
    /// Of the first processes; those in their place compute alike or not at all.
    id: Arc<Mutex<Option<String>>>,
}

impl Workers {
    /// Starts `n_wanted` processes (at least one) on the verified program at `program`, side by side. Errors if one does not start, is not
    /// `ready`, or computes with other numerics than the others.
    pub fn start(
        program: &Path,
        options: TorchOptions,
        n_wanted: usize,
        ready: Ready,
        tell: Tell,
    ) -> Result<Self, TaskError> {
        let (id, run_timeout) = (Arc::<Mutex<Option<String>>>::default(), options.run_timeout);
        let starter = Starter { program: program.to_owned(), options, ready, id: Arc::clone(&id) };
        let pool = Pool::start(WHAT, n_wanted, move |lines| starter.start(lines), tell)?;
        let id = id.lock().unwrap_or_else(PoisonError::into_inner).clone().unwrap_or_default();
        Ok(Self { pool, id, run_timeout })
    }

    /// What decides the bits, of every process.
    pub fn numerics_id(&self) -> &str {
        &self.id
    }

    /// How many processes there are.
    pub fn crew(&self) -> Crew {
        self.pool.crew()
    }
}

impl Engine for Workers {
    /// Asks a process that is idle, waiting for one: see [`Pool::ask`].
    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, TaskError> {
        self.pool.ask(self.run_timeout, |process| process.ask(inputs), worker_error).map_err(task_error)?
    }
}

impl Starter {
    fn start(&self, lines: Lines) -> Result<TorchProcess, TaskError> {
        let process = TorchProcess::start(&self.program, &self.options, Some(lines))?;
        {
            let mut id = self.id.lock().unwrap_or_else(PoisonError::into_inner);
            let expected = id.get_or_insert_with(|| process.numerics_id().to_owned());
            if expected != process.numerics_id() {
                let found = process.numerics_id().to_owned();
                return Err(task_error(WorkerError::OtherNumerics { found, expected: expected.clone() }));
            }
        }
        (self.ready)(&process)?;
        Ok(process)
    }
}
