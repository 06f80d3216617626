use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use highroad_package::Digest;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::GoldenSet;
use crate::files::{read_limited, replace};

/// Largest lock file that is read.
const MAX_LOCK_BYTES: u64 = 4 << 30;

/// Lines that are parsed at a time.
const LINES_AT_ONCE: usize = 1_000;

/// What stands above everything else in a lock file.
const HEADER: &str =
    "# The cases a person blessed, each with the digest of what it says. Written by `highroad golden bless`.\n";

/// What a person blessed: the content of `GOLDEN_SET.lock`, one line a case, so that a review sees which cases changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// Format version, 1.
    highroad_golden_lock: u32,
    /// Who answers for the cases.
    pub blessing: Blessing,
    /// Digest of each case by its id.
    pub cases: BTreeMap<String, Digest>,
}

/// Who blessed what, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blessing {
    /// A person.
    pub by: String,
    /// RFC 3339 in UTC.
    pub at: String,
    /// The reason.
    pub why: String,
    /// Digest of the blessed cases: see [`Lock::digest_of`].
    pub digest: Digest,
    /// That of the blessing before, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Digest>,
}

/// How a golden set differs from what was blessed, by ids.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Changes {
    /// Blessed, and no longer there.
    pub missing: Vec<String>,
    /// There, and never blessed.
    pub added: Vec<String>,
    /// There, and saying something else than what was blessed.
    pub edited: Vec<String>,
}

/// A golden set may not be used, or its lock file not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum LockError {
    #[error("golden set `{}` was never blessed: there is no `{}`", golden.display(), lock.display())]
    Never { golden: PathBuf, lock: PathBuf },
    #[error("golden set `{}` is not what {} blessed: {changes}", golden.display(), blessing.by)]
    Differs { golden: PathBuf, blessing: Box<Blessing>, changes: Changes },
    #[error("`{}` was changed by hand: its digest is not that of its cases", .0.display())]
    Inconsistent(PathBuf),
    #[error("`{}` is not a lock file of a golden set: {reason}", path.display())]
    Syntax { path: PathBuf, reason: String },
    #[error("`{}` has format version {found}; this highroad knows 1", path.display())]
    Version { path: PathBuf, found: u32 },
    #[error("cannot read or write `{}`", path.display())]
    Io { path: PathBuf, source: io::Error },
}

impl Lock {
    /// The lock file that belongs to the golden set at `golden`: its name with `.lock` appended.
    pub fn path_of(golden: &Path) -> PathBuf {
        let mut name = golden.as_os_str().to_owned();
        name.push(".lock");
        name.into()
    }

    /// A blessing of `golden` as it is, after `previous`.
    pub fn bless(golden: &GoldenSet, by: &str, at: &str, why: &str, previous: Option<&Self>) -> Self {
        let cases: BTreeMap<String, Digest> =
            golden.cases.iter().map(|case| (case.case.id.clone(), case.digest)).collect();
        let digest = Self::digest_of(&cases);
        let [by, at, why] = [by, at, why].map(str::to_owned);
        let previous = previous.map(|lock| lock.blessing.digest);
        Self { highroad_golden_lock: 1, blessing: Blessing { by, at, why, digest, previous }, cases }
    }

    /// SHA-256 over the cases in the order of their ids: the digest of each and its id, one a line.
    pub fn digest_of(cases: &BTreeMap<String, Digest>) -> Digest {
        let mut hasher = Sha256::new();
        cases.iter().for_each(|(id, digest)| hasher.update(format!("{digest} {id}\n")));
        Digest::finish(hasher)
    }

