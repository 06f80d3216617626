use std::collections::HashMap;
use std::ffi::OsString;
use std::io::{self, BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::WorkerError;
use crate::frame::{metadata, read_frame, write_frame};

/// What every script begins with.
const FRAMES: &str = include_str!("frames.py");
/// How long the last words of a process that has ended are waited for.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How much of the end of stderr an error tells.
const STDERR_BYTES: usize = 2048;
/// Longest line of stderr that is told, and longest message of a library's own errors.
const LINE_CHARS: usize = 500;
/// Between two looks at how much memory a process takes while it computes.
const LOOK: Duration = Duration::from_millis(100);
/// Parts of the names of variables that a process does not inherit: it needs no key of ours.
const SECRETS: [&str; 4] = ["KEY", "TOKEN", "SECRET", "PASSWORD"];

/// Takes the lines that a process writes to its stderr.
pub type Lines = Arc<dyn Fn(&str) + Send + Sync>;

/// How a process is started.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// What it is for, as errors call it: `PyTorch`.
    pub what: &'static str,
    /// The interpreter.
    pub python: PathBuf,
    /// Variables that it gets beside those it inherits.
    pub variables: Vec<(String, OsString)>,
    /// Secret variables that it needs all the same. Of all others whose names tell of a secret it inherits none.
    pub secrets: &'static [&'static str],
    /// Most bytes of it in memory; it is ended above. Nothing is looked at if `None`.
    pub memory_bytes: Option<u64>,
    /// Until it has said its first frame.
    pub start_timeout: Duration,
}

/// What a process says of itself in its first frame.
pub type Hello = HashMap<String, String>;

/// A process that answers frame by frame; it ends with this value, and with this process.
///
/// What comes back is checked like any file.
pub struct Process {
    what: &'static str,
    state: Mutex<State>,
}

struct State {
    what: &'static str,
    child: Child,
    questions: Sender<Vec<u8>>,
    answers: Receiver<io::Result<Vec<u8>>>,
    stderr: Arc<Mutex<Vec<u8>>>,
    /// Disconnected once stderr has ended.
    stderr_ends: Receiver<()>,
    memory_bytes: Option<u64>,
    /// What is told of it without them.
    hidden: Arc<[String]>,
}

impl Process {
    /// Starts an interpreter on `script`, which finds the functions of `frames.py` above it and `argument` in `sys.argv[1]`, and waits for
    /// its first frame. `lines` takes what it writes to stderr.
    pub fn start(
        script: &str,
        argument: &str,
        launch: &Launch,
        lines: Option<Lines>,
    ) -> Result<(Self, Hello), WorkerError> {
        let mut command = Command::new(&launch.python);
        // `-P`: a file of the current directory called `json.py` is not what the process means.
        command.args(["-P", "-c", &format!("{FRAMES}{script}"), argument]).env("PYTHONUNBUFFERED", "1");
        for (name, _) in std::env::vars_os() {
            if is_secret(&name.to_string_lossy()) && !launch.secrets.iter().any(|kept| name == *kept) {
                command.env_remove(name);
            }
        }
        command.envs(launch.variables.iter().map(|(name, value)| (name, value)));
        Self::of(command, launch, lines)
    }

    /// Speaks to whatever `command` starts, which is not rid of secrets here.
    pub fn of(command: Command, launch: &Launch, lines: Option<Lines>) -> Result<(Self, Hello), WorkerError> {
        let Launch { what, .. } = *launch;
        let failed = |source: io::Error| {
            let python = launch.python.display().to_string();
            WorkerError::Start { what, python, source: Arc::new(source) }
        };
        let mut state = State::of(command, launch, lines).map_err(failed)?;
        let frame = state.receive(launch.start_timeout)?;
        let hello = metadata(&frame).map_err(|reason| state.garbage(reason))?;
        state.refuse(&hello)?;
        Ok((Self { what, state: Mutex::new(state) }, hello))
    }

    /// What it answers to `question`, and what the answer says beside its tensors. It is ended where it answers nothing within `timeout`,
    /// or what is no answer.
    pub fn ask(&self, question: Vec<u8>, timeout: Duration) -> Result<(Vec<u8>, Hello), WorkerError> {
        let mut state = self.state();
        // A process that has ended takes no question; what became of it is what `receive` says.
        _ = state.questions.send(question);
        let answer = state.receive(timeout)?;
        let said = metadata(&answer).map_err(|reason| state.garbage(reason))?;
        state.refuse(&said)?;
        Ok((answer, said))
    }

