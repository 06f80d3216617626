use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use highroad_task::raw::Tensor;
use highroad_task::{Engine, TaskError};
use highroad_worker::{Hello, Launch, Lines, Process, WorkerError};
use serde_json::json;
use tempfile::TempDir;

use crate::TorchOptions;
use crate::frame::{outputs, view};

/// What the process runs.
const WORKER: &str = include_str!("worker.py");
/// What errors call it.
pub(crate) const WHAT: &str = "PyTorch";

/// The error of a process that `error` tells of, where it does.
pub fn worker_error(error: &TaskError) -> Option<&WorkerError> {
    match error {
        TaskError::Engine(error) => error.downcast_ref(),
        _ => None,
    }
}

pub(crate) fn task_error(error: WorkerError) -> TaskError {
    TaskError::Engine(Box::new(error))
}

/// A program that runs in a PyTorch process; the process ends with this value, and with this process.
///
/// What comes back is checked like any file; nothing is unpickled on either side, and what torch's own loader would unpickle or
/// evaluate is refused by the process before torch sees it.
pub struct TorchProcess {
    process: Process,
    id: String,
    gpu_s: Mutex<Option<f64>>,
    run_timeout: Duration,
    /// What its compiler writes.
    _scratch: TempDir,
}

impl TorchProcess {
    /// Starts an interpreter with PyTorch 2.9 or newer on the verified program at `path` and waits until it is loaded. `lines` takes
    /// what it writes to stderr.
    pub fn start(path: &Path, options: &TorchOptions, lines: Option<Lines>) -> Result<Self, TaskError> {
        let launch = launch(options);
        let failed = |source: std::io::Error| {
            let python = options.python.display().to_string();
            task_error(WorkerError::Start { what: WHAT, python, source: source.into() })
        };
        let scratch = TempDir::new().map_err(failed)?;
        let asked = json!({
            "program": path, "device": options.device.as_str(), "threads": options.n_threads,
            "compile": options.compile.as_str(),
        });
        let variables = vec![("TORCHINDUCTOR_CACHE_DIR".to_owned(), scratch.path().into())];
        let launch = Launch { variables, ..launch };
        let (process, hello) = Process::start(WORKER, &asked.to_string(), &launch, lines).map_err(task_error)?;
        Ok(Self::of(process, &hello, options.run_timeout, scratch))
    }

    fn of(process: Process, hello: &Hello, run_timeout: Duration, scratch: TempDir) -> Self {
        // Counted from nothing where it computes on a GPU.
        let gpu_s = hello.get("device").filter(|device| *device == "cuda").map(|_| 0.0);
        Self { process, id: numerics_id(hello), gpu_s: Mutex::new(gpu_s), run_timeout, _scratch: scratch }
    }

    /// What decides the bits: `torch-2.15.0+cu132/cpu/avx512/f32/2-threads`.
    pub fn numerics_id(&self) -> &str {
        &self.id
    }

