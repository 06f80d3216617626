use std::fs::{self, File, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use tracing::warn;

use crate::signing::{Policy, Signature};
use crate::{Digest, Manifest, Package, PackageError, VerifiedPackage, files};

/// Folder of packages that are arriving.
const PARTIAL: &str = "partial";
/// Most signatures of one package; more are not kept.
pub(crate) const MAX_SIGNATURES: usize = 16;

/// Packages on this machine: `root/<64 hexadecimal digits>/`, read-only once they are there, and their signatures,
/// `root/signatures/<64 hexadecimal digits>/`.
///
/// Several processes may add the same package at once: each copies into its own temporary directory and renames it.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
    signatures: Documents,
    policy: Arc<Policy>,
}

impl Store {
    /// Opens the store at `root`, making the directory if needed.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, PackageError> {
        let root = root.into();
        fs::create_dir_all(&root).map_err(PackageError::io(&root))?;
        let signatures = Documents { root: root.join("signatures"), max_bytes: MAX_SIGNATURE_BYTES };
        Ok(Self { root, signatures, policy: Arc::default() })
    }

    /// The same store, of which [`Store::get`] gives only what `policy` admits.
    #[must_use]
    pub fn with_policy(mut self, policy: Policy) -> Self {
        self.policy = Arc::new(policy);
        self
    }

    /// Copies the package in `dir` into the store, comparing every byte with its digest on the way; it is on disk on
    /// return. A package that is already there stays as it is; a damaged one is replaced. A signature beside `dir` comes
    /// along. Errors name the file that does not fit.
    pub fn add(&self, dir: &Path) -> Result<Digest, PackageError> {
        let package = Package::open(dir)?;
        let digest = package.digest();
        if self.holds(&digest) {
            package.verify()?;
        } else {
            let staged = self.temporary_dir("add")?;
            package.copy_to(staged.path())?;
            // Dropped, it deletes what is left at its path: nothing after the move.
            self.publish(staged.path(), &digest)?;
        }
        self.add_signature_beside(dir, &digest)?;
        Ok(digest)
    }

    /// Takes in a directory of this store's file system that holds exactly the package `digest`, without another copy:
    /// every byte is read and compared, then the directory is moved. Errors name the file that does not fit.
    pub(crate) fn adopt(&self, staged: &Path, digest: &Digest) -> Result<(), PackageError> {
        let package = Package::open(staged)?;
        if package.digest() != *digest {
            return Err(PackageError::ManifestChanged { expected: *digest, found: package.digest() });
        }
        package.verify()?;
        self.publish(staged, digest)
    }

    /// Where a package is put together that arrives file by file; what is there of it survives an interruption.
    pub(crate) fn partial_dir(&self, digest: &Digest) -> PathBuf {
        self.root.join(PARTIAL).join(digest.hex())
    }

    /// Copies a file of any package of this store to `to` if its content has that digest; whether it did.
    pub(crate) fn copy_blob(&self, digest: &Digest, size_bytes: u64, to: &Path) -> bool {
        let packages = self.list().unwrap_or_default();
        let has = |package: &Digest| {
            let dir = self.dir(package);
            let opened = Package::open(&dir).ok()?;
            let entry = opened.manifest().files.iter().find(|entry| entry.digest == *digest)?;
            Some(dir.join(&entry.path))
        };
        let Some(from) = packages.iter().find_map(has) else { return false };
        let copied = || -> io::Result<(u64, Digest)> {
            let mut to = File::create(to)?;
            let copied = files::copy_and_hash(File::open(from)?, &mut to, size_bytes)?;
            to.sync_all()?;
            Ok(copied)
        };
        match copied() {
            Ok((found_bytes, found)) if found_bytes == size_bytes && found == *digest => true,
            // A damaged package is no reason to refuse a sound one: what was copied goes, and the file is fetched.
            _ => {
                drop(fs::remove_file(to));
                false
            }
        }
    }

    /// Whether the package is there, every byte of it as it should be. A damaged one is taken away, so that it can be
    /// brought again.
    pub(crate) fn holds(&self, digest: &Digest) -> bool {
        match self.intact(digest) {
            Ok(_) => true,
            Err(PackageError::NotInStore(_)) => false,
            Err(damage) => {
                warn!(package.digest = %digest, "Replacing package {digest}, damaged in the store: {damage}");
                // Where it cannot be taken away, putting another in its place says why.
                drop(self.remove(digest));
                false
            }
        }
    }

    /// The package `digest`, after every one of its bytes was read and compared. Errors if it is not there, if the policy
    /// does not admit it or, naming the file, if anything was changed, added or taken away.
    pub fn get(&self, digest: &Digest) -> Result<VerifiedPackage, PackageError> {
        let package = self.intact(digest)?;
        self.admit(digest, package.manifest(), &[])?;
        Ok(package)
    }

    /// Errors unless the policy admits the package by one of the signatures kept here or of `brought`.
    pub fn admit(&self, digest: &Digest, manifest: &Manifest, brought: &[Signature]) -> Result<(), PackageError> {
        if *self.policy == Policy::AnyPackage {
            return Ok(());
        }
        let mut signatures = self.signatures(digest)?;
        signatures.extend_from_slice(brought);
        self.policy.admit(digest, manifest, &signatures).map(drop)
    }

    /// Errors unless the policy admits the package in a directory of somebody's own, by the signature beside it or one kept
    /// here.
    pub fn admit_directory(&self, package: &VerifiedPackage) -> Result<(), PackageError> {
        if *self.policy == Policy::AnyPackage {
            return Ok(());
        }
        let beside: Vec<Signature> = Signature::beside(package.dir())?.into_iter().collect();
        self.admit(&package.digest(), package.manifest(), &beside)
    }

    /// The signatures of a package that are kept here, whoever made them.
    pub fn signatures(&self, digest: &Digest) -> Result<Vec<Signature>, PackageError> {
        let names = self.signatures.list(digest)?.into_iter().take(MAX_SIGNATURES);
        names.map(|name| Signature::parse(self.signatures.get(digest, &name)?)).collect()
    }

    /// Keeps a signature of a package; keeping the same again changes nothing.
    pub fn add_signature(&self, digest: &Digest, signature: &Signature) -> Result<(), PackageError> {
        self.signatures.put(digest, signature.bytes()).map(drop)
    }

    fn intact(&self, digest: &Digest) -> Result<VerifiedPackage, PackageError> {
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

    /// When the package came here; `None` if it is not here.
    pub fn added_at(&self, digest: &Digest) -> Option<SystemTime> {
        fs::metadata(self.dir(digest)).and_then(|metadata| metadata.modified()).ok()
    }

    /// Bytes of the files in the package's directory, whatever they are.
    pub fn size_bytes(&self, digest: &Digest) -> u64 {
        size_of(&self.dir(digest))
    }

    /// Takes away what interrupted transfers left that nobody continues and nobody touched since `before`; gives its bytes.
    pub fn clear_partial(&self, before: SystemTime) -> Result<u64, PackageError> {
        let mut n_bytes = 0;
        for digest in list_hex(&self.root.join(PARTIAL), "")? {
            let dir = self.partial_dir(&digest);
            let is_old = fs::metadata(&dir).and_then(|metadata| metadata.modified()).is_ok_and(|at| at < before);
            let Some(lock) = File::open(&dir).ok().filter(|_| is_old) else { continue };
            // Held by whoever fills it.
            if rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_ok() {
                n_bytes += size_of(&dir);
                fs::remove_dir_all(&dir).map_err(PackageError::io(&dir))?;
            }
        }
        Ok(n_bytes)
    }

    /// Takes the package and its signatures away.
    pub fn forget(&self, digest: &Digest) -> Result<(), PackageError> {
        self.remove(digest)?;
        self.signatures.forget(digest)
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

    /// Moves a directory of verified files to its place, read-only and durable.
    pub(crate) fn publish(&self, staged: &Path, digest: &Digest) -> Result<(), PackageError> {
        for file in fs::read_dir(staged).map_err(PackageError::io(staged))? {
            set_mode(&file.map_err(PackageError::io(staged))?.path(), 0o444)?;
        }
        files::sync_dir(staged)?;
        let to = self.dir(digest);
        match fs::rename(staged, &to) {
            Ok(()) => {
                set_mode(&to, 0o555)?;
                files::sync_dir(&self.root)
            }
            // Somebody else was faster: theirs must be as good.
            Err(_) if to.exists() => self.intact(digest).map(drop),
            Err(e) => Err(PackageError::io(to)(e)),
        }
    }

    fn dir(&self, digest: &Digest) -> PathBuf {
        self.root.join(digest.hex())
    }

    pub(crate) fn temporary_dir(&self, purpose: &str) -> Result<tempfile::TempDir, PackageError> {
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
pub struct Verdicts(Documents);

/// Largest verdict that is read: it lists flips, not cases.
const MAX_VERDICT_BYTES: u64 = 16 << 20;
/// Largest signature that is read: it lists digests.
pub(crate) const MAX_SIGNATURE_BYTES: u64 = 1 << 20;

impl Verdicts {
    /// Opens the verdicts at `root`, making the directory if needed.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, PackageError> {
        let root = root.into();
        fs::create_dir_all(&root).map_err(PackageError::io(&root))?;
        Ok(Self(Documents { root, max_bytes: MAX_VERDICT_BYTES }))
    }

    /// Keeps a verdict's bytes and gives their digest; keeping the same bytes again changes nothing.
    pub fn put(&self, package: &Digest, verdict: &[u8]) -> Result<Digest, PackageError> {
        self.0.put(package, verdict)
    }

    /// The bytes of a verdict, compared with its digest.
    pub fn get(&self, package: &Digest, verdict: &Digest) -> Result<Vec<u8>, PackageError> {
        self.0.get(package, verdict).map_err(|error| match error {
            PackageError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                PackageError::NoVerdict { package: *package, verdict: *verdict }
            }
            other => other,
        })
    }

    /// Digests of the verdicts on `package`, sorted; none of them is checked.
    pub fn list(&self, package: &Digest) -> Result<Vec<Digest>, PackageError> {
        self.0.list(package)
    }

    /// Digests of the packages that have verdicts, sorted.
    pub fn packages(&self) -> Result<Vec<Digest>, PackageError> {
        list_hex(&self.0.root, "")
    }
}

/// Baselines of packages for monitoring: `root/<package hex>/<baseline hex>.json`. Content is bytes here; `highroad-eval` reads them.
#[derive(Clone, Debug)]
pub struct Baselines(Documents);

/// Largest baseline: it holds counts.
pub(crate) const MAX_BASELINE_BYTES: u64 = 2 << 20;

impl Baselines {
    /// The baselines at `root`, which is made when the first is kept.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self(Documents { root: root.into(), max_bytes: MAX_BASELINE_BYTES })
    }

    /// Keeps a baseline's bytes and gives their digest; keeping the same bytes again changes nothing.
    pub fn put(&self, package: &Digest, baseline: &[u8]) -> Result<Digest, PackageError> {
        self.0.put(package, baseline)
    }

    /// The bytes of a baseline, compared with its digest.
    pub fn get(&self, package: &Digest, baseline: &Digest) -> Result<Vec<u8>, PackageError> {
        self.0.get(package, baseline)
    }

    /// Digests of the baselines of `package`, sorted; none of them is checked.
    pub fn list(&self, package: &Digest) -> Result<Vec<Digest>, PackageError> {
        self.0.list(package)
    }
}

