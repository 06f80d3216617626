//! A package answered by PyTorch: the program runs in a Python process of its own, all else in this one.

use highroad_eval::Evidence;
use highroad_package::{Digest, PROGRAM, TaskKind};
use highroad_task::{Answer, Input, Predictor, TaskError};
use highroad_torch::{TorchOptions, TorchProcess};

use crate::{Model, Truncated};

/// A package answered by PyTorch: tokens in and answers out of its logits are this process's, as with any predictor.
pub struct OnTorch {
    predictor: Predictor,
    process: TorchProcess,
}

impl OnTorch {
    /// Starts PyTorch on the program of `predictor`'s package.
    pub fn start(predictor: Predictor, options: &TorchOptions) -> Result<Self, TaskError> {
        let path = predictor.package().path(PROGRAM)?;
        let process = TorchProcess::start(path.as_ref(), options, None)?;
        Ok(Self { predictor, process })
    }
}

impl Model for OnTorch {
    fn package(&self) -> Digest {
        self.predictor.digest()
    }

    fn task(&self) -> &TaskKind {
        &self.predictor.manifest().task.kind
    }

    fn has_prompts(&self) -> bool {
        !self.predictor.manifest().task.prompts.is_empty()
    }

    fn numerics_id(&self) -> String {
        self.process.numerics_id().to_owned()
    }

    fn evidence(&self) -> Evidence {
        Evidence::SameEngine
    }

    fn promises_bits(&self) -> bool {
        false
    }

    fn gpu_s(&self) -> Option<f64> {
        self.process.gpu_s()
    }

    fn answer_one(&self, input: &Input) -> Result<(Answer, Truncated), TaskError> {
        let prepared = [self.predictor.prepare(input)?];
        let answer = self.predictor.answer_on(&self.process, &prepared)?.pop().expect("one input gives one answer");
        Ok((answer, Truncated(prepared[0].truncated())))
    }

    fn answer_all(&self, inputs: &[Input]) -> Result<Vec<(Answer, Truncated)>, TaskError> {
        let prepared = inputs.iter().map(|input| self.predictor.prepare(input)).collect::<Result<Vec<_>, _>>()?;
        let truncated = prepared.iter().map(|prepared| Truncated(prepared.truncated()));
        Ok(self.predictor.predict_prepared_on(&self.process, &prepared)?.into_iter().zip(truncated).collect())
    }
}
