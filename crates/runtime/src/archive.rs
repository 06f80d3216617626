//! The `.pt2` container: a zip of stored, 64-byte aligned records that are used where they lie.
//!
//! The central directory is the truth about names, sizes and checksums (PyTorch writes zeros into local headers); the
//! local header only tells where a record's data starts. Weights become views of the mapped file. Pickled records
//! are never opened.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::Path;

use highroad_tensor::{DType, Storage, Tensor, TensorError};
use rawzip::{CompressionMethod, ZipArchive};
use serde::Deserialize;

use crate::LoadError;

/// Largest JSON record that is parsed; the largest of 557 real models was 19 MB.
pub const MAX_JSON_BYTES: u64 = 256 << 20;
/// Most records an archive may hold; there is one per weight.
pub const MAX_RECORDS: u64 = 1 << 18;
/// Most dimensions of a tensor, as in PyTorch.
pub const MAX_RANK: usize = 64;

/// An open `.pt2` archive.
pub struct Archive {
    bytes: Storage,
    records: BTreeMap<String, Record>,
    model: String,
    entries: BTreeMap<String, Entry>,
}

#[derive(Clone, Debug)]
struct Record {
    data: Range<usize>,
    crc: u32,
}

impl Archive {
    /// Maps the file at `path` and reads its directory and weight tables; no weight is touched.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        Self::new(Storage::map(&File::open(path)?)?)
    }

    /// The same over a copy of `bytes`.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, LoadError> {
        Self::new(Storage::copy_of(bytes))
    }

    fn new(bytes: Storage) -> Result<Self, LoadError> {
        let records = directory(bytes.bytes())?;
        reject_other_kinds(&records)?;
        let model = model_name(&records)?;
        let mut archive = Self { bytes, records, model, entries: BTreeMap::new() };
        archive.check_marker("archive_format", "pt2")?;
        archive.check_marker("archive_version", "0")?;
        archive.check_marker("byteorder", "little")?;
        archive.entries = archive.read_entries()?;
        Ok(archive)
    }

    /// Name of the program inside the archive; `torch.export.save` writes `model`.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Bytes of the whole file.
    pub fn size_bytes(&self) -> usize {
        self.bytes.bytes().len()
    }

    /// The serialized program.
    pub(crate) fn program_json(&self) -> Result<&[u8], LoadError> {
        self.json(&format!("models/{}.json", self.model))
    }

    pub(crate) fn program_record(&self) -> String {
        format!("models/{}.json", self.model)
    }

    /// Names of the parameters, buffers and tensor constants stored, in order.
    pub fn weight_names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The parameter, buffer or tensor constant called `name`: a view of the archive without a copy.
    ///
    /// Tied weights are views of one storage. Errors if there is none, if it is pickled, if its layout leaves its
    /// payload, or if a boolean is neither 0 nor 1.
    pub fn weight(&self, name: &str) -> Result<Tensor, LoadError> {
        let entry = self.entries.get(name).ok_or_else(|| LoadError::weight(name, "is not in the archive"))?;
        let (meta, payload) = self.payload(name, entry)?;
        let dtype = dtype_of_code(meta.dtype).map_err(|what| LoadError::weight(name, format!("has dtype {what}")))?;
        let sizes = fixed(name, &meta.sizes)?;
        let strides = fixed(name, &meta.strides)?;
        let offset = fixed(name, std::slice::from_ref(&meta.storage_offset))?[0];
        if payload.bytes().is_empty() && !sizes.contains(&0) {
            return Err(LoadError::weight(name, "has no data: the program was saved with fake weights"));
        }
        if dtype == DType::Bool && payload.bytes().iter().any(|&byte| byte > 1) {
            return Err(LoadError::weight(name, "is boolean and holds bytes other than 0 and 1"));
        }
        view(payload, dtype, &sizes, &strides, offset)
            .map_err(|source| LoadError::WeightLayout { name: name.into(), source })
    }

    fn payload<'a>(&self, name: &str, entry: &'a Entry) -> Result<(&'a TensorMeta, Storage), LoadError> {
        if entry.use_pickle {
            let help = "is pickled, and Highroad never unpickles; it is a tensor subclass (torchao: call \
                        `unwrap_tensor_subclass` before export) or a custom object";
            return Err(LoadError::weight(name, help));
        }
        let meta = entry.tensor_meta.as_ref().ok_or_else(|| LoadError::weight(name, "has no sizes"))?;
        if meta.layout != STRIDED {
            return Err(LoadError::weight(name, "is not a dense strided tensor"));
        }
        let record = format!("data/{}/{}", entry.folder, entry.path_name);
        let range = self.data_of(&record)?.data.clone();
        Ok((meta, self.bytes.slice(range).expect("the directory was checked against the file's length")))
    }

    /// Checks the checksum of every record that is read, weights included; touches every page of the file.
    pub fn check_all(&self) -> Result<(), LoadError> {
        let ours = |name: &str| !name.starts_with("data/sample_inputs/") && !name.starts_with("extra/");
        self.records.keys().filter(|name| ours(name)).try_for_each(|name| self.checked(name).map(drop))
    }

    fn json(&self, name: &str) -> Result<&[u8], LoadError> {
        let size = self.data_of(name)?.data.len() as u64;
        if size > MAX_JSON_BYTES {
            return Err(LoadError::Limit { what: "bytes of JSON", found: size, limit: MAX_JSON_BYTES });
        }
        self.checked(name)
    }

    fn checked(&self, name: &str) -> Result<&[u8], LoadError> {
        let record = self.data_of(name)?;
        let data = &self.bytes.bytes()[record.data.clone()];
        if crc32fast::hash(data) != record.crc {
            return Err(LoadError::record(name, "does not match its checksum: the file is damaged"));
        }
        Ok(data)
    }

    fn data_of(&self, name: &str) -> Result<&Record, LoadError> {
        self.records.get(name).ok_or_else(|| LoadError::record(name, "is missing"))
    }

    /// Markers that torch 2.9 and later write; one that is absent tells nothing, another value is another format.
    fn check_marker(&self, name: &str, expected: &str) -> Result<(), LoadError> {
        if !self.records.contains_key(name) {
            return Ok(());
        }
        let found = String::from_utf8_lossy(self.json(name)?).trim().chars().take(20).collect::<String>();
        if found == expected {
            return Ok(());
        }
        Err(LoadError::record(name, format!("says `{found}` and only `{expected}` is read")))
    }

    fn read_entries(&self) -> Result<BTreeMap<String, Entry>, LoadError> {
        let mut entries = BTreeMap::new();
        for folder in ["weights", "constants"] {
            let record = format!("data/{folder}/{}_{folder}_config.json", self.model);
            if !self.records.contains_key(&record) {
                continue;
            }
            let config: Config = parse_json(&record, self.json(&record)?)?;
            for (name, entry) in config.config {
                let entry = Entry { folder, ..entry };
                if entries.insert(name.clone(), entry).is_some() {
                    return Err(LoadError::weight(name, "is listed both as a weight and as a constant"));
                }
            }
        }
        Ok(entries)
    }
}

