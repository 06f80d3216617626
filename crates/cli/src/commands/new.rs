use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::ValueEnum as _;

use crate::template::{Record, Values, write_file};

/// `highroad new NAME --kind KIND`
#[derive(clap::Args)]
pub struct Args {
    /// Directory to make, or an empty one; its last part names the model
    name: PathBuf,
    /// What the model is for
    #[arg(long, value_enum)]
    kind: Kind,
    /// What a classifier learns until it has data of its own [default: moderation]
    #[arg(long, value_enum)]
    data: Option<Data>,
    /// Who answers for the model [default: git's user.email]
    #[arg(long, value_parser = parse_owner)]
    owner: Option<String>,
}

/// What a model is for.
#[derive(Clone, Copy, clap::ValueEnum)]
pub enum Kind {
    /// Text in, one of several labels out
    Classifier,
    /// Text in, a vector out
    Embedder,
    /// Query and document in, how well they fit out
    Reranker,
    /// Text in, what comes next out
    Generator,
    /// What somebody chose in, what comes next out
    Recommender,
    /// Picture in, one of several labels out
    Vision,
    /// A hosted model that answers people: judged for safety, nothing is trained
    Assistant,
    /// The smallest whole repo: a table's row in, one of several labels out
    Custom,
}

/// Texts a classifier starts with.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Data {
    /// Prompts: which of them are injections
    Moderation,
    /// Mails: which of them are spam
    Spam,
    /// News: which of eight topics
    Topics,
}

impl Data {
    /// As `--data` and the template's folder are called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Moderation => "moderation",
            Self::Spam => "spam",
            Self::Topics => "topics",
        }
    }
}

impl Kind {
    /// The texts a repo of this kind starts with: only a classifier has a choice.
    pub fn data(self, chosen: Option<Data>) -> anyhow::Result<Option<Data>> {
        match (self, chosen) {
            (Self::Classifier, chosen) => Ok(Some(chosen.unwrap_or(Data::Moderation))),
            (_, None) => Ok(None),
            (_, Some(_)) => {
                bail!("`--data` chooses a classifier's texts; the {} starter has one data set", self.name())
            }
        }
    }

    /// As `kind` of highroad.toml has them.
    pub fn names() -> Vec<&'static str> {
        Self::value_variants().iter().map(|kind| kind.name()).collect()
    }

    fn name(self) -> &'static str {
        match self {
            Self::Classifier => "classifier",
            Self::Embedder => "embedder",
            Self::Reranker => "reranker",
            Self::Generator => "generator",
            Self::Recommender => "recommender",
            Self::Vision => "vision",
            Self::Assistant => "assistant",
            Self::Custom => "custom",
        }
    }

    /// The template folders a repo of this kind is made of; no two of them hold a file of the same name.
    pub fn folders(self) -> &'static [&'static str] {
        match self {
            Self::Classifier => &["base", "trained", "text", "classifier"],
            Self::Embedder => &["base", "trained", "text", "embedder"],
            Self::Reranker => &["base", "trained", "text", "reranker"],
            Self::Generator => &["base", "trained", "words", "generator"],
            Self::Recommender => &["base", "trained", "words", "recommender"],
            Self::Vision => &["base", "trained", "labels", "vision"],
            Self::Assistant => &["base", "assistant"],
            Self::Custom => &["base", "trained", "words", "labels", "custom"],
        }
    }
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        // `.` has a name too.
        let target = match self.name.file_name() {
            Some(_) => self.name.clone(),
            None => self.name.canonicalize().with_context(|| format!("cannot use `{}`", self.name.display()))?,
        };
        let name = model_name(&target)?;
        let data = self.kind.data(self.data)?;
        let owner = self.owner.or_else(git_email).unwrap_or_else(|| crate::rules::UNASSIGNED.to_owned());
        let parent = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        if target.exists() && !is_empty(&target) {
            bail!("`{}` holds something, and nothing is ever overwritten: choose another name", self.name.display());
        }
        std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;

        let beside = if target.exists() { target.as_path() } else { parent };
        let staged = tempfile::Builder::new().prefix(".highroad-new-").tempdir_in(beside)?;
        let data = data.map(|data| data.name().to_owned());
        let values = Values { kind: self.kind.name().to_owned(), data, name: name.to_owned(), owner };
        let files = values.render()?;
        files.iter().try_for_each(|(path, bytes)| write_file(staged.path(), path, bytes))?;
        Record::of(&files, values).write(&files, staged.path())?;
        place(staged, &target).with_context(|| format!("cannot make {}", self.name.display()))?;
        writeln!(std::io::stdout(), "{}", self.name.display())?;
        eprintln!("Next: cd {} && cat README.md && highroad doctor", self.name.display());
        Ok(ExitCode::SUCCESS)
    }
}

/// Whether `path` is a folder of nothing but what `git init` leaves.
fn is_empty(path: &Path) -> bool {
    std::fs::read_dir(path)
        .is_ok_and(|mut entries| entries.all(|entry| entry.is_ok_and(|entry| entry.file_name() == ".git")))
}

