//! `highroad push`, `promote` and `rollback` as a shell sees them, over the tracking server each command starts itself.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use highroad_package::Package;
use highroad_package::registry::RegistryClient;
use serde_json::{Value, json};

struct Shell {
    home: tempfile::TempDir,
}

impl Shell {
    fn run(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_highroad"))
            .args(args)
            .current_dir(self.home.path())
            .env("HIGHROAD_HOME", self.home.path().join("state"))
            .env_remove("HIGHROAD_TRACKING_URI")
            .env_remove("MLFLOW_TRACKING_URI")
            .output()
            .unwrap()
    }

    /// stdout of a command that must succeed.
    fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    fn pack(&self, name: &str) -> PathBuf {
        let source = format!("{}/../../conformance/packages/{name}", env!("CARGO_MANIFEST_DIR"));
        let out = self.home.path().join(name);
        self.ok(&["pack", &source, "-o", out.to_str().unwrap()]);
        out
    }

    fn verdict(&self, package: &Path, outcome: &str) -> PathBuf {
        let digest = Package::open(package).unwrap().digest().to_string();
        let verdict = json!({
            "highroad_verdict": 1, "outcome": outcome, "package": digest,
            "baseline": { "kind": "trivial", "name": "majority" },
            "golden_set": { "name": "cases", "digest": digest, "n_cases": 3 },
            "gates": digest, "numerics_id": "highroad-1/portable/f32", "evidence": "bit-exact", "answers": digest,
            "checks": [{ "rule": "accuracy at least 0.9", "outcome": outcome, "n_cases": 3, "candidate": 0.95,
                         "reason": "it is" }],
            "flips": [], "created_at": "2026-11-22T00:00:00Z", "created_by": "ann",
        });
        let path = self.home.path().join(format!("{outcome}-{}.json", &digest[7..15]));
        std::fs::write(&path, verdict.to_string()).unwrap();
        path
    }
}

/// `highroad track` over the shell's state, until it is dropped.
struct Server {
    process: Child,
    url: String,
}