/// Parses one JSON record; the result may borrow from it.
pub(crate) fn parse_json<'a, T: Deserialize<'a>>(record: &str, json: &'a [u8]) -> Result<T, LoadError> {
    serde_json::from_slice(json).map_err(|source| LoadError::Json { record: record.into(), source })
}

/// Every record by its name below the root folder. Errors on duplicates, overlaps, compression and encryption.
fn directory(bytes: &[u8]) -> Result<BTreeMap<String, Record>, LoadError> {
    reject_other_formats(bytes)?;
    let zip = ZipArchive::from_slice(bytes).map_err(|error| LoadError::Zip(error.to_string()))?;
    let mut found: Vec<(String, Range<u64>, Record)> = Vec::new();
    for entry in zip.entries() {
        let entry = entry.map_err(|error| LoadError::Zip(error.to_string()))?;
        let name = std::str::from_utf8(entry.file_path().as_bytes())
            .map_err(|_| LoadError::Zip("a record's name is not UTF-8".into()))?
            .to_owned();
        if entry.compression_method() != CompressionMethod::STORE || entry.flags().is_encrypted() {
            let reason = "is compressed or encrypted; `torch.export.save` stores records as they are, so the file was \
                          packed again by another tool";
            return Err(LoadError::record(name, reason));
        }
        let data = zip.get_entry(entry.wayfinder()).map_err(|error| LoadError::record(&name, error.to_string()))?;
        let (start, end) = data.compressed_data_range();
        if entry.compressed_size_hint() != entry.uncompressed_size_hint() || end > zip.directory_offset() {
            return Err(LoadError::record(name, "has an impossible size"));
        }
        let record = Record { data: start as usize..end as usize, crc: entry.crc32() };
        found.push((name, entry.local_header_offset()..end, record));
        if found.len() as u64 > MAX_RECORDS {
            return Err(LoadError::Limit { what: "records", found: found.len() as u64, limit: MAX_RECORDS });
        }
    }
    reject_overlaps(&mut found)?;
    by_name_below_root(found)
}

