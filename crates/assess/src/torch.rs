//! A package answered by PyTorch: the program runs in a Python process of its own, all else in this one.

use std::collections::HashMap;
use std::io::{self, Read, Write as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use highroad_eval::Evidence;
use highroad_package::{Digest, PROGRAM, TaskKind};
use highroad_task::raw::{DType, Storage, Tensor};
use highroad_task::{Answer, Engine, Input, Predictor, TaskError};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::{Model, Truncated};

/// What the process runs.
const WORKER: &str = include_str!("torch_worker.py");
/// Longest frame: 4096 tokens need 96 KiB, as many patches of pixels 12 MiB, and their answers fit many times.
const MAX_FRAME_BYTES: u64 = 1 << 30;
/// How long the last words of a process that has ended are waited for.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How much of the end of stderr an error tells.
const STDERR_BYTES: usize = 2048;

/// Where PyTorch computes, and how long it is waited for.
#[derive(Clone, Debug)]
pub struct TorchOptions {
    /// As PyTorch names it: `cpu`, `cuda`, `cuda:1`.
    pub device: String,
    /// Of PyTorch's own.
    pub n_threads: usize,
    /// Until it has imported itself and loaded the program.
    pub start_timeout: Duration,
    /// Until one batch is answered.
    pub run_timeout: Duration,
}

/// PyTorch gave no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum TorchError {
    #[error("cannot start Python for PyTorch")]
    Start(#[source] io::Error),
    #[error("PyTorch: {0}")]
    Refused(String),
    #[error("the PyTorch process ended ({status}){stderr}")]
    Ended { status: String, stderr: String },
    #[error("the PyTorch process did not answer within {seconds} s and was ended{stderr}")]
    TimedOut { seconds: u64, stderr: String },
    #[error("the PyTorch process sent what is no answer: {reason}{stderr}")]
    Garbage { reason: String, stderr: String },
}

/// A program that runs in a PyTorch process; the process ends with this value, and with this process.
///
/// Frames go both ways: a length in eight little-endian bytes, then a safetensors file. What comes back is checked like any
/// file; nothing is unpickled on either side, and what torch's own loader would unpickle or evaluate is refused by the process
/// before torch sees it.
pub struct TorchProcess {
    state: Mutex<State>,
    id: String,
    run_timeout: Duration,
}

struct State {
    child: Child,
    questions: Sender<Vec<u8>>,
    answers: Receiver<io::Result<Vec<u8>>>,
    stderr: Arc<Mutex<Vec<u8>>>,
    /// Disconnected once stderr has ended.
    stderr_ends: Receiver<()>,
    gpu_s: Option<f64>,
}

impl TorchProcess {
    /// Starts `python` (an interpreter with PyTorch 2.9 or newer) on the verified program at `path` and waits until it is loaded.
    pub fn start(python: Command, path: &Path, options: &TorchOptions) -> Result<Self, TorchError> {
        let mut command = python;
        // `-P`: a file of the current directory called `json.py` is not what the process means.
        command.args(["-P", "-c", WORKER]).arg(path).arg(&options.device).arg(options.n_threads.to_string());
        Self::of(command, options)
    }

    /// Speaks to whatever `command` starts.
    fn of(mut command: Command, options: &TorchOptions) -> Result<Self, TorchError> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut state = State::of(command.spawn().map_err(TorchError::Start)?)?;
        let metadata = metadata(&state.receive(options.start_timeout)?).map_err(|reason| state.garbage(reason))?;
        if let Some(error) = metadata.get("error") {
            return Err(TorchError::Refused(error.clone()));
        }
        let said = |key: &str| metadata.get(key).cloned().unwrap_or_else(|| "unknown".to_owned());
        let [torch, device, kind, precision, threads] = ["torch", "device", "kind", "precision", "threads"].map(said);
        state.gpu_s = (device == "cuda").then_some(0.0);
        let id = format!("torch-{torch}/{device}/{kind}/{precision}/{threads}-threads");
        Ok(Self { state: Mutex::new(state), id, run_timeout: options.run_timeout })
    }

    /// What decides the bits: `torch-2.15.0+cu132/cpu/avx512/f32/2-threads`.
    pub fn numerics_id(&self) -> &str {
        &self.id
    }

    /// Seconds that a GPU has worked so far, by its own events; `None` on a CPU.
    pub fn gpu_s(&self) -> Option<f64> {
        self.state().gpu_s
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, TaskError> {
        let contiguous: Vec<Tensor> = inputs.iter().map(Tensor::contiguous).collect();
        let views = contiguous.iter().enumerate().map(|(idx, tensor)| Ok((idx.to_string(), view(tensor)?)));
        let views = views.collect::<Result<Vec<_>, TaskError>>()?;
        let question = safetensors::serialize(views, None).map_err(|error| TaskError::Tensors(error.to_string()))?;
        let mut state = self.state();
        // A process that has ended takes no question; what became of it is what `receive` says.
        _ = state.questions.send(question);
        let answer = state.receive(self.run_timeout).map_err(engine)?;
        let metadata = metadata(&answer).map_err(|reason| engine(state.garbage(reason)))?;
        if let Some(error) = metadata.get("error") {
            return Err(engine(TorchError::Refused(error.clone())));
        }
        let gpu_s = metadata.get("gpu_s").and_then(|text| text.parse::<f64>().ok()).filter(|s| s.is_finite());
        state.gpu_s = state.gpu_s.map(|before| before + gpu_s.unwrap_or(0.0));
        outputs(&answer).map_err(|reason| engine(state.garbage(reason)))
    }
}

impl Engine for TorchProcess {
    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, TaskError> {
        self.ask(inputs)
    }
}

fn engine(error: TorchError) -> TaskError {
    TaskError::Engine(Box::new(error))
}

impl State {
    /// Threads read and write the pipes, so that no silence and no full pipe is waited for longer than the timeout.
    fn of(mut child: Child) -> Result<Self, TorchError> {
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(mut stdin), Some(mut stdout), Some(mut errors)) = pipes else {
            return Err(TorchError::Start(io::ErrorKind::BrokenPipe.into()));
        };
        let (questions, asked) = channel::<Vec<u8>>();
        let (answered, answers) = channel();
        let stderr = Arc::new(Mutex::new(Vec::new()));
        let tail = Arc::clone(&stderr);
        thread::spawn(move || {
            for question in asked {
                let length = (question.len() as u64).to_le_bytes();
                let sent = stdin.write_all(&length).and_then(|()| stdin.write_all(&question));
                if sent.and_then(|()| stdin.flush()).is_err() {
                    break;
                }
            }
        });
        thread::spawn(move || {
            loop {
                let frame = read_frame(&mut stdout);
                let failed = frame.is_err();
                if answered.send(frame).is_err() || failed {
                    break;
                }
            }
        });
        let (open, stderr_ends) = channel();
        thread::spawn(move || {
            keep_tail(&mut errors, &tail);
            drop(open);
        });
        Ok(Self { child, questions, answers, stderr, stderr_ends, gpu_s: None })
    }

    fn receive(&mut self, timeout: Duration) -> Result<Vec<u8>, TorchError> {
        match self.answers.recv_timeout(timeout) {
            Ok(Ok(frame)) => Ok(frame),
            Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => Err(self.garbage(error.to_string())),
            Ok(Err(_)) | Err(RecvTimeoutError::Disconnected) => {
                let status = self.end();
                let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
                Err(TorchError::Ended { status, stderr: self.stderr() })
            }
            Err(RecvTimeoutError::Timeout) => {
                _ = self.end();
                Err(TorchError::TimedOut { seconds: timeout.as_secs(), stderr: self.stderr() })
            }
        }
    }

    /// After this nothing it says can be told apart, so it ends.
    fn garbage(&mut self, reason: String) -> TorchError {
        _ = self.end();
        TorchError::Garbage { reason, stderr: self.stderr() }
    }

    fn end(&mut self) -> io::Result<ExitStatus> {
        // One that is about to end by itself has a status worth telling.
        for _ in 0..20 {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(5));
        }
        self.child.kill()?;
        self.child.wait()
    }

    /// The end of what it said on stderr, ready to be appended to an error. What it said last may still be on its way, unless a
    /// process that it started keeps the pipe open.
    fn stderr(&self) -> String {
        _ = self.stderr_ends.recv_timeout(LAST_WORDS);
        let tail = self.stderr.lock().unwrap_or_else(PoisonError::into_inner);
        match String::from_utf8_lossy(&tail).trim() {
            "" => String::new(),
            text => format!("; its stderr ends:\n{text}"),
        }
    }
}

