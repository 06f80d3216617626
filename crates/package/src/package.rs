use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _};
use std::path::{Path, PathBuf};

use crate::files::{self, Folder};
use crate::manifest::MAX_MANIFEST_BYTES;
use crate::{Check, Digest, FileEntry, Manifest, PackageError, Parity, Provenance, Task, TaskKind};

/// The file that lists the others.
pub const MANIFEST: &str = "manifest.json";
/// The `torch.export` program.
pub const PROGRAM: &str = "program.pt2";
/// The Hugging Face tokenizer.
pub const TOKENIZER: &str = "tokenizer.json";
/// The parity cases.
pub const PARITY: &str = "parity.safetensors";

/// Largest file that [`VerifiedPackage::read`] takes into memory.
const MAX_READ_BYTES: u64 = 1 << 30;
/// What a zip archive with a file in it begins with.
const ZIP_MAGIC: &[u8] = b"PK\x03\x04";
/// Largest bare program.
const MAX_PROGRAM_BYTES: u64 = 1 << 40;

/// A directory with a valid manifest whose other files are not checked yet.
pub struct Package {
    folder: Folder,
    manifest: Manifest,
    manifest_bytes: Vec<u8>,
    digest: Digest,
}

impl Package {
    /// Reads `dir/manifest.json`. Errors if it is absent, too long, not canonical JSON or not a valid [`Manifest`].
    pub fn open(dir: &Path) -> Result<Self, PackageError> {
        let folder = Folder::open(dir)?;
        let manifest_bytes = folder.read(MANIFEST, MAX_MANIFEST_BYTES)?;
        let manifest = Manifest::parse(&manifest_bytes)?;
        Ok(Self { folder, manifest, digest: Digest::of(&manifest_bytes), manifest_bytes })
    }

    /// The digest of the manifest's bytes: the name of this package, provided that [`Package::verify`] succeeds.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// What the package says it is.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Reads every file once and compares it with the manifest. Errors on the first file, by name, that is missing,
    /// extra, no regular file, of another size or of another content.
    pub fn verify(self) -> Result<VerifiedPackage, PackageError> {
        self.refuse_extra_files()?;
        for entry in &self.manifest.files {
            self.check_file(entry, &mut io::sink(), Path::new(""))?;
        }
        let Self { folder, manifest, digest, .. } = self;
        Ok(VerifiedPackage { dir: folder.path().to_owned(), digest, manifest })
    }

    /// Writes the package into the empty directory `to`, verifying it on the way; all bytes are on disk on return.
    pub(crate) fn copy_to(&self, to: &Path) -> Result<(), PackageError> {
        self.refuse_extra_files()?;
        for entry in &self.manifest.files {
            let path = to.join(&entry.path);
            let mut file = File::create_new(&path).map_err(PackageError::io(&path))?;
            self.check_file(entry, &mut file, &path)?;
            file.sync_all().map_err(PackageError::io(&path))?;
        }
        files::write_new(&to.join(MANIFEST), &self.manifest_bytes)
    }

    fn refuse_extra_files(&self) -> Result<(), PackageError> {
        let listed = |name: &str| name == MANIFEST || self.manifest.file(name).is_some();
        match self.folder.names()?.into_iter().find(|name| !listed(name)) {
            Some(file) => Err(PackageError::Extra { file }),
            None => Ok(()),
        }
    }

    fn check_file(&self, entry: &FileEntry, copy: &mut impl io::Write, to: &Path) -> Result<(), PackageError> {
        let (file, size) = self.folder.file(&entry.path)?;
        let wrong_size = |found| PackageError::Size { file: entry.path.clone(), expected: entry.size_bytes, found };
        if size != entry.size_bytes {
            return Err(wrong_size(size));
        }
        let (size, found) = files::copy_and_hash(file, copy, entry.size_bytes)
            .map_err(PackageError::copying(self.folder.path().join(&entry.path), to))?;
        if size != entry.size_bytes {
            return Err(wrong_size(size));
        }
        if found != entry.digest {
            return Err(PackageError::Changed { file: entry.path.clone(), expected: entry.digest, found });
        }
        Ok(())
    }
}

