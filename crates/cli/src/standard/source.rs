//! Where an extended standard comes from: a file beside the repo, or a file of a git repository pinned by digest.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read as _;
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context as _, bail, ensure};
use highroad_package::Digest;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::did_you_mean;

/// Longest file that declares a standard.
pub const MAX_STANDARD_BYTES: usize = 1 << 20;
/// What is said of a git source that pins nothing.
pub const NO_DIGEST: &str =
    "`extends` from git needs the `digest` of the file\nhint: `highroad standard update` writes it";
/// How git may reach a repository. `ext::` and other helpers run commands, so nothing else is allowed.
const TRANSPORTS: [&str; 3] = ["https", "ssh", "file"];

/// `extends = …`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Extends {
    /// A file, named relative to the one that extends it.
    Path(String),
    /// A file of a git repository.
    Git(GitSource),
}

/// A file of a git repository, pinned by the digest of its bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GitSource {
    /// Address: `https://…`, `ssh://…`, `user@host:path` or `file:///…`.
    pub git: String,
    /// The file in it.
    pub path: String,
    /// Branch or tag that `highroad standard diff` and `update` follow; the repository's default branch if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Commit that holds the pinned file, so that it can be fetched when the branch has moved on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// What the file must be.
    #[schemars(with = "String", regex(pattern = "^sha256:[0-9a-f]{64}$"))]
    pub digest: Digest,
}

/// Where a file that declares a standard was found.
#[derive(Clone, Debug)]
pub enum Place {
    /// On this machine.
    File(PathBuf),
    /// In a git repository.
    Git(GitSource),
}

/// A file as it is at a revision.
pub struct Fetched {
    pub commit: String,
    pub text: String,
}

impl Extends {
    /// Reads `extends` of a file's table.
    ///
    /// Errors if it is neither a path nor a git source with a digest.
    pub fn parse(value: &toml::Value) -> anyhow::Result<Self> {
        match value {
            toml::Value::String(path) => Ok(Self::Path(path.clone())),
            toml::Value::Table(table) => {
                let source = GitSource::parse(table)?;
                ensure!(table.contains_key("digest"), NO_DIGEST);
                Ok(Self::Git(source))
            }
            other => bail!("`extends` is {other}: it needs a path, or a table with `git`, `path` and `digest`"),
        }
    }

    /// The file it means, where `from` is the file that says so, and its text.
    pub fn open(&self, from: &Place) -> anyhow::Result<(Place, String)> {
        match (self, from) {
            (Self::Path(path), Place::File(child)) => {
                let path = child.parent().unwrap_or(Path::new("")).join(path);
                let text = read(&path)?;
                Ok((Place::File(path), text))
            }
            (Self::Path(path), Place::Git(_)) => {
                bail!("it extends the path `{path}`, which no digest pins: a standard kept in git extends by git only")
            }
            (Self::Git(source), _) => Ok((Place::Git(source.clone()), source.pinned()?)),
        }
    }
}

impl Place {
    /// What a person calls it: the path, or repository, path and the pinned digest.
    pub fn name(&self) -> String {
        match self {
            Self::File(path) => path.strip_prefix(".").unwrap_or(path).display().to_string(),
            Self::Git(source) => format!("{} {} ({})", source.git, source.path, source.digest.short()),
        }
    }
}

impl GitSource {
    /// Reads a table whose digest may be missing, as it is before the first `highroad standard update`: it is that of nothing then.
    pub fn parse(table: &toml::Table) -> anyhow::Result<Self> {
        let mut table = table.clone();
        table.entry("digest").or_insert_with(|| Digest::of(b"").to_string().into());
        let source: Self = table.try_into().map_err(|error: toml::de::Error| {
            let hint = did_you_mean(error.message()).map(|key| format!("\nhint: did you mean `{key}`?"));
            anyhow::anyhow!("`extends`: {}{}", error.message(), hint.unwrap_or_default())
        })?;
        source.validate()?;
        Ok(source)
    }

