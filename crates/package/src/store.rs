use std::fs::{self, File, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tracing::warn;

use crate::{Digest, Package, PackageError, VerifiedPackage, files};

/// Packages on this machine: `root/<64 hexadecimal digits>/`, read-only once they are there.
///
/// Several processes may add the same package at once: each copies into its own temporary directory and renames it.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// Opens the store at `root`, making the directory if needed.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, PackageError> {
        let root = root.into();
        fs::create_dir_all(&root).map_err(PackageError::io(&root))?;
        Ok(Self { root })
    }

    /// Copies the package in `dir` into the store, comparing every byte with its digest on the way; it is on disk on
    /// return. A package that is already there stays as it is; a damaged one is replaced. Errors name the file that
    /// does not fit.
    pub fn add(&self, dir: &Path) -> Result<Digest, PackageError> {
        let package = Package::open(dir)?;
        let digest = package.digest();
        match self.get(&digest) {
            Ok(_) => return package.verify().map(|package| package.digest()),
            Err(PackageError::NotInStore(_)) => {}
            Err(damage) => {
                warn!(package.digest = %digest, "Replacing package {digest}, damaged in the store: {damage}");
                self.remove(&digest)?;
            }
        }
        let staged = self.temporary_dir("add")?;
        package.copy_to(staged.path())?;
        for file in fs::read_dir(staged.path()).map_err(PackageError::io(staged.path()))? {
            let path = file.map_err(PackageError::io(staged.path()))?.path();
            set_mode(&path, 0o444)?;
        }
        files::sync_dir(staged.path())?;
        self.publish(staged, &digest)?;
        Ok(digest)
    }

    /// The package `digest`, after every one of its bytes was read and compared. Errors if it is not there or, naming
    /// the file, if anything was changed, added or taken away.
    pub fn get(&self, digest: &Digest) -> Result<VerifiedPackage, PackageError> {
        let dir = self.dir(digest);
        if fs::symlink_metadata(&dir).is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
            return Err(PackageError::NotInStore(*digest));
        }
        let package = Package::open(&dir)?;
        if package.digest() != *digest {
            return Err(PackageError::ManifestChanged { expected: *digest, found: package.digest() });
        }
        package.verify()
    }

    /// Digests of all packages, sorted; none of them is checked.
    pub fn list(&self) -> Result<Vec<Digest>, PackageError> {
        list_hex(&self.root, "")
    }

    /// Takes the package away; it is gone for others at once. Programs that have it open keep running.
    pub fn remove(&self, digest: &Digest) -> Result<(), PackageError> {
        let dir = self.dir(digest);
        let trash = self.temporary_dir("remove")?;
        fs::rename(&dir, trash.path()).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => PackageError::NotInStore(*digest),
            _ => PackageError::io(&dir)(e),
        })?;
        set_mode(trash.path(), 0o755)?;
        trash.close().map_err(PackageError::io(&self.root))
    }

    fn publish(&self, staged: tempfile::TempDir, digest: &Digest) -> Result<(), PackageError> {
        let to = self.dir(digest);
        match fs::rename(staged.path(), &to) {
            Ok(()) => {
                let _moved = staged.keep();
                set_mode(&to, 0o555)?;
                files::sync_dir(&self.root)
            }
            // Somebody else was faster. Dropping `staged` deletes our copy; theirs must be as good.
            Err(_) if to.exists() => self.get(digest).map(|_| ()),
            Err(e) => Err(PackageError::io(to)(e)),
        }
    }

    fn dir(&self, digest: &Digest) -> PathBuf {
        self.root.join(digest.hex())
    }

    fn temporary_dir(&self, purpose: &str) -> Result<tempfile::TempDir, PackageError> {
        // Beside its target: a rename is atomic only within one file system.
        tempfile::Builder::new()
            .prefix(&format!(".{purpose}-"))
            .permissions(Permissions::from_mode(0o755))
            .tempdir_in(&self.root)
            .map_err(PackageError::io(&self.root))
    }
}

/// Verdicts on packages: `root/<package hex>/<verdict hex>.json`. Content is bytes here; `highroad-eval` reads them.
#[derive(Clone, Debug)]
pub struct Verdicts {
    root: PathBuf,
}

/// Largest verdict that is read: it lists flips, not cases.
const MAX_VERDICT_BYTES: u64 = 16 << 20;

impl Verdicts {
    /// Opens the verdicts at `root`, making the directory if needed.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, PackageError> {
        let root = root.into();
        fs::create_dir_all(&root).map_err(PackageError::io(&root))?;
        Ok(Self { root })
    }

    /// Keeps a verdict's bytes and gives their digest; keeping the same bytes again changes nothing.
    pub fn put(&self, package: &Digest, verdict: &[u8]) -> Result<Digest, PackageError> {
        let digest = Digest::of(verdict);
        let path = self.path(package, &digest);
        let dir = self.root.join(package.hex());
        fs::create_dir_all(&dir).map_err(PackageError::io(&dir))?;
        let mut file = tempfile::NamedTempFile::new_in(&dir).map_err(PackageError::io(&dir))?;
        file.write_all(verdict).and_then(|()| file.as_file().sync_all()).map_err(PackageError::io(&path))?;
        set_mode(file.path(), 0o444)?;
        file.persist(&path).map_err(|e| PackageError::io(&path)(e.error))?;
        files::sync_dir(&dir)?;
        Ok(digest)
    }

    /// The bytes of a verdict, compared with its digest.
    pub fn get(&self, package: &Digest, verdict: &Digest) -> Result<Vec<u8>, PackageError> {
        let path = self.path(package, verdict);
        let file = File::open(&path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => PackageError::NoVerdict { package: *package, verdict: *verdict },
            _ => PackageError::io(&path)(e),
        })?;
        let mut bytes = Vec::new();
        file.take(MAX_VERDICT_BYTES + 1).read_to_end(&mut bytes).map_err(PackageError::io(&path))?;
        let file = || path.display().to_string();
        if bytes.len() as u64 > MAX_VERDICT_BYTES {
            let (found, limit) = (bytes.len() as u64, MAX_VERDICT_BYTES);
            return Err(PackageError::Limit { file: file(), what: "size in bytes", found, limit });
        }
        match Digest::of(&bytes) {
            found if found == *verdict => Ok(bytes),
            found => Err(PackageError::Changed { file: file(), expected: *verdict, found }),
        }
    }

    /// Digests of the verdicts on `package`, sorted; none of them is checked.
    pub fn list(&self, package: &Digest) -> Result<Vec<Digest>, PackageError> {
        list_hex(&self.root.join(package.hex()), ".json")
    }

    fn path(&self, package: &Digest, verdict: &Digest) -> PathBuf {
        self.root.join(package.hex()).join(format!("{}.json", verdict.hex()))
    }
}

/// The digests that name entries of `dir`, with `suffix` taken off; none if `dir` does not exist.
fn list_hex(dir: &Path, suffix: &str) -> Result<Vec<Digest>, PackageError> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(PackageError::io(dir))?,
    };
    let mut digests = Vec::new();
    for entry in entries {
        let name = entry.map_err(PackageError::io(dir))?.file_name();
        let hex = name.to_str().and_then(|name| name.strip_suffix(suffix));
        digests.extend(hex.and_then(|hex| format!("sha256:{hex}").parse::<Digest>().ok()));
    }
    digests.sort_unstable();
    Ok(digests)
}

fn set_mode(path: &Path, mode: u32) -> Result<(), PackageError> {
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(PackageError::io(path))
}
