//! An append-only file of entries, and how far a server has them.
//!
//! A journal is a folder: `entries` (frames of length, CRC-32 and JSON), `delivered` (the offset up to which the server has
//! them), `refused.jsonl` (what it would not take) and copies of artifacts. The process that writes it holds a lock on
//! `entries`, which the system drops when the process dies.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::Entry;

/// Longest entry. A torn length could claim anything.
const MAX_ENTRY_BYTES: u32 = 16 << 20;
const FRAME_HEAD_BYTES: usize = 8;
const ENTRIES: &str = "entries";
const DELIVERED: &str = "delivered";
const REFUSED: &str = "refused.jsonl";

/// Where a journal's entries belong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Address of the tracking server.
    pub server: String,
    /// The run.
    pub run_id: String,
}

/// Why a journal cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum JournalError {
    #[error("cannot use the journal `{}`: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("an entry has {0} bytes, and at most {MAX_ENTRY_BYTES} are accepted")]
    TooLarge(usize),
    #[error("the journal `{}` is in use by another process", .0.display())]
    InUse(PathBuf),
    #[error("the journal `{}` has no header; its process was killed before it logged anything", .0.display())]
    NoHeader(PathBuf),
}

impl JournalError {
    /// Whether the journal is gone, as when its own process has delivered it meanwhile.
    pub(crate) fn is_gone(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// The writing end.
pub(crate) struct Writer {
    dir: PathBuf,
    file: File,
    end: u64,
}

impl Writer {
    /// A new journal in `dir`, which must not exist, durable when this returns.
    pub(crate) fn create(dir: &Path, header: &Header) -> Result<Self, JournalError> {
        let io = |source| JournalError::Io { path: dir.to_owned(), source };
        fs::create_dir_all(dir).map_err(io)?;
        let file = OpenOptions::new().create_new(true).read(true).append(true).open(dir.join(ENTRIES)).map_err(io)?;
        file.try_lock().map_err(|_| JournalError::InUse(dir.to_owned()))?;
        let mut writer = Self { dir: dir.to_owned(), file, end: 0 };
        writer.write(&frame(header)?)?;
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(io)?;
        Ok(writer)
    }

    /// A reader of this journal. It shares the lock: what nobody writes any more, but is still being delivered, is not adopted.
    pub(crate) fn reader(&self) -> Result<(Reader, Header), JournalError> {
        let lock = self.file.try_clone().map_err(|source| JournalError::Io { path: self.dir.clone(), source })?;
        Reader::open(&self.dir, lock)
    }

    /// Appends `frames`; they are on the disk when this returns. Gives the offset behind them.
    pub(crate) fn write(&mut self, frames: &[u8]) -> Result<u64, JournalError> {
        let io = |source| JournalError::Io { path: self.dir.clone(), source };
        self.file.write_all(frames).map_err(io)?;
        self.file.sync_data().map_err(io)?;
        self.end += frames.len() as u64;
        Ok(self.end)
    }
}

/// An entry as the journal holds it.
pub(crate) fn frame(entry: &impl Serialize) -> Result<Vec<u8>, JournalError> {
    let mut frame = vec![0; FRAME_HEAD_BYTES];
    serde_json::to_writer(&mut frame, entry).expect("entries are plain data");
    let length = frame.len() - FRAME_HEAD_BYTES;
    let n = u32::try_from(length).ok().filter(|&n| n <= MAX_ENTRY_BYTES).ok_or(JournalError::TooLarge(length))?;
    let sum = crc32fast::hash(&frame[FRAME_HEAD_BYTES..]);
    frame[..4].copy_from_slice(&n.to_le_bytes());
    frame[4..8].copy_from_slice(&sum.to_le_bytes());
    Ok(frame)
}

/// The delivering end.
pub(crate) struct Reader {
    dir: PathBuf,
    entries: BufReader<File>,
    /// Offset behind the last entry that was read.
    at: u64,
    /// Keeps a journal from being delivered twice at once.
    _lock: File,
}

impl Reader {
    /// The journal in `dir` from the first entry that the server may not have, and where it belongs.
    fn open(dir: &Path, lock: File) -> Result<(Self, Header), JournalError> {
        let io = |source| JournalError::Io { path: dir.to_owned(), source };
        let file = File::open(dir.join(ENTRIES)).map_err(io)?;
        let mut reader = Self { dir: dir.to_owned(), entries: BufReader::new(file), at: 0, _lock: lock };
        let header = reader.next_frame(u64::MAX).map_err(io)?;
        let header: Option<Header> = header.and_then(|json| serde_json::from_slice(&json).ok());
        let header = header.ok_or_else(|| JournalError::NoHeader(dir.to_owned()))?;
        let delivered = reader.delivered();
        if delivered > reader.at {
            reader.seek(delivered).map_err(io)?;
        }
        Ok((reader, header))
    }

    /// As [`Reader::open`], for a journal whose process is gone; errors if it is not.
    pub(crate) fn adopt(dir: &Path) -> Result<(Self, Header), JournalError> {
        let io = |source| JournalError::Io { path: dir.to_owned(), source };
        let lock = File::open(dir.join(ENTRIES)).map_err(io)?;
        lock.try_lock().map_err(|_| JournalError::InUse(dir.to_owned()))?;
        Self::open(dir, lock)
    }

    /// The next whole entry before offset `end` with the offset behind it. A torn end is no entry: it was never acknowledged.
    pub(crate) fn next(&mut self, end: u64) -> Result<Option<(Entry, u64)>, JournalError> {
        let broken = |dir: &Path, source| JournalError::Io { path: dir.to_owned(), source };
        let at = self.at;
        let Some(json) = self.next_frame(end).map_err(|source| broken(&self.dir, source))? else {
            self.back_to(at)?;
            return Ok(None);
        };
        let entry = serde_json::from_slice(&json).map_err(|error| broken(&self.dir, io::Error::other(error)))?;
        Ok(Some((entry, self.at)))
    }

    /// Offset behind the last entry that was read.
    pub(crate) fn position(&self) -> u64 {
        self.at
    }

    /// Reads again from `offset`, where an entry begins.
    pub(crate) fn back_to(&mut self, offset: u64) -> Result<(), JournalError> {
        self.seek(offset).map_err(|source| JournalError::Io { path: self.dir.clone(), source })
    }

    /// `None` at the end, also where it is torn; an error where something follows a frame that is broken.
    fn next_frame(&mut self, end: u64) -> io::Result<Option<Vec<u8>>> {
        let mut head = [0; FRAME_HEAD_BYTES];
        if self.at + FRAME_HEAD_BYTES as u64 > end || !filled(&mut self.entries, &mut head)? {
            return Ok(None);
        }
        let [length, sum] = [0, 4].map(|i| u32::from_le_bytes(head[i..i + 4].try_into().expect("four bytes")));
        if length == 0 {
            // A file system may fill a torn end with zeros; no entry is empty.
            return Ok(None);
        }
        let after = self.at + FRAME_HEAD_BYTES as u64 + u64::from(length);
        let size = self.entries.get_ref().metadata()?.len();
        if after > size {
            return Ok(None);
        }
        let mut json = vec![0; length.min(MAX_ENTRY_BYTES) as usize];
        if length > MAX_ENTRY_BYTES || !filled(&mut self.entries, &mut json)? || crc32fast::hash(&json) != sum {
            let damaged = || io::Error::new(io::ErrorKind::InvalidData, format!("it is damaged at byte {}", self.at));
            return if after == size { Ok(None) } else { Err(damaged()) };
        }
        self.at = after;
        Ok(Some(json))
    }

    fn seek(&mut self, to: u64) -> io::Result<()> {
        self.at = self.entries.seek(SeekFrom::Start(to))?;
        Ok(())
    }

    /// Offset up to which the server has everything; 0 where that is not known, since sending again does no harm.
    fn delivered(&self) -> u64 {
        let bytes = fs::read(self.dir.join(DELIVERED)).ok();
        let number = bytes.and_then(|bytes| Some((<[u8; 8]>::try_from(bytes.get(..8)?).ok()?, bytes[8..].to_vec())));
        match number {
            Some((number, sum)) if sum == crc32fast::hash(&number).to_le_bytes() => u64::from_le_bytes(number),
            _ => 0,
        }
    }

    /// Notes that the server has everything before `offset`.
    pub(crate) fn note_delivered(&self, offset: u64) -> Result<(), JournalError> {
        let mut bytes = offset.to_le_bytes().to_vec();
        bytes.extend(crc32fast::hash(&offset.to_le_bytes()).to_le_bytes());
        let path = self.dir.join(DELIVERED);
        fs::write(&path, bytes).map_err(|source| JournalError::Io { path, source })
    }

    /// Keeps what the server would not take, with its reason.
    pub(crate) fn note_refused(&self, entry: &Entry, reason: &str) -> Result<(), JournalError> {
        let path = self.dir.join(REFUSED);
        let line = serde_json::json!({"reason": reason, "entry": entry});
        let append = || writeln!(OpenOptions::new().create(true).append(true).open(&path)?, "{line}");
        append().map_err(|source| JournalError::Io { path: path.clone(), source })
    }

    /// Path of a file in the journal's folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Removes the journal, unless it holds refused entries, which a person should see.
    pub(crate) fn remove(self) -> Result<(), JournalError> {
        let io = |source| JournalError::Io { path: self.dir.clone(), source };
        if self.dir.join(REFUSED).exists() {
            return fs::rename(self.dir.join(ENTRIES), self.dir.join("entries.delivered")).map_err(io);
        }
        fs::remove_dir_all(&self.dir).map_err(io)
    }
}

/// The folders in `root` that are journals.
pub(crate) fn journals(root: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    match fs::read_dir(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(error),
        Ok(folders) => {
            for folder in folders {
                let path = folder?.path();
                if path.join(ENTRIES).is_file() {
                    found.push(path);
                }
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Whether the reader had enough bytes for `buffer`.
fn filled(reader: &mut impl io::Read, buffer: &mut [u8]) -> io::Result<bool> {
    match reader.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header { server: "http://x".to_owned(), run_id: "r".to_owned() }
    }

    fn tag(n: usize) -> Entry {
        Entry::Tags(vec![("n".to_owned(), n.to_string())])
    }

    fn read_all(reader: &mut Reader) -> Vec<Entry> {
        std::iter::from_fn(|| reader.next(u64::MAX).unwrap()).map(|(entry, _)| entry).collect()
    }

    #[test]
    fn whole_entries_survive_any_torn_end() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("j");
        let mut writer = Writer::create(&dir, &header()).unwrap();
        let ends: Vec<u64> = (0..3).map(|n| writer.write(&frame(&tag(n)).unwrap()).unwrap()).collect();
        drop(writer);
        let whole = fs::read(dir.join(ENTRIES)).unwrap();
        let start = ends[0] as usize - frame(&tag(0)).unwrap().len();
        for cut in start..=whole.len() {
            fs::write(dir.join(ENTRIES), &whole[..cut]).unwrap();
            let n_whole = ends.iter().filter(|&&end| end <= cut as u64).count();
            assert_eq!(read_all(&mut Reader::adopt(&dir).unwrap().0), (0..n_whole).map(tag).collect::<Vec<_>>());
        }
    }

    #[test]
    fn damage_before_whole_entries_is_told() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("j");
        let mut writer = Writer::create(&dir, &header()).unwrap();
        let first = writer.write(&frame(&tag(0)).unwrap()).unwrap() as usize;
        writer.write(&frame(&tag(1)).unwrap()).unwrap();
        drop(writer);
        let mut bytes = fs::read(dir.join(ENTRIES)).unwrap();
        bytes[first - 1] ^= 1;
        fs::write(dir.join(ENTRIES), bytes).unwrap();
        let error = Reader::adopt(&dir).unwrap().0.next(u64::MAX).unwrap_err();
        assert!(error.to_string().contains("it is damaged at byte"), "{error}");
    }

    #[test]
    fn a_reader_goes_on_behind_what_was_delivered() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("j");
        let mut writer = Writer::create(&dir, &header()).unwrap();
        let first = writer.write(&frame(&tag(0)).unwrap()).unwrap();
        writer.write(&frame(&tag(1)).unwrap()).unwrap();
        drop(writer);
        Reader::adopt(&dir).unwrap().0.note_delivered(first).unwrap();
        assert_eq!(read_all(&mut Reader::adopt(&dir).unwrap().0), [tag(1)]);
        fs::write(dir.join(DELIVERED), [1, 2, 3]).unwrap();
        assert_eq!(read_all(&mut Reader::adopt(&dir).unwrap().0), [tag(0), tag(1)]);
    }

    #[test]
    fn a_journal_in_use_is_not_adopted() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("j");
        let writer = Writer::create(&dir, &header()).unwrap();
        let (reader, _) = writer.reader().unwrap();
        assert!(matches!(Reader::adopt(&dir), Err(JournalError::InUse(_))));
        // Nothing more is written, and what was is still on its way.
        drop(writer);
        assert!(matches!(Reader::adopt(&dir), Err(JournalError::InUse(_))));
        drop(reader);
        assert_eq!(Reader::adopt(&dir).unwrap().1, header());
    }

    #[test]
    fn a_point_keeps_its_value_bit_for_bit() {
        for value in [0.1 + 0.2, f64::MIN_POSITIVE, f64::MAX, -0.0, f64::INFINITY, f64::NEG_INFINITY] {
            let metric = Metric { key: "m".to_owned(), value, timestamp: 1, step: 2 };
            let text = serde_json::to_string(&metric).unwrap();
            let back: Metric = serde_json::from_str(&text).unwrap();
            assert_eq!(back.value.to_bits(), value.to_bits(), "{text}");
        }
    }

    use crate::Metric;
}