    /// The pinned file: from the cache if it is there, else fetched, compared with the digest, and kept.
    pub fn pinned(&self) -> anyhow::Result<String> {
        let cached = cache()?.join(self.digest.hex());
        if let Ok(text) = read(&cached)
            && Digest::of(text.as_bytes()) == self.digest
        {
            return Ok(text);
        }
        let fetched = self.fetch(self.commit.as_deref().or(self.revision.as_deref()))?;
        let found = Digest::of(fetched.text.as_bytes());
        if found != self.digest {
            bail!(
                "`{}` of {} is not what is pinned: expected {}, found {found}\nhint: `highroad standard diff` shows what \
                 moved where the pinned file is at hand, `highroad standard update` pins what is there now",
                self.path,
                self.git,
                self.digest
            );
        }
        keep(&cached, &fetched.text)?;
        Ok(fetched.text)
    }

    /// The file at the newest commit of the revision that is followed; kept in the cache too.
    pub fn newest(&self) -> anyhow::Result<Fetched> {
        let fetched = self.fetch(self.revision.as_deref())?;
        keep(&cache()?.join(Digest::of(fetched.text.as_bytes()).hex()), &fetched.text)?;
        Ok(fetched)
    }

    fn fetch(&self, revision: Option<&str>) -> anyhow::Result<Fetched> {
        let work = tempfile::tempdir()?;
        let context = || format!("cannot fetch `{}` of {}", self.path, self.git);
        git(work.path(), ["init", "--quiet", "--bare"]).with_context(context)?;
        let revision = revision.unwrap_or("HEAD");
        let fetch = ["fetch", "--quiet", "--no-tags", "--depth=1", "--", &self.git, revision];
        git(work.path(), fetch).with_context(context)?;
        let commit = git(work.path(), ["rev-parse", "--verify", "FETCH_HEAD^{commit}"]).with_context(context)?;
        let commit = text(commit)?.trim().to_owned();
        let object = format!("{commit}:{}", self.path);
        let size = text(git(work.path(), ["cat-file", "-s", &object]).with_context(context)?)?;
        let size_bytes: usize = size.trim().parse().with_context(context)?;
        ensure!(
            size_bytes <= MAX_STANDARD_BYTES,
            "{}: it has {size_bytes} bytes, more than {MAX_STANDARD_BYTES}",
            context()
        );
        let blob = git(work.path(), ["cat-file", "blob", &object]).with_context(context)?;
        Ok(Fetched { commit, text: text(blob).with_context(context)? })
    }

    /// Refuses what git could take for something else than an address, a revision and a path.
    pub fn validate(&self) -> anyhow::Result<()> {
        let scheme = self.git.split_once("://").map(|(scheme, _)| scheme);
        let is_scp = scheme.is_none()
            && !self.git.contains("::")
            && self.git.split_once(':').is_some_and(|(host, _)| is_plain(host, "@.-_"));
        let is_known = scheme.is_some_and(|scheme| TRANSPORTS.contains(&scheme)) || is_scp;
        ensure!(
            is_known
                && !self.git.starts_with('-')
                && !self.git.contains("://-")
                && !self.git.contains(char::is_control),
            "`{}` is no git address: expected https://…, ssh://…, user@host:path or file:///…",
            self.git.escape_debug()
        );
        for revision in [&self.revision, &self.commit].into_iter().flatten() {
            ensure!(
                is_plain(revision, "./_-") && !revision.starts_with('-') && !revision.contains(".."),
                "`{}` is no branch, tag or commit",
                revision.escape_debug()
            );
        }
        let is_inside = Path::new(&self.path).components().all(|part| matches!(part, Component::Normal(_)));
        ensure!(
            is_inside && !self.path.is_empty() && !self.path.contains(char::is_control),
            "`{}` is no path inside a repository",
            self.path.escape_debug()
        );
        Ok(())
    }
}

/// Letters, digits and `more` only, and at least one of them.
fn is_plain(text: &str, more: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
}

/// The text of a file on this machine. Errors if it is no file, too long or not UTF-8.
pub fn read(path: &Path) -> anyhow::Result<String> {
    let context = || format!("cannot read {}", path.display());
    let file = File::open(path).with_context(context)?;
    ensure!(file.metadata().with_context(context)?.is_file(), "{}: it is no file", context());
    let mut text = String::new();
    file.take(MAX_STANDARD_BYTES as u64 + 1).read_to_string(&mut text).with_context(context)?;
    ensure!(text.len() <= MAX_STANDARD_BYTES, "{}: it has more than {MAX_STANDARD_BYTES} bytes", context());
    Ok(text)
}

