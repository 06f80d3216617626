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
fn one_file_is_taken_wherever_a_package_is_and_its_signature_lies_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("one file.tar");
    let packed = pack(&[SOURCE], &file);
    assert!(packed.status.success(), "{packed:?}");
    let digest = stdout(&packed).trim_end().to_owned();
    let run = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_highroad"));
        let output = command.args(args).current_dir(dir.path()).env_remove("HIGHROAD_HOME").output().unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
        output
    };
    let inspected: serde_json::Value =
        serde_json::from_slice(&run(&["inspect", "one file.tar", "--json"]).stdout).unwrap();
    assert_eq!(inspected["package"]["digest"], digest);
    let verified: serde_json::Value =
        serde_json::from_slice(&run(&["verify", "one file.tar", "--json"]).stdout).unwrap();
    assert_eq!(verified["passed"], true);

    run(&["keys", "generate", "ours.key"]);
    let signed = run(&["sign", "one file.tar", "--key", "ours.key"]);
    assert!(String::from_utf8_lossy(&signed.stderr).contains("one file.tar.sig"), "{signed:?}");
    assert!(dir.path().join("one file.tar.sig").is_file());
    // On another machine, of which the home knows nothing.
    std::fs::remove_dir_all(dir.path().join(".highroad")).unwrap();
    run(&["keys", "verify", "one file.tar", "--key", "ours.key.pub"]);
    let broken = dir.path().join("broken.tar");
    std::fs::write(&broken, &std::fs::read(&file).unwrap()[..2048]).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_highroad"));
    let output = command.args(["verify", "broken.tar"]).current_dir(dir.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("`broken.tar` is no intact package"), "{output:?}");
}

#[test]
fn a_directory_that_is_no_source_exits_with_2_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let output = pack(&[dir.path().to_str().unwrap()], &dir.path().join("out"));
    assert_eq!((output.status.code(), stdout(&output)), (Some(2), ""));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.starts_with("error: `package.toml`: is missing"), "{message}");
}
