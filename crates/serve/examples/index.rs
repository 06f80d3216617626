//! Builds an index over given vectors and searches it, for `benches/index.py`: `index FOLDER DIMENSIONS exact|RECALL TOP`, where FOLDER
//! holds `vectors.f32` and `queries.f32`. Prints JSON: what was found, milliseconds of each search, seconds to build, peak memory.

use std::io::Write as _;
use std::path::Path;
use std::time::Instant;

use highroad_package::Digest;
use highroad_serve::index::{Builder, Document, Embedder, Index, Wanted};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, dimensions, recall, top] = arguments.as_slice() else {
        return Err("FOLDER DIMENSIONS RECALL TOP".into());
    };
    let (folder, dimensions, top) = (Path::new(folder), dimensions.parse::<usize>()?, top.parse::<usize>()?);
    let n_threads = std::thread::available_parallelism()?.get();
    let wanted = match recall.as_str() {
        "exact" => None,
        recall => Some(Wanted { recall: recall.parse()?, n_threads }),
    };
    let built = folder.join(format!("index-{recall}"));
    let embedder = Embedder { package: Digest::of(b"bench"), name: "bench".to_owned(), numerics_id: String::new() };
    let begun = Instant::now();
    let mut builder = Builder::new(&built, embedder, dimensions)?.approximate(wanted);
    for (idx, vector) in read(&folder.join("vectors.f32"), dimensions)?.iter().enumerate() {
        builder.add(&Document::parse("{\"text\": \"-\"}", idx + 1)?, vector)?;
    }
    builder.finish()?;
    let build_s = begun.elapsed().as_secs_f64();
    let index = Index::open(&built)?;
    let (mut found, mut ms) = (Vec::new(), Vec::new());
    for query in read(&folder.join("queries.f32"), dimensions)? {
        let begun = Instant::now();
        let nearest = index.find(&query, top)?;
        ms.push(begun.elapsed().as_secs_f64() * 1e3);
        // Documents are called after their lines.
        let lines = nearest.iter().map(|nearest| nearest.document.id.parse::<usize>());
        found.push(lines.map(|line| Ok(line? - 1)).collect::<Result<Vec<_>, std::num::ParseIntError>>()?);
    }
    let told = serde_json::json!({
        "found": found, "ms": ms, "build_s": build_s, "peak_rss_bytes": peak_rss_bytes()?,
        "approximate": index.description().approximate,
    });
    writeln!(std::io::stdout(), "{told}")?;
    Ok(())
}

fn read(path: &Path, dimensions: usize) -> std::io::Result<Vec<Vec<f32>>> {
    let bytes = std::fs::read(path)?;
    let values: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    Ok(values.chunks_exact(dimensions).map(<[f32]>::to_vec).collect())
}

/// Of this process, as Linux tells it.
fn peak_rss_bytes() -> std::io::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    Ok(line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()).unwrap_or(0) * 1024)
}
