//! A package as one file: an uncompressed tar of its files, `manifest.json` first, with nothing in it that differs between
//! machines. One package has one such file, byte for byte.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write as _};
use std::path::Path;

use tar::{Archive, Builder, Entry, EntryType, Header};

use crate::manifest::MAX_MANIFEST_BYTES;
use crate::signing::Signature;
use crate::{Digest, MANIFEST, Manifest, PackageError, Store, VerifiedPackage, files};

/// Writes `package` to the new file `to`.
pub fn write_archive(package: &VerifiedPackage, to: &Path) -> Result<(), PackageError> {
    let manifest = package.manifest().canonical()?;
    let file = File::create_new(to).map_err(PackageError::io(to))?;
    let mut tar = Builder::new(BufWriter::new(file));
    append(&mut tar, MANIFEST, manifest.len() as u64, manifest.as_slice()).map_err(PackageError::io(to))?;
    for entry in &package.manifest().files {
        let path = package.path(&entry.path)?;
        let content = File::open(&path).map_err(PackageError::io(&path))?;
        append(&mut tar, &entry.path, entry.size_bytes, content).map_err(PackageError::io(to))?;
    }
    let finished = tar.into_inner().and_then(|mut writer| {
        writer.flush()?;
        writer.get_ref().sync_all()
    });
    finished.map_err(PackageError::io(to))
}

/// Whether the file at `path` begins as the files of [`write_archive`] do; not whether there is a package in it.
pub fn is_archive(path: &Path) -> bool {
    let mut header = Header::new_gnu();
    let read = File::open(path).and_then(|mut file| file.read_exact(header.as_mut_bytes()));
    read.is_ok() && header.as_gnu().is_some()
}

fn append(tar: &mut Builder<impl io::Write>, name: &str, size_bytes: u64, content: impl Read) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_size(size_bytes);
    header.set_mode(0o444);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_entry_type(EntryType::Regular);
    tar.append_data(&mut header, name, content.take(size_bytes))
}

impl Store {
    /// Takes in the package in the file `path` that [`write_archive`] wrote, comparing every byte with its digest on the way,
    /// and the signature beside it (`path.sig`). Errors name the file of the package that does not fit.
    pub fn add_archive(&self, path: &Path) -> Result<Digest, PackageError> {
        let file = File::open(path).map_err(PackageError::io(path))?;
        let mut archive = Archive::new(BufReader::new(file));
        let broken = |error: io::Error| PackageError::Source {
            file: path.display().to_string(),
            reason: format!("it is no package in one file: {error}"),
        };
        let mut entries = archive.entries().map_err(broken)?;
        let mut next = || entries.next().transpose().map_err(broken);
        let bytes = read_manifest(next()?)?;
        let (digest, manifest) = (Digest::of(&bytes), Manifest::parse(&bytes)?);
        let staged = self.temporary_dir("add")?;
        files::write_new(&staged.path().join(MANIFEST), &bytes)?;
        for expected in &manifest.files {
            let mut entry = regular(next()?, &expected.path)?;
            let to = staged.path().join(&expected.path);
            let mut copy = File::create_new(&to).map_err(PackageError::io(&to))?;
            let size = |found| PackageError::Size { file: expected.path.clone(), expected: expected.size_bytes, found };
            if entry.size() != expected.size_bytes {
                return Err(size(entry.size()));
            }
            let copied = files::copy_and_hash(&mut entry, &mut copy, expected.size_bytes);
            let (found_bytes, found) = copied.map_err(PackageError::io(path))?;
            copy.sync_all().map_err(PackageError::io(&to))?;
            if found_bytes != expected.size_bytes {
                return Err(size(found_bytes));
            }
            if found != expected.digest {
                let (file, expected) = (expected.path.clone(), expected.digest);
                return Err(PackageError::Changed { file, expected, found });
            }
        }
        if let Some(extra) = next()? {
            return Err(PackageError::Extra { file: name_of(&extra) });
        }
        if !self.holds(&digest) {
            self.publish(staged.path(), &digest)?;
        }
        self.add_signature_beside(path, &digest)?;
        Ok(digest)
    }

    pub(crate) fn add_signature_beside(&self, path: &Path, digest: &Digest) -> Result<(), PackageError> {
        match Signature::beside(path) {
            Ok(Some(signature)) => self.add_signature(digest, &signature),
            Ok(None) => Ok(()),
            // The file may be another tool's. Whoever asks for a signature is told that there is none.
            Err(error) => {
                tracing::warn!(package.digest = %digest, "Package {digest} comes without a signature: {error}");
                Ok(())
            }
        }
    }
}

fn read_manifest<R: Read>(entry: Option<Entry<'_, R>>) -> Result<Vec<u8>, PackageError> {
    let entry = regular(entry, MANIFEST)?;
    let (found, limit) = (entry.size(), MAX_MANIFEST_BYTES);
    if found > limit {
        return Err(PackageError::Limit { file: MANIFEST.to_owned(), what: "size in bytes", found, limit });
    }
    let mut bytes = Vec::new();
    entry.take(limit).read_to_end(&mut bytes).map_err(PackageError::io(MANIFEST))?;
    Ok(bytes)
}

/// The entry, if it is the regular file `name`: files stand in the order of the manifest.
fn regular<'a, R: Read>(entry: Option<Entry<'a, R>>, name: &str) -> Result<Entry<'a, R>, PackageError> {
    let entry = entry.ok_or_else(|| PackageError::Missing { file: name.to_owned() })?;
    if entry.path_bytes().as_ref() != name.as_bytes() {
        let found = name_of(&entry);
        let reason = format!("`{found}` stands in its place");
        return Err(PackageError::Source { file: name.to_owned(), reason });
    }
    match entry.header().entry_type() {
        EntryType::Regular => Ok(entry),
        _ => Err(PackageError::NotRegular { file: name.to_owned() }),
    }
}

fn name_of<R: Read>(entry: &Entry<'_, R>) -> String {
    String::from_utf8_lossy(&entry.path_bytes()).escape_debug().to_string()
}
