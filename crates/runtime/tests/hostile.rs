//! Damaged and lying archives: an error each time, never a panic, never an allocation that only the lie justifies.

#![allow(clippy::unwrap_used)]

use std::alloc::System;
use std::io::Write as _;
use std::path::PathBuf;

use cap::Cap;
use highroad_runtime::LoadError;
use highroad_runtime::archive::Archive;
use highroad_runtime::graph::Graph;
use highroad_runtime::import::{self, Exported};
use highroad_runtime::passes::{self, PassError};
use rawzip::{CompressionMethod, ZipArchive, ZipArchiveWriter};
use serde_json::{Value, json};

/// Ends the process when these tests together hold more than this: a size out of a header was believed.
const MEMORY_LIMIT: usize = 256 << 20;

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, MEMORY_LIMIT);

fn bytes(name: &str) -> Vec<u8> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../conformance/programs");
    std::fs::read(folder.join(format!("{name}.pt2"))).unwrap()
}

/// Records by name, in order.
fn records(archive: &[u8]) -> Vec<(String, Vec<u8>)> {
    let zip = ZipArchive::from_slice(archive).unwrap();
    let record = |entry: Result<rawzip::ZipFileHeaderRecord<'_>, _>| {
        let entry = entry.unwrap();
        let name = String::from_utf8(entry.file_path().as_bytes().to_vec()).unwrap();
        (name, zip.get_entry(entry.wayfinder()).unwrap().data().to_vec())
    };
    zip.entries().map(record).collect()
}

fn zipped(records: &[(String, Vec<u8>)], method: CompressionMethod) -> Vec<u8> {
    let mut zip = ZipArchiveWriter::new(Vec::new());
    for (name, data) in records {
        let (mut entry, config) = zip.new_file(name.as_str()).compression_method(method).start().unwrap();
        let mut writer = config.wrap(&mut entry);
        writer.write_all(data).unwrap();
        let (_, descriptor) = writer.finish().unwrap();
        entry.finish(descriptor).unwrap();
    }
    zip.finish().unwrap()
}

