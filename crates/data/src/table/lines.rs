//! JSONL and plain text: a record is a line.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use highroad_tensor::Storage;
use memchr::{memchr, memchr_iter, memrchr};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{Bad, MAX_RECORD_BYTES, Rows, cells};
use crate::field::{Cell, Field, Value};
use crate::threads::in_parallel;

/// Bytes that one thread checks at a time.
const CHUNK_BYTES: usize = 4 << 20;
/// Field of a line of text.
const TEXT_FIELD: &str = "text";

/// What a line is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Json,
    Text,
}

/// Lines that are records, by where they start.
pub(super) struct Lines {
    bytes: Storage,
    kind: Kind,
    starts: Vec<u64>,
}

struct Checked {
    starts: Vec<u64>,
    bad: Bad,
    n_lines: u64,
}

impl Lines {
    pub(super) fn open(bytes: Storage, kind: Kind, fields: &[Field], threads: usize) -> (Box<dyn Rows>, Bad) {
        let chunks = chunks(bytes.bytes());
        let checked = in_parallel(chunks.len(), threads, |i| check(bytes.bytes(), chunks[i].clone(), kind, fields));
        let mut starts = Vec::with_capacity(checked.iter().map(|chunk| chunk.starts.len()).sum());
        let mut bad = Bad::default();
        let mut n_lines = 0;
        for chunk in checked {
            starts.extend(chunk.starts);
            bad.extend(n_lines, chunk.bad);
            n_lines += chunk.n_lines;
        }
        (Box::new(Self { bytes, kind, starts }), bad)
    }

    fn line(&self, row: usize) -> &[u8] {
        let rest = &self.bytes.bytes()[self.starts[row] as usize..];
        trimmed(&rest[..memchr(b'\n', rest).unwrap_or(rest.len())])
    }
}

impl Rows for Lines {
    fn len(&self) -> usize {
        self.starts.len()
    }

    fn read<'a>(&'a self, row: usize, fields: &[Field]) -> Result<Vec<Cell<'a>>, String> {
        read(self.line(row), self.kind, fields)
    }

    fn schema(&self) -> Vec<(String, String)> {
        if self.kind == Kind::Text {
            return vec![(TEXT_FIELD.to_owned(), "string".to_owned())];
        }
        let mut types = BTreeMap::<String, BTreeSet<&'static str>>::new();
        for row in 0..self.len() {
            let mut reader = serde_json::Deserializer::from_slice(self.line(row));
            // Opening has parsed each line, so there is no error to report here.
            let _ = reader.deserialize_map(Types(&mut types));
        }
        types.into_iter().map(|(name, kinds)| (name, kinds.into_iter().collect::<Vec<_>>().join("|"))).collect()
    }
}

/// Ranges of about [`CHUNK_BYTES`] that begin at line starts.
fn chunks(bytes: &[u8]) -> Vec<std::ops::Range<usize>> {
    let mut chunks = Vec::new();
    // A byte order mark is not part of the first line.
    let mut start = if bytes.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
    while start < bytes.len() {
        let wanted = (start + CHUNK_BYTES).min(bytes.len());
        let end = match memrchr(b'\n', &bytes[start..wanted]) {
            Some(at) if wanted < bytes.len() => start + at + 1,
            _ => memchr(b'\n', &bytes[wanted..]).map_or(bytes.len(), |at| wanted + at + 1),
        };
        chunks.push(start..end);
        start = end;
    }
    chunks
}

fn check(bytes: &[u8], chunk: std::ops::Range<usize>, kind: Kind, fields: &[Field]) -> Checked {
    let mut checked = Checked { starts: Vec::new(), bad: Bad::default(), n_lines: 0 };
    let mut start = chunk.start;
    let ends = memchr_iter(b'\n', &bytes[chunk.clone()]).map(|at| chunk.start + at).chain([chunk.end]);
    for end in ends {
        if start == chunk.end {
            break;
        }
        checked.n_lines += 1;
        let line = trimmed(&bytes[start..end]);
        if !line.trim_ascii().is_empty() {
            match read(line, kind, fields) {
                Ok(_) => checked.starts.push(start as u64),
                Err(reason) => checked.bad.add(checked.n_lines, reason),
            }
        }
        start = end + 1;
    }
    checked
}

