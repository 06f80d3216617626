//! Metrics that a program of the user's own takes: it reads the answers as JSONL and writes a value for each.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, BufRead as _, BufReader, Read, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use highroad_eval::{CustomEvidence, CustomRule, Expected};
use highroad_package::Digest;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use crate::{AssessError, GoldenInput, GoldenSet, Results, Value};

/// Longest line that such a program may write.
const MAX_LINE_BYTES: u64 = 1 << 20;
/// Largest argument that is read for its digest.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// A program of the user's own did not give each case one value.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum CustomError {
    #[error("metric `{name}`: cannot start `{program}`")]
    Start { name: String, program: String, source: io::Error },
    #[error("metric `{name}`: its program ended with {status}")]
    Ended { name: String, status: String },
    #[error("metric `{name}`: its program was ended after {seconds} s, when {n_values} of {n_cases} cases had a value")]
    TimedOut { name: String, seconds: f64, n_values: usize, n_cases: usize },
    #[error(
        "metric `{name}`: line {line} of its program's output {problem}\nhint: one object a line, such as {{\"id\": \"case-1\", \"value\": 0.5}}"
    )]
    Line { name: String, line: usize, problem: String },
    #[error("metric `{name}`: its program gave {n_values} of {n_cases} cases a value; not `{case}`")]
    Missing { name: String, n_values: usize, n_cases: usize, case: String },
}

/// A line that such a program reads.
#[derive(Serialize)]
struct Asked<'a> {
    id: &'a str,
    input: Json,
    expected: &'a Expected,
    answer: &'a Value,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    slices: &'a [String],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    tags: &'a [String],
}

/// A line that it writes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    id: String,
    value: f64,
}

/// Has the program of `rule`, called `name`, give each answer of `results` a value; it runs in `folder`, a Python function in
/// `python`, whose package `highroad` must be there.
///
/// It reads one object a line on stdin (`id`, `input`, `expected`, `answer`, `slices`, `tags`) and writes one for each, in any
/// order: `id` and `value`, a finite number, 0 or 1 where it decides. Its stderr is the user's. Errors as [`CustomError`] says.
pub fn give(
    (name, rule): (&str, &CustomRule),
    folder: &Path,
    python: &Path,
    golden: &GoldenSet,
    results: &Results,
) -> Result<(Vec<f64>, CustomEvidence), AssessError> {
    let command = argv(rule, python);
    let evidence = CustomEvidence { name: name.to_owned(), files: files(folder, rule), command: told(rule) };
    let cases = golden.cases.iter().enumerate().zip(&results.cases);
    let lines = cases.map(|((idx, case), answer)| {
        let line = Asked {
            id: &case.case.id,
            input: in_json(&*golden.input(idx)?),
            expected: &case.case.expected,
            answer: &answer.value,
            slices: &case.case.slices,
            tags: &case.tags,
        };
        Ok(serde_json::to_string(&line).expect("a case is plain data with text keys"))
    });
    let lines = lines.collect::<Result<Vec<String>, AssessError>>()?;
    let ids = golden.cases.iter().map(|case| case.case.id.as_str()).collect();
    let timeout = Duration::from_secs_f64(rule.timeout_s);
    let values = Run { name, ids, decides: rule.decides, timeout }.run(&command, folder, lines)?;
    Ok((values, evidence))
}

/// What is run.
fn argv(rule: &CustomRule, python: &Path) -> Vec<String> {
    match &rule.python {
        Some(function) => {
            let python = python.to_string_lossy().into_owned();
            [python.as_str(), "-m", "highroad.metric", function].map(str::to_owned).to_vec()
        }
        None => rule.command.clone(),
    }
}

/// The same as it was declared, without the machine's paths.
fn told(rule: &CustomRule) -> Vec<String> {
    rule.python.iter().chain(&rule.command).cloned().collect()
}

/// The digests of what the rule names in `folder`; what it names elsewhere belongs to the machine.
fn files(folder: &Path, rule: &CustomRule) -> BTreeMap<String, String> {
    let of_python = rule.python.as_ref().and_then(|python| python.rsplit_once(':')).map(|(file, _)| file);
    let names = rule.command.iter().map(String::as_str).chain(of_python);
    let digest = |name: &str| {
        let path = folder.join(name);
        let is_small = path.metadata().is_ok_and(|file| file.is_file() && file.len() <= MAX_FILE_BYTES);
        is_small.then(|| std::fs::read(path).ok().map(|bytes| (name.to_owned(), Digest::of(&bytes).to_string())))?
    };
    names.filter(|name| Path::new(name).is_relative()).filter_map(digest).collect()
}

