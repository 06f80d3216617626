//! The starter as a repo got it: rendered, recorded beside the repo's files, and merged again when it has moved on.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Component, Path};

use anyhow::{Context as _, bail, ensure};
use clap::ValueEnum as _;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use highroad_package::Digest;
use include_dir::{Dir, DirEntry, include_dir};
use minijinja::syntax::SyntaxConfig;
use serde::{Deserialize, Serialize};

use crate::commands::new::{Data, Kind};

pub mod merge;

// Template folders hold what a repo holds; a file ending in `.jinja` is rendered and loses the ending.
static STARTER: Dir<'static> = include_dir!("$CARGO_MANIFEST_DIR/../../starter");

/// Folder of a repo that says which template it was made from; it is committed.
pub const FOLDER: &str = ".highroad-template";
const RECORD: &str = "record.toml";
const BASE: &str = "base.tar.gz";
/// Largest rendering that is read back.
const MAX_BASE_BYTES: u64 = 64 << 20;
/// Most files of a rendering that is read back.
const MAX_FILES: usize = 10_000;

/// Contents by path below the repo's root, with `/` between folders.
pub type Files = BTreeMap<String, Vec<u8>>;

/// What a repo was rendered with. The rendering itself lies beside it, compressed: it is the base of the next merge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Version of the command that rendered it.
    pub highroad: String,
    /// Digest of paths and contents.
    pub digest: Digest,
    /// What the starter was told.
    pub values: Values,
    /// Digest of each file.
    pub files: BTreeMap<String, Digest>,
}

/// What the starter is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Values {
    /// Kind of model.
    pub kind: String,
    /// Texts a classifier started with. Earlier versions did not ask: theirs are prompts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// Name of the model.
    pub name: String,
    /// Who answers for it.
    pub owner: String,
}

impl Values {
    /// The files of a repo of the recorded kind. Errors if this version of the starter has no such kind.
    pub fn render(&self) -> anyhow::Result<Files> {
        let kind = Kind::from_str(&self.kind, false);
        let kind = kind.map_err(|_| anyhow::anyhow!("this version's starter has no kind `{}`", self.kind))?;
        let data = self.data.as_deref().map(|data| {
            Data::from_str(data, false).map_err(|_| anyhow::anyhow!("this version's starter has no data `{data}`"))
        });
        let data = kind.data(data.transpose()?)?.map(Data::name);
        let Self { kind: kind_name, name, owner, .. } = self;
        let values = minijinja::context! { kind => kind_name, data => data, name => name, owner => owner };
        let mut files = Files::new();
        for folder in kind.folders().iter().copied().chain(data) {
            let template = STARTER.get_dir(folder).expect("the starter has a folder for every kind");
            render(template, folder, &mut files, &values)?;
        }
        Ok(files)
    }
}

impl Record {
    /// Describes a rendering.
    pub fn of(files: &Files, values: Values) -> Self {
        let files: BTreeMap<String, Digest> =
            files.iter().map(|(path, bytes)| (path.clone(), Digest::of(bytes))).collect();
        let lines: String = files.iter().map(|(path, digest)| format!("{digest} {path}\n")).collect();
        Self { highroad: env!("CARGO_PKG_VERSION").to_owned(), digest: Digest::of(lines.as_bytes()), values, files }
    }

    /// The record of the repo at `root` and the rendering it describes; `None` if the repo has none.
    ///
    /// Errors if either is damaged: a merge over another base would lose work.
    pub fn read(root: &Path) -> anyhow::Result<Option<(Self, Files)>> {
        let folder = root.join(FOLDER);
        if !folder.exists() {
            return Ok(None);
        }
        let context = || format!("cannot read {}", folder.display());
        let text = crate::standard::source::read(&folder.join(RECORD))?;
        let record: Self = toml::from_str(&text).with_context(context)?;
        let archive = std::fs::File::open(folder.join(BASE)).with_context(context)?;
        let files = unpack(archive).with_context(context)?;
        ensure!(
            Self::of(&files, record.values.clone()).digest == record.digest,
            "{BASE} in {} is not the rendering that {RECORD} describes: take both from git again",
            folder.display()
        );
        Ok(Some((record, files)))
    }