    /// What it is for.
    pub fn what(&self) -> &'static str {
        self.what
    }

    /// Ends it because of an answer that is none: after that nothing it says can be told apart.
    pub fn garbage(&self, reason: String) -> WorkerError {
        self.state().garbage(reason)
    }

    /// Whether it has ended, or takes more memory than it may. Only for one that is asked nothing now.
    pub fn is_done(&self) -> bool {
        let mut state = self.state();
        let ended = !matches!(state.child.try_wait(), Ok(None));
        ended || state.memory_bytes.zip(resident_bytes(state.child.id())).is_some_and(|(limit, found)| found > limit)
    }

    /// Ends it, and says why it had to be or what became of it.
    pub fn end(&self) -> WorkerError {
        let mut state = self.state();
        if let Ok(None) = state.child.try_wait()
            && let Err(error) = state.check_memory()
        {
            return error;
        }
        state.ended()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the name of a variable tells that it holds a secret.
fn is_secret(name: &str) -> bool {
    let upper = name.to_uppercase();
    SECRETS.iter().any(|part| upper.contains(part))
}

/// What a process was given though it is secret, so that whatever it says can be told without.
fn hidden(launch: &Launch) -> Arc<[String]> {
    let values = launch.secrets.iter().filter(|name| is_secret(name)).filter_map(|name| std::env::var(name).ok());
    values.filter(|value| value.len() >= LEAST_HIDDEN).collect()
}

/// Shorter values are words that hide nothing and would cut texts.
const LEAST_HIDDEN: usize = 6;

/// `text` without the value of any variable of this process whose name tells that it holds a secret.
pub fn without_secrets(text: &str) -> String {
    let values = std::env::vars().filter(|(name, _)| is_secret(name)).map(|(_, value)| value);
    without(text, &values.filter(|value| value.len() >= LEAST_HIDDEN).collect::<Vec<_>>())
}

fn without(text: &str, hidden: &[String]) -> String {
    hidden.iter().fold(text.to_owned(), |text, secret| text.replace(secret.as_str(), "***"))
}

/// On one line, and not endless.
fn short(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LINE_CHARS).collect()
}

/// The pipes of a process that has been started.
type Started = (Child, ChildStdout, ChildStderr);

impl State {
    /// Threads read and write the pipes, so that no silence and no full pipe is waited for longer than the timeout.
    fn of(command: Command, launch: &Launch, lines: Option<Lines>) -> io::Result<Self> {
        let (questions, asked) = channel::<Vec<u8>>();
        let (child, mut stdout, errors) = start(command, launch.what, asked)?;
        let hidden = hidden(launch);
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
        let unsaid = Arc::clone(&hidden);
        thread::spawn(move || {
            let told = |line: &str| lines.iter().for_each(|tell| tell(&without(line, &unsaid)));
            keep_tail(errors, &tail, &told);
            drop(open);
        });
        let Launch { what, memory_bytes, .. } = *launch;
        Ok(Self { what, child, questions, answers, stderr, stderr_ends, memory_bytes, hidden })
    }

