use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use highroad_task::raw::Tensor;
use highroad_task::{Engine, TaskError};
use serde_json::json;
use tempfile::TempDir;

use crate::TorchOptions;
use crate::frame::{metadata, outputs, read_frame, view};

/// What the process runs.
const WORKER: &str = include_str!("worker.py");
/// How long the last words of a process that has ended are waited for.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How much of the end of stderr an error tells.
const STDERR_BYTES: usize = 2048;
/// Longest line of stderr that is told, and longest message of PyTorch's own errors.
const LINE_CHARS: usize = 500;
/// Between two looks at how much memory a process takes while it computes.
const LOOK: Duration = Duration::from_millis(100);
/// Parts of the names of variables that a process does not inherit: it needs no key of ours.
const SECRETS: [&str; 4] = ["KEY", "TOKEN", "SECRET", "PASSWORD"];

/// Takes the lines that a process writes to its stderr.
pub type Lines = Arc<dyn Fn(&str) + Send + Sync>;

/// PyTorch gave no answer.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum TorchError {
    #[error("cannot start `{python}` for PyTorch: {source}")]
    Start { python: String, source: Arc<io::Error> },
    #[error("PyTorch: {0}")]
    Refused(String),
    #[error("the PyTorch process ended ({status}){stderr}")]
    Ended { status: String, stderr: String },
    #[error("the PyTorch process did not answer within {seconds} s and was ended{stderr}")]
    TimedOut { seconds: u64, stderr: String },
    #[error("the PyTorch process took {found_mib} MiB of memory and was ended: it may take {limit_mib} MiB")]
    Memory { found_mib: u64, limit_mib: u64 },
    #[error("the PyTorch process sent what is no answer: {reason}{stderr}")]
    Garbage { reason: String, stderr: String },
    #[error("what a process that was started again computes with is another: {found}, and was {expected}")]
    OtherNumerics { found: String, expected: String },
    #[error("no PyTorch process runs now: {0}")]
    Down(String),
}

impl TorchError {
    /// The PyTorch error that `error` tells of, where it does.
    pub fn of(error: &TaskError) -> Option<&Self> {
        match error {
            TaskError::Engine(error) => error.downcast_ref(),
            _ => None,
        }
    }

    /// Whether the process is no more.
    pub(crate) fn is_end(&self) -> bool {
        !matches!(self, Self::Refused(_))
    }
}

impl From<TorchError> for TaskError {
    fn from(error: TorchError) -> Self {
        Self::Engine(Box::new(error))
    }
}

/// A program that runs in a PyTorch process; the process ends with this value, and with this process.
///
/// What comes back is checked like any file; nothing is unpickled on either side, and what torch's own loader would unpickle or
/// evaluate is refused by the process before torch sees it.
pub struct TorchProcess {
    state: Mutex<State>,
    id: String,
    run_timeout: Duration,
    /// What its compiler writes.
    _scratch: TempDir,
}

struct State {
    child: Child,
    questions: Sender<Vec<u8>>,
    answers: Receiver<io::Result<Vec<u8>>>,
    stderr: Arc<Mutex<Vec<u8>>>,
    /// Disconnected once stderr has ended.
    stderr_ends: Receiver<()>,
    gpu_s: Option<f64>,
    memory_bytes: Option<u64>,
}

impl TorchProcess {
    /// Starts an interpreter with PyTorch 2.9 or newer on the verified program at `path` and waits until it is loaded. `lines` takes
    /// what it writes to stderr.
    pub fn start(path: &Path, options: &TorchOptions, lines: Option<Lines>) -> Result<Self, TorchError> {
        let scratch = TempDir::new().map_err(|source| start_error(options, source))?;
        let asked = json!({
            "program": path, "device": options.device.as_str(), "threads": options.n_threads,
            "compile": options.compile.as_str(),
        });
        let mut command = Command::new(&options.python);
        // `-P`: a file of the current directory called `json.py` is not what the process means.
        command.args(["-P", "-c", WORKER]).arg(asked.to_string());
        command.env("TORCHINDUCTOR_CACHE_DIR", scratch.path()).env("PYTHONUNBUFFERED", "1");
        for (name, _) in std::env::vars_os() {
            let upper = name.to_string_lossy().to_uppercase();
            if SECRETS.iter().any(|part| upper.contains(part)) {
                command.env_remove(name);
            }
        }
        Self::of(command, options, lines, scratch)
    }

