//! `program.pt2` without what differs between machines or should not leave them.
//!
//! `torch.export.save` is deterministic, but what it writes depends on where it ran and on whose data: stack traces hold
//! absolute paths and source lines, `data/sample_inputs/model.pt` is a pickle of the example inputs, and the root folder is
//! named after the file. None of it is needed to run the program, here or in PyTorch.

use std::fs::File;
use std::io::{self, BufWriter, Read as _, Write as _};
use std::path::Path;

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

/// Root folder of every record.
const ROOT: &str = "program";
/// Most records; there is one per weight.
const MAX_RECORDS: usize = 1 << 18;
/// Largest program description; the largest of 557 real models had 19 MB.
const MAX_JSON_BYTES: u64 = 256 << 20;
/// The user's example data, pickled. `torch.export.load` wants the record and takes an empty one for "none".
const EMPTIED: &str = "data/sample_inputs/";
/// A checksum of all records, which would no longer fit; PyTorch does without.
const DROPPED: &str = ".data/serialization_id";
/// Where PyTorch places the content of records, so that readers can map them.
const ALIGNMENT: u16 = 64;
/// The extra field "FB" that PyTorch pads with.
const PADDING_FIELD: u16 = 0x4246;

/// Writes the archive `from` anew to `to`: same records in the same order, stored, 64-byte aligned, under the root
/// `program/`; without example inputs; stack traces cut to file, line and function. Canonical input comes out unchanged.
///
/// The error is a reason in words. It is an error if `from` is not an archive of stored records under one root, or if a
/// checksum does not fit.
pub(super) fn canonicalise(from: File, to: &Path) -> Result<(), String> {
    let words = |e: zip::result::ZipError| format!("is not a .pt2 archive: {e}");
    let mut archive = ZipArchive::new(io::BufReader::new(from)).map_err(words)?;
    if archive.len() > MAX_RECORDS {
        return Err(format!("has {} records, and at most {MAX_RECORDS} are accepted", archive.len()));
    }
    let file = File::create_new(to).map_err(|e| e.to_string())?;
    let mut writer = ZipWriter::new(BufWriter::new(file));
    let mut root: Option<String> = None;
    for index in 0..archive.len() {
        let mut record = archive.by_index(index).map_err(words)?;
        let name = record.name().map_err(words)?.into_owned();
        let (folder, rest) = name.split_once('/').ok_or_else(|| format!("record `{name}` is in no root folder"))?;
        if root.get_or_insert_with(|| folder.to_owned()) != folder {
            return Err(format!("record `{name}` is in another root folder than the first"));
        }
        if record.compression() != CompressionMethod::Stored {
            return Err(format!("record `{name}` is compressed"));
        }
        if rest == DROPPED {
            continue;
        }
        let name = format!("{ROOT}/{rest}");
        if rest.starts_with(EMPTIED) {
            writer.start_file(&name, options(0)).map_err(words)?;
        } else if rest.starts_with("models/") && rest.ends_with(".json") {
            let json = read_limited(&mut record, &name)?;
            let json = without_paths(&json);
            writer.start_file(&name, options(json.len() as u64)).map_err(words)?;
            writer.write_all(&json).map_err(|e| e.to_string())?;
        } else {
            writer.start_file(&name, options(record.size())).map_err(words)?;
            io::copy(&mut record, &mut writer).map_err(|e| format!("record `{name}`: {e}"))?;
        }
    }
    let file = writer.finish().map_err(words)?.into_inner().map_err(|e| e.to_string())?;
    file.sync_all().map_err(|e| e.to_string())
}

fn options(size: u64) -> SimpleFileOptions {
    SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .last_modified_time(zip::DateTime::default())
        .system(zip::System::Unix)
        .unix_permissions(0o644)
        .large_file(size >= u64::from(u32::MAX))
        .with_alignment_and_header_id(ALIGNMENT, PADDING_FIELD)
}

fn read_limited(record: &mut impl io::Read, name: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    record.take(MAX_JSON_BYTES + 1).read_to_end(&mut bytes).map_err(|e| format!("record `{name}`: {e}"))?;
    if bytes.len() as u64 > MAX_JSON_BYTES {
        return Err(format!("record `{name}` has over {MAX_JSON_BYTES} bytes"));
    }
    Ok(bytes)
}

