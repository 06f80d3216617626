use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

/// Longest line of a JSONL file: one record is a case, not a corpus.
pub const MAX_LINE_BYTES: u64 = 16 << 20;

/// Why a record could not be read, and where it stands.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum RecordError {
    #[error("cannot read `{}`", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}:{line}: {reason}", path.display())]
    Line { path: PathBuf, line: usize, reason: String },
}

/// What some editors put before UTF-8 text; it belongs to no record.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The records of a JSONL file: one JSON value a line, UTF-8 with or without a byte order mark; empty lines are skipped.
///
/// An iterator that ends after its first error. Unknown fields are errors exactly if `T` says so.
pub struct Records<T, R = BufReader<File>> {
    reader: R,
    path: PathBuf,
    line: usize,
    place: (u64, usize),
    done: bool,
    record: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Records<T> {
    /// Opens the file at `path`.
    pub fn open(path: &Path) -> Result<Self, RecordError> {
        let file = File::open(path).map_err(|source| RecordError::Io { path: path.to_owned(), source })?;
        Ok(Self::new(BufReader::new(file), path))
    }
}

impl<T: DeserializeOwned, R: BufRead> Records<T, R> {
    /// Reads from `reader`; `path` is what errors call it.
    pub fn new(reader: R, path: &Path) -> Self {
        Self { reader, path: path.to_owned(), line: 0, place: (0, 0), done: false, record: PhantomData }
    }

    /// Where the line of the last record begins, in bytes from where the reader was, and how many bytes it has.
    pub fn place(&self) -> (u64, usize) {
        self.place
    }

    /// The next record with the number of its line, counted from 1.
    fn next_record(&mut self) -> Result<Option<(usize, T)>, RecordError> {
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            self.line += 1;
            let n = (&mut self.reader)
                .take(MAX_LINE_BYTES + 1)
                .read_until(b'\n', &mut bytes)
                .map_err(|source| RecordError::Io { path: self.path.clone(), source })?;
            let n_marked = if self.line == 1 && bytes.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len() } else { 0 };
            bytes.drain(..n_marked);
            self.place = (self.place.0 + (self.place.1 + n_marked) as u64, n - n_marked);
            if n == 0 {
                return Ok(None);
            }
            if n as u64 > MAX_LINE_BYTES {
                return Err(self.error(format!("the line is over {MAX_LINE_BYTES} bytes")));
            }
            let text = std::str::from_utf8(&bytes).map_err(|e| self.error(format!("not UTF-8: {e}")))?;
            if !text.trim().is_empty() {
                let record = serde_json::from_str(text).map_err(|e| self.error(without_line(&e)))?;
                return Ok(Some((self.line, record)));
            }
        }
    }

    fn error(&self, reason: String) -> RecordError {
        RecordError::Line { path: self.path.clone(), line: self.line, reason }
    }
}

impl<T: DeserializeOwned, R: BufRead> Iterator for Records<T, R> {
    /// Line number, counted from 1, and record.
    type Item = Result<(usize, T), RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let item = self.next_record().transpose();
        self.done = !matches!(item, Some(Ok(_)));
        item
    }
}

/// The message with its column only: a JSONL record is one line, so serde_json's own line number is always 1.
fn without_line(error: &serde_json::Error) -> String {
    error.to_string().replace(" at line 1 column ", " at column ")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Case {
        id: String,
    }

    fn read(text: &[u8]) -> Result<Vec<(usize, Case)>, String> {
        Records::new(text, Path::new("golden.jsonl")).collect::<Result<_, _>>().map_err(|e| e.to_string())
    }

    fn case(id: &str) -> Case {
        Case { id: id.to_owned() }
    }

    #[test]
    fn records_carry_their_line_numbers() {
        assert_eq!(read(b"{\"id\":\"a\"}\n\n  \r\n{\"id\":\"b\"}").unwrap(), [(1, case("a")), (4, case("b"))]);
    }

    #[test]
    fn a_byte_order_mark_belongs_to_no_record() {
        let text = b"\xef\xbb\xbf{\"id\":\"a\"}\n{\"id\":\"b\"}\n";
        assert_eq!(read(text).unwrap(), [(1, case("a")), (2, case("b"))]);
        assert_eq!(read(b"\xef\xbb\xbf").unwrap(), []);
        assert!(read(b"{\"id\":\"a\"}\n\xef\xbb\xbf{\"id\":\"b\"}\n").is_err(), "only at the start of the file");
        let mut records = Records::<Case, _>::new(text.as_slice(), Path::new("golden.jsonl"));
        let mut lines = Vec::new();
        while let Some(Ok(_)) = records.next() {
            let (start, n) = records.place();
            lines.push(&text[start as usize..start as usize + n]);
        }
        assert_eq!(lines, [b"{\"id\":\"a\"}\n", b"{\"id\":\"b\"}\n"]);
    }

    #[test]
    fn an_error_says_file_line_and_column() {
        let error = read(b"{\"id\":\"a\"}\n{\"id\":\"b\",\"x\":1}\n").unwrap_err();
        assert_eq!(error, "golden.jsonl:2: unknown field `x`, expected `id` at column 13");
    }

    #[test]
    fn bytes_that_are_not_utf8_are_an_error() {
        assert!(read(b"{\"id\":\"\xff\"}").unwrap_err().starts_with("golden.jsonl:1: not UTF-8"));
    }

    #[test]
    fn a_truncated_record_is_an_error() {
        assert!(read(b"{\"id\":\"a\"").unwrap_err().starts_with("golden.jsonl:1: EOF"));
    }

    #[test]
    fn a_line_without_end_is_refused_before_it_fills_the_memory() {
        let endless = BufReader::new(io::repeat(b' '));
        let error = Records::<Case, _>::new(endless, Path::new("x")).next().unwrap().unwrap_err();
        assert_eq!(error.to_string(), format!("x:1: the line is over {MAX_LINE_BYTES} bytes"));
    }

    #[test]
    fn nothing_follows_an_error() {
        let mut records = Records::<Case, _>::new(&b"nonsense\n{\"id\":\"a\"}"[..], Path::new("x"));
        assert!(records.next().unwrap().is_err());
        assert!(records.next().is_none());
    }
}
