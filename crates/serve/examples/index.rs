//! Builds an index over given vectors and searches it, for `benches/index.py`: `index FOLDER DIMENSIONS HOW TOP`, where FOLDER holds
//! `vectors.f32` and `queries.f32`, and HOW is `exact`, a recall, or `lance:KIND:RECALL` for a table of LanceDB in the folder. Prints JSON:
//! what was found, milliseconds of each search, seconds to build, peak memory of this process and of those that it started.

use std::error::Error;
use std::io::Write as _;
use std::num::ParseFloatError;
use std::path::Path;
use std::time::Instant;

use highroad_package::Digest;
use highroad_serve::index::lance::{AnnKind, LanceBuilder, LanceConfig, Plan, Survey};
use highroad_serve::index::{Builder, Document, Embedder, Index, IndexError, Wanted};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, dimensions, how, top] = arguments.as_slice() else {
        return Err("FOLDER DIMENSIONS HOW TOP".into());
    };
    let (folder, dimensions, top) = (Path::new(folder), dimensions.parse::<usize>()?, top.parse::<usize>()?);
    let built = folder.join(format!("index-{}", how.replace(':', "-")));
    let vectors = read(&folder.join("vectors.f32"), dimensions)?;
    let begun = Instant::now();
    match how.strip_prefix("lance:") {
        None => in_memory(&built, &vectors, how)?,
        Some(how) => in_lance(&built, &vectors, how)?,
    }
    let build_s = begun.elapsed().as_secs_f64();
    drop(vectors);
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
        "found": found, "ms": ms, "build_s": build_s, "peak_rss_bytes": peak_rss_bytes("self")? + children_bytes(),
        "description": index.description(),
    });
    writeln!(std::io::stdout(), "{told}")?;
    Ok(())
}

fn embedder() -> Embedder {
    Embedder { package: Digest::of(b"bench"), name: "bench".to_owned(), numerics_id: String::new(), prompt: None }
}

fn n_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Measured on documents: the queries are kept for the measurement that is told.
fn wanted(recall: &str) -> Result<Wanted, ParseFloatError> {
    Ok(Wanted { recall: recall.parse()?, queries: Vec::new(), n_threads: n_threads() })
}

fn document(idx: usize) -> Result<Document, IndexError> {
    Document::parse("{\"text\": \"-\"}", idx + 1)
}

fn in_memory(built: &Path, vectors: &[Vec<f32>], how: &str) -> Result<(), Box<dyn Error>> {
    let wanted = match how {
        "exact" => None,
        recall => Some(wanted(recall)?),
    };
    let mut builder = Builder::new(built, embedder(), vectors[0].len())?.approximate(wanted);
    for (idx, vector) in vectors.iter().enumerate() {
        builder.add(&document(idx)?, vector)?;
    }
    builder.finish(&|_| ())?;
    Ok(())
}

fn in_lance(built: &Path, vectors: &[Vec<f32>], how: &str) -> Result<(), Box<dyn Error>> {
    let ann = match how.split_once(':') {
        None => None,
        Some((kind, recall)) => {
            let kind = AnnKind::ALL.into_iter().find(|known| known.as_str() == kind).ok_or("no such kind")?;
            Some((kind, wanted(recall)?))
        }
    };
    let mut survey = Survey::new()?;
    for idx in 0..vectors.len() {
        survey.add(&document(idx)?)?;
    }
    let mut builder = LanceBuilder::begin(Plan {
        target: built.to_owned(),
        uri: None,
        embedder: embedder(),
        dimensions: vectors[0].len(),
        surveyed: survey.finish()?,
        ann,
        n_threads: n_threads(),
        config: LanceConfig::default(),
    })?;
    for (idx, vector) in vectors.iter().enumerate() {
        builder.add(&document(idx)?, vector)?;
    }
    builder.finish(&mut |_, _| ())?;
    Ok(())
}

fn read(path: &Path, dimensions: usize) -> std::io::Result<Vec<Vec<f32>>> {
    let bytes = std::fs::read(path)?;
    let values: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    Ok(values.chunks_exact(dimensions).map(<[f32]>::to_vec).collect())
}

/// Of a process, as Linux tells it.
fn peak_rss_bytes(pid: &str) -> std::io::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    Ok(line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()).unwrap_or(0) * 1024)
}

/// Of those that any thread of this process has started.
fn children_bytes() -> u64 {
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let children = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    let pids: Vec<String> = children.flat_map(|pids| pids.split(' ').map(str::to_owned).collect::<Vec<_>>()).collect();
    pids.iter().filter_map(|pid| peak_rss_bytes(pid).ok()).sum()
}