/// The JSON text with the value of every key `stack_trace` cut by [`short_trace`], and every other byte as it was:
/// numbers are not parsed, so none can change.
fn without_paths(json: &[u8]) -> Vec<u8> {
    const KEY: &[u8] = b"\"stack_trace\"";
    let mut out = Vec::with_capacity(json.len());
    let mut at = 0;
    while at < json.len() {
        if json[at] != b'"' {
            out.push(json[at]);
            at += 1;
            continue;
        }
        let end = string_end(json, at);
        out.extend_from_slice(&json[at..end]);
        let is_key = &json[at..end] == KEY;
        at = end;
        if is_key && let Some(value) = value_start(json, at).filter(|&value| json[value] == b'"') {
            let end = string_end(json, value);
            let trace: String = serde_json::from_slice(&json[value..end]).unwrap_or_default();
            out.extend_from_slice(&json[at..value]);
            out.extend_from_slice(serde_json::Value::from(short_trace(&trace)).to_string().as_bytes());
            at = end;
        }
    }
    out
}

/// One past the closing quote of the JSON string that opens at `start`; the end of the text if nothing closes it.
fn string_end(json: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while at < json.len() && json[at] != b'"' {
        at += if json[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(json.len())
}

/// Where the value begins if a colon follows, as it does after a key.
fn value_start(json: &[u8], after_key: usize) -> Option<usize> {
    let skip_space = |from: usize| (from..json.len()).find(|&at| !json[at].is_ascii_whitespace());
    let colon = skip_space(after_key).filter(|&at| json[at] == b':')?;
    skip_space(colon + 1)
}

/// The frames of a Python traceback, one a line, without source text and with file names that mean the same on every
/// machine: relative ones as they are, absolute ones from `site-packages/` on for libraries and the bare name otherwise.
fn short_trace(trace: &str) -> String {
    let frame = |line: &str| {
        let (path, rest) = line.trim_start().strip_prefix("File \"")?.split_once('"')?;
        Some(format!("File \"{}\"{rest}", short_path(path)))
    };
    trace.lines().filter_map(frame).collect::<Vec<_>>().join("\n")
}

fn short_path(path: &str) -> &str {
    let drive = path.as_bytes().get(1) == Some(&b':');
    if !drive && !path.starts_with(['/', '\\']) {
        return path;
    }
    let library = ["site-packages/", "dist-packages/"].into_iter().find_map(|folder| path.rfind(folder));
    let name = path.rfind(['/', '\\']).map_or(0, |slash| slash + 1);
    &path[library.unwrap_or(name)..]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_keeps_file_line_and_function_only() {
        let trace = "File \"/home/eve/secret/model.py\", line 9, in forward\n    h = self.m(x)\n  \
                     File \"/home/eve/.venv/lib/python3.11/site-packages/transformers/bert.py\", line 661, in forward\n    y";
        assert_eq!(
            short_trace(trace),
            "File \"model.py\", line 9, in forward\nFile \"site-packages/transformers/bert.py\", line 661, in forward"
        );
    }

    #[test]
    fn relative_paths_stay() {
        assert_eq!(short_path("torch/fx/passes/runtime_assert.py"), "torch/fx/passes/runtime_assert.py");
        assert_eq!(short_path("C:\\eve\\model.py"), "model.py");
    }

    #[test]
    fn nothing_but_traces_changes() {
        let json = r#"{"a": [1e-05, 9223372036854775807, "stack_trace"], "b\"": "\\", "stack_trace" : "File \"/x/y.py\", line 1\n  z\u00e9",
            "c": {"stack_trace": null}}"#;
        let expected = r#"{"a": [1e-05, 9223372036854775807, "stack_trace"], "b\"": "\\", "stack_trace" : "File \"y.py\", line 1",
            "c": {"stack_trace": null}}"#;
        assert_eq!(String::from_utf8(without_paths(json.as_bytes())).unwrap(), expected);
    }

    #[test]
    fn text_that_is_no_json_does_not_panic() {
        for text in [r#"""#, r#""\"#, r#""stack_trace":"#, r#""stack_trace":""#, r#"{"stack_trace": "\ud800"}"#, ""] {
            without_paths(text.as_bytes());
        }
    }
}
