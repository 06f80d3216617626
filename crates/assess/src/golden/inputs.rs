//! What the cases ask: in memory for a small set of texts, read when it is asked for a large one and for pictures.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use highroad_data::Records;
use highroad_package::Digest;
use sha2::{Digest as _, Sha256};

use super::pictures::Files;
use super::{GoldenCase, GoldenInput, GoldenSet, Line, MAX_GOLDEN_BYTES, Reader, is_parquet};
use crate::GoldenError;
use crate::files::folder_of;

/// Largest file, in JSONL, whose texts are held in memory.
pub(super) const MAX_HELD_BYTES: u64 = 64 << 20;

/// Bytes that are read ahead of the records.
const READ_AHEAD: usize = 1 << 20;

/// The inputs of a set's cases, by their position.
#[derive(Clone, Debug)]
pub(super) enum Inputs {
    Held(Vec<GoldenInput>),
    InFile(Arc<InFile>),
}

/// Lines of JSONL that lie on the disk.
#[derive(Debug)]
pub(super) struct InFile {
    file: File,
    path: PathBuf,
    /// Where each case's line begins, and its length.
    places: Vec<(u64, u32)>,
    /// Where their pictures are.
    pictures: Files,
}

impl GoldenSet {
    /// What case `idx` asks.
    ///
    /// Errors if the file of a large set, whose texts are not held in memory, or that of a picture no longer says what it said
    /// when the set was read.
    pub fn input(&self, idx: usize) -> Result<Cow<'_, GoldenInput>, GoldenError> {
        match &self.inputs {
            Inputs::Held(inputs) => Ok(Cow::Borrowed(&inputs[idx])),
            Inputs::InFile(lines) => lines.input(idx, &self.cases[idx]).map(Cow::Owned),
        }
    }

    /// Reads the set at `path`, with its texts in memory if they are at most `most_held` bytes.
    pub(super) fn read_holding(path: &Path, most_held: u64) -> Result<Self, GoldenError> {
        let io = |source| GoldenError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        // What cannot be read a second time, such as a pipe, is put where it can.
        let file = if file.metadata().map_err(io)?.is_file() { file } else { spooled(file).map_err(io)? };
        if file.metadata().map_err(io)?.len() > MAX_GOLDEN_BYTES {
            return Err(GoldenError::TooLarge { path: path.to_owned(), limit: MAX_GOLDEN_BYTES });
        }
        if !is_parquet(path) {
            return Self::of_file(file, path, most_held, below(path), None);
        }
        let digest = Digest::of_reader(&file).map_err(io)?;
        Self::of_file(rows(file, path)?, path, most_held, below(path), Some(digest))
    }

    /// The set whose lines are in `file`, and whose own digest is that of the lines unless told.
    fn of_file(
        mut file: File,
        path: &Path,
        most_held: u64,
        pictures: Files,
        digest: Option<Digest>,
    ) -> Result<Self, GoldenError> {
        let io = |source| GoldenError::Io { path: path.to_owned(), source };
        file.seek(SeekFrom::Start(0)).map_err(io)?;
        let is_small = file.metadata().map_err(io)?.len() <= most_held;
        let mut lines = BufReader::with_capacity(READ_AHEAD, Hashing { from: &file, hasher: Sha256::new() });
        let (mut reader, mut held, mut places) = (Reader::new(pictures), Vec::new(), Vec::new());
        let mut records = Records::<Line, _>::new(&mut lines, path);
        while let Some(record) = records.next() {
            let (line, record) = record?;
            let case = |reason| GoldenError::Case { path: path.to_owned(), line, reason };
            let input = reader.add(line, record).map_err(case)?;
            let (start, n_bytes) = records.place();
            // A line has 16 MiB at most.
            places.push((start, n_bytes as u32));
            if is_small && !reader.has_files {
                held.push(input);
            }
        }
        let of_lines = Digest::finish(lines.into_inner().hasher);
        // Pictures may be much larger than the set that names them.
        let inputs = if is_small && !reader.has_files {
            Inputs::Held(held)
        } else {
            let pictures = reader.files.clone();
            Inputs::InFile(Arc::new(InFile { file, path: path.to_owned(), places, pictures }))
        };
        Self::new(path, digest.unwrap_or(of_lines), reader, inputs)
    }

    /// The set that `bytes` are; `path` is what errors call them, its ending says what they are, and pictures are below its folder.
    pub fn parse(bytes: &[u8], path: &Path) -> Result<Self, GoldenError> {
        Self::parse_with(bytes, path, below(path))
    }

    /// The same without the pictures that are files of their own, which are empty then: for who compares digests of cases of
    /// which the files may be gone.
    pub fn parse_without_files(bytes: &[u8], path: &Path) -> Result<Self, GoldenError> {
        Self::parse_with(bytes, path, Files::Unread)
    }

    fn parse_with(bytes: &[u8], path: &Path, pictures: Files) -> Result<Self, GoldenError> {
        let file = spooled(bytes).map_err(|source| GoldenError::Io { path: path.to_owned(), source })?;
        let file = if is_parquet(path) { rows(file, path)? } else { file };
        Self::of_file(file, path, u64::MAX, pictures, Some(Digest::of(bytes)))
    }

    fn new(path: &Path, digest: Digest, reader: Reader, inputs: Inputs) -> Result<Self, GoldenError> {
        if reader.cases.is_empty() {
            return Err(GoldenError::Empty(path.to_owned()));
        }
        let name = path.file_stem().map_or_else(|| "golden".to_owned(), |stem| stem.to_string_lossy().into_owned());
        let mut cases = reader.cases;
        cases.shrink_to_fit();
        Ok(Self { name, digest, cases, inputs })
    }
}