    /// Speaks to whatever `command` starts.
    fn of(
        command: Command,
        options: &TorchOptions,
        lines: Option<Lines>,
        scratch: TempDir,
    ) -> Result<Self, TorchError> {
        let mut state = State::of(command, options, lines).map_err(|source| start_error(options, source))?;
        let metadata = metadata(&state.receive(options.start_timeout)?).map_err(|reason| state.garbage(reason))?;
        if let Some(error) = metadata.get("error") {
            return Err(TorchError::Refused(short(error)));
        }
        let said = |key: &str| metadata.get(key).cloned().unwrap_or_else(|| "unknown".to_owned());
        let [torch, device, kind, precision, threads] = ["torch", "device", "kind", "precision", "threads"].map(said);
        state.gpu_s = (device == "cuda").then_some(0.0);
        let mut id = format!("torch-{torch}/{device}/{kind}/{precision}/{threads}-threads");
        if let Some(compiled) = metadata.get("compiled") {
            id = format!("{id}/{compiled}");
        }
        Ok(Self { state: Mutex::new(state), id, run_timeout: options.run_timeout, _scratch: scratch })
    }

    /// What decides the bits: `torch-2.15.0+cu132/cpu/avx512/f32/2-threads`.
    pub fn numerics_id(&self) -> &str {
        &self.id
    }

    /// Seconds that a GPU has worked so far, by its own events; `None` on a CPU.
    pub fn gpu_s(&self) -> Option<f64> {
        self.state().gpu_s
    }