fn reject_overlaps(found: &mut [(String, Range<u64>, Record)]) -> Result<(), LoadError> {
    found.sort_by_key(|(_, range, _)| range.start);
    match found.windows(2).find(|pair| pair[0].1.end > pair[1].1.start) {
        Some(pair) => Err(LoadError::record(&pair[1].0, format!("overlaps record `{}`", pair[0].0))),
        None => Ok(()),
    }
}

/// All records of an archive live below one folder, named after the file it was first saved to.
fn by_name_below_root(found: Vec<(String, Range<u64>, Record)>) -> Result<BTreeMap<String, Record>, LoadError> {
    let first = found.first().map(|(name, ..)| name.as_str()).unwrap_or_default();
    let root = first.split_once('/').map(|(root, _)| format!("{root}/")).unwrap_or_default();
    let root = if found.iter().all(|(name, ..)| name.starts_with(&root)) { root } else { String::new() };
    let mut records = BTreeMap::new();
    for (name, _, record) in found {
        let below = name[root.len()..].to_owned();
        if records.insert(below, record).is_some() {
            return Err(LoadError::record(name, "appears twice"));
        }
    }
    Ok(records)
}

fn reject_other_formats(bytes: &[u8]) -> Result<(), LoadError> {
    let (found, help) = match bytes {
        [] => ("an empty file", EXPORT),
        [_, _, _, _, b'E', b'T', ..] => ("an ExecuTorch program", EXPORT),
        [b'P', b'K', ..] => return Ok(()),
        [0x80, ..] => ("a pickle", EXPORT),
        _ if bytes.starts_with(b"version https://git-lfs") => ("a Git LFS pointer", "run `git lfs pull`"),
        _ => ("not a zip archive", EXPORT),
    };
    Err(LoadError::NotAProgram { found, help })
}

const EXPORT: &str = "export the model with `torch.export.export` and save it with `torch.export.save`";
const EXPORT_AGAIN: &str = "load it with its own torch, or export the model again, with torch 2.9 or newer";

