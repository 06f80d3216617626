//! Arbitrary bytes as a `.pt2` archive, as the program inside one, and as graph text.
//!
//! The first byte chooses. Whatever comes in, the reader and the passes give a result or an error; what they accept is
//! well formed, and its text parses back.
#![no_main]

use std::sync::LazyLock;

use highroad_runtime::archive::Archive;
use highroad_runtime::graph::Graph;
use highroad_runtime::passes::PassError;
use highroad_runtime::{import, passes, verify};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    match data {
        [b'{', ..] => read(&with_program(data)),
        [b'g', ..] => text(data),
        data => read(data),
    }
});

fn read(archive: &[u8]) {
    let Ok(archive) = Archive::from_bytes(archive) else { return };
    let Ok(exported) = import::exported(&archive) else { return };
    check(exported.graph);
}

fn text(data: &[u8]) {
    let Ok(graph) = std::str::from_utf8(data).unwrap_or_default().parse::<Graph>() else { return };
    if verify::verify(&graph).is_ok() {
        check(graph);
    }
}

fn check(mut graph: Graph) {
    verify::verify(&graph).expect("what is read is well formed");
    let text = graph.to_string();
    let parsed: Graph = text.parse().expect("text that is printed parses");
    assert_eq!(parsed.to_string(), text);
    if let Err(PassError::Broken { pass, fault }) = passes::canonical(&mut graph) {
        panic!("pass {pass} broke the graph: {fault}\n{text}");
    }
}

/// A real archive with `json` as its program, sizes and checksums in order.
fn with_program(json: &[u8]) -> Vec<u8> {
    static RECORDS: LazyLock<Vec<(String, Vec<u8>)>> = LazyLock::new(|| {
        let bytes = include_bytes!("../../conformance/programs/strided_buffers.pt2");
        let zip = rawzip::ZipArchive::from_slice(bytes).expect("a committed program is an archive");
        let record = |entry: Result<rawzip::ZipFileHeaderRecord<'_>, rawzip::Error>| {
            let entry = entry.ok()?;
            let data = zip.get_entry(entry.wayfinder()).ok()?.data().to_vec();
            Some((String::from_utf8(entry.file_path().as_bytes().to_vec()).ok()?, data))
        };
        zip.entries().filter_map(record).collect()
    });
    let mut zip = rawzip::ZipArchiveWriter::new(Vec::new());
    for (name, data) in RECORDS.iter() {
        let data = if name.ends_with("models/model.json") { json } else { data };
        let (mut entry, config) = zip.new_file(name.as_str()).start().expect("writing to memory");
        let mut writer = config.wrap(&mut entry);
        std::io::Write::write_all(&mut writer, data).expect("writing to memory");
        let (_, descriptor) = writer.finish().expect("writing to memory");
        entry.finish(descriptor).expect("writing to memory");
    }
    zip.finish().expect("writing to memory")
}