    fn receive(&mut self, timeout: Duration) -> Result<Vec<u8>, WorkerError> {
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
                    return Err(self.ended());
                }
                Err(RecvTimeoutError::Timeout) if wait < left => self.check_memory()?,
                Err(RecvTimeoutError::Timeout) => {
                    _ = self.end();
                    let (what, stderr) = (self.what, self.stderr());
                    return Err(WorkerError::TimedOut { what, seconds: timeout.as_secs(), stderr });
                }
            }
        }
    }

    /// Ends a process that takes more memory than it may.
    fn check_memory(&mut self) -> Result<(), WorkerError> {
        let Some(limit) = self.memory_bytes else { return Ok(()) };
        match resident_bytes(self.child.id()).filter(|found| *found > limit) {
            None => Ok(()),
            Some(found) => {
                _ = self.end();
                Err(WorkerError::Memory { what: self.what, found_mib: found >> 20, limit_mib: limit >> 20 })
            }
        }
    }

    /// After this nothing it says can be told apart, so it ends.
    fn garbage(&mut self, reason: String) -> WorkerError {
        _ = self.end();
        WorkerError::Garbage { what: self.what, reason, stderr: self.stderr() }
    }

    fn ended(&mut self) -> WorkerError {
        let status = self.end().map_or_else(|error| error.to_string(), |status| status.to_string());
        WorkerError::Ended { what: self.what, status, stderr: self.stderr() }
    }

    /// Errors where what was said is that something was wrong.
    fn refuse(&self, said: &Hello) -> Result<(), WorkerError> {
        match said.get("error") {
            Some(error) => Err(WorkerError::Refused { what: self.what, reason: without(&short(error), &self.hidden) }),
            None => Ok(()),
        }
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
            text => format!("; its stderr ends:\n{}", without(text, &self.hidden)),
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
fn start(mut command: Command, what: &str, asked: Receiver<Vec<u8>>) -> io::Result<Started> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let (started, starting) = channel();
    thread::Builder::new().name(format!("{what}-worker")).spawn(move || {
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

/// Keeps the end of what comes and hands on each line of it, cut where it is long.
fn keep_tail(stream: ChildStderr, tail: &Mutex<Vec<u8>>, tell: &dyn Fn(&str)) {
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
            keep(&mut line, tail, tell);
        }
    }
    keep(&mut line, tail, tell);
}

fn keep(line: &mut Vec<u8>, tail: &Mutex<Vec<u8>>, tell: &dyn Fn(&str)) {
    let text = short(String::from_utf8_lossy(line).trim_end());
    if !text.is_empty() {
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
    use safetensors::tensor::TensorView;

    use super::*;

    fn launch() -> Launch {
        let start_timeout = Duration::from_secs(10);
        Launch { what: "Test", python: "sh".into(), variables: vec![], secrets: &[], memory_bytes: None, start_timeout }
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
        frame(&[("version", "1")])
    }

    fn process(command: Command, launch: &Launch) -> Result<Process, WorkerError> {
        Process::of(command, launch, None).map(|(process, _)| process)
    }

    fn why(command: Command, timeout: Duration) -> String {
        // Longer than a pipe holds.
        let asked = process(command, &launch()).and_then(|process| process.ask(vec![7; 1 << 20], timeout));
        asked.unwrap_err().to_string()
    }

    const LONG: Duration = Duration::from_secs(10);

    #[test]
    fn a_process_that_ends_is_told_with_the_end_of_its_stderr() {
        let died = why(speaking(&[], "echo no module named torch >&2; exit 3"), LONG);
        assert!(died.contains("exit status: 3") && died.ends_with("no module named torch"), "{died}");
        let crashed = why(speaking(&[hello()], "echo out of memory >&2; kill -SEGV $$"), LONG);
        assert!(crashed.contains("signal: 11") && crashed.ends_with("out of memory"), "{crashed}");
    }

    #[test]
    fn a_process_that_takes_too_much_memory_is_ended_also_while_it_is_idle() {
        let idle = process(speaking(&[hello()], "exec sleep 60"), &launch()).unwrap();
        assert!(!idle.is_done());
        idle.state().memory_bytes = Some(4096);
        assert!(idle.is_done() && matches!(idle.end(), WorkerError::Memory { .. }));
        let least = Launch { memory_bytes: Some(4096), ..launch() };
        let told = process(speaking(&[], "exec sleep 60"), &least).err().unwrap().to_string();
        assert!(told.contains("the Test process took") && told.contains("it may take 0 MiB"), "{told}");
    }

    #[test]
    fn what_a_process_writes_is_handed_on_by_line() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let lines: Lines = Arc::new({
            let seen = Arc::clone(&seen);
            move |line| seen.lock().unwrap().push(line.to_owned())
        });
        let command = speaking(&[], "printf 'one\\ntwo' >&2");
        assert!(Process::of(command, &launch(), Some(lines)).is_err());
        assert_eq!(*seen.lock().unwrap(), ["one", "two"]);
    }

    #[test]
    fn a_process_that_says_nothing_is_ended_in_time_whether_or_not_it_reads() {
        for then in ["cat >/dev/null", "exec sleep 60"] {
            let start = Instant::now();
            let told = why(speaking(&[hello()], then), Duration::from_secs(1));
            assert!(told.contains("the Test process did not answer within 1 s"), "{told}");
            assert!(start.elapsed() < Duration::from_secs(8));
        }
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        let mut too_long = Command::new("sh");
        too_long.args(["-c", "echo Loading weights from hub...; sleep 60"]);
        let told = why(too_long, LONG);
        assert!(told.contains("a frame of") && told.contains("are the most"), "{told}");
        let told = why(speaking(&[b"not a safetensors file".to_vec()], "sleep 60"), LONG);
        assert!(told.contains("what is no answer"), "{told}");
    }

    #[test]
    fn its_own_errors_are_told_as_they_are() {
        let refused = [("error", "ValueError: `w` is stored as a pickle")];
        assert_eq!(why(speaking(&[frame(&refused)], "exit 0"), LONG), "Test: ValueError: `w` is stored as a pickle");
    }

    #[test]
    fn names_tell_what_is_secret_and_what_was_given_is_told_without() {
        for (name, secret) in [("AWS_SECRET_ACCESS_KEY", true), ("hf_token", true), ("AWS_REGION", false)] {
            assert_eq!(is_secret(name), secret, "{name}");
        }
        assert_eq!(without("403 for wJalrXUtn at once", &["wJalrXUtn".to_owned()]), "403 for *** at once");
    }
}