/// Tells the archives that users confuse with `.pt2` programs apart, by the records they hold.
fn reject_other_kinds(records: &BTreeMap<String, Record>) -> Result<(), LoadError> {
    let has = |name: &str| records.contains_key(name);
    let has_folder =
        |prefix: &str| records.range(prefix.to_owned()..).next().is_some_and(|(name, _)| name.starts_with(prefix));
    let (found, help) = if has("serialized_exported_program.json") {
        ("a program saved by torch 2.7 or older", EXPORT_AGAIN)
    } else if has("data/weights/model.pt") {
        ("a program saved by torch 2.8, with pickled weights", EXPORT_AGAIN)
    } else if has_folder("models/") {
        return Ok(());
    } else if has_folder("data/aotinductor/") {
        ("an AOTInductor package, compiled for one machine", EXPORT)
    } else if has_folder("data/executorch/") {
        ("an ExecuTorch package", EXPORT)
    } else if has("constants.pkl") {
        ("a TorchScript archive", EXPORT)
    } else if has("data.pkl") {
        ("a checkpoint written by `torch.save`", EXPORT)
    } else {
        ("a zip archive without `models/*.json`", EXPORT)
    };
    Err(LoadError::NotAProgram { found, help })
}

/// `model` where there is one, else the only program there is.
fn model_name(records: &BTreeMap<String, Record>) -> Result<String, LoadError> {
    let names: Vec<&str> =
        records.keys().filter_map(|name| name.strip_prefix("models/")?.strip_suffix(".json")).collect();
    match names.as_slice() {
        [name] => Ok((*name).to_owned()),
        names if names.contains(&"model") => Ok("model".to_owned()),
        [] => Err(LoadError::record("models/model.json", "is missing")),
        names => Err(LoadError::Unsupported {
            what: format!("an archive of several programs ({})", names.join(", ")),
            location: None,
        }),
    }
}

/// Bytes that start at an odd place (a file repacked without alignment) are copied, once per weight.
fn view(
    payload: Storage,
    dtype: DType,
    sizes: &[usize],
    strides: &[usize],
    offset: usize,
) -> Result<Tensor, TensorError> {
    match Tensor::from_storage(payload.clone(), dtype, sizes, strides, offset) {
        Err(TensorError::Misaligned(_)) => {
            Tensor::from_storage(Storage::copy_of(payload.bytes()), dtype, sizes, strides, offset)
        }
        result => result,
    }
}

fn fixed(name: &str, values: &[FixedInt]) -> Result<Vec<usize>, LoadError> {
    if values.len() > MAX_RANK {
        return Err(LoadError::Limit { what: "dimensions", found: values.len() as u64, limit: MAX_RANK as u64 });
    }
    values
        .iter()
        .map(|value| value.as_int.and_then(|value| usize::try_from(value).ok()))
        .collect::<Option<_>>()
        .ok_or_else(|| LoadError::weight(name, "has a negative or symbolic size, stride or offset"))
}

/// The dtype behind a code of torch's export schema (not c10's); the error names a dtype that is not supported.
pub(crate) fn dtype_of_code(code: u64) -> Result<DType, String> {
    Ok(match code {
        1 => DType::U8,
        2 => DType::I8,
        3 => DType::I16,
        4 => DType::I32,
        5 => DType::I64,
        6 => DType::F16,
        7 => DType::F32,
        8 => DType::F64,
        12 => DType::Bool,
        13 => DType::BF16,
        9..=11 => return Err("complex, which is not supported".into()),
        28 | 34 | 35 => return Err("unsigned and wider than 8 bits, which is not supported".into()),
        29..=33 => return Err("float8, which is not supported".into()),
        code => return Err(format!("code {code}, which is not known")),
    })
}

/// The layout code of dense tensors.
pub(crate) const STRIDED: u64 = 7;

#[derive(Deserialize)]
struct Config {
    config: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(skip)]
    folder: &'static str,
    path_name: String,
    #[serde(default)]
    use_pickle: bool,
    tensor_meta: Option<TensorMeta>,
}

#[derive(Deserialize)]
struct TensorMeta {
    dtype: u64,
    sizes: Vec<FixedInt>,
    strides: Vec<FixedInt>,
    storage_offset: FixedInt,
    layout: u64,
}

#[derive(Deserialize)]
struct FixedInt {
    as_int: Option<i64>,
}