/// Gives the folder its name; one that exists keeps its identity, as a shell may stand in it.
fn place(staged: tempfile::TempDir, target: &Path) -> std::io::Result<()> {
    if !target.exists() {
        return std::fs::rename(staged.keep(), target);
    }
    for entry in std::fs::read_dir(staged.path())? {
        let entry = entry?;
        std::fs::rename(entry.path(), target.join(entry.file_name()))?;
    }
    Ok(())
}

fn parse_owner(text: &str) -> Result<String, String> {
    if text.trim().is_empty() { Err("expected a team or an address".to_owned()) } else { Ok(text.to_owned()) }
}

/// The last part of `path`, if it can name a model in registries, URLs and references.
fn model_name(path: &Path) -> anyhow::Result<&str> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let fits = name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.len() <= 128
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    if !fits {
        bail!("`{name}` cannot name a model: use letters, digits, `-`, `_` and `.`, beginning with a letter or digit");
    }
    Ok(name)
}

fn git_email() -> Option<String> {
    let output = std::process::Command::new("git").args(["config", "user.email"]).output().ok()?;
    let email = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (!email.is_empty() && !email.contains(['"', '\\', '\n'])).then_some(email)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::standard::Standard;

    fn make(target: &Path, kind: Kind) -> anyhow::Result<ExitCode> {
        make_with(target, kind, None)
    }

    fn make_with(target: &Path, kind: Kind, data: Option<Data>) -> anyhow::Result<ExitCode> {
        Args { name: target.to_owned(), kind, data, owner: Some("safety team".to_owned()) }.run()
    }

    #[test]
    fn a_rendered_repo_declares_a_valid_standard_and_has_no_template_left() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let repo = dir.path().join("moderation");
        make(&repo, Kind::Classifier).expect("rendered");
        let standard = Standard::load(&repo).expect("valid highroad.toml");
        assert_eq!((standard.model.name.as_str(), standard.model.owner.as_str()), ("moderation", "safety team"));
        for file in ["train.py", "export.py", "gates.toml", ".gitignore", ".github/workflows/ci.yml", "README.md"] {
            let text = std::fs::read_to_string(repo.join(file)).expect(file);
            assert!(!text.contains("{{ name"), "{file}");
        }
        assert!(!repo.join("highroad.toml.jinja").exists());
    }

    #[test]
    fn every_kind_is_a_whole_repo_with_a_valid_standard() {
        let dir = tempfile::tempdir().expect("temporary directory");
        for kind in Kind::value_variants() {
            let repo = dir.path().join(kind.name());
            make(&repo, *kind).expect("rendered");
            let standard = Standard::load(&repo).expect("valid highroad.toml");
            assert_eq!(standard.model.kind, kind.name());
            let own: &[&str] = match kind {
                Kind::Assistant => &["assistant.toml", "corpus.py", "metrics/safety.py"],
                _ => &["data.py", "model.py", "judge.py", "train.py"],
            };
            for file in
                own.iter().chain(&["gates.toml", "golden/build.py", "golden/cases.py", "golden/must_pass.jsonl"])
            {
                assert!(repo.join(file).is_file(), "{}: {file}", kind.name());
            }
        }
    }

    #[test]
    fn a_classifier_and_nothing_else_chooses_its_texts() {
        let dir = tempfile::tempdir().expect("temporary directory");
        for data in Data::value_variants() {
            let repo = dir.path().join(data.name());
            make_with(&repo, Kind::Classifier, Some(*data)).expect("rendered");
            Standard::load(&repo).expect("valid highroad.toml");
            for file in ["corpus.py", "gates.toml", "golden/cases.py", "golden/must_pass.jsonl"] {
                assert!(repo.join(file).is_file(), "{}: {file}", data.name());
            }
        }
        let repo = dir.path().join("vision");
        let error = make_with(&repo, Kind::Vision, Some(Data::Spam)).expect_err("one data set").to_string();
        assert!(error.contains("the vision starter has one data set"), "{error}");
        assert!(!repo.exists());
    }

    #[test]
    fn what_exists_is_never_overwritten() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let repo = dir.path().join("moderation");
        std::fs::create_dir(&repo).expect("made");
        std::fs::write(repo.join("notes.md"), "").expect("written");
        let error = make(&repo, Kind::Classifier).expect_err("exists").to_string();
        assert!(error.contains("nothing is ever overwritten"), "{error}");
        assert_eq!(std::fs::read_dir(&repo).expect("readable").count(), 1);
        assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 1);
    }

    #[test]
    fn a_folder_of_nothing_but_git_becomes_the_repo() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let repo = dir.path().join("moderation");
        std::fs::create_dir_all(repo.join(".git")).expect("made");
        make(&repo, Kind::Classifier).expect("rendered");
        assert_eq!(Standard::load(&repo).expect("valid highroad.toml").model.name, "moderation");
        assert!(repo.join(".gitignore").is_file() && repo.join(".git").is_dir());
        assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 1);
    }

    #[test]
    fn an_owner_is_somebody() {
        assert!(parse_owner(" ").is_err());
        assert_eq!(parse_owner("safety team").as_deref(), Ok("safety team"));
    }

    #[test]
    fn a_name_must_fit_registries_and_references() {
        for (path, fits) in [("a/b-1", true), ("x@y", false), ("-x", false), ("..", false), ("ü", false), ("", false)]
        {
            assert_eq!(model_name(Path::new(path)).is_ok(), fits, "{path}");
        }
    }
}
