//! Changing a golden set's file one line at a time: what is not touched keeps every byte.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::ser::Formatter;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::{GoldenSet, Line, is_parquet};
use crate::GoldenError;
use crate::files::{folder_of, read_limited, replace};

/// Largest file that is changed: it is in memory while it is.
const MAX_CHANGED_BYTES: u64 = 1 << 30;

/// What changes in a case; what is `None` or empty stays.
#[derive(Clone, Debug, Default)]
pub struct Editing {
    /// Another right answer, as a case has it.
    pub expected: Option<Value>,
    /// Slices it joins.
    pub join: Vec<String>,
    /// Slices it leaves.
    pub leave: Vec<String>,
    /// Whether it must pass.
    pub must_pass: Option<bool>,
    /// What it comes from.
    pub source: Option<String>,
    /// How much it counts.
    pub weight: Option<f64>,
    /// Facts of its provenance, by key; a known key gets the new value.
    pub provenance: Vec<(String, Value)>,
}

/// A golden set was not changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum EditError {
    #[error("`{}` is Parquet, which cannot be changed in place: change what it was made from", .0.display())]
    Parquet(PathBuf),
    #[error("golden set `{}` has no case `{id}`", path.display())]
    NoCase { path: PathBuf, id: String },
    #[error("case `{id}` is not in slice `{slice}`")]
    NotInSlice { id: String, slice: String },
    #[error("nothing to change in case `{0}`")]
    Nothing(String),
    #[error("the golden set would not be sound: {0}")]
    Unsound(#[from] GoldenError),
    #[error("cannot read or write `{}`", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// Appends cases to the JSONL file at `path`, which is made if need be; all of them or none.
///
/// Errors if the set would not be sound then, such as with an id twice. Two additions at one time both arrive.
pub fn add(path: &Path, cases: &[Line]) -> Result<GoldenSet, EditError> {
    change(path, |text| {
        let mut text = text.to_owned();
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        let spaced = is_spaced(&text);
        cases.iter().for_each(|case| text.push_str(&(to_json(case, spaced) + "\n")));
        Ok(text)
    })
}

/// Changes the case called `id` in the JSONL file at `path`: its line alone is written anew, with its keys in their order and
/// its other values as they were.
pub fn edit(path: &Path, id: &str, editing: &Editing) -> Result<GoldenSet, EditError> {
    change(path, |text| {
        let of_id = |line: &str| serde_json::from_str::<Named>(line).is_ok_and(|named| named.id == id);
        let old = text.split_inclusive('\n').find(|line| of_id(line));
        let old = old.ok_or_else(|| EditError::NoCase { path: path.to_owned(), id: id.to_owned() })?;
        let (content, end) = old.split_at(old.trim_end_matches(['\n', '\r']).len());
        let new = edited(content, id, editing)?;
        if new == content {
            return Err(EditError::Nothing(id.to_owned()));
        }
        let start = old.as_ptr() as usize - text.as_ptr() as usize;
        Ok([&text[..start], &new, end, &text[start + old.len()..]].concat())
    })
}

const BYTE_ORDER_MARK: char = '\u{feff}';

#[derive(Deserialize)]
struct Named {
    id: String,
}

/// Reads, changes, checks and replaces a file while no other `change` does.
fn change(path: &Path, of: impl FnOnce(&str) -> Result<String, EditError>) -> Result<GoldenSet, EditError> {
    if is_parquet(path) {
        return Err(EditError::Parquet(path.to_owned()));
    }
    let io = |source| EditError::Io { path: path.to_owned(), source };
    // The file itself is replaced, so a lock on it would not meet those who come later: its folder stays.
    let folder = File::open(folder_of(path)).map_err(io)?;
    folder.lock().map_err(io)?;
    let bytes = match read_limited(path, MAX_CHANGED_BYTES) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(source) => return Err(io(source)),
    };
    let text = String::from_utf8(bytes).map_err(|error| io(io::Error::new(io::ErrorKind::InvalidData, error)))?;
    // A byte order mark stays, and is no part of the first line.
    let mark = if text.starts_with(BYTE_ORDER_MARK) { &text[..BYTE_ORDER_MARK.len_utf8()] } else { "" };
    let text = mark.to_owned() + &of(&text[mark.len()..])?;
    let golden = GoldenSet::parse(text.as_bytes(), path)?;
    replace(path, text.as_bytes()).map_err(io)?;
    Ok(golden)
}

fn edited(content: &str, id: &str, editing: &Editing) -> Result<String, EditError> {
    let mut keys: IndexMap<String, Box<RawValue>> =
        serde_json::from_str(content).expect("its id was read from the same line");
    let mut set = |key: &str, value: &Value| {
        keys.insert(key.to_owned(), raw(value, is_spaced(content)));
    };
    if let Some(expected) = &editing.expected {
        set("expected", expected);
    }
    if let Some(must_pass) = editing.must_pass {
        set("must_pass", &json!(must_pass));
    }
    if let Some(source) = &editing.source {
        set("source", &json!(source));
    }
    if let Some(weight) = editing.weight {
        set("weight", &json!(weight));
    }
    if !editing.join.is_empty() || !editing.leave.is_empty() {
        let slices = slices_after(&keys, id, editing)?;
        keys.insert("slices".to_owned(), raw(&json!(slices), is_spaced(content)));
    }
    if !editing.provenance.is_empty() {
        let mut facts: IndexMap<String, Value> = read(&keys, "provenance");
        facts.extend(editing.provenance.iter().cloned());
        keys.insert("provenance".to_owned(), raw(&json!(facts), is_spaced(content)));
    }
    Ok(to_json(&keys, is_spaced(content)))
}

fn slices_after(keys: &IndexMap<String, Box<RawValue>>, id: &str, editing: &Editing) -> Result<Vec<String>, EditError> {
    let mut slices: Vec<String> = read(keys, "slices");
    for slice in &editing.leave {
        let at = slices.iter().position(|name| name == slice);
        let at = at.ok_or_else(|| EditError::NotInSlice { id: id.to_owned(), slice: slice.clone() })?;
        slices.remove(at);
    }
    let new = editing.join.iter().filter(|slice| !slices.contains(slice)).cloned().collect::<Vec<_>>();
    slices.extend(new);
    Ok(slices)
}

/// The value of a key; the default if it has none or is of another kind, which the check of the whole set then tells.
fn read<T: serde::de::DeserializeOwned + Default>(keys: &IndexMap<String, Box<RawValue>>, key: &str) -> T {
    keys.get(key).and_then(|value| serde_json::from_str(value.get()).ok()).unwrap_or_default()
}

/// Whether lines are written as Python writes them, with a space after `:` and `,`.
fn is_spaced(text: &str) -> bool {
    text.is_empty() || text.lines().next().is_some_and(|line| line.contains("\": "))
}

fn raw(value: &Value, spaced: bool) -> Box<RawValue> {
    RawValue::from_string(to_json(value, spaced)).expect("a value's JSON is JSON")
}

/// JSON on one line.
fn to_json(value: &impl Serialize, spaced: bool) -> String {
    if !spaced {
        return serde_json::to_string(value).expect("a case is plain data with text keys");
    }
    let mut bytes = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, Spaced);
    value.serialize(&mut serializer).expect("a case is plain data with text keys");
    String::from_utf8(bytes).expect("JSON is UTF-8")
}

/// Python's spacing.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}
