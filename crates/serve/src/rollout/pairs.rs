//! What two versions answered to one request, kept as JSON lines beside the request log.
//!
//! Inputs stay out unless the server was told to keep them: then a line holds the digest of each alone.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use highroad_package::Digest;
use highroad_task::{Answer, Input, OutputTensor, ranked};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::rollout::Compared;

/// Bytes that one process writes about one rollout.
const MAX_FILE_BYTES: u64 = 64 << 20;
/// Bytes of pairs that are read for a report.
const MAX_READ_BYTES: u64 = 256 << 20;
/// Inputs of a request whose answers are written out.
const MAX_TOLD: usize = 8;

/// One request and what two versions made of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Pair {
    /// The id in the response's `x-request-id`.
    pub request_id: String,
    /// When the second answer was there, RFC 3339 in UTC.
    pub time: String,
    /// Id of the rollout.
    pub rollout: String,
    /// The member that answered.
    pub member: String,
    /// Whose answer the client got.
    pub answered: Side,
    /// How far the answers are apart.
    #[serde(flatten)]
    pub compared: Compared,
    /// What the stable version answered to the first inputs, in words.
    pub stable: Vec<String>,
    /// What the candidate answered to the first inputs, in words.
    pub candidate: Vec<String>,
    /// SHA-256 of each input as JSON.
    pub inputs: Vec<Digest>,
    /// The inputs themselves, where the server keeps them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<Vec<Input>>,
    /// Milliseconds that the client's answer took.
    pub live_ms: f64,
    /// Milliseconds that the other answer took of one processor.
    pub shadow_ms: f64,
    /// What both versions took for it, measured in one way; of a part of the requests that has nothing to do with their answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timed: Option<Timed>,
}

/// What both versions took for one request, measured in one way.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Timed {
    /// The stable version, milliseconds.
    pub stable_ms: f64,
    /// The candidate, milliseconds.
    pub candidate_ms: f64,
    /// Whether that is the time of one processor, with the request alone; else it is the time from the question to the whole answer.
    pub of_processor: bool,
}

/// One of two versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Side {
    Stable,
    Candidate,
}

/// Digest of an input that no file has to hold.
pub(super) fn digest(input: &Input) -> Digest {
    Digest::of(&serde_json::to_vec(input).unwrap_or_default())
}

/// Answers in words: labels with their score, the first documents with theirs, the width of a vector, the first numbers of tensors.
pub(super) fn in_words(answers: &[Answer]) -> Vec<String> {
    let documents = ranked(answers);
    if !documents.is_empty() {
        let told = |document: &highroad_task::Ranked| format!("#{} ({:.3})", document.index, document.score);
        return documents.iter().take(MAX_TOLD).map(told).collect();
    }
    let told = |answer: &Answer| match answer.label() {
        Some(label) => {
            let score = answer.values().iter().copied().fold(0.0, f32::max);
            format!("{} ({score:.3})", if label.is_empty() { "no label" } else { &label })
        }
        None => match answer {
            Answer::Tensors(outputs) => outputs.iter().map(output_in_words).collect::<Vec<_>>().join("; "),
            _ => format!("a vector of {}", answer.values().len()),
        },
    };
    answers.iter().take(MAX_TOLD).map(told).collect()
}

/// The first few numbers of an output, after its name and shape.
fn output_in_words(output: &OutputTensor) -> String {
    const MOST_NUMBERS: usize = 4;
    let values = output.values().unwrap_or_default();
    let first: Vec<String> = values.iter().take(MOST_NUMBERS).map(|value| format!("{value:.4}")).collect();
    let more = if values.len() > MOST_NUMBERS { ", …" } else { "" };
    format!("{} {:?}: {}{more}", output.name, output.shape, first.join(", "))
}

/// Where one process writes the pairs of one rollout.
pub(crate) struct Writer {
    dir: PathBuf,
    file: Option<BufWriter<File>>,
    written_bytes: u64,
}

impl Writer {
    /// Nothing is made before there is something to write.
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir, file: None, written_bytes: 0 }
    }

    /// Writes a line, unless this process has written enough about this rollout.
    pub(crate) fn write(&mut self, pair: &Pair) -> io::Result<()> {
        let mut line = serde_json::to_vec(pair)?;
        line.push(b'\n');
        if self.written_bytes + line.len() as u64 > MAX_FILE_BYTES {
            return Ok(());
        }
        let file = match &mut self.file {
            Some(file) => file,
            empty => {
                fs::create_dir_all(&self.dir)?;
                let time = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%S%3f");
                let path = self.dir.join(format!("{time}-{}.jsonl", std::process::id()));
                empty.insert(BufWriter::new(OpenOptions::new().create(true).append(true).open(path)?))
            }
        };
        self.written_bytes += line.len() as u64;
        file.write_all(&line)
    }

    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.file.as_mut().map_or(Ok(()), BufWriter::flush)
    }
}

/// What processes wrote about one rollout.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Written {
    /// The worst pairs, worst first.
    pub worst: Vec<Pair>,
    /// How many there are.
    pub n_pairs: usize,
    /// What both versions took, of the pairs that were timed, by file and in the order of time.
    pub timed: Vec<Timed>,
    /// What the answers of these counted, where both versions' are known.
    pub spent: Spent,
}

/// Tokens and cost of requests that both versions answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Spent {
    /// Requests whose tokens are known.
    pub n_counted: u64,
    /// Their tokens, of the stable version and of the candidate: of hosted models those of the answers as their hosts count them, of
    /// own ones those of the inputs.
    pub tokens: [u64; 2],
    /// Requests whose cost is known.
    pub n_priced: u64,
    /// Their cost, of the stable version and of the candidate, at the prices that hosted models declare.
    pub cost: [f64; 2],
}

