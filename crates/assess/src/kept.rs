//! Answers that are kept between runs, so that a killed run goes on where it was and a second one asks nothing twice.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use highroad_hosted::Reply;
use highroad_package::Digest;
use highroad_task::{Answer, OutputTensor, apart, joined};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::{AssessError, Truncated};

/// Largest file of kept answers; a larger one is begun anew.
const MAX_KEPT_BYTES: u64 = 32 << 30;
/// Longest record; one that claims to be longer is damage.
const MAX_RECORD_BYTES: u64 = 64 << 20;
/// Digits of the CRC-32 before a record.
const CHECKSUM_CHARS: usize = 8;
/// What a file of replies is named after; another name when replies are kept otherwise.
const REPLIES_FORMAT: &[u8] = b"replies of hosted models, 1";

/// An answer and whether the input lost its end.
pub(crate) type Kept = (Answer, Truncated);

/// What is kept by the digest of what was asked. It lies on the disk; only where is in memory.
///
/// A file of lines, each a CRC-32 and JSON, that only grows. A line that was torn by a crash or damaged since is as if it had
/// never been written.
#[derive(Debug, Default)]
struct Lines {
    file: Option<(PathBuf, File)>,
    n_bytes: u64,
    places: HashMap<Digest, Place>,
}

/// Where a record begins, and its length.
#[derive(Clone, Copy, Debug)]
struct Place {
    start: u64,
    n_bytes: u32,
}

/// Answers of one package under one numerics id, by the digest of the input. Values are kept as the bits of f32, so that an
/// answer comes back as it was.
#[derive(Debug, Default)]
pub struct KeptAnswers(Lines);

/// Replies of one hosted model, by the digest of the question.
#[derive(Debug, Default)]
pub struct KeptReplies(Lines);

/// From the JSON of a line to what was asked and what came back.
type Parse<T> = fn(&[u8]) -> Option<(Digest, T)>;

impl Lines {
    /// What `root` holds of `of` on this `basis`, each line as `parse` reads its JSON. Keeps nothing while another process
    /// writes there.
    fn open<T>(root: &Path, of: &Digest, basis: &Digest, parse: Parse<T>) -> Result<Self, AssessError> {
        let dir = root.join(of.hex());
        let path = dir.join(format!("{}.jsonl", basis.short()));
        let io = |source| AssessError::Io { path: path.clone(), source };
        fs::create_dir_all(&dir).map_err(io)?;
        let mut file = OpenOptions::new().create(true).read(true).append(true).open(&path).map_err(io)?;
        if file.try_lock().is_err() {
            return Ok(Self::default());
        }
        let (places, n_bytes) = read(&mut file, parse).map_err(io)?;
        Ok(Self { file: Some((path, file)), n_bytes, places })
    }

