use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use reqwest::Method;
use serde_json::{Value, json};

use super::server;
use crate::commands::eval::print_json;

/// Give a server the right answers to requests that it answered earlier; giving them again changes nothing.
#[derive(clap::Args)]
pub struct Args {
    /// JSONL, `-` for stdin: `{"request_id": "…", "label": "…"}`, with `input` where a request had several, or `relevant` with the numbers of
    /// the documents of a rerank request; `"replace": true` corrects one that was given before.
    #[arg(long, value_name = "FILE")]
    file: PathBuf,
    /// The server that answered; a key in `$HIGHROAD_API_KEY` is sent along.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
    server: String,
    /// Exit code 1 if any was unknown, invalid or contradicts one that was given before.
    #[arg(long)]
    strict: bool,
    /// Print every outcome as JSON.
    #[arg(long)]
    json: bool,
}

/// How many are sent at a time, and the longest line.
const AT_ONCE: usize = 1000;
const MAX_LINE_BYTES: u64 = 1 << 16;
/// Outcomes that leave nothing to do.
const FINE: [&str; 3] = ["counted", "duplicate", "replaced"];

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let labels = read(&self.file)?;
        let mut results: Vec<Value> = Vec::with_capacity(labels.len());
        for chunk in labels.chunks(AT_ONCE) {
            let mut reply = server::ask(&self.server, Method::POST, &["labels"], Some(&json!({ "labels": chunk })))?;
            match reply["results"].take() {
                Value::Array(of_chunk) => results.extend(of_chunk),
                _ => bail!("`{}` does not answer as `highroad serve` does", self.server),
            }
        }
        let mut outcomes: BTreeMap<String, usize> = BTreeMap::new();
        for result in &results {
            *outcomes.entry(result["outcome"].as_str().unwrap_or("unknown").to_owned()).or_default() += 1;
        }
        if self.json {
            print_json(&json!({ "outcomes": outcomes, "results": results }))?;
        } else {
            outcomes.iter().for_each(|(outcome, n)| crate::outln!("{n:>8}  {outcome}"));
        }
        let all_fine = outcomes.keys().all(|outcome| FINE.contains(&outcome.as_str()));
        Ok(if self.strict && !all_fine { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

fn read(path: &Path) -> anyhow::Result<Vec<Value>> {
    let source: Box<dyn Read> = match path.to_str() {
        Some("-") => Box::new(std::io::stdin()),
        _ => Box::new(std::fs::File::open(path).with_context(|| format!("cannot read `{}`", path.display()))?),
    };
    let mut reader = BufReader::new(source);
    let (mut labels, mut line) = (Vec::new(), Vec::new());
    for number in 1.. {
        line.clear();
        if reader.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let place = || format!("{}:{number}: expected `request_id` and `label` or `relevant`", path.display());
        let label: Value = serde_json::from_slice(&line).with_context(place)?;
        if !label["request_id"].is_string() {
            bail!("{}", place());
        }
        labels.push(label);
    }
    Ok(labels)
}