/// Without the carriage return of Windows' line ends.
fn trimmed(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

fn read<'a>(line: &'a [u8], kind: Kind, fields: &[Field]) -> Result<Vec<Cell<'a>>, String> {
    if line.len() > MAX_RECORD_BYTES {
        return Err(format!("the line has {} bytes, and at most {MAX_RECORD_BYTES} are accepted", line.len()));
    }
    let text = std::str::from_utf8(line).map_err(|error| format!("not UTF-8: {error}"))?;
    match kind {
        Kind::Text => {
            let value = |field: &Field| (field.name == TEXT_FIELD).then_some(Value::Str(Cow::Borrowed(text)));
            cells(fields, fields.iter().map(value).collect())
        }
        Kind::Json => {
            let mut reader = serde_json::Deserializer::from_str(text);
            let values = reader.deserialize_map(Wanted(fields)).and_then(|values| reader.end().map(|()| values));
            cells(fields, values.map_err(|error| invalid(&error))?)
        }
    }
}

fn invalid(error: &serde_json::Error) -> String {
    // A record is one line, so serde_json's own line number is always 1.
    format!("invalid JSON: {error}").replace(" at line 1 column ", " at column ")
}

/// Picks the values of fields out of an object.
struct Wanted<'f>(&'f [Field]);

impl<'de> Visitor<'de> for Wanted<'_> {
    type Value = Vec<Option<Value<'de>>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut values: Vec<Option<Value<'de>>> = vec![None; self.0.len()];
        while let Some(key) = map.next_key_seed(Any)? {
            let Value::Str(key) = key else { unreachable!("JSON keys are strings") };
            let mut wanted = (0..self.0.len()).filter(|&i| self.0[i].name == key);
            match wanted.next() {
                None => drop(map.next_value::<IgnoredAny>()?),
                Some(first) => {
                    let value = map.next_value_seed(Any)?;
                    wanted.for_each(|i| values[i] = Some(value.clone()));
                    values[first] = Some(value);
                }
            }
        }
        Ok(values)
    }
}

/// Any JSON value, borrowed where it can be.
struct Any;

impl<'de> DeserializeSeed<'de> for Any {
    type Value = Value<'de>;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value<'de>, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Any {
    type Value = Value<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value<'de>, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value<'de>, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value<'de>, E> {
        Ok(Value::Int(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value<'de>, E> {
        Ok(i64::try_from(value).map_or(Value::Float(value as f64), Value::Int))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value<'de>, E> {
        Ok(Value::Float(value))
    }

    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Value<'de>, E> {
        Ok(Value::Str(Cow::Borrowed(value)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value<'de>, E> {
        Ok(Value::Str(Cow::Owned(value.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value<'de>, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Value::Other("a list"))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value<'de>, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Value::Other("an object"))
    }
}

/// Collects the type of every field of an object.
struct Types<'t>(&'t mut BTreeMap<String, BTreeSet<&'static str>>);

impl<'de> Visitor<'de> for Types<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<Cow<'_, str>>()? {
            let kind = match map.next_value_seed(Any)? {
                Value::Null => "null",
                Value::Bool(_) => "bool",
                Value::Int(_) => "int",
                Value::Float(_) => "float",
                Value::Str(_) | Value::Cell(_) => "string",
                Value::Other("a list") => "list",
                Value::Other(_) => "object",
            };
            match self.0.get_mut(key.as_ref()) {
                Some(kinds) => drop(kinds.insert(kind)),
                None => drop(self.0.insert(key.into_owned(), BTreeSet::from([kind]))),
            }
        }
        Ok(())
    }
}