    /// What is kept of `asked`; `None` if nothing is. Errors if it cannot be read any more.
    fn get<T>(&self, asked: &Digest, parse: Parse<T>) -> Result<Option<T>, AssessError> {
        let (Some((path, file)), Some(place)) = (&self.file, self.places.get(asked)) else { return Ok(None) };
        let io = |source| AssessError::Io { path: path.clone(), source };
        let mut line = vec![0; place.n_bytes as usize];
        file.read_exact_at(&mut line, place.start).map_err(io)?;
        let found = whole(&line[..line.len() - 1]).and_then(parse).filter(|(of, _)| of == asked);
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "a kept answer was damaged during this run");
        found.map(|(_, kept)| Some(kept)).ok_or_else(damaged).map_err(io)
    }

    /// Appends records by what was asked; they outlive this process when this returns, if there is a file.
    fn put(&mut self, records: impl IntoIterator<Item = (Digest, impl Serialize)>) -> Result<(), AssessError> {
        let Some((path, file)) = &mut self.file else { return Ok(()) };
        let (mut lines, mut places) = (Vec::new(), Vec::new());
        for (asked, record) in records {
            let line = line(&record);
            let place = Place { start: self.n_bytes + lines.len() as u64, n_bytes: line.len() as u32 };
            places.push((asked, place));
            lines.extend(line);
        }
        file.write_all(&lines).map_err(|source| AssessError::Io { path: path.clone(), source })?;
        self.n_bytes += lines.len() as u64;
        self.places.extend(places);
        Ok(())
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeptReply<R> {
    question: Digest,
    reply: R,
}

impl KeptReplies {
    /// Keeps nothing.
    pub fn none() -> Self {
        Self::default()
    }

    /// The replies under `root` of the hosted model of digest `of`. Keeps nothing while another process writes there.
    pub fn open(root: &Path, of: &Digest) -> Result<Self, AssessError> {
        Ok(Self(Lines::open(root, of, &Digest::of(REPLIES_FORMAT), parse_reply)?))
    }

    /// The reply to a question; `None` if there is none. Errors if it cannot be read any more.
    pub(crate) fn get(&self, question: &Digest) -> Result<Option<Reply>, AssessError> {
        self.0.get(question, parse_reply)
    }

    /// Appends a reply; it outlives this process when this returns.
    pub(crate) fn put(&mut self, question: Digest, reply: &Reply) -> Result<(), AssessError> {
        self.0.put([(question, KeptReply { question, reply })])
    }
}

fn parse_reply(json: &[u8]) -> Option<(Digest, Reply)> {
    from_json(json).map(|KeptReply { question, reply }| (question, reply))
}

fn from_json<T: DeserializeOwned>(json: &[u8]) -> Option<T> {
    serde_json::from_slice(json).ok()
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    input: Digest,
    kind: Kind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    label: Option<String>,
    bits: Vec<u32>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    tensors: Vec<OutputTensor>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    truncated: bool,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Class,
    Labels,
    Embedding,
    Relevance,
    Tensors,
}

impl KeptAnswers {
    /// Keeps nothing beyond this run: answers lie in a file without a name.
    pub fn none() -> Self {
        Self::default()
    }

    /// The answers under `root` of `package` on `numerics_id`, as given by this version of Highroad. Keeps nothing while another
    /// process writes there.
    pub fn open(root: &Path, package: &Digest, numerics_id: &str) -> Result<Self, AssessError> {
        let basis = Digest::of(format!("{}\n{numerics_id}", env!("CARGO_PKG_VERSION")).as_bytes());
        Ok(Self(Lines::open(root, package, &basis, parse)?))
    }

    /// Whether there is an answer to this input.
    pub(crate) fn holds(&self, input: &Digest) -> bool {
        self.0.places.contains_key(input)
    }

    /// The answer to an input; `None` if there is none. Errors if it cannot be read any more.
    pub(crate) fn get(&self, input: &Digest) -> Result<Option<Kept>, AssessError> {
        self.0.get(input, parse)
    }

    /// Appends answers; they outlive this process when this returns, unless nothing is kept.
    pub(crate) fn put<'a>(&mut self, answers: impl IntoIterator<Item = (Digest, &'a Kept)>) -> Result<(), AssessError> {
        if self.0.file.is_none() {
            let dir = std::env::temp_dir();
            let file = tempfile::tempfile_in(&dir).map_err(|source| AssessError::Io { path: dir.clone(), source })?;
            self.0.file = Some((dir, file));
        }
        self.0.put(answers.into_iter().map(|(input, kept)| (input, record(input, kept))))
    }

    /// Drops every answer, as one of them proved wrong, and keeps none of those to come beyond this run.
    pub(crate) fn forget(&mut self) -> Result<(), AssessError> {
        let old = std::mem::take(&mut self.0);
        let Some((path, file)) = old.file else { return Ok(()) };
        file.set_len(0).map_err(|source| AssessError::Io { path, source })
    }
}

/// Where the whole records of the file lie and where they end; it is then ready to be appended to.
fn read<T>(file: &mut File, parse: Parse<T>) -> io::Result<(HashMap<Digest, Place>, u64)> {
    if file.metadata()?.len() > MAX_KEPT_BYTES {
        file.set_len(0)?;
    }
    let (mut places, mut end) = (HashMap::new(), 0);
    file.seek(SeekFrom::Start(0))?;
    let mut reader = BufReader::with_capacity(1 << 20, &mut *file);
    let mut line = Vec::new();
    loop {
        line.clear();
        let n_read = reader.by_ref().take(MAX_RECORD_BYTES).read_until(b'\n', &mut line)?;
        if line.pop() != Some(b'\n') {
            break;
        }
        let place = Place { start: end, n_bytes: n_read as u32 };
        places.extend(whole(&line).and_then(parse).map(|(asked, _)| (asked, place)));
        end += n_read as u64;
    }
    // What a crash tore off must not become the head of the next record.
    file.set_len(end)?;
    Ok((places, end))
}

fn line(record: &impl Serialize) -> Vec<u8> {
    let json = serde_json::to_vec(record).expect("a record is plain data");
    let mut line = format!("{:08x} ", crc32fast::hash(&json)).into_bytes();
    line.extend(json);
    line.push(b'\n');
    line
}

/// The JSON of a line; `None` for a damaged one.
fn whole(line: &[u8]) -> Option<&[u8]> {
    let (checksum, json) = (line.get(..CHECKSUM_CHARS)?, line.get(CHECKSUM_CHARS + 1..)?);
    let checksum = u32::from_str_radix(std::str::from_utf8(checksum).ok()?, 16).ok()?;
    (checksum == crc32fast::hash(json)).then_some(json)
}