    /// Reads the lock file of the golden set at `golden`; `None` if there is none.
    ///
    /// Errors on a file that does not parse, such as one with marks of a merge conflict, and on one whose cases are not those
    /// it was written with.
    pub fn read(golden: &Path) -> Result<Option<Self>, LockError> {
        let path = Self::path_of(golden);
        let bytes = match read_limited(&path, MAX_LOCK_BYTES) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(LockError::Io { path, source }),
        };
        let syntax = |reason: String| LockError::Syntax { path: path.clone(), reason };
        let text = std::str::from_utf8(&bytes).map_err(|error| syntax(error.to_string()))?;
        let lock = Self::parse(text).map_err(syntax)?;
        match lock.highroad_golden_lock {
            1 if Self::digest_of(&lock.cases) == lock.blessing.digest => Ok(Some(lock)),
            1 => Err(LockError::Inconsistent(path)),
            found => Err(LockError::Version { path, found }),
        }
    }

    /// Parses a few lines at a time where cases make up the end of the file, as [`Lock::write`] leaves them: the tree of a
    /// million lines would take ten times their bytes.
    fn parse(text: &str) -> Result<Self, String> {
        let message = |error: toml::de::Error| error.message().to_owned();
        let Some((head, lines)) = text.split_once("\n[cases]\n") else { return toml::from_str(text).map_err(message) };
        let mut lock: Self = toml::from_str(&format!("{head}\n[cases]\n")).map_err(message)?;
        let lines: Vec<&str> = lines.lines().collect();
        for chunk in lines.chunks(LINES_AT_ONCE) {
            let cases: BTreeMap<String, Digest> = toml::from_str(&chunk.join("\n")).map_err(message)?;
            for (id, digest) in cases {
                if lock.cases.insert(id.clone(), digest).is_some() {
                    return Err(format!("case `{id}` stands there twice"));
                }
            }
        }
        Ok(lock)
    }

    /// Writes the lock file of the golden set at `golden`, whole or not at all.
    pub fn write(&self, golden: &Path) -> Result<(), LockError> {
        let path = Self::path_of(golden);
        let text = toml::to_string(self).expect("a lock is plain data with text keys");
        replace(&path, (HEADER.to_owned() + &text).as_bytes()).map_err(|source| LockError::Io { path, source })
    }

    /// What `golden` has that this blessing has not, and the other way round.
    pub fn changes(&self, golden: &GoldenSet) -> Changes {
        let ids: BTreeSet<&str> = golden.cases.iter().map(|case| case.case.id.as_str()).collect();
        let mut changes = Changes {
            missing: self.cases.keys().filter(|id| !ids.contains(id.as_str())).cloned().collect(),
            ..Changes::default()
        };
        for case in &golden.cases {
            match self.cases.get(&case.case.id) {
                None => changes.added.push(case.case.id.clone()),
                Some(&blessed) if blessed != case.digest => changes.edited.push(case.case.id.clone()),
                Some(_) => {}
            }
        }
        changes
    }
}

impl GoldenSet {
    /// The blessing of this set, which lies at `path`. Errors unless its cases are exactly the blessed ones.
    pub fn check_blessed(&self, path: &Path) -> Result<Blessing, LockError> {
        let never = || LockError::Never { golden: path.to_owned(), lock: Lock::path_of(path) };
        let lock = Lock::read(path)?.ok_or_else(never)?;
        let changes = lock.changes(self);
        if changes.is_empty() {
            return Ok(lock.blessing);
        }
        Err(LockError::Differs { golden: path.to_owned(), blessing: Box::new(lock.blessing), changes })
    }
}

impl Changes {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.added.is_empty() && self.edited.is_empty()
    }
}

/// How many ids of a kind a message names.
const MOST_NAMED: usize = 8;

impl std::fmt::Display for Changes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kinds = [("missing", &self.missing), ("added", &self.added), ("edited", &self.edited)];
        let kinds = kinds.into_iter().filter(|(_, ids)| !ids.is_empty());
        for (idx, (kind, ids)) in kinds.enumerate() {
            let named = ids.iter().take(MOST_NAMED).map(|id| format!("`{id}`")).collect::<Vec<_>>().join(", ");
            let more = ids.len().saturating_sub(MOST_NAMED);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            write!(f, "{}{} {kind} ({named}{more})", if idx > 0 { ", " } else { "" }, ids.len())?;
        }
        Ok(())
    }
}