impl Shell {
    fn track(&self) -> Server {
        let mut process = Command::new(env!("CARGO_BIN_EXE_highroad"))
            .args(["track", "--listen", "127.0.0.1:0"])
            .env("HIGHROAD_HOME", self.home.path().join("state"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut url = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut url).unwrap();
        Server { process, url: url.trim_end().to_owned() }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

#[test]
fn a_package_goes_to_production_and_back_on_its_verdict() {
    let shell = Shell { home: tempfile::tempdir().unwrap() };
    let (a, b) = (shell.pack("classify-a"), shell.pack("classify-b"));
    let (a_path, b_path) = (a.to_str().unwrap(), b.to_str().unwrap());

    assert_eq!(shell.ok(&["push", a_path, "moderation"]), "moderation:1");
    let refused = shell.run(&["promote", "moderation", "1"]);
    let message = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.status.code() == Some(1) && message.contains("no verdict"), "{message}");

    // One package is one version: pushing again brings its verdict.
    let fail = shell.verdict(&a, "fail");
    assert_eq!(shell.ok(&["push", a_path, "moderation", "--verdict", fail.to_str().unwrap()]), "moderation:1");
    assert_eq!(shell.run(&["promote", "moderation", "1"]).status.code(), Some(1));
    let pass = shell.verdict(&a, "pass");
    shell.ok(&["push", a_path, "moderation", "--verdict", pass.to_str().unwrap()]);
    let first: Value =
        serde_json::from_str(&shell.ok(&["promote", "moderation", "1", "--by", "ann", "--why", "first", "--json"]))
            .unwrap();
    assert_eq!((&first["from"], &first["to"], &first["by"]), (&Value::Null, &json!(1), &json!("ann")));
    assert_eq!((&first["rehearsal"]["kind"], &first["rehearsal"]["passed"]), (&json!("undeploy"), &json!(true)));
    assert!(first["rehearsal"]["parity"]["n_cases"].as_u64().unwrap() > 0, "{first}");

    let pass = shell.verdict(&b, "pass");
    assert_eq!(shell.ok(&["push", b_path, "moderation", "--verdict", pass.to_str().unwrap()]), "moderation:2");
    let second: Value = serde_json::from_str(&shell.ok(&["promote", "moderation", "2", "--json"])).unwrap();
    assert_eq!((&second["rehearsal"]["kind"], &second["rehearsal"]["version"]), (&json!("previous"), &json!(1)));

    assert_eq!(shell.ok(&["rollback", "moderation", "--why", "worse"]), "moderation@champion -> moderation:1");
    let server = shell.track();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let client = RegistryClient::new(&server.url).unwrap();
    let (names, admitted) = runtime.block_on(async {
        let version = client.resolve(&"moderation@champion".parse().unwrap()).await.unwrap();
        (client.models_with("champion").await.unwrap(), client.promoted(&version, "champion").await.unwrap())
    });
    let admitted = admitted.map(|moved| moved.at);
    // The rollback is not what admitted it.
    let first_at = jiff::Timestamp::from_millisecond(first["at"].as_i64().unwrap()).unwrap();
    assert_eq!((names, admitted), (vec!["moderation".to_owned()], Some(first_at.as_millisecond())));
    drop(server);

    assert_eq!(shell.ok(&["rollback", "moderation"]), "moderation@champion -> none");
    assert_eq!(shell.run(&["rollback", "moderation"]).status.code(), Some(2));
}

#[test]
fn an_override_is_explicit_recorded_and_cannot_reach_tampered_or_unsigned_bytes() {
    let shell = Shell { home: tempfile::tempdir().unwrap() };
    let package = shell.pack("classify-a");
    let fail = shell.verdict(&package, "fail");
    let path = package.to_str().unwrap();
    shell.ok(&["push", path, "moderation", "--verdict", fail.to_str().unwrap()]);
    let refused = |args: &[&str], code: i32, reason: &str| {
        let output = shell.run(args);
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(code) && message.contains(reason), "{args:?}: {message}");
    };
    let promote = ["promote", "moderation", "1"];
    let named = ["--override", "--by", "ann", "--why", "an outage"];
    let with = |more: &[&'static str]| [&promote[..], &named[..], more].concat();
    refused(&[&promote[..], &["--override", "--expires", "7d"]].concat(), 2, "--why");
    refused(&with(&[]), 2, "--expires");
    refused(&with(&["--expires", "31d"]), 2, "expected 1 to 30 days");
    refused(&[&promote[..], &["--expires", "7d"]].concat(), 2, "--override");

    let moved: Value = serde_json::from_str(&shell.ok(&with(&["--expires", "7d", "--json"]))).unwrap();
    assert_eq!((&moved["action"], &moved["to"]), (&json!("override"), &json!(1)), "{moved}");
    let given = &moved["override"];
    assert_eq!((&given["alias"], &given["missing"]["outcome"]), (&json!("champion"), &json!("fail")), "{given}");
    assert!(given["missing"]["verdict"].as_str().unwrap().starts_with("sha256:"), "{given}");
    let table = shell.ok(&["audit", "moderation"]);
    assert!(table.contains("override") && table.contains("an outage"), "{table}");
    let report: Value = serde_json::from_str(&shell.ok(&["standard", "report", "--json"])).unwrap();
    let rules = report["models"][0]["broken"].as_array().unwrap();
    let told = rules.iter().find(|broken| broken["rule"] == "override").unwrap();
    assert!(told["level"] == "warning" && told["found"].as_str().unwrap().contains("ann overrode"), "{told}");
    assert!(!rules.iter().any(|broken| broken["rule"] == "verdict"), "{rules:?}");

    let pass = shell.verdict(&package, "pass");
    shell.ok(&["push", path, "moderation", "--verdict", pass.to_str().unwrap()]);
    refused(&with(&["--expires", "7d"]), 2, "nothing to override");
    shell.ok(&["push", path, "moderation", "--verdict", fail.to_str().unwrap()]);
    let unsigned = Command::new(env!("CARGO_BIN_EXE_highroad"))
        .args(with(&["--expires", "7d"]))
        .current_dir(shell.home.path())
        .env("HIGHROAD_HOME", shell.home.path().join("state"))
        .env("HIGHROAD_REQUIRE_SIGNATURE", "1")
        .output()
        .unwrap();
    let message = String::from_utf8(unsigned.stderr).unwrap();
    assert!(unsigned.status.code() == Some(2) && message.contains("sign"), "{message}");
}

#[test]
fn a_reference_brings_back_the_bytes_that_were_pushed() {
    let shell = Shell { home: tempfile::tempdir().unwrap() };
    let package = shell.pack("classify-a");
    shell.ok(&["push", package.to_str().unwrap(), "moderation"]);
    // Into a second name, from the registry and not from the directory.
    std::fs::remove_dir_all(&package).unwrap();
    assert_eq!(shell.ok(&["push", "moderation:1", "copy"]), "copy:1");
    let artifacts = shell.home.path().join("state/artifacts/highroad/packages");
    let [folder] = std::fs::read_dir(&artifacts).unwrap().collect::<Vec<_>>().try_into().unwrap();
    // One changed byte in the registry's own files is noticed by whoever fetches.
    let store = shell.home.path().join("state/store");
    let program = folder.unwrap().path().join("program.pt2");
    let mut bytes = std::fs::read(&program).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&program, bytes).unwrap();
    for entry in std::fs::read_dir(&store).unwrap() {
        make_writable(&entry.as_ref().unwrap().path());
        std::fs::remove_dir_all(entry.unwrap().path()).unwrap();
    }
    let output = shell.run(&["push", "moderation:1", "again"]);
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(2) && message.contains("program.pt2"), "{message}");
}

fn make_writable(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}