impl Spent {
    pub(crate) fn add(&mut self, compared: &Compared) {
        if let Some([stable, candidate]) = compared.tokens {
            self.n_counted += 1;
            self.tokens = [self.tokens[0].saturating_add(stable), self.tokens[1].saturating_add(candidate)];
        }
        if let Some([stable, candidate]) = compared.cost {
            self.n_priced += 1;
            self.cost = [self.cost[0] + stable, self.cost[1] + candidate];
        }
    }
}

/// What processes wrote to `dir`, with up to `n_worst` of the pairs; nothing where there is no such directory. Lines that are no
/// pairs (a crash can cut the last one) are passed over, and so is what is beyond 256 MiB.
pub fn read_pairs(dir: &Path, n_worst: usize) -> io::Result<Written> {
    let mut paths = match fs::read_dir(dir) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Written::default()),
        Err(error) => return Err(error),
    };
    // Names begin with the time.
    paths.sort();
    let (mut worst, mut found, mut left) = (Worst::new(n_worst), Written::default(), MAX_READ_BYTES);
    for path in paths {
        let file = File::open(path)?;
        let mut reader = BufReader::new(io::Read::take(file, left));
        let mut line = String::new();
        loop {
            line.clear();
            let n_bytes = reader.read_line(&mut line).unwrap_or(0) as u64;
            if n_bytes == 0 {
                break;
            }
            left -= n_bytes;
            let Ok(pair) = serde_json::from_str::<Pair>(&line) else { continue };
            found.n_pairs += 1;
            if let Some(timed) = pair.timed {
                found.timed.push(timed);
                found.spent.add(&pair.compared);
            }
            worst.offer(pair);
        }
    }
    Ok(Written { worst: worst.into_vec(), ..found })
}

/// The pairs that are furthest apart, worst first.
#[derive(Clone, Debug)]
pub(crate) struct Worst {
    most: usize,
    pairs: Vec<Pair>,
}

impl Worst {
    pub(crate) fn new(most: usize) -> Self {
        Self { most, pairs: Vec::new() }
    }

    pub(crate) fn offer(&mut self, pair: Pair) {
        let at = self.pairs.partition_point(|known| known.compared.severity >= pair.compared.severity);
        if at < self.most {
            self.pairs.insert(at, pair);
            self.pairs.truncate(self.most);
        }
    }

    pub(crate) fn into_vec(self) -> Vec<Pair> {
        self.pairs
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn pair(request_id: &str, severity: f64) -> Pair {
        Pair {
            request_id: request_id.to_owned(),
            time: crate::rollout::now(),
            rollout: "aa".to_owned(),
            member: "m".to_owned(),
            answered: Side::Stable,
            compared: Compared { severity, ..Compared::default() },
            stable: vec!["a (0.9)".to_owned()],
            candidate: vec!["b (0.6)".to_owned()],
            inputs: vec![digest(&Input::Text("secret".to_owned()))],
            kept: None,
            live_ms: 1.0,
            shadow_ms: 2.0,
            timed: None,
        }
    }

    #[test]
    fn the_worst_come_back_first_and_a_cut_line_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(dir.path().join("aa"));
        for (id, severity) in [("one", 0.1), ("two", 1.5), ("three", 0.7)] {
            writer.write(&pair(id, severity)).unwrap();
        }
        writer.flush().unwrap();
        let file = fs::read_dir(dir.path().join("aa")).unwrap().next().unwrap().unwrap().path();
        assert!(!fs::read_to_string(&file).unwrap().contains("secret"));
        OpenOptions::new().append(true).open(file).unwrap().write_all(b"{\"request_id\": \"fo").unwrap();
        let Written { worst, n_pairs, .. } = read_pairs(&dir.path().join("aa"), 2).unwrap();
        assert_eq!(worst.iter().map(|pair| pair.request_id.as_str()).collect::<Vec<_>>(), ["two", "three"]);
        assert_eq!(n_pairs, 3);
        assert_eq!(read_pairs(&dir.path().join("none"), 2).unwrap(), Written::default());
    }

    #[test]
    fn times_tokens_and_cost_are_of_the_pairs_that_were_timed_and_older_files_have_none() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(dir.path().to_owned());
        let timed = Timed { stable_ms: 2.0, candidate_ms: 3.0, of_processor: true };
        let compared = Compared { tokens: Some([5, 7]), cost: Some([0.5, 0.25]), ..Compared::default() };
        writer.write(&Pair { timed: Some(timed), compared, ..pair("one", 0.0) }).unwrap();
        writer.write(&Pair { compared, ..pair("it differed and was not timed", 0.0) }).unwrap();
        writer.flush().unwrap();
        let old = serde_json::to_value(pair("old", 0.0)).unwrap();
        assert!(old.get("timed").is_none() && serde_json::from_value::<Pair>(old).unwrap().timed.is_none());
        let found = read_pairs(dir.path(), 2).unwrap();
        assert_eq!((found.n_pairs, found.timed), (2, vec![timed]));
        assert_eq!(found.spent, Spent { n_counted: 1, tokens: [5, 7], n_priced: 1, cost: [0.5, 0.25] });
    }

    #[test]
    fn answers_are_told_in_words() {
        let class = Answer::Class { label: "a".to_owned(), scores: vec![0.75, 0.25] };
        assert_eq!(in_words(&[class]), ["a (0.750)"]);
        assert_eq!(in_words(&[Answer::Embedding { vector: vec![0.0; 3] }]), ["a vector of 3"]);
        let relevance = |logit| Answer::Relevance { logit };
        assert_eq!(in_words(&[relevance(-1.0), relevance(0.0)]), ["#1 (0.500)", "#0 (0.269)"]);
    }
}