fn parse(json: &[u8]) -> Option<(Digest, Kept)> {
    let record: Record = from_json(json)?;
    let values: Vec<f32> = record.bits.into_iter().map(f32::from_bits).collect();
    let answer = match (record.kind, record.label, values.as_slice()) {
        (Kind::Class, Some(label), _) => Answer::Class { label, scores: values },
        (Kind::Labels, Some(labels), _) => Answer::Labels { labels: apart(&labels), scores: values },
        (Kind::Embedding, None, _) => Answer::Embedding { vector: values },
        (Kind::Relevance, None, &[logit]) => Answer::Relevance { logit },
        (Kind::Tensors, None, []) => Answer::Tensors(record.tensors),
        _ => return None,
    };
    Some((record.input, (answer, Truncated(record.truncated))))
}

fn record(input: Digest, (answer, Truncated(truncated)): &Kept) -> Record {
    let (kind, label) = match answer {
        Answer::Class { label, .. } => (Kind::Class, Some(label.clone())),
        Answer::Labels { labels, .. } => (Kind::Labels, Some(joined(labels))),
        Answer::Embedding { .. } => (Kind::Embedding, None),
        Answer::Relevance { .. } => (Kind::Relevance, None),
        Answer::Tensors(_) => (Kind::Tensors, None),
    };
    let tensors = if let Answer::Tensors(outputs) = answer { outputs.clone() } else { Vec::new() };
    let bits = answer.values().iter().map(|value| value.to_bits()).collect();
    Record { input, kind, label, bits, tensors, truncated: *truncated }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn open(dir: &Path) -> KeptAnswers {
        KeptAnswers::open(dir, &Digest::of(b"package"), "x86").unwrap()
    }

    fn answers() -> Vec<(Digest, Kept)> {
        let vector = vec![0.1, -0.0, f32::MIN_POSITIVE, 1.0 / 3.0];
        let kinds = [
            Answer::Class { label: "a\n\"b".to_owned(), scores: vec![0.7, 0.3] },
            Answer::Labels { labels: vec!["a".to_owned(), "b".to_owned()], scores: vec![0.7, 0.6, 0.1] },
            Answer::Labels { labels: Vec::new(), scores: vec![0.1] },
            Answer::Embedding { vector },
            Answer::Relevance { logit: -3.25 },
            Answer::Tensors(vec![OutputTensor {
                name: "y".to_owned(),
                dtype: "f32".to_owned(),
                shape: vec![1],
                bytes: f32::NEG_INFINITY.to_le_bytes().into(),
            }]),
        ];
        kinds.into_iter().map(|answer| (answer.digest(), (answer, Truncated(true)))).collect()
    }

    fn file(dir: &Path) -> PathBuf {
        let package = dir.join(Digest::of(b"package").hex());
        fs::read_dir(package).unwrap().next().unwrap().unwrap().path()
    }

    #[test]
    fn answers_come_back_with_their_bits() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path()).put(answers().iter().map(|(input, kept)| (*input, kept))).unwrap();
        let kept = open(dir.path());
        for (input, answer) in answers() {
            let (found, truncated) = kept.get(&input).unwrap().unwrap();
            assert_eq!((&found, found.digest(), truncated), (&answer.0, answer.0.digest(), Truncated(true)));
        }
        assert!(KeptAnswers::open(dir.path(), &Digest::of(b"package"), "arm").unwrap().0.places.is_empty());
    }

    #[test]
    fn a_torn_tail_and_a_damaged_line_are_as_if_never_written() {
        let dir = tempfile::tempdir().unwrap();
        let all = answers();
        open(dir.path()).put(all.iter().map(|(input, kept)| (*input, kept))).unwrap();
        let whole = fs::read(file(dir.path())).unwrap();
        for n_bytes in 0..whole.len() {
            fs::write(file(dir.path()), &whole[..n_bytes]).unwrap();
            let n_lines = whole[..n_bytes].iter().filter(|&&byte| byte == b'\n').count();
            let mut kept = open(dir.path());
            assert_eq!(kept.0.places.len(), n_lines);
            kept.put([(all[0].0, &all[0].1)]).unwrap();
            drop(kept);
            let again = open(dir.path());
            assert_eq!(again.0.places.len(), n_lines.max(1));
            assert_eq!(again.get(&all[0].0).unwrap().as_ref(), Some(&all[0].1));
        }
        for place in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[place] ^= 4;
            fs::write(file(dir.path()), &damaged).unwrap();
            let kept = open(dir.path());
            for input in kept.0.places.keys() {
                let answer = kept.get(input).unwrap().unwrap();
                assert!(all.iter().any(|(known, kept)| known == input && *kept == answer));
            }
        }
    }

    #[test]
    fn a_second_process_keeps_nothing_rather_than_mix_its_lines_in() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path());
        assert!(first.0.file.is_some() && open(dir.path()).0.file.is_none());
    }
}
