use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;

use highroad_task::raw::{RunError, RunOptions, Tensor};
use highroad_task::{Answer, Engine as _, ParityReport, Predictor, Prepared, TaskError, check_parity_on};
use highroad_torch::{Workers, worker_error};
use highroad_worker::{Crew, WorkerError};

use crate::batcher::{Engine, Job, Sharing};

/// A predictor behind a queue.
pub(crate) struct Model {
    pub(crate) predictor: Predictor,
    pub(crate) threads: NonZeroUsize,
    /// What runs the program in this process's place.
    pub(crate) torch: Option<Workers>,
}

/// One row for the task, or one call of the program past the task.
pub(crate) enum Work {
    Row(Prepared),
    Program(Vec<Tensor>),
}

/// What [`Work`] gives.
pub(crate) enum Yield {
    Row(Answer),
    Program(Vec<Tensor>),
}

#[derive(Clone)]
pub(crate) enum ModelError {
    Task(Arc<TaskError>),
    Program(Arc<RunError>),
}

impl Job for Work {
    fn n_tokens(&self) -> usize {
        match self {
            Self::Row(prepared) => prepared.n_tokens(),
            // The elements of the widest input are its tokens, as far as the queue's pace is concerned.
            Self::Program(tensors) => tensors.iter().map(Tensor::numel).max().unwrap_or(0),
        }
    }

    fn sharing(&self) -> Sharing {
        match self {
            Self::Row(_) => Sharing::WithOthers,
            Self::Program(_) => Sharing::Alone,
        }
    }
}

impl Engine for Model {
    type Job = Work;
    type Output = Yield;
    type Error = ModelError;

    fn run(&self, batch: Vec<Work>) -> Result<Vec<Yield>, ModelError> {
        let mut rows = Vec::with_capacity(batch.len());
        for work in batch {
            match work {
                Work::Row(prepared) => rows.push(prepared),
                // The batcher runs these alone.
                Work::Program(tensors) => return self.run_program(&tensors).map(|output| vec![output]),
            }
        }
        let answers = match &self.torch {
            Some(workers) => self.predictor.answer_on(workers, &rows),
            None => self.predictor.answer(&rows),
        };
        let answers = answers.map_err(|error| ModelError::Task(Arc::new(error)))?;
        Ok(answers.into_iter().map(Yield::Row).collect())
    }
}

impl Model {
    /// What decides the bits.
    pub(crate) fn numerics_id(&self) -> String {
        self.torch.as_ref().map_or_else(|| self.predictor.numerics_id(), |workers| workers.numerics_id().to_owned())
    }

    /// Replays the package's parity cases on what runs its program.
    pub(crate) fn check_parity(&self) -> Result<ParityReport, TaskError> {
        match &self.torch {
            Some(workers) => check_parity_on(workers, self.predictor.package(), workers.numerics_id()),
            None => self.predictor.check_parity(),
        }
    }

    /// Answers a short input, so that no request pays for what only the first one does.
    pub(crate) fn warm_up(&self) -> Result<(), TaskError> {
        match &self.torch {
            Some(workers) => self.predictor.warm_up_on(workers),
            None => self.predictor.warm_up(),
        }
    }

    /// Runs the program aside of the queue, on this thread alone where it is this process that runs it.
    pub(crate) fn run_aside(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, TaskError> {
        match &self.torch {
            Some(workers) => workers.run(inputs),
            None => Ok(self.predictor.program().run(inputs, &RunOptions::with_threads(NonZeroUsize::MIN))?),
        }
    }

    /// How many PyTorch processes there are of those there should be, where there are any.
    pub(crate) fn crew(&self) -> Option<Crew> {
        self.torch.as_ref().map(Workers::crew)
    }

    fn run_program(&self, tensors: &[Tensor]) -> Result<Yield, ModelError> {
        let options = RunOptions::with_threads(self.threads);
        let refused = |error| ModelError::Program(Arc::new(error));
        match &self.torch {
            None => self.predictor.program().run(tensors, &options).map(Yield::Program).map_err(refused),
            Some(workers) => {
                self.predictor.program().check(tensors).map_err(refused)?;
                workers.run(tensors).map(Yield::Program).map_err(|error| ModelError::Task(Arc::new(error)))
            }
        }
    }
}

impl fmt::Display for ModelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Task(error) => error.fmt(f),
            Self::Program(error) => error.fmt(f),
        }
    }
}

impl ModelError {
    /// Why nothing can be answered now, where another try may go better.
    pub(crate) fn is_down(&self) -> bool {
        matches!(self, Self::Task(error) if matches!(worker_error(error), Some(WorkerError::Down { .. })))
    }
}