    /// The outputs for `inputs`, both in the program's order.
    pub fn ask(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, TaskError> {
        let contiguous: Vec<Tensor> = inputs.iter().map(Tensor::contiguous).collect();
        let views = contiguous.iter().enumerate().map(|(idx, tensor)| Ok((idx.to_string(), view(tensor)?)));
        let views = views.collect::<Result<Vec<_>, TaskError>>()?;
        let question = safetensors::serialize(views, None).map_err(|error| TaskError::Tensors(error.to_string()))?;
        let mut state = self.state();
        // A process that has ended takes no question; what became of it is what `receive` says.
        _ = state.questions.send(question);
        let answer = state.receive(self.run_timeout)?;
        let metadata = metadata(&answer).map_err(|reason| state.garbage(reason))?;
        if let Some(error) = metadata.get("error") {
            return Err(TorchError::Refused(short(error)).into());
        }
        let gpu_s = metadata.get("gpu_s").and_then(|text| text.parse::<f64>().ok()).filter(|s| s.is_finite());
        state.gpu_s = state.gpu_s.map(|before| before + gpu_s.unwrap_or(0.0));
        outputs(&answer).map_err(|reason| state.garbage(reason).into())
    }

    /// Whether it has ended, or takes more memory than it may. Only for one that is asked nothing now.
    pub(crate) fn is_done(&self) -> bool {
        let mut state = self.state();
        let ended = !matches!(state.child.try_wait(), Ok(None));
        ended || state.memory_bytes.zip(resident_bytes(state.child.id())).is_some_and(|(limit, found)| found > limit)
    }

    /// Ends it, and says why it had to be or what became of it.
    pub(crate) fn end(self) -> TorchError {
        let mut state = self.state();
        if let Ok(None) = state.child.try_wait()
            && let Err(error) = state.check_memory()
        {
            return error;
        }
        let status = state.end().map_or_else(|error| error.to_string(), |status| status.to_string());
        TorchError::Ended { status, stderr: state.stderr() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine for TorchProcess {
    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, TaskError> {
        self.ask(inputs)
    }
}

fn start_error(options: &TorchOptions, source: io::Error) -> TorchError {
    TorchError::Start { python: options.python.display().to_string(), source: Arc::new(source) }
}

/// On one line, and not endless.
fn short(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LINE_CHARS).collect()
}

/// The pipes of a process that has been started.
type Started = (Child, ChildStdout, ChildStderr);

impl State {
    /// Threads read and write the pipes, so that no silence and no full pipe is waited for longer than the timeout.
    fn of(command: Command, options: &TorchOptions, lines: Option<Lines>) -> io::Result<Self> {
        let (questions, asked) = channel::<Vec<u8>>();
        let (child, mut stdout, errors) = start(command, asked)?;
        let (answered, answers) = channel();
        let stderr = Arc::new(Mutex::new(Vec::new()));
        let tail = Arc::clone(&stderr);
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
            keep_tail(errors, &tail, lines.as_deref());
            drop(open);
        });
        let memory_bytes = options.memory_bytes;
        Ok(Self { child, questions, answers, stderr, stderr_ends, gpu_s: None, memory_bytes })
    }

    fn receive(&mut self, timeout: Duration) -> Result<Vec<u8>, TorchError> {
        let begun = Instant::now();
        loop {
            let left = timeout.saturating_sub(begun.elapsed());
            let wait = if self.memory_bytes.is_some() { left.min(LOOK) } else { left };
            match self.answers.recv_timeout(wait) {
                Ok(Ok(frame)) => return Ok(frame),
                Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                    return Err(self.garbage(error.to_string()));
                }
                Ok(Err(_)) | Err(RecvTimeoutError::Disconnected) => {
                    let status = self.end();
                    let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
                    return Err(TorchError::Ended { status, stderr: self.stderr() });
                }
                Err(RecvTimeoutError::Timeout) if wait < left => self.check_memory()?,
                Err(RecvTimeoutError::Timeout) => {
                    _ = self.end();
                    return Err(TorchError::TimedOut { seconds: timeout.as_secs(), stderr: self.stderr() });
                }
            }
        }
    }