/// Small files about packages, each under the digest of its bytes: `root/<package hex>/<hex>.json`.
#[derive(Clone, Debug)]
struct Documents {
    root: PathBuf,
    max_bytes: u64,
}

impl Documents {
    fn put(&self, package: &Digest, bytes: &[u8]) -> Result<Digest, PackageError> {
        let digest = Digest::of(bytes);
        let path = self.path(package, &digest);
        let dir = self.root.join(package.hex());
        fs::create_dir_all(&dir).map_err(PackageError::io(&dir))?;
        let mut file = tempfile::NamedTempFile::new_in(&dir).map_err(PackageError::io(&dir))?;
        file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(PackageError::io(&path))?;
        set_mode(file.path(), 0o444)?;
        file.persist(&path).map_err(|e| PackageError::io(&path)(e.error))?;
        files::sync_dir(&dir)?;
        Ok(digest)
    }

    fn get(&self, package: &Digest, document: &Digest) -> Result<Vec<u8>, PackageError> {
        let path = self.path(package, document);
        let file = File::open(&path).map_err(PackageError::io(&path))?;
        let mut bytes = Vec::new();
        file.take(self.max_bytes + 1).read_to_end(&mut bytes).map_err(PackageError::io(&path))?;
        let file = || path.display().to_string();
        if bytes.len() as u64 > self.max_bytes {
            let (found, limit) = (bytes.len() as u64, self.max_bytes);
            return Err(PackageError::Limit { file: file(), what: "size in bytes", found, limit });
        }
        match Digest::of(&bytes) {
            found if found == *document => Ok(bytes),
            found => Err(PackageError::Changed { file: file(), expected: *document, found }),
        }
    }

    fn list(&self, package: &Digest) -> Result<Vec<Digest>, PackageError> {
        list_hex(&self.root.join(package.hex()), ".json")
    }

    fn forget(&self, package: &Digest) -> Result<(), PackageError> {
        let dir = self.root.join(package.hex());
        match fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(PackageError::io(dir)(e)),
            _ => Ok(()),
        }
    }

    fn path(&self, package: &Digest, document: &Digest) -> PathBuf {
        self.root.join(package.hex()).join(format!("{}.json", document.hex()))
    }
}

fn size_of(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum()
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
