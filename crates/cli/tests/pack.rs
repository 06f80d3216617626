//! `highroad pack` as a shell sees it.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../conformance/packages/classify-a");

fn pack(args: &[&str], out: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_highroad")).arg("pack").args(args).arg("-o").arg(out).output().unwrap()
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

#[test]
fn the_digest_is_all_that_goes_to_stdout() {
    let dir = tempfile::tempdir().unwrap();
    let first = pack(&[SOURCE], &dir.path().join("a"));
    assert!(first.status.success(), "{first:?}");
    assert!(stdout(&first).trim_end().parse::<highroad_package::Digest>().is_ok(), "{first:?}");
    let second = pack(&[SOURCE], &dir.path().join("b"));
    assert_eq!(stdout(&first), stdout(&second));
}

#[test]
fn json_has_digest_and_manifest() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("a");
    let json: serde_json::Value = serde_json::from_str(stdout(&pack(&[SOURCE, "--json"], &out))).unwrap();
    assert_eq!(json["manifest"]["name"], "tiny-classify-a");
    assert_eq!(json["digest"], highroad_package::Package::open(&out).unwrap().digest().to_string());
}

#[test]
fn a_directory_that_is_no_source_exits_with_2_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let output = pack(&[dir.path().to_str().unwrap()], &dir.path().join("out"));
    assert_eq!((output.status.code(), stdout(&output)), (Some(2), ""));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.starts_with("error: `package.toml`: is missing"), "{message}");
}