    /// Ends a process that takes more memory than it may.
    fn check_memory(&mut self) -> Result<(), TorchError> {
        let Some(limit) = self.memory_bytes else { return Ok(()) };
        match resident_bytes(self.child.id()).filter(|found| *found > limit) {
            None => Ok(()),
            Some(found) => {
                _ = self.end();
                Err(TorchError::Memory { found_mib: found >> 20, limit_mib: limit >> 20 })
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

/// Starts `command` in a thread that then writes `asked` to it: Linux ends the process with the thread that started it
/// (`PR_SET_PDEATHSIG`), so that has to be one that lives as long as the process is spoken to.
fn start(mut command: Command, asked: Receiver<Vec<u8>>) -> io::Result<Started> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let (started, starting) = channel();
    thread::Builder::new().name("torch-worker".to_owned()).spawn(move || {
        let (pipes, stdin) = match spawn(&mut command) {
            Ok((pipes, stdin)) => (Ok(pipes), Some(stdin)),
            Err(error) => (Err(error), None),
        };
        let is_heard = started.send(pipes).is_ok();
        let Some(mut stdin) = stdin.filter(|_| is_heard) else { return };
        for question in asked {
            if write_frame(&mut stdin, &question).is_err() {
                break;
            }
        }
    })?;
    starting.recv().unwrap_or(Err(io::ErrorKind::BrokenPipe.into()))
}

fn spawn(command: &mut Command) -> io::Result<(Started, ChildStdin)> {
    let mut child = command.spawn()?;
    match (child.stdin.take(), child.stdout.take(), child.stderr.take()) {
        (Some(stdin), Some(stdout), Some(stderr)) => Ok(((child, stdout, stderr), stdin)),
        _ => Err(io::ErrorKind::BrokenPipe.into()),
    }
}

fn write_frame(stdin: &mut ChildStdin, frame: &[u8]) -> io::Result<()> {
    stdin.write_all(&(frame.len() as u64).to_le_bytes())?;
    stdin.write_all(frame)?;
    stdin.flush()
}

/// Keeps the end of what comes and hands on each line of it, cut where it is long.
fn keep_tail(stream: ChildStderr, tail: &Mutex<Vec<u8>>, lines: Option<&(dyn Fn(&str) + Send + Sync)>) {
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        let n_read = match stream.fill_buf() {
            Ok(bytes) if !bytes.is_empty() => {
                let n_taken = bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |end| end + 1);
                line.extend_from_slice(&bytes[..n_taken]);
                n_taken
            }
            _ => break,
        };
        stream.consume(n_read);
        // A line without an end is handed on in parts.
        if line.ends_with(b"\n") || line.len() >= STDERR_BYTES {
            keep(&mut line, tail, lines);
        }
    }
    keep(&mut line, tail, lines);
}

fn keep(line: &mut Vec<u8>, tail: &Mutex<Vec<u8>>, lines: Option<&(dyn Fn(&str) + Send + Sync)>) {
    let text = short(String::from_utf8_lossy(line).trim_end());
    if let Some(tell) = lines.filter(|_| !text.is_empty()) {
        tell(&text);
    }
    let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
    tail.append(line);
    let n_over = tail.len().saturating_sub(STDERR_BYTES);
    tail.drain(..n_over);
}

/// Bytes of a process in memory; `None` where the system has no `/proc`, or the process ended.
fn resident_bytes(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::HashMap;

    use safetensors::tensor::{Dtype, TensorView};

    use super::*;
    use crate::{Compile, Device};

    fn options() -> TorchOptions {
        let timeout = Duration::from_secs(10);
        TorchOptions {
            python: "sh".into(),
            device: Device::cpu(),
            n_threads: 1,
            compile: Compile::Eager,
            memory_bytes: None,
            start_timeout: timeout,
            run_timeout: timeout,
        }
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

    fn process(command: Command, options: &TorchOptions) -> Result<TorchProcess, TorchError> {
        TorchProcess::of(command, options, None, TempDir::new().unwrap())
    }

    fn why(command: Command, options: &TorchOptions) -> String {
        let ids = Tensor::from_slice(&vec![7i64; 100_000], &[1, 100_000]).unwrap();
        let asked = process(command, options).map_err(TaskError::from).and_then(|process| process.run(&[ids]));
        asked.unwrap_err().to_string()
    }

    #[test]
    fn a_process_says_what_decides_its_bits() {
        let process = process(speaking(&[hello()], "cat >/dev/null"), &options()).unwrap();
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
    fn a_process_that_takes_too_much_memory_is_ended_also_while_it_is_idle() {
        let least = TorchOptions { memory_bytes: Some(4096), ..options() };
        let idle = process(speaking(&[hello()], "exec sleep 60"), &options()).unwrap();
        assert!(!idle.is_done());
        idle.state().memory_bytes = Some(4096);
        assert!(idle.is_done() && matches!(idle.end(), TorchError::Memory { .. }));
        let told = process(speaking(&[], "exec sleep 60"), &least).err().unwrap().to_string();
        assert!(told.contains("of memory and was ended: it may take 0 MiB"), "{told}");
    }

    #[test]
    fn what_a_process_writes_is_handed_on_by_line() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let lines: Lines = Arc::new({
            let seen = Arc::clone(&seen);
            move |line| seen.lock().unwrap().push(line.to_owned())
        });
        let command = speaking(&[], "printf 'one\\ntwo' >&2");
        assert!(TorchProcess::of(command, &options(), Some(lines), TempDir::new().unwrap()).is_err());
        assert_eq!(*seen.lock().unwrap(), ["one", "two"]);
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
        let process = process(speaking(&[on_gpu, answer.clone(), answer], "sleep 60"), &options()).unwrap();
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