impl Drop for State {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// One frame. `InvalidData` where its length is out of bounds, `UnexpectedEof` where the stream ends.
fn read_frame(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut length = [0; 8];
    stream.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_FRAME_BYTES {
        let reason = format!("a frame of {length} bytes, and {MAX_FRAME_BYTES} are the most");
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    }
    // Grows with what arrives, not with what is claimed.
    let mut frame = Vec::new();
    match stream.take(length).read_to_end(&mut frame)? as u64 == length {
        true => Ok(frame),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn keep_tail(stream: &mut impl Read, tail: &Mutex<Vec<u8>>) {
    let mut chunk = [0; 1024];
    while let Ok(n_read @ 1..) = stream.read(&mut chunk) {
        let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.extend_from_slice(&chunk[..n_read]);
        let n_over = tail.len().saturating_sub(STDERR_BYTES);
        tail.drain(..n_over);
    }
}

fn metadata(frame: &[u8]) -> Result<HashMap<String, String>, String> {
    let (_, header) = SafeTensors::read_metadata(frame).map_err(|error| error.to_string())?;
    Ok(header.metadata().clone().unwrap_or_default())
}

/// The tensors `0`, `1`, … of a frame, which holds no others.
fn outputs(frame: &[u8]) -> Result<Vec<Tensor>, String> {
    let file = SafeTensors::deserialize(frame).map_err(|error| error.to_string())?;
    (0..file.len())
        .map(|idx| {
            let view = file.tensor(&idx.to_string()).map_err(|error| error.to_string())?;
            let found = DTYPES.iter().find(|(_, dtype)| *dtype == view.dtype());
            let (dtype, _) = found.ok_or_else(|| format!("an output of dtype {:?}", view.dtype()))?;
            let shape = view.shape();
            let strides: Vec<usize> = (1..=shape.len()).map(|dim| shape[dim..].iter().product()).collect();
            Tensor::from_storage(Storage::copy_of(view.data()), *dtype, shape, &strides, 0).map_err(|e| e.to_string())
        })
        .collect()
}

fn view(tensor: &Tensor) -> Result<TensorView<'_>, TaskError> {
    let unusable = |what: String| TaskError::Tensors(what);
    let (_, dtype) = DTYPES
        .iter()
        .find(|(dtype, _)| *dtype == tensor.dtype())
        .ok_or_else(|| unusable(format!("an input of dtype {}", tensor.dtype())))?;
    let start = tensor.offset() * tensor.dtype().size_bytes();
    let end = start + tensor.numel() * tensor.dtype().size_bytes();
    let bytes = tensor.storage().bytes().get(start..end).expect("a contiguous tensor lies in its storage");
    TensorView::new(*dtype, tensor.shape().to_vec(), bytes).map_err(|error| unusable(error.to_string()))
}

/// What programs of token ids and of pixels take and give.
const DTYPES: [(DType, Dtype); 6] = [
    (DType::Bool, Dtype::BOOL),
    (DType::I32, Dtype::I32),
    (DType::I64, Dtype::I64),
    (DType::F16, Dtype::F16),
    (DType::BF16, Dtype::BF16),
    (DType::F32, Dtype::F32),
];

/// A package answered by PyTorch: tokens in and answers out of its logits are this process's, as with any predictor.
pub struct OnTorch {
    predictor: Predictor,
    process: TorchProcess,
}

impl OnTorch {
    /// Starts PyTorch on the program of `predictor`'s package.
    pub fn start(predictor: Predictor, python: Command, options: &TorchOptions) -> Result<Self, TaskError> {
        let path = predictor.package().path(PROGRAM)?;
        let process = TorchProcess::start(python, path.as_ref(), options).map_err(engine)?;
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn options() -> TorchOptions {
        let timeout = Duration::from_secs(10);
        TorchOptions { device: "cpu".to_owned(), n_threads: 1, start_timeout: timeout, run_timeout: timeout }
    }

    /// A process that says `frames`, then does as `then` says.
    fn speaking(frames: &[Vec<u8>], then: &str) -> Command {
        let bytes: Vec<u8> =
            frames.iter().flat_map(|frame| [&(frame.len() as u64).to_le_bytes()[..], frame].concat()).collect();
        let octal: String = bytes.iter().map(|byte| format!("\\0{byte:o}")).collect();
        let mut command = Command::new("sh");
        command.args(["-c", &format!("printf '%b' '{octal}'; {then}")]);
        command
    }

    fn frame(metadata: &[(&str, &str)]) -> Vec<u8> {
        let metadata = metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let no_tensors: [(String, TensorView<'_>); 0] = [];
        safetensors::serialize(no_tensors, Some(metadata)).unwrap()
    }

    fn hello() -> Vec<u8> {
        frame(&[("torch", "2.15.0"), ("device", "cpu"), ("kind", "avx512"), ("precision", "f32"), ("threads", "2")])
    }

    fn why(command: Command, options: &TorchOptions) -> String {
        let ids = Tensor::from_slice(&vec![7i64; 100_000], &[1, 100_000]).unwrap();
        let asked = TorchProcess::of(command, options).map_err(engine).and_then(|process| process.run(&[ids]));
        asked.unwrap_err().to_string()
    }

    #[test]
    fn a_process_says_what_decides_its_bits() {
        let process = TorchProcess::of(speaking(&[hello()], "cat >/dev/null"), &options()).unwrap();
        assert_eq!(process.numerics_id(), "torch-2.15.0/cpu/avx512/f32/2-threads");
        assert_eq!(process.gpu_s(), None);
    }

    #[test]
    fn a_process_that_ends_is_told_with_the_end_of_its_stderr() {
        let died = why(speaking(&[], "echo no module named torch >&2; exit 3"), &options());
        assert!(died.contains("exit status: 3") && died.ends_with("no module named torch"), "{died}");
        let crashed = why(speaking(&[hello()], "echo out of memory >&2; kill -SEGV $$"), &options());
        assert!(crashed.contains("signal: 11") && crashed.ends_with("out of memory"), "{crashed}");
    }

    #[test]
    fn a_process_that_says_nothing_is_ended_in_time_whether_or_not_it_reads() {
        let short = TorchOptions { run_timeout: Duration::from_secs(1), ..options() };
        for then in ["cat >/dev/null", "exec sleep 60"] {
            let start = Instant::now();
            let told = why(speaking(&[hello()], then), &short);
            assert!(told.contains("did not answer within 1 s"), "{told}");
            assert!(start.elapsed() < Duration::from_secs(8));
        }
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        let mut too_long = Command::new("sh");
        too_long.args(["-c", "echo Loading weights from hub...; sleep 60"]);
        let told = why(too_long, &options());
        assert!(told.contains("a frame of") && told.contains("are the most"), "{told}");
        let told = why(speaking(&[b"not a safetensors file".to_vec()], "sleep 60"), &options());
        assert!(told.contains("what is no answer"), "{told}");
        let odd = safetensors::serialize([("logits", TensorView::new(Dtype::F32, vec![1], &[0; 4]).unwrap())], None);
        let told = why(speaking(&[hello(), odd.unwrap()], "sleep 60"), &options());
        assert!(told.contains("what is no answer"), "{told}");
    }

    #[test]
    fn seconds_of_a_gpu_add_up() {
        let on_gpu = frame(&[("torch", "2.15.0"), ("device", "cuda"), ("kind", "NVIDIA-H200")]);
        let logits = TensorView::new(Dtype::F32, vec![1, 1], &[0, 0, 128, 63]).unwrap();
        let metadata = HashMap::from([("gpu_s".to_owned(), "0.25".to_owned())]);
        let answer = safetensors::serialize([("0", logits)], Some(metadata)).unwrap();
        let process = TorchProcess::of(speaking(&[on_gpu, answer.clone(), answer], "sleep 60"), &options()).unwrap();
        assert_eq!(process.numerics_id(), "torch-2.15.0/cuda/NVIDIA-H200/unknown/unknown-threads");
        let ids = [Tensor::from_slice(&[7i64], &[1, 1]).unwrap()];
        for seconds in [0.25, 0.5] {
            assert_eq!(process.run(&ids).unwrap()[0].as_slice::<f32>().unwrap(), [1.0]);
            assert_eq!(process.gpu_s(), Some(seconds));
        }
    }

    #[test]
    fn its_own_errors_are_told_as_they_are() {
        let refused = [("error", "ValueError: `w` is stored as a pickle, and nothing is unpickled here")];
        let told = why(speaking(&[frame(&refused)], "exit 0"), &options());
        assert_eq!(told, "PyTorch: ValueError: `w` is stored as a pickle, and nothing is unpickled here");
    }
}