impl InFile {
    fn input(&self, idx: usize, case: &GoldenCase) -> Result<GoldenInput, GoldenError> {
        let (start, n_bytes) = self.places[idx];
        let mut line = vec![0; n_bytes as usize];
        let io = |source| GoldenError::Io { path: self.path.clone(), source };
        self.file.read_exact_at(&mut line, start).map_err(io)?;
        let line: Option<Line> = serde_json::from_slice(&line).ok();
        let line = line.filter(|line| line.digest() == case.digest);
        let line = line.ok_or_else(|| GoldenError::Changed { path: self.path.clone(), case: case.case.id.clone() })?;
        let Line { input, expected, .. } = line;
        let asked = expected.read().and_then(|expected| Ok(input.asked(&self.pictures)?.for_(&expected)));
        asked.map_err(|reason| GoldenError::Picture { path: self.path.clone(), case: case.case.id.clone(), reason })
    }
}

fn below(path: &Path) -> Files {
    Files::Below(folder_of(path).to_owned())
}

/// The rows of a Parquet file as JSONL in a file without a name.
fn rows(parquet: File, path: &Path) -> Result<File, GoldenError> {
    let rows = tempfile::tempfile().map_err(|source| GoldenError::Io { path: path.to_owned(), source })?;
    let broken = |reason| GoldenError::Parquet { path: path.to_owned(), reason };
    highroad_data::parquet_to_jsonl(parquet, BufWriter::new(&rows), MAX_GOLDEN_BYTES).map_err(broken)?;
    Ok(rows)
}

/// A copy in a file without a name, one byte longer than a golden set may be if there is more.
fn spooled(from: impl Read) -> io::Result<File> {
    let mut file = tempfile::tempfile()?;
    io::copy(&mut from.take(MAX_GOLDEN_BYTES + 1), &mut file)?;
    file.flush()?;
    Ok(file)
}

/// Takes the digest of what is read.
struct Hashing<R> {
    from: R,
    hasher: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(bytes)?;
        self.hasher.update(&bytes[..n]);
        Ok(n)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const LINES: [&str; 3] = [
        r#"{"id": "a", "input": {"text": "eins é"}, "expected": "x", "slices": ["s"]}"#,
        r#"{"id": "b", "input": {"text": "zwei"}, "expected": "y"}"#,
        r#"{"id": "c", "input": {"text": "drei"}, "expected": "x", "source": "t"}"#,
    ];

    #[test]
    fn texts_on_the_disk_are_the_texts_in_memory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("golden.jsonl");
        // An empty line, both ends of a line, and no end of the last one.
        std::fs::write(&path, format!("{}\n\n{}\r\n{}", LINES[0], LINES[1], LINES[2])).unwrap();
        let [held, on_disk] = [u64::MAX, 0].map(|most| GoldenSet::read_holding(&path, most).unwrap());
        assert!(matches!(on_disk.inputs, Inputs::InFile(_)));
        assert_eq!((held.digest, &held.name, held.cases()), (on_disk.digest, &on_disk.name, on_disk.cases()));
        assert_eq!(held.digest, Digest::of(&std::fs::read(&path).unwrap()));
        (0..3).for_each(|idx| assert_eq!(held.input(idx).unwrap(), on_disk.input(idx).unwrap()));
        assert_eq!(*on_disk.input(1).unwrap(), GoldenInput::One(highroad_task::Input::Text("zwei".to_owned())));
    }

    #[test]
    fn a_file_that_is_changed_while_it_is_used_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("golden.jsonl");
        std::fs::write(&path, LINES.join("\n")).unwrap();
        let set = GoldenSet::read_holding(&path, 0).unwrap();
        std::fs::write(&path, LINES.join("\n").replace("zwei", "zwo!")).unwrap();
        assert!(set.input(0).is_ok());
        let error = set.input(1).unwrap_err().to_string();
        assert!(error.ends_with("case `b` is no longer what it was when the set was read"), "{error}");
    }

    #[test]
    fn pictures_stay_in_their_files_and_are_checked_when_they_are_asked() {
        let dir = tempfile::tempdir().unwrap();
        let (path, picture) = (dir.path().join("golden.jsonl"), dir.path().join("a.png"));
        std::fs::write(&picture, "one").unwrap();
        let sha256 = Digest::of(b"one").hex();
        let line = format!(r#"{{"id": "a", "input": {{"image": "a.png", "sha256": "{sha256}"}}, "expected": "x"}}"#);
        let inline = r#"{"id": "b", "input": {"image_base64": "b25l"}, "expected": "y"}"#;
        std::fs::write(&path, format!("{line}\n{inline}\n")).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for set in [GoldenSet::read(&path).unwrap(), GoldenSet::parse(&bytes, &path).unwrap()] {
            assert!(matches!(set.inputs, Inputs::InFile(_)));
            assert_eq!(set.digest, Digest::of(&bytes));
            assert_eq!(set.input(0).unwrap(), set.input(1).unwrap());
            std::fs::write(&picture, "two").unwrap();
            let error = set.input(0).unwrap_err().to_string();
            assert!(error.contains("case `a`: image `a.png` is sha256:"), "{error}");
            assert!(set.input(1).is_ok());
            std::fs::write(&picture, "one").unwrap();
        }
        std::fs::remove_file(&picture).unwrap();
        assert!(GoldenSet::read(&path).unwrap_err().to_string().contains("there is no image `a.png`"));
        assert_eq!(GoldenSet::parse_without_files(&bytes, &path).unwrap().cases.len(), 2);
    }
}