/// Where fetched standards are kept by digest: `$HIGHROAD_CACHE`, else the user's cache folder.
fn cache() -> anyhow::Result<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let folder = variable("HIGHROAD_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|folder| folder.join("highroad")))
        .or_else(|| variable("HOME").map(|folder| folder.join(".cache/highroad")));
    Ok(folder.context("no place to keep a fetched standard: set HIGHROAD_CACHE")?.join("standards"))
}

fn keep(path: &Path, text: &str) -> anyhow::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let context = || format!("cannot keep a fetched standard in {}", folder.display());
    std::fs::create_dir_all(folder).with_context(context)?;
    let mut file = tempfile::NamedTempFile::new_in(folder).with_context(context)?;
    std::io::Write::write_all(&mut file, text.as_bytes()).with_context(context)?;
    file.persist(path).with_context(context)?;
    Ok(())
}

/// Runs git in `root` without any prompt, and gives what it printed.
pub fn git(root: &Path, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> anyhow::Result<Vec<u8>> {
    let mut command = Command::new("git");
    command.arg("-C").arg(root).args(args);
    command
        .env("GIT_ALLOW_PROTOCOL", TRANSPORTS.join(":"))
        .env("GIT_TERMINAL_PROMPT", "0")
        .stdin(std::process::Stdio::null());
    // A server that says nothing for half a minute is given up.
    command.env("GIT_HTTP_LOW_SPEED_LIMIT", "1").env("GIT_HTTP_LOW_SPEED_TIME", "30");
    if std::env::var_os("GIT_SSH_COMMAND").is_none() {
        command.env("GIT_SSH_COMMAND", "ssh -o BatchMode=yes -o ConnectTimeout=30");
    }
    let Output { status, stdout, stderr } = command.output().context("cannot start git: is it installed?")?;
    ensure!(status.success(), "{}", String::from_utf8_lossy(&stderr).trim());
    Ok(stdout)
}

fn text(bytes: Vec<u8>) -> anyhow::Result<String> {
    String::from_utf8(bytes).context("it is not UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(git: &str, path: &str, revision: &str) -> anyhow::Result<Extends> {
        let digest = Digest::of(b"");
        let text = format!("x = {{ git = '{git}', path = '{path}', revision = '{revision}', digest = '{digest}' }}");
        Extends::parse(&text.parse::<toml::Table>().expect("TOML")["x"])
    }

    #[test]
    fn only_addresses_revisions_and_paths_reach_git() {
        for git in
            ["https://example.com/a.git", "ssh://git@example.com/a", "git@example.com:team/a.git", "file:///srv/a"]
        {
            assert!(source(git, "standard.toml", "main").is_ok(), "{git}");
        }
        for git in
            ["ext::sh -c id", "-uevil", "http://example.com/a", "/srv/a", "fd::7", "ssh://-oProxyCommand=x/a", ""]
        {
            assert!(source(git, "standard.toml", "main").is_err(), "{git}");
        }
        for revision in ["--upload-pack=evil", "+main", "main:x", "a..b", ""] {
            assert!(source("https://example.com/a", "standard.toml", revision).is_err(), "{revision}");
        }
        for path in ["../x", "/etc/passwd", "a/../../b", ""] {
            assert!(source("https://example.com/a", path, "main").is_err(), "{path}");
        }
    }

    #[test]
    fn a_git_source_without_a_digest_is_refused_with_the_way_to_one() {
        let table: toml::Table = "x = { git = 'https://example.com/a', path = 'b' }".parse().expect("TOML");
        let error = Extends::parse(&table["x"]).expect_err("no digest").to_string();
        assert!(error.contains("highroad standard update"), "{error}");
    }

    #[test]
    fn a_misspelt_key_of_a_git_source_is_named_whether_it_is_pinned_or_not() {
        let digest = Digest::of(b"");
        for pinned in [String::new(), format!(", digest = '{digest}'")] {
            let text = format!("x = {{ git = 'https://example.com/a', paht = 'b'{pinned} }}");
            let table: toml::Table = text.parse().expect("TOML");
            let error = Extends::parse(&table["x"]).expect_err("misspelt").to_string();
            assert!(error.contains("unknown field `paht`") && error.ends_with("did you mean `path`?"), "{error}");
        }
    }
}