fn in_json(input: &GoldenInput) -> Json {
    match input {
        GoldenInput::One(input) => json!(input),
        GoldenInput::Pair([a, b]) => json!({ "a": a, "b": b }),
        GoldenInput::Triplet([anchor, positive, negative]) => {
            json!({ "anchor": anchor, "positive": positive, "negative": negative })
        }
        GoldenInput::Ranking { query, documents } => json!({ "query": query, "documents": documents }),
        GoldenInput::Prompt(messages) => json!({ "messages": messages }),
    }
}

/// One run of such a program.
struct Run<'a> {
    name: &'a str,
    ids: Vec<&'a str>,
    /// Whether its values are 0 and 1.
    decides: bool,
    timeout: Duration,
}

/// A process that ends with this.
struct Ending(Child);

impl Drop for Ending {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

impl Run<'_> {
    fn run(&self, command: &[String], folder: &Path, lines: Vec<String>) -> Result<Vec<f64>, CustomError> {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let mut process = Command::new(&command[0]);
        process.args(&command[1..]).current_dir(folder).stdin(Stdio::piped()).stdout(Stdio::piped());
        let start = |source| CustomError::Start { name: self.name.to_owned(), program: command[0].clone(), source };
        let mut process = Ending(process.spawn().map_err(start)?);
        let (stdin, stdout) = (process.0.stdin.take(), process.0.stdout.take());
        // One that reads only the first lines is told by what it writes.
        let writer = thread::spawn(move || {
            let mut stdin = stdin.map(io::BufWriter::new);
            lines.iter().try_for_each(|line| stdin.as_mut().map_or(Ok(()), |stdin| writeln!(stdin, "{line}")))
        });
        let (told, output) = channel();
        thread::spawn(move || {
            if let Some(stdout) = stdout {
                for line in Lines(BufReader::new(stdout)) {
                    if told.send(line).is_err() {
                        break;
                    }
                }
            }
        });
        let values = self.read(&output)?;
        _ = writer.join();
        let status = process.0.wait().map_err(start)?;
        if !status.success() {
            return Err(CustomError::Ended { name: self.name.to_owned(), status: status.to_string() });
        }
        self.in_order(values)
    }

    fn read(&self, output: &Receiver<io::Result<String>>) -> Result<HashMap<String, f64>, CustomError> {
        let end = Instant::now() + self.timeout;
        let known: HashMap<&str, ()> = self.ids.iter().map(|id| (*id, ())).collect();
        let mut values = HashMap::new();
        for number in 1.. {
            let wrong = |problem: String| CustomError::Line { name: self.name.to_owned(), line: number, problem };
            let line = match output.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => line.map_err(|error| wrong(format!("cannot be read: {error}")))?,
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    let (n_values, n_cases, seconds) = (values.len(), self.ids.len(), self.timeout.as_secs_f64());
                    return Err(CustomError::TimedOut { name: self.name.to_owned(), seconds, n_values, n_cases });
                }
            };
            let Line { id, value } =
                serde_json::from_str(&line).map_err(|error| wrong(format!("is no value: {error}")))?;
            if !value.is_finite() {
                return Err(wrong(format!("gives `{id}` a value that is not finite")));
            }
            if self.decides && value != 0.0 && value != 1.0 {
                return Err(wrong(format!("gives `{id}` the value {value}, and what decides gives 0 or 1")));
            }
            if !known.contains_key(id.as_str()) {
                return Err(wrong(format!("is about `{id}`, which is no case")));
            }
            if values.insert(id.clone(), value).is_some() {
                return Err(wrong(format!("gives `{id}` a second value")));
            }
        }
        Ok(values)
    }

    fn in_order(&self, values: HashMap<String, f64>) -> Result<Vec<f64>, CustomError> {
        let (n_values, n_cases) = (values.len(), self.ids.len());
        let missing =
            |case: &str| CustomError::Missing { name: self.name.to_owned(), n_values, n_cases, case: case.to_owned() };
        self.ids.iter().map(|id| values.get(*id).copied().ok_or_else(|| missing(id))).collect()
    }
}

/// Lines of at most [`MAX_LINE_BYTES`].
struct Lines<R: Read>(BufReader<R>);

impl<R: Read> Iterator for Lines<R> {
    type Item = io::Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut line = Vec::new();
        match self.0.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line) {
            Ok(0) => None,
            Ok(_) if line.len() as u64 == MAX_LINE_BYTES => Some(Err(io::ErrorKind::FileTooLarge.into())),
            Ok(_) => {
                let line = String::from_utf8(line).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error));
                Some(line.map(|line| line.trim_end().to_owned()))
            }
            Err(error) => Some(Err(error)),
        }
    }
}