/// A package whose every byte was compared with its digest when this value was made.
///
/// It names a directory, so it stays true only while nobody else writes there: a [`Store`](crate::Store) keeps its
/// packages read-only, and whoever can change them anyway already runs as this user.
#[derive(Clone, Debug)]
pub struct VerifiedPackage {
    dir: PathBuf,
    digest: Digest,
    manifest: Manifest,
}

impl VerifiedPackage {
    /// A bare program in a package's place: `file`, copied to a folder of its digest below `dir` so that nobody changes it while it
    /// is mapped. It has no parity cases, which no package lacks: nothing proves that it is what PyTorch computed.
    ///
    /// Errors if `file` is no regular file, no zip archive or over 1 TiB.
    pub fn of_program(file: &Path, dir: &Path) -> Result<Self, PackageError> {
        let stem = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let name: String = stem.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(64).collect();
        let (digest, size_bytes) = keep_program(file, dir)?;
        let manifest = Manifest {
            highroad_package: 1,
            name,
            task: Task::new(TaskKind::Tensors, 0),
            files: vec![FileEntry { path: PROGRAM.to_owned(), size_bytes, digest }],
            parity: Parity { file: PARITY.to_owned(), n_cases: 0, check: Check { relative_rms: 1e-5 } },
            provenance: Provenance::default(),
            licence: "unknown".to_owned(),
            owner: "unknown".to_owned(),
        };
        Ok(Self { dir: dir.join(digest.hex()), digest: Digest::of(&manifest.canonical()?), manifest })
    }

    /// Whether it is a bare program, which nothing proves.
    pub fn is_bare(&self) -> bool {
        self.manifest.parity.n_cases == 0
    }

    /// The package's name: the digest of its manifest.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// What the package is.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Where its files lie.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The path of `file`, for readers that map it. Errors if the manifest does not list it.
    pub fn path(&self, file: &str) -> Result<PathBuf, PackageError> {
        Ok(self.dir.join(&self.entry(file)?.path))
    }

    /// The content of `file`, compared with its digest once more. Errors if the manifest does not list it, if it is
    /// over 1 GiB or if it changed.
    pub fn read(&self, file: &str) -> Result<Vec<u8>, PackageError> {
        let entry = self.entry(file)?;
        let bytes = Folder::open(&self.dir)?.read(file, MAX_READ_BYTES)?;
        let found = Digest::of(&bytes);
        if found != entry.digest {
            return Err(PackageError::Changed { file: file.to_owned(), expected: entry.digest, found });
        }
        Ok(bytes)
    }

    fn entry(&self, file: &str) -> Result<&FileEntry, PackageError> {
        self.manifest.file(file).ok_or_else(|| PackageError::Missing { file: file.to_owned() })
    }
}

/// Copies the program `file` to `dir/<its digest>/program.pt2`, unless it is there; its digest and size.
fn keep_program(file: &Path, dir: &Path) -> Result<(Digest, u64), PackageError> {
    fs::create_dir_all(dir).map_err(PackageError::io(dir))?;
    let mut source = File::open(file).map_err(PackageError::io(file))?;
    if !source.metadata().map_err(PackageError::io(file))?.is_file() {
        return Err(PackageError::NotRegular { file: file.display().to_string() });
    }
    // Before all of it is copied, which may be many gigabytes.
    let mut magic = Vec::new();
    (&mut source).take(ZIP_MAGIC.len() as u64).read_to_end(&mut magic).map_err(PackageError::io(file))?;
    if magic != ZIP_MAGIC {
        return Err(PackageError::NotAProgram(file.to_owned()));
    }
    source.rewind().map_err(PackageError::io(file))?;
    let mut staged = tempfile::Builder::new().prefix(".program-").tempfile_in(dir).map_err(PackageError::io(dir))?;
    let (size, digest) = files::copy_and_hash(source, staged.as_file_mut(), MAX_PROGRAM_BYTES)
        .map_err(PackageError::copying(file, dir))?;
    let folder = dir.join(digest.hex());
    fs::create_dir_all(&folder).map_err(PackageError::io(&folder))?;
    let path = folder.join(PROGRAM);
    staged.as_file().sync_all().map_err(PackageError::io(&path))?;
    // Whoever has it mapped keeps the file that it opened.
    staged.persist(&path).map_err(|error| PackageError::io(&path)(error.error))?;
    Ok((digest, size))
}