/// The program `name` with one record rewritten, checksums in order.
fn with_record(name: &str, record: &str, rewrite: impl FnOnce(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let mut records = records(&bytes(name));
    let (_, data) = records.iter_mut().find(|(name, _)| name.ends_with(record)).unwrap();
    *data = rewrite(data);
    zipped(&records, CompressionMethod::STORE)
}

/// The same for a record of JSON.
fn with_json(name: &str, record: &str, rewrite: impl FnOnce(&mut Value)) -> Vec<u8> {
    with_record(name, record, |data| {
        let mut json = serde_json::from_slice(data).unwrap();
        rewrite(&mut json);
        serde_json::to_vec(&json).unwrap()
    })
}

const PROGRAM: &str = "models/model.json";
const WEIGHTS: &str = "data/weights/model_weights_config.json";

/// Reads and rewrites a graph; what is accepted must be well formed all the way.
fn read(bytes: &[u8]) -> Result<Exported, LoadError> {
    let exported = import::exported(&Archive::from_bytes(bytes)?)?;
    let text = exported.graph.to_string();
    assert_eq!(text.parse::<Graph>().unwrap().to_string(), text);
    match passes::canonical(&mut exported.graph.clone()) {
        Err(broken @ PassError::Broken { .. }) => panic!("{broken}"),
        _ => Ok(exported),
    }
}

fn error_of(bytes: &[u8]) -> String {
    match read(bytes) {
        Ok(_) => panic!("the archive was read"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn an_archive_packed_again_without_alignment_is_read() {
    for name in ["mlp", "strided_buffers", "inplace"] {
        let exported = read(&zipped(&records(&bytes(name)), CompressionMethod::STORE)).unwrap();
        let original = read(&bytes(name)).unwrap();
        assert_eq!(exported.graph, original.graph);
    }
}

/// The archive with the directory that an archive of more than 4 GiB has: sizes and places in 64 bits.
fn with_zip64_directory(archive: &[u8]) -> Vec<u8> {
    const UNKNOWN: [u8; 4] = [0xff; 4];
    fn number<const N: usize>(bytes: &[u8], at: usize) -> u64 {
        bytes[at..at + N].iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
    }
    let end = archive.windows(4).rposition(|bytes| bytes == b"PK\x05\x06").unwrap();
    let (n_records, start) = (number::<2>(archive, end + 10), number::<4>(archive, end + 16) as usize);
    let mut out = archive[..start].to_vec();
    let mut at = start;
    for _ in 0..n_records {
        let [name, extra, comment] = [28, 30, 32].map(|offset| number::<2>(archive, at + offset) as usize);
        let (fixed, rest) = archive[at..at + 46 + name + extra + comment].split_at(46);
        let [stored, full, place] = [20, 24, 42].map(|offset| number::<4>(fixed, offset));
        let mut fixed = fixed.to_vec();
        for offset in [20, 24, 42] {
            fixed[offset..offset + 4].copy_from_slice(&UNKNOWN);
        }
        fixed[30..32].copy_from_slice(&(extra as u16 + 28).to_le_bytes());
        out.extend(fixed);
        out.extend(&rest[..name]);
        out.extend([1, 0, 24, 0]);
        out.extend([full, stored, place].iter().flat_map(|number| number.to_le_bytes()));
        out.extend(&rest[name..]);
        at += 46 + name + extra + comment;
    }
    let (directory_end, directory_len) = (out.len() as u64, (out.len() - start) as u64);
    out.extend(b"PK\x06\x06");
    out.extend(44u64.to_le_bytes());
    out.extend([45, 0, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    out.extend([n_records, n_records, directory_len, start as u64].iter().flat_map(|number| number.to_le_bytes()));
    out.extend(b"PK\x06\x07\0\0\0\0");
    out.extend(directory_end.to_le_bytes());
    out.extend(1u32.to_le_bytes());
    out.extend(b"PK\x05\x06\0\0\0\0");
    out.extend([0xff; 12]);
    out.extend([0, 0]);
    out
}

#[test]
fn a_zip64_directory_is_read() {
    for name in ["attention", "tied_weights"] {
        let expected = read(&bytes(name)).unwrap().graph.to_string();
        let large = with_zip64_directory(&bytes(name));
        assert_eq!(read(&large).unwrap().graph.to_string(), expected);
        // And is held to the same rules: a place beyond the file is an error.
        let mut broken = large.clone();
        let place = broken.windows(4).rposition(|bytes| bytes == [1, 0, 24, 0]).unwrap() + 4 + 16;
        broken[place + 6] = 1;
        error_of(&broken);
    }
}

#[test]
fn every_truncation_is_an_error() {
    let whole = bytes("tied_weights");
    for len in (0..whole.len()).filter(|len| len % 61 == 0 || whole.len() - len < 400) {
        assert!(read(&whole[..len]).is_err(), "the first {len} bytes were read");
    }
}

#[test]
fn no_changed_byte_panics() {
    let whole = bytes("tied_weights");
    let directory = ZipArchive::from_slice(&whole).unwrap().directory_offset() as usize;
    let mut changed = whole.clone();
    for at in (0..whole.len()).filter(|at| at % 5 == 0 || *at >= directory) {
        for byte in [0, 0xff, whole[at] ^ 1, whole[at] ^ 0x80] {
            changed[at] = byte;
            _ = read(&changed);
        }
        changed[at] = whole[at];
    }
}

/// Every value of a JSON document, by its path.
fn paths(value: &Value, here: &str, found: &mut Vec<String>) {
    found.push(here.to_owned());
    match value {
        Value::Array(items) => {
            // Neighbours in long lists are alike.
            for (index, item) in items.iter().enumerate().take(6) {
                paths(item, &format!("{here}/{index}"), found);
            }
        }
        Value::Object(fields) => {
            for (key, item) in fields {
                paths(item, &format!("{here}/{}", key.replace('~', "~0").replace('/', "~1")), found);
            }
        }
        _ => {}
    }
}

fn mutate_everything(name: &str, record: &str) {
    let original: Value =
        serde_json::from_slice(&records(&bytes(name)).iter().find(|(name, _)| name.ends_with(record)).unwrap().1)
            .unwrap();
    let mut places = Vec::new();
    paths(&original, "", &mut places);
    places.retain(|place| !place.contains("/metadata/"));
    let lies = [
        json!(null),
        json!(-1),
        json!(i64::MAX),
        json!(1e300),
        json!(""),
        json!("x"),
        json!([]),
        json!({}),
        json!({"as_int": 1i64 << 60}),
        json!({"as_tensor": {"name": "linear"}}),
    ];
    assert!(places.len() > 10, "{} places in {name}", places.len());
    for (turn, place) in places.iter().enumerate() {
        // Each place gets two of the lies; over all places every lie meets every kind of place.
        for lie in [&lies[turn % lies.len()], &lies[(turn / lies.len() + 3) % lies.len()]] {
            let archive = with_json(name, record, |json| *json.pointer_mut(place).unwrap() = lie.clone());
            _ = read(&archive);
        }
        let archive = with_json(name, record, |json| remove(json, place));
        _ = read(&archive);
    }
}

fn remove(json: &mut Value, place: &str) {
    let Some((parent, key)) = place.rsplit_once('/') else { return };
    match json.pointer_mut(parent) {
        Some(Value::Object(fields)) => _ = fields.remove(&key.replace("~1", "/").replace("~0", "~")),
        Some(Value::Array(items)) => _ = items.remove(key.parse().unwrap()),
        _ => {}
    }
}

#[test]
fn no_changed_value_of_a_small_program_panics() {
    mutate_everything("mlp", PROGRAM);
}

#[test]
fn no_changed_value_of_a_program_with_writes_panics() {
    mutate_everything("inplace", PROGRAM);
}

#[test]
fn no_changed_value_of_a_nested_program_panics() {
    mutate_everything("grad_mode", PROGRAM);
}

#[test]
fn no_changed_value_of_a_program_with_trees_panics() {
    mutate_everything("structured", PROGRAM);
}

#[test]
fn no_changed_value_of_a_weight_table_panics() {
    mutate_everything("strided_buffers", WEIGHTS);
}

fn weight_error(rewrite: impl FnOnce(&mut Value)) -> String {
    error_of(&with_json("strided_buffers", WEIGHTS, |json| rewrite(&mut json["config"]["window"])))
}

#[test]
fn a_layout_that_leaves_its_payload_is_an_error() {
    for (field, lie) in [
        ("sizes", json!([{"as_int": 1i64 << 40}, {"as_int": 1i64 << 40}])),
        ("sizes", json!([{"as_int": 2}, {"as_int": 1i64 << 60}])),
        ("strides", json!([{"as_int": i64::MAX}, {"as_int": i64::MAX}])),
        ("storage_offset", json!({"as_int": 39})),
        ("sizes", json!([{"as_int": -1}, {"as_int": 3}])),
        ("sizes", json!(vec![json!({"as_int": 1}); 65])),
        ("strides", json!([{"as_int": 1}])),
    ] {
        let error = weight_error(|entry| entry["tensor_meta"][field] = lie.clone());
        assert!(error.contains("window") || error.contains("dimensions"), "{field} {lie}: {error}");
    }
}

#[test]
fn pickled_weights_are_refused_with_what_to_do() {
    let error = weight_error(|entry| entry["use_pickle"] = json!(true));
    assert!(error.starts_with("weight `window` is pickled, and Highroad never unpickles"), "{error}");
}

#[test]
fn fake_weights_are_refused() {
    let fake = with_record("mlp", "data/weights/weight_0", |_| Vec::new());
    assert!(error_of(&fake).contains("has no data: the program was saved with fake weights"));
}

#[test]
fn booleans_other_than_0_and_1_are_refused() {
    let config = records(&bytes("strided_buffers"));
    let (_, json) = config.iter().find(|(name, _)| name.ends_with(WEIGHTS)).unwrap();
    let json: Value = serde_json::from_slice(json).unwrap();
    let record = format!("data/weights/{}", json["config"]["mask"]["path_name"].as_str().unwrap());
    let odd = with_record("strided_buffers", &record, |data| vec![2; data.len()]);
    assert_eq!(error_of(&odd), "weight `mask` is boolean and holds bytes other than 0 and 1");
}

#[test]
fn compressed_records_are_refused() {
    let error = error_of(&zipped(&records(&bytes("mlp")), CompressionMethod::DEFLATE));
    assert!(error.contains("is compressed or encrypted"), "{error}");
}

#[test]
fn a_record_that_appears_twice_is_refused() {
    let mut twice = records(&bytes("mlp"));
    twice.push(twice[0].clone());
    assert!(error_of(&zipped(&twice, CompressionMethod::STORE)).ends_with("appears twice"));
}

#[test]
fn records_that_overlap_are_refused() {
    // The second entry of the central directory points at the data of the first.
    let mut bytes = zipped(&records(&bytes("mlp")), CompressionMethod::STORE);
    let starts: Vec<usize> = (0..bytes.len() - 4).filter(|&at| bytes[at..at + 4] == *b"PK\x01\x02").collect();
    let offset: [u8; 4] = bytes[starts[0] + 42..starts[0] + 46].try_into().unwrap();
    bytes[starts[1] + 42..starts[1] + 46].copy_from_slice(&offset);
    let error = error_of(&bytes);
    assert!(error.contains("overlaps record"), "{error}");
}

#[test]
fn another_schema_is_refused_with_what_to_do() {
    let error = error_of(&with_json("mlp", PROGRAM, |json| json["schema_version"]["major"] = json!(9)));
    assert!(error.starts_with("the program has export schema 9.20 (torch 2.15"), "{error}");
    assert!(error.contains("export the model again with torch 2.9 to 2.15"), "{error}");
}

#[test]
fn a_newer_minor_schema_and_unknown_keys_are_read() {
    let newer = with_json("mlp", PROGRAM, |json| {
        json["schema_version"]["minor"] = json!(99);
        json["surprise"] = json!({"a": [1]});
        json["graph_module"]["graph"]["nodes"][0]["surprise"] = json!(1);
    });
    assert_eq!(read(&newer).unwrap().schema_version, (8, 99));
}

#[test]
fn an_argument_of_an_unknown_kind_is_an_error_with_its_name() {
    let error = error_of(&with_json("mlp", PROGRAM, |json| {
        json["graph_module"]["graph"]["nodes"][0]["inputs"][0]["arg"] = json!({"as_surprise": 1});
    }));
    assert!(error.contains("as_surprise"), "{error}");
}

#[test]
fn an_unsupported_argument_names_the_place_in_the_user_s_code() {
    let error = error_of(&with_json("mlp", PROGRAM, |json| {
        let nodes = json["graph_module"]["graph"]["nodes"].as_array_mut().unwrap();
        let linear = nodes.iter_mut().find(|node| node["target"] == "torch.ops.aten.linear.default").unwrap();
        linear["inputs"][0]["arg"] = json!({"as_complex": {"real": 0.0, "imag": 1.0}});
        linear["metadata"]["stack_trace"] = json!("  File \"/home/eve/ranker/model.py\", line 41, in forward");
    }));
    assert_eq!(error, "a complex number is not supported, at ranker/model.py:41");
}

#[test]
fn a_training_graph_is_refused() {
    let error = error_of(&with_json("mlp", PROGRAM, |json| {
        let spec = &mut json["graph_module"]["signature"]["output_specs"][0];
        *spec = json!({"loss_output": {"arg": {"name": "softmax"}}});
    }));
    assert!(error.starts_with("a training graph, with a loss or gradients among its outputs,"), "{error}");
}

#[test]
fn nested_graphs_end_at_the_limit() {
    let mut nested = json!({"inputs": [], "outputs": [], "nodes": [], "tensor_values": {}});
    for _ in 0..import::MAX_DEPTH + 2 {
        let node = json!({"target": "torch.ops.higher_order.cond", "outputs": [], "metadata": {},
            "inputs": [{"name": "", "arg": {"as_graph": {"name": "g", "graph": nested}}}]});
        nested = json!({"inputs": [], "outputs": [], "nodes": [node], "tensor_values": {}});
    }
    let error = error_of(&with_json("mlp", PROGRAM, |json| {
        let nodes = json["graph_module"]["graph"]["nodes"].as_array_mut().unwrap();
        nodes.insert(0, nested["nodes"][0].clone());
    }));
    assert!(error.contains("levels of nested graphs exceed") || error.contains("recursion limit"), "{error}");
}
