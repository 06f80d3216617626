//! CSV (RFC 4180) with a header line; records are found by where they start.

use std::borrow::Cow;
use std::sync::{Mutex, PoisonError};

use csv_core::{ReadRecordResult, Reader, ReaderBuilder};
use highroad_tensor::Storage;
use memchr::memchr_iter;

use super::{Bad, MAX_RECORD_BYTES, Rows, cells};
use crate::field::{Cell, Field, Value};

/// Most columns of a file.
const MAX_COLUMNS: usize = 10_000;

pub(super) struct Csv {
    bytes: Storage,
    delimiter: u8,
    header: Vec<String>,
    starts: Vec<u64>,
    /// Idle ones: to make one costs as much as to read a hundred records.
    readers: Mutex<Vec<Reader>>,
}

/// One record: its fields joined, and where each ends.
struct Record {
    text: Vec<u8>,
    ends: Vec<usize>,
    /// Bytes that it takes in the file.
    n_bytes: usize,
}

impl Csv {
    pub(super) fn open(bytes: Storage, delimiter: u8, fields: &[Field]) -> Result<(Box<dyn Rows>, Bad), String> {
        let all = bytes.bytes();
        let mut at = if all.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
        let mut line = 1;
        skip_empty(all, &mut at, &mut line);
        if at == all.len() {
            return Err("there is no header".to_owned());
        }
        let mut reader = reader(delimiter);
        let first = record(&mut reader, &all[at..], line)?;
        line += count_lines(&all[at..at + first.n_bytes]);
        at += first.n_bytes;
        let header: Vec<String> =
            (0..first.ends.len()).map(|i| String::from_utf8_lossy(first.field(i)).into_owned()).collect();
        if let Some(twice) =
            header.iter().enumerate().find(|(i, name)| header[..*i].contains(name)).map(|(_, name)| name)
        {
            return Err(format!("two columns are called `{twice}`"));
        }
        if let Some(missing) = fields.iter().find(|field| !header.contains(&field.name)) {
            return Err(format!("there is no column `{}`; the header has {}", missing.name, header.join(", ")));
        }
        let readers = Mutex::default();
        let mut csv = Self { bytes: bytes.clone(), delimiter, header, starts: Vec::new(), readers };
        let mut bad = Bad::default();
        loop {
            skip_empty(all, &mut at, &mut line);
            if at == all.len() {
                return Ok((Box::new(csv), bad));
            }
            let record = record(&mut reader, &all[at..], line)?;
            match csv.values(&record, fields) {
                Ok(_) => csv.starts.push(at as u64),
                Err(reason) => bad.add(line, reason),
            }
            line += count_lines(&all[at..at + record.n_bytes]);
            at += record.n_bytes;
        }
    }

    fn values(&self, record: &Record, fields: &[Field]) -> Result<Vec<Cell<'static>>, String> {
        if record.ends.len() != self.header.len() {
            return Err(format!("the record has {} fields, the header {}", record.ends.len(), self.header.len()));
        }
        let column = |field: &Field| self.header.iter().position(|name| *name == field.name);
        let value = |field: &Field| -> Result<_, String> {
            let Some(column) = column(field) else { return Ok(None) };
            let text = String::from_utf8(record.field(column).to_owned());
            let text = text.map_err(|error| format!("field `{}` is not UTF-8: {error}", field.name))?;
            Ok(Some(Value::Cell(Cow::Owned(text))))
        };
        cells(fields, fields.iter().map(value).collect::<Result<_, _>>()?)
    }
}

impl Rows for Csv {
    fn len(&self) -> usize {
        self.starts.len()
    }

    fn read<'a>(&'a self, row: usize, fields: &[Field]) -> Result<Vec<Cell<'a>>, String> {
        let rest = &self.bytes.bytes()[self.starts[row] as usize..];
        let idle = || self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        let free = idle().pop();
        let mut reader = free.unwrap_or_else(|| reader(self.delimiter));
        let record = record(&mut reader, rest, row as u64 + 1);
        idle().push(reader);
        self.values(&record?, fields)
    }

    fn schema(&self) -> Vec<(String, String)> {
        self.header.iter().map(|name| (name.clone(), "string".to_owned())).collect()
    }
}

impl Record {
    fn field(&self, i: usize) -> &[u8] {
        let start = if i == 0 { 0 } else { self.ends[i - 1] };
        &self.text[start..self.ends[i]]
    }
}

fn reader(delimiter: u8) -> Reader {
    ReaderBuilder::new().delimiter(delimiter).build()
}

/// The record at the start of `bytes`. `line` is for messages: a quote that is left open swallows what follows, so that no
/// policy could go on behind it.
fn record(reader: &mut Reader, bytes: &[u8], line: u64) -> Result<Record, String> {
    reader.reset();
    let mut record = Record { text: vec![0; 1024], ends: vec![0; 16], n_bytes: 0 };
    let (mut n_text, mut n_ends) = (0, 0);
    let limit = bytes.len().min(MAX_RECORD_BYTES);
    let mut at_end = false;
    loop {
        // A line end closes the last record of a file that has none there, unless a quote is open.
        let input = if at_end { b"\n" } else { &bytes[record.n_bytes..limit] };
        let (result, n_read, n_out, n_end) =
            reader.read_record(input, &mut record.text[n_text..], &mut record.ends[n_ends..]);
        record.n_bytes += if at_end { 0 } else { n_read };
        n_text += n_out;
        n_ends += n_end;
        match result {
            ReadRecordResult::OutputFull => record.text.resize(record.text.len() * 2, 0),
            ReadRecordResult::OutputEndsFull if n_ends >= MAX_COLUMNS => {
                return Err(format!("the record on line {line} has over {MAX_COLUMNS} fields"));
            }
            ReadRecordResult::OutputEndsFull => record.ends.resize(record.ends.len() * 2, 0),
            ReadRecordResult::InputEmpty if at_end => {
                return Err(format!("a quote in the record that begins on line {line} is never closed"));
            }
            ReadRecordResult::InputEmpty if limit < bytes.len() => {
                let size = format!("over {MAX_RECORD_BYTES} bytes");
                return Err(format!("the record that begins on line {line} has {size}: is a quote left open there?"));
            }
            ReadRecordResult::InputEmpty => at_end = true,
            ReadRecordResult::Record | ReadRecordResult::End => break,
        }
    }
    record.text.truncate(n_text);
    record.ends.truncate(n_ends);
    Ok(record)
}

/// Moves behind line ends, which are no records.
fn skip_empty(bytes: &[u8], at: &mut usize, line: &mut u64) {
    while let Some(byte @ (b'\n' | b'\r')) = bytes.get(*at) {
        *line += u64::from(*byte == b'\n');
        *at += 1;
    }
}

fn count_lines(bytes: &[u8]) -> u64 {
    memchr_iter(b'\n', bytes).count() as u64
}
