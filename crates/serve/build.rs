//! Compiles `proto/` without `protoc`, and takes the page that `/docs` shows out of its crate.

use std::error::Error;
use std::path::Path;
use std::{env, fs};

use rawzip::{CompressionMethod, ZipArchive};
use utoipa_swagger_ui_vendored::SWAGGER_UI_VENDORED;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=proto");
    let files = protox::compile(["proto/open_inference.proto"], ["proto"])?;
    tonic_prost_build::configure().build_client(false).build_transport(false).compile_fds(files)?;
    let out = env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?;
    for name in ["swagger-ui-bundle.js", "swagger-ui.css"] {
        fs::write(Path::new(&out).join(format!("{name}.gz")), gzip_of(name)?)?;
    }
    Ok(())
}

/// A file of Swagger UI in gzip's format: the archive holds it deflated already, only head and tail are others.
fn gzip_of(name: &str) -> Result<Vec<u8>, Box<dyn Error>> {
    let archive = ZipArchive::from_slice(SWAGGER_UI_VENDORED)?;
    let mut entries = archive.entries();
    let suffix = format!("/dist/{name}");
    while let Some(entry) = entries.next_entry()? {
        let path = entry.file_path();
        // One folder, named after the version, and in it `dist`.
        let is_wanted = path.as_ref().ends_with(suffix.as_bytes())
            && path.as_ref().iter().filter(|&&byte| byte == b'/').count() == 2;
        if !is_wanted || entry.compression_method() != CompressionMethod::DEFLATE {
            continue;
        }
        let size = u32::try_from(entry.uncompressed_size_hint())?;
        let data = archive.get_entry(entry.wayfinder())?;
        let mut gzip = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
        gzip.extend(data.data());
        gzip.extend(entry.crc32().to_le_bytes());
        gzip.extend(size.to_le_bytes());
        return Ok(gzip);
    }
    Err(format!("Swagger UI has no deflated `{name}`").into())
}
