//! The reader on real programs: those of `conformance/programs`, as `torch.export.save` wrote them.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use highroad_runtime::LoadError;
use highroad_runtime::archive::Archive;
use highroad_runtime::graph::{Argument, Graph, Source};
use highroad_runtime::import::{self, Exported, Leaf};
use highroad_runtime::passes;
use highroad_tensor::DType;

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../conformance/programs").join(format!("{name}.pt2"))
}

fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(path(name)).unwrap()
}

fn load(name: &str) -> (Archive, Exported) {
    let archive = Archive::open(&path(name)).unwrap();
    let exported = import::exported(&archive).unwrap();
    (archive, exported)
}

#[test]
fn every_program_is_read_and_its_text_parses_back() {
    for entry in path("mlp").parent().unwrap().read_dir().unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "pt2") {
            let archive = Archive::open(&path).unwrap();
            archive.check_all().unwrap();
            let exported = import::exported(&archive).unwrap_or_else(|error| panic!("{path:?}: {error}"));
            let text = exported.graph.to_string();
            let parsed: Graph = text.parse().unwrap_or_else(|error| panic!("{path:?}: {error}\n{text}"));
            assert_eq!(parsed.to_string(), text);
            assert_eq!(exported.schema_version.0, import::SCHEMA_MAJOR);
        }
    }
}

#[test]
fn every_program_becomes_functional() {
    for entry in path("mlp").parent().unwrap().read_dir().unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "pt2") {
            let mut graph = import::exported(&Archive::open(&path).unwrap()).unwrap().graph;
            passes::canonical(&mut graph).unwrap_or_else(|error| panic!("{path:?}: {error}"));
            for node in &graph.nodes {
                let name = node.op.split('.').nth(1).unwrap();
                assert!(!name.ends_with('_') && !node.op.starts_with("higher_order"), "{path:?}: {}", node.op);
                assert!(!name.contains("dropout") && !name.starts_with("_assert"), "{path:?}: {}", node.op);
            }
        }
    }
}

#[test]
fn tied_weights_share_their_bytes_with_the_file() {
    let (archive, _) = load("tied_weights");
    let names: Vec<&str> = archive.weight_names().collect();
    assert_eq!(names, ["embed.weight", "head.weight"]);
    let [embed, head] = [archive.weight("embed.weight").unwrap(), archive.weight("head.weight").unwrap()];
    assert_eq!(embed.as_slice::<f32>().unwrap().as_ptr(), head.as_slice::<f32>().unwrap().as_ptr());
}

#[test]
fn buffers_keep_their_strides_and_offsets() {
    let (archive, exported) = load("strided_buffers");
    let window = archive.weight("window").unwrap();
    assert_eq!((window.shape(), window.strides(), window.offset()), (&[2, 3][..], &[8, 1][..], 10));
    assert_eq!(window.elements::<f32>().unwrap()[10..13], [10.0, 11.0, 12.0]);
    assert_eq!(archive.weight("turned").unwrap().strides(), [1, 3]);
    assert_eq!(archive.weight("mask").unwrap().as_slice::<u8>().unwrap(), [1, 0, 1]);
    assert_eq!(archive.weight("weight_f16").unwrap().dtype(), DType::F16);
    assert!(exported.graph.weights.0.contains_key("scratch"), "a buffer that is not persistent lies in the constants");
    assert!(exported.graph.weights.0.contains_key("offset"), "so does a tensor constant");
}

#[test]
fn constant_arguments_are_paired_by_position() {
    let (_, exported) = load("structured");
    let names = exported.interface.in_spec.leaf_names();
    assert_eq!(names, ["0.0.left", "0.0.right", "0.1.a.0", "0.1.b", "0.2", "1.extra.bias"]);
    let given = |position| Leaf::Given { position };
    let leaves = [given(0), given(1), given(2), given(3), Leaf::Constant(Argument::Int(3)), given(4)];
    assert_eq!(exported.interface.leaves, leaves);
    let outputs = exported.interface.out_spec.leaf_names();
    assert_eq!(outputs, ["pair.left", "pair.right", "list.0", "list.1.0", "none"]);
    assert_eq!(exported.interface.results.last(), Some(&Leaf::Constant(Argument::None)));
    assert_eq!(exported.graph.outputs.len(), 4, "what is always None is no output");
}

#[test]
fn a_node_knows_where_the_user_called_it() {
    let (_, exported) = load("attention");
    let sdpa = exported.graph.nodes.iter().find(|node| node.op.contains("dot_product")).unwrap();
    assert!(sdpa.location.as_ref().unwrap().starts_with("conformance/make_programs.py:"), "{:?}", sdpa.location);
}

#[test]
fn torch_s_lower_bound_of_two_is_no_bound() {
    let (_, exported) = load("attention");
    assert!(exported.ranges.values().all(|range| range.min.is_none()), "{:?}", exported.ranges);
    assert!(exported.ranges.values().any(|range| range.max == Some(16)));
}

#[test]
fn weights_are_bound_by_name() {
    let (_, exported) = load("mlp");
    let weights = exported.graph.inputs.iter().filter(|input| matches!(input.source, Source::Weight(_))).count();
    assert_eq!((weights, exported.graph.inputs.len()), (4, 5));
    assert_eq!(exported.graph.weights.0["0.weight"].shape(), [8, 6]);
}

fn error_of(bytes: &[u8]) -> String {
    match Archive::from_bytes(bytes).and_then(|archive| import::exported(&archive)) {
        Ok(_) => panic!("the archive was read"),
        Err(error) => error.to_string(),
    }
}

/// The archive with `from` replaced by `to` (of the same length) wherever it occurs.
fn replaced(name: &str, from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut bytes = bytes(name);
    let places: Vec<usize> =
        (0..bytes.len() - from.len()).filter(|&at| bytes[at..].starts_with(from.as_bytes())).collect();
    assert!(!places.is_empty(), "{from} does not occur");
    for at in places {
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    }
    bytes
}

#[test]
fn other_files_are_told_apart() {
    assert!(error_of(b"").contains("an empty file"));
    assert!(error_of(b"\x80\x02}q").contains("a pickle"));
    assert!(error_of(b"0000ET12").contains("an ExecuTorch program"));
    assert!(error_of(b"hello").contains("not a zip archive"));
    let old = replaced("mlp", "data/weights/weight_0", "data/weights/model.pt");
    assert!(error_of(&old).contains("saved by torch 2.8"), "{}", error_of(&old));
    let aoti = replaced("mlp", "models/model.json", "data/aotinductor/");
    assert!(error_of(&aoti).contains("AOTInductor"), "{}", error_of(&aoti));
}

#[test]
fn a_changed_byte_of_json_is_found_by_its_checksum() {
    let error = error_of(&replaced("mlp", "aten.linear.default", "aten.linear.defauld"));
    assert_eq!(error, "record `models/model.json` does not match its checksum: the file is damaged");
}

#[test]
fn a_changed_byte_of_a_weight_is_found_by_the_full_check() {
    let mut bytes = bytes("mlp");
    let at = bytes.windows(4).position(|window| window == b"ZZZZ").unwrap();
    let data = at + bytes[at..].iter().position(|&byte| byte != b'Z').unwrap();
    bytes[data] ^= 1;
    let archive = Archive::from_bytes(&bytes).unwrap();
    assert!(matches!(archive.check_all(), Err(LoadError::Record { .. })));
}

#[test]
fn a_program_survives_a_rename_of_its_root_folder_and_bytes_in_front() {
    let renamed = Archive::from_bytes(&replaced("mlp", "mlp/", "abc/")).unwrap();
    import::exported(&renamed).unwrap();
}
