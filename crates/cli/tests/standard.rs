//! `highroad standard` as a shell sees it, over real git repositories.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use highroad_package::Digest;
use serde_json::Value;

const ORGANISATION: &str = "locked = [\"environment.torch\"]\n[environment]\ntorch = \">=2.9\"\npython = \">=3.11\"\n\
    [packaging]\nmax_tokens = 128\n";
const OWN: &str = "[model]\nname = \"m\"\nkind = \"classifier\"\nowner = \"o\"\nlicence = \"MIT\"\n[training]\nseed = 1\n\
    [evaluation]\ngolden = \"g\"\n[environment]\npython = \">=3.12\"\n";

/// A folder with the organisation's repository `org` and a model repo `model` that extends its `standard.toml`.
struct Desk(tempfile::TempDir);

impl Desk {
    fn new() -> Self {
        let desk = Self(tempfile::tempdir().unwrap());
        for name in ["org", "model"] {
            std::fs::create_dir(desk.path(name)).unwrap();
        }
        desk.git(&["init", "--quiet", "--initial-branch=main"]);
        desk.publish(ORGANISATION);
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn git(&self, args: &[&str]) -> String {
        let identity = ["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false"];
        let mut command = Command::new("git");
        let output = command.args(identity).args(args).current_dir(self.path("org")).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn publish(&self, text: &str) {
        std::fs::write(self.path("org/standard.toml"), text).unwrap();
        self.git(&["add", "-A"]);
        self.git(&["commit", "--quiet", "--message", "standard"]);
    }

    fn extend(&self, pins: &str) {
        let url = format!("file://{}", self.path("org").display());
        let text = format!("# kept\nextends = {{ git = \"{url}\", path = \"standard.toml\"{pins} }}\n{OWN}");
        std::fs::write(self.path("model/highroad.toml"), text).unwrap();
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_highroad"));
        command.args(args).current_dir(self.path("model")).env("HIGHROAD_CACHE", self.path("cache")).output().unwrap()
    }

    fn json(&self, args: &[&str], code: i32) -> Value {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn a_standard_is_pinned_shown_watched_and_pinned_anew() {
    let desk = Desk::new();
    desk.extend("");
    let unpinned = desk.run(&["standard", "show"]);
    assert!(
        unpinned.status.code() == Some(2) && stderr(&unpinned).contains("highroad standard update"),
        "{unpinned:?}"
    );

    assert!(desk.run(&["standard", "update"]).status.success());
    let pinned = std::fs::read_to_string(desk.path("model/highroad.toml")).unwrap();
    assert!(pinned.starts_with("# kept\n") && pinned.ends_with(OWN), "{pinned}");
    assert!(
        pinned.contains(&Digest::of(ORGANISATION.as_bytes()).to_string())
            && pinned.contains(&desk.git(&["rev-parse", "HEAD"]))
    );

    let shown = desk.json(&["standard", "show", "--json"], 0);
    let torch = &shown["values"]["environment.torch"];
    assert_eq!(
        (&torch["value"], &torch["origin"]["line"], &torch["origin"]["locked"]),
        (&">=2.9".into(), &3.into(), &true.into())
    );
    assert_eq!(shown["values"]["environment.python"]["origin"]["from"], "highroad.toml");
    assert_eq!(shown["values"]["serving.alias"]["origin"], Value::Null);
    assert_eq!(desk.json(&["standard", "diff", "--json"], 0)["moved"].as_array().unwrap().len(), 0);

    desk.publish(
        &ORGANISATION.replace(">=2.9", ">=2.10").replace(">=3.11", ">=3.13").replace("max_tokens", "relative_rms"),
    );
    let moved = desk.json(&["standard", "diff", "--json"], 1);
    let keys: Vec<&str> = moved["moved"].as_array().unwrap().iter().map(|one| one["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["environment.python", "environment.torch", "packaging.max_tokens", "packaging.relative_rms"]);
    assert_eq!(moved["moved"][0]["overridden"], ">=3.12");
    // Another machine gets what is pinned, though the branch has moved on.
    std::fs::remove_dir_all(desk.path("cache")).unwrap();
    assert_eq!(desk.json(&["standard", "show", "--json"], 0)["values"]["environment.torch"]["value"], ">=2.9");

    assert!(desk.run(&["standard", "update"]).status.success());
    assert_eq!(desk.json(&["standard", "show", "--json"], 0)["values"]["environment.torch"]["value"], ">=2.10");
    // Once fetched, nothing needs the network.
    std::fs::rename(desk.path("org"), desk.path("away")).unwrap();
    assert!(desk.run(&["standard", "show"]).status.success());
    assert_eq!(desk.run(&["standard", "diff"]).status.code(), Some(2));
}

#[test]
fn bytes_with_another_digest_are_refused() {
    let desk = Desk::new();
    desk.extend(&format!(", digest = \"{}\"", Digest::of(b"something else")));
    let output = desk.run(&["standard", "show"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("is not what is pinned"), "{output:?}");
}

#[test]
fn no_transport_runs_a_command() {
    let desk = Desk::new();
    let touched = desk.path("touched");
    let digest = Digest::of(b"");
    let text = format!(
        "extends = {{ git = \"ext::touch {}\", path = \"x\", digest = \"{digest}\" }}\n{OWN}",
        touched.display()
    );
    std::fs::write(desk.path("model/highroad.toml"), text).unwrap();
    for args in [["standard", "show"], ["standard", "diff"], ["standard", "update"]] {
        assert_eq!(desk.run(&args).status.code(), Some(2));
    }
    assert!(!Path::new(&touched).exists());
}

#[test]
fn two_files_or_revisions_are_compared() {
    let desk = Desk::new();
    let newer = desk.path("newer.toml");
    std::fs::write(&newer, ORGANISATION.replace("128", "256")).unwrap();
    let (older, newer) = (desk.path("org/standard.toml"), newer.to_str().unwrap());
    let output = desk.run(&["standard", "diff", older.to_str().unwrap(), newer]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "~ packaging.max_tokens = 128 -> 256\n");

    let mut command = Command::new(env!("CARGO_BIN_EXE_highroad"));
    let output =
        command.args(["standard", "diff", "HEAD:standard.toml", newer]).current_dir(desk.path("org")).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}

#[test]
fn a_standard_that_is_none_is_not_pinned() {
    let desk = Desk::new();
    desk.extend("");
    let unpinned = desk.run(&["standard", "diff"]);
    assert!(unpinned.status.code() == Some(2) && stderr(&unpinned).contains("needs the `digest`"), "{unpinned:?}");
    assert!(desk.run(&["standard", "update"]).status.success());
    let pinned = std::fs::read_to_string(desk.path("model/highroad.toml")).unwrap();
    for (text, named) in [
        ("owners.bogus = 1\n", "unknown field `bogus`"),
        ("locked = [\"environment.torhc\"]\n", "did you mean `environment.torch`?"),
    ] {
        desk.publish(&format!("{text}{ORGANISATION}").replace("locked = [\"environment.torch\"]\n", ""));
        let refused = desk.run(&["standard", "update"]);
        assert!(refused.status.code() == Some(2) && stderr(&refused).contains(named), "{refused:?}");
        assert_eq!(std::fs::read_to_string(desk.path("model/highroad.toml")).unwrap(), pinned);
    }
}

#[test]
fn what_a_standard_locks_and_demands_is_shown() {
    let desk = Desk::new();
    std::fs::write(desk.path("model/standard.toml"), format!("required = [\"tracking.uri\"]\n{ORGANISATION}")).unwrap();
    let shown = desk.run(&["standard", "show", "standard.toml"]);
    let text = String::from_utf8(shown.stdout).unwrap();
    assert!(
        text.contains("locked = [\"environment.torch\"]") && text.contains("required = [\"tracking.uri\"]"),
        "{text}"
    );
    let shown = desk.json(&["standard", "show", "standard.toml", "--json"], 0);
    assert_eq!(shown["files"][0]["locked"], serde_json::json!(["environment.torch"]));
}
