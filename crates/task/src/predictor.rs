use std::num::NonZeroUsize;
use std::thread::available_parallelism;

use highroad_data::Tokenizer;
use highroad_package::{Digest, Manifest, PROGRAM, TOKENIZER, VerifiedPackage};
use highroad_runtime::{Program, RunOptions};

use crate::parity::{self, ParityReport};
use crate::{Answer, Input, Prepared, TaskError};

/// How a predictor uses the machine; none of it changes an answer.
#[derive(Clone, Copy, Debug)]
pub struct PredictorOptions {
    /// Threads of one program run; all cores unless told.
    pub threads: NonZeroUsize,
    /// Most tokens, padding included, of one run in [`Predictor::predict`].
    pub max_batch_tokens: NonZeroUsize,
}

impl Default for PredictorOptions {
    fn default() -> Self {
        let threads = available_parallelism().unwrap_or(NonZeroUsize::MIN);
        Self { threads, max_batch_tokens: NonZeroUsize::new(4096).expect("4096 is not zero") }
    }
}

/// A package ready to answer. Shared by reference between threads; every method takes `&self`.
pub struct Predictor {
    package: VerifiedPackage,
    tokenizer: Tokenizer,
    program: Program,
    run_options: RunOptions,
}

impl Predictor {
    /// Loads the package's tokenizer and program and checks that the program takes and gives what the task says.
    pub fn open(package: &VerifiedPackage, options: &PredictorOptions) -> Result<Self, TaskError> {
        let max_tokens = package.manifest().task.max_tokens as usize;
        let tokenizer = Tokenizer::from_bytes(&package.read(TOKENIZER)?, max_tokens)?;
        let program = Program::open(&package.path(PROGRAM)?)?;
        let run_options = RunOptions::with_threads(options.threads);
        Ok(Self { package: package.clone(), tokenizer, program, run_options })
    }

    /// The program behind the task.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// What decides the bits of an answer besides package and input.
    pub fn numerics_id(&self) -> String {
        self.program.numerics_id()
    }

    /// Runs the package's parity cases, recorded from eager PyTorch, and compares within the package's own tolerance.
    ///
    /// Errors if a case cannot be run or does not agree.
    pub fn check_parity(&self) -> Result<ParityReport, TaskError> {
        parity::check(&self.program, &self.package, &self.run_options)
    }

    /// What the package is.
    pub fn manifest(&self) -> &Manifest {
        self.package.manifest()
    }

    /// The package's name.
    pub fn digest(&self) -> Digest {
        self.package.digest()
    }

    /// Encodes an input and cuts a text that is too long.
    pub fn prepare(&self, input: &Input) -> Result<Prepared, TaskError> {
        let prepared = match input {
            Input::Text(text) => {
                let encoded = self.tokenizer.encode(text)?;
                Prepared { ids: encoded.ids, truncated: encoded.truncated }
            }
            Input::Tokens(ids) => self.prepare_tokens(ids)?,
        };
        if prepared.ids.is_empty() {
            return Err(TaskError::NoTokens);
        }
        Ok(prepared)
    }

    fn prepare_tokens(&self, ids: &[u32]) -> Result<Prepared, TaskError> {
        let (n_tokens, max_tokens) = (ids.len(), self.tokenizer.max_tokens());
        if n_tokens > max_tokens {
            return Err(TaskError::TooManyTokens { n_tokens, max_tokens });
        }
        match ids.iter().find(|&&id| !self.tokenizer.has_id(id)) {
            Some(&id) => Err(TaskError::UnknownToken(id)),
            None => Ok(Prepared { ids: ids.to_vec(), truncated: false }),
        }
    }

    /// The answers of one program run over the padded rows of `batch`, in order.
    pub fn answer(&self, _batch: &[Prepared]) -> Result<Vec<Answer>, TaskError> {
        Err(TaskError::Signature("this build has no runtime yet".to_owned()))
    }

    /// [`Predictor::prepare`] and [`Predictor::answer`] over batches of similar length; answers are in input order.
    pub fn predict(&self, inputs: &[Input]) -> Result<Vec<Answer>, TaskError> {
        let prepared = inputs.iter().map(|input| self.prepare(input)).collect::<Result<Vec<_>, _>>()?;
        self.answer(&prepared)
    }
}
