//! Embeds the built dashboard. Rust builds without Node: where `dashboard/dist` is empty, a page that says so is embedded.
//!
//! Also tells cargo that a new file under `migrations/` changes the library, which reads that folder as it is compiled.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

use flate2::{Compression, Crc, write::GzEncoder};

fn main() -> io::Result<()> {
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let dist = here.join("../../dashboard/dist");
    println!("cargo::rerun-if-changed={}", dist.display());
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=migrations");

    let mut files = Vec::new();
    walk(&dist, "", &mut files)?;
    files.sort();
    if !files.iter().any(|(path, _)| path == "index.html") {
        let absent = here.join("src/dashboard/absent.html");
        println!("cargo::rerun-if-changed={}", absent.display());
        files = vec![("index.html".to_owned(), absent)];
    }
    let mut source = String::from("static ASSETS: &[Asset] = &[\n");
    for (n, (path, file)) in files.iter().enumerate() {
        let entry = embed(path, &fs::canonicalize(file)?, &out.join(format!("asset{n}.gz")))?;
        source.push_str(&entry);
    }
    let index = files.iter().position(|(path, _)| path == "index.html").expect("there is one or it was put there");
    writeln!(source, "];\nconst INDEX: usize = {index};").expect("a string takes all");
    fs::write(out.join("assets.rs"), source)
}

fn walk(folder: &Path, prefix: &str, files: &mut Vec<(String, PathBuf)>) -> io::Result<()> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().into_string().map_err(|name| io::Error::other(format!("{name:?} is no text")))?;
        match entry.path() {
            _ if name.starts_with('.') => {}
            path if path.is_dir() => walk(&path, &format!("{prefix}{name}/"), files)?,
            path => files.push((format!("{prefix}{name}"), path)),
        }
    }
    Ok(())
}

/// One entry of the table, with its compressed copy written to `gz` where that is smaller.
fn embed(path: &str, file: &Path, gz: &Path) -> io::Result<String> {
    let bytes = fs::read(file)?;
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(&bytes)?;
    let packed = encoder.finish()?;
    let gzip = if packed.len() < bytes.len() {
        fs::write(gz, &packed)?;
        format!("Some(include_bytes!({gz:?}))")
    } else {
        "None".to_owned()
    };
    let mut crc = Crc::new();
    crc.update(&bytes);
    let tag = format!("\"{:08x}-{}\"", crc.sum(), bytes.len());
    let content_type = content_type(path);
    Ok(format!(
        "Asset {{ path: {path:?}, content_type: {content_type:?}, tag: {tag:?}, plain: include_bytes!({file:?}), gzip: {gzip} }},\n"
    ))
}

fn content_type(path: &str) -> &'static str {
    match path.rsplit_once('.').map(|(_, ending)| ending) {
        Some("html") => "text/html; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        Some("woff2") => "font/woff2",
        _ => "application/octet-stream",
    }
}