    /// Seconds that a GPU has worked so far, by its own events; `None` on a CPU.
    pub fn gpu_s(&self) -> Option<f64> {
        *self.gpu_s.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The outputs for `inputs`, both in the program's order.
    pub fn ask(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, TaskError> {
        let contiguous: Vec<Tensor> = inputs.iter().map(Tensor::contiguous).collect();
        let views = contiguous.iter().enumerate().map(|(idx, tensor)| Ok((idx.to_string(), view(tensor)?)));
        let views = views.collect::<Result<Vec<_>, TaskError>>()?;
        let question = safetensors::serialize(views, None).map_err(|error| TaskError::Tensors(error.to_string()))?;
        let (answer, said) = self.process.ask(question, self.run_timeout).map_err(task_error)?;
        if let Some(total) = self.gpu_s.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            let gpu_s = said.get("gpu_s").and_then(|text| text.parse::<f64>().ok()).filter(|s| s.is_finite());
            *total += gpu_s.unwrap_or(0.0);
        }
        outputs(&answer).map_err(|reason| task_error(self.process.garbage(reason)))
    }
}

impl AsRef<Process> for TorchProcess {
    fn as_ref(&self) -> &Process {
        &self.process
    }
}

impl Engine for TorchProcess {
    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, TaskError> {
        self.ask(inputs)
    }
}

fn launch(options: &TorchOptions) -> Launch {
    Launch {
        what: WHAT,
        python: options.python.clone(),
        variables: Vec::new(),
        secrets: &[],
        memory_bytes: options.memory_bytes,
        start_timeout: options.start_timeout,
    }
}

fn numerics_id(hello: &Hello) -> String {
    let said = |key: &str| hello.get(key).cloned().unwrap_or_else(|| "unknown".to_owned());
    let [torch, device, kind, precision, threads] = ["torch", "device", "kind", "precision", "threads"].map(said);
    let id = format!("torch-{torch}/{device}/{kind}/{precision}/{threads}-threads");
    match hello.get("compiled") {
        Some(compiled) => format!("{id}/{compiled}"),
        None => id,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::HashMap;
    use std::process::Command;

    use safetensors::tensor::{Dtype, TensorView};

    use super::*;

    /// A process that says `frames`, then sleeps.
    fn process(frames: &[Vec<u8>]) -> TorchProcess {
        let bytes: Vec<u8> =
            frames.iter().flat_map(|frame| [&(frame.len() as u64).to_le_bytes()[..], frame].concat()).collect();
        let octal: String = bytes.iter().map(|byte| format!("\\0{byte:o}")).collect();
        let mut command = Command::new("sh");
        command.args(["-c", &format!("printf '%b' '{octal}'; exec sleep 60")]);
        let (python, start_timeout) = ("sh".into(), Duration::from_secs(10));
        let launch = Launch { what: WHAT, python, variables: vec![], secrets: &[], memory_bytes: None, start_timeout };
        let (process, hello) = Process::of(command, &launch, None).unwrap();
        TorchProcess::of(process, &hello, Duration::from_secs(10), TempDir::new().unwrap())
    }

    fn frame(metadata: &[(&str, &str)]) -> Vec<u8> {
        let metadata = metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let no_tensors: [(String, TensorView<'_>); 0] = [];
        safetensors::serialize(no_tensors, Some(metadata)).unwrap()
    }

    fn ids() -> [Tensor; 1] {
        [Tensor::from_slice(&[7i64], &[1, 1]).unwrap()]
    }

    #[test]
    fn a_process_says_what_decides_its_bits() {
        let hello =
            [("torch", "2.15.0"), ("device", "cpu"), ("kind", "avx512"), ("precision", "f32"), ("threads", "2")];
        let process = process(&[frame(&hello)]);
        assert_eq!(process.numerics_id(), "torch-2.15.0/cpu/avx512/f32/2-threads");
        assert_eq!(process.gpu_s(), None);
    }

    #[test]
    fn seconds_of_a_gpu_add_up() {
        let on_gpu = frame(&[("torch", "2.15.0"), ("device", "cuda"), ("kind", "NVIDIA-H200")]);
        let logits = TensorView::new(Dtype::F32, vec![1, 1], &[0, 0, 128, 63]).unwrap();
        let metadata = HashMap::from([("gpu_s".to_owned(), "0.25".to_owned())]);
        let answer = safetensors::serialize([("0", logits)], Some(metadata)).unwrap();
        let process = process(&[on_gpu, answer.clone(), answer]);
        assert_eq!(process.numerics_id(), "torch-2.15.0/cuda/NVIDIA-H200/unknown/unknown-threads");
        for seconds in [0.25, 0.5] {
            assert_eq!(process.run(&ids()).unwrap()[0].as_slice::<f32>().unwrap(), [1.0]);
            assert_eq!(process.gpu_s(), Some(seconds));
        }
    }

    #[test]
    fn tensors_that_are_no_outputs_are_no_answer() {
        let odd = safetensors::serialize([("logits", TensorView::new(Dtype::F32, vec![1], &[0; 4]).unwrap())], None);
        let process = process(&[frame(&[("torch", "2.15.0")]), odd.unwrap()]);
        let told = process.run(&ids()).unwrap_err().to_string();
        assert!(told.contains("the PyTorch process sent what is no answer"), "{told}");
        assert!(process.process.is_done());
    }
}