    /// Writes the record and its rendering into the repo at `root`.
    pub fn write(&self, files: &Files, root: &Path) -> anyhow::Result<()> {
        let folder = root.join(FOLDER);
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let text = format!(
            "# Written by `highroad new` and `highroad update`; commit it, and do not edit it.\n{}",
            toml::to_string(self)?
        );
        for (name, bytes) in [(RECORD, text.into_bytes()), (BASE, pack(files)?)] {
            let path = folder.join(name);
            std::fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}

/// Writes `bytes` at `path` below `root`, with the folders it needs.
pub fn write_file(root: &Path, path: &str, bytes: &[u8]) -> anyhow::Result<()> {
    let target = root.join(path);
    let context = || format!("cannot write {}", target.display());
    std::fs::create_dir_all(target.parent().unwrap_or(root)).with_context(context)?;
    std::fs::write(&target, bytes).with_context(context)
}

fn render(dir: &Dir<'_>, base: &str, files: &mut Files, values: &minijinja::Value) -> anyhow::Result<()> {
    for entry in dir.entries() {
        let path = entry.path().strip_prefix(base).expect("entries lie below their folder");
        // A developer's caches may lie in the template folder when the binary is built.
        if path.components().any(|part| matches!(part.as_os_str().to_str(), Some("__pycache__" | ".pytest_cache"))) {
            continue;
        }
        let name = path.to_str().context("a template's name is not UTF-8")?.replace('\\', "/");
        match entry {
            DirEntry::Dir(dir) => render(dir, base, files, values)?,
            DirEntry::File(file) => match name.strip_suffix(".jinja") {
                Some(name) => {
                    let text = file.contents_utf8().context("a template is not text")?;
                    files.insert(name.to_owned(), rendered(text, values)?.into_bytes());
                }
                None => _ = files.insert(name, file.contents().to_vec()),
            },
        }
    }
    Ok(())
}

fn rendered(text: &str, values: &minijinja::Value) -> anyhow::Result<String> {
    let mut environment = minijinja::Environment::new();
    environment.set_undefined_behavior(minijinja::UndefinedBehavior::Strict);
    environment.set_syntax(SyntaxConfig::builder().keep_trailing_newline(true).build()?);
    Ok(environment.render_str(text, values)?)
}

/// The same files give the same bytes.
fn pack(files: &Files) -> anyhow::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::best()));
    for (path, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(0);
        archive.append_data(&mut header, path, bytes.as_slice())?;
    }
    Ok(archive.into_inner()?.finish()?)
}

fn unpack(archive: impl std::io::Read) -> anyhow::Result<Files> {
    let mut archive = tar::Archive::new(GzDecoder::new(archive).take(MAX_BASE_BYTES));
    let mut files = Files::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.to_str().context("a name is not UTF-8")?.to_owned();
        let is_plain = Path::new(&path).components().all(|part| matches!(part, Component::Normal(_)));
        if !is_plain || !entry.header().entry_type().is_file() {
            bail!("`{}` is no file inside a repo", path.escape_debug());
        }
        ensure!(files.len() < MAX_FILES, "it has more than {MAX_FILES} files");
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        files.insert(path, bytes);
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values() -> Values {
        Values { kind: "classifier".into(), data: None, name: "m".into(), owner: "o".into() }
    }

    #[test]
    fn a_rendering_is_recorded_and_read_back() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let files = values().render().expect("rendered");
        Record::of(&files, values()).write(&files, dir.path()).expect("written");
        let (record, base) = Record::read(dir.path()).expect("readable").expect("recorded");
        assert_eq!((&record.values, &base), (&values(), &files));
        assert_eq!(record, Record::of(&values().render().expect("rendered"), values()), "rendering twice differs");
    }

    #[test]
    fn a_damaged_record_is_refused() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut files = values().render().expect("rendered");
        let record = Record::of(&files, values());
        files.insert("train.py".to_owned(), b"changed".to_vec());
        record.write(&files, dir.path()).expect("written");
        let error = Record::read(dir.path()).expect_err("another base").to_string();
        assert!(error.contains("take both from git again"), "{error}");
    }

    #[test]
    fn an_archive_cannot_reach_outside() {
        let files = Files::from([("a".to_owned(), Vec::new())]);
        let packed = pack(&files).expect("packed");
        let mut tar = Vec::new();
        GzDecoder::new(packed.as_slice()).read_to_end(&mut tar).expect("gzip");
        tar[..4].copy_from_slice(b"../a");
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes().copy_from_slice(&tar[..512]);
        header.set_cksum();
        tar[..512].copy_from_slice(header.as_bytes());
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        std::io::Write::write_all(&mut gzip, &tar).expect("written");
        let error = unpack(gzip.finish().expect("gzip").as_slice()).expect_err("outside").to_string();
        assert!(error.contains("no file inside a repo"), "{error}");
    }
}
