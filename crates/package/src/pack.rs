//! From a package source (what `highroad.export` writes) to a package.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::files::{self, Folder};
use crate::package::{MANIFEST, PARITY, PROGRAM};
use crate::{Digest, FileEntry, Manifest, Package, PackageError, Parity, TaskKind};

mod program;
mod source;

use source::{SOURCE, Source};

/// What a package may have besides: licences must travel with weights, and a model card may.
const OPTIONAL: [&str; 3] = ["LICENSE", "NOTICE", CARD];
/// The model card.
const CARD: &str = "README.md";
/// Largest model card.
const MAX_CARD_BYTES: u64 = 1 << 20;
/// What stands where somebody meant to write something.
const UNWRITTEN: [&str; 3] = ["todo", "tbd", "fixme"];
/// What a source of the task `tensors` may have beside what is packed: rows that trained the program, which monitoring takes a baseline of.
pub const TRAINING: &str = "training.safetensors";
/// Largest file of a package source.
const MAX_FILE_BYTES: u64 = 1 << 40;
/// Largest file of parity cases.
const MAX_PARITY_BYTES: u64 = 1 << 30;

/// Packs the package source `source` into the directory `out` and gives the package's digest.
///
/// The same source files give the same digest, wherever and whenever they are packed: the manifest is canonical JSON
/// without times, paths or permissions, and `program.pt2` is written anew without what differs between machines (see
/// `docs/reference/package.md`). `out` must be absent, empty, or the very package that would be written.
///
/// Errors name the file of the source that is missing, unknown, no regular file or not what it should be.
pub fn pack(source: &Path, out: &Path) -> Result<Digest, PackageError> {
    let folder = Folder::open(source)?;
    let (names, description) = source_files(&folder)?;
    check_licence(&description.licence)?;
    if names.contains(CARD) {
        check_card(&folder.read(CARD, MAX_CARD_BYTES)?)?;
    }
    let n_cases = count_cases(&folder.read(PARITY, MAX_PARITY_BYTES)?)?;

    let staged = staging_dir(out)?;
    let files = names.iter().map(|name| copy(&folder, name, staged.path())).collect::<Result<Vec<_>, _>>()?;
    let manifest = Manifest {
        highroad_package: 1,
        name: description.name,
        task: description.task,
        files,
        parity: Parity { file: PARITY.to_owned(), n_cases, check: description.check },
        provenance: description.provenance,
        licence: description.licence,
        owner: description.owner,
    };
    manifest.validate().map_err(|e| bad(SOURCE, e))?;
    files::write_new(&staged.path().join(MANIFEST), &manifest.canonical()?)?;
    files::sync_dir(staged.path())?;
    publish(staged, out)
}

/// The files to pack, sorted, and what is said about them.
fn source_files(folder: &Folder) -> Result<(BTreeSet<String>, Source), PackageError> {
    let mut names: BTreeSet<String> = folder.names()?.into_iter().collect();
    if !names.remove(SOURCE) {
        return Err(bad(SOURCE, format!("is missing: `{}` is not a package source", folder.path().display())));
    }
    let description = Source::parse(&folder.read(SOURCE, source::MAX_SOURCE_BYTES)?)?;
    if matches!(description.task.kind, TaskKind::Tensors) {
        names.remove(TRAINING);
    }
    let required = description.task.required_files();
    for &required in required {
        if !names.contains(required) {
            return Err(bad(required, "is missing from the package source"));
        }
    }
    match names.iter().find(|name| !required.contains(&name.as_str()) && !OPTIONAL.contains(&name.as_str())) {
        Some(unknown) => {
            let known = [required, &OPTIONAL[..]].concat();
            let hint =
                source::nearest(unknown, &known).map_or_else(String::new, |name| format!("; did you mean `{name}`?"));
            Err(bad(
                unknown,
                format!("is not a file of a package source, which holds {SOURCE}, {}{hint}", known.join(", ")),
            ))
        }
        None => Ok((names, description)),
    }
}

/// Errors unless the licence is an SPDX expression; what was read before it was asked for loads all the same.
fn check_licence(licence: &str) -> Result<(), PackageError> {
    let Err(error) = spdx::Expression::parse(licence) else { return Ok(()) };
    let nearest = spdx::imprecise_license_id(licence).map_or_else(
        || "name one of https://spdx.org/licenses, or LicenseRef-NAME for your own".to_owned(),
        |(id, _)| format!("did you mean `{}`?", id.name),
    );
    Err(bad(SOURCE, format!("`licence` is `{licence}`, which is no SPDX expression: {}; {nearest}", error.reason)))
}

/// Errors if a model card says nothing: no card says that more plainly.
fn check_card(card: &[u8]) -> Result<(), PackageError> {
    let text = std::str::from_utf8(card).map_err(|e| bad(CARD, format!("is no UTF-8 text: {e}")))?;
    // Headings say what was to be written below them.
    let body = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    let mut words = body.flat_map(|line| line.split(|c: char| !c.is_alphanumeric())).filter(|word| !word.is_empty());
    match words.all(|word| UNWRITTEN.contains(&word.to_lowercase().as_str())) {
        true => Err(bad(CARD, "is a model card that says nothing: write what the model is for, or leave it out")),
        false => Ok(()),
    }
}

fn copy(folder: &Folder, name: &str, to: &Path) -> Result<FileEntry, PackageError> {
    let path = to.join(name);
    let (file, _) = folder.file(name)?;
    let (size_bytes, digest) = if name == PROGRAM {
        program::canonicalise(file, &path).map_err(|reason| bad(PROGRAM, reason))?;
        let written = File::open(&path).map_err(PackageError::io(&path))?;
        written.sync_all().map_err(PackageError::io(&path))?;
        files::copy_and_hash(written, &mut io::sink(), MAX_FILE_BYTES).map_err(PackageError::io(&path))?
    } else {
        let mut copy = File::create_new(&path).map_err(PackageError::io(&path))?;
        let written = files::copy_and_hash(file, &mut copy, MAX_FILE_BYTES).map_err(PackageError::io(&path))?;
        copy.sync_all().map_err(PackageError::io(&path))?;
        written
    };
    Ok(FileEntry { path: name.to_owned(), size_bytes, digest })
}

/// Checks that the cases are numbered from 0 without gaps and each has inputs and outputs, and counts them.
fn count_cases(safetensors: &[u8]) -> Result<u32, PackageError> {
    let (_, metadata) = safetensors::SafeTensors::read_metadata(safetensors).map_err(|e| bad(PARITY, e))?;
    let names: BTreeSet<String> = metadata.tensors().into_keys().collect();
    let mut expected = BTreeSet::new();
    let run = |prefix: String| (0..).map(move |j| format!("{prefix}.{j}")).take_while(|name| names.contains(name));
    let mut n_cases = 0;
    loop {
        let (inputs, outputs): (Vec<_>, Vec<_>) =
            (run(format!("{n_cases}.input")).collect(), run(format!("{n_cases}.output")).collect());
        if inputs.is_empty() || outputs.is_empty() {
            break;
        }
        expected.extend(inputs.into_iter().chain(outputs));
        n_cases += 1;
    }
    match names.difference(&expected).next() {
        Some(odd) => {
            Err(bad(PARITY, format!("tensor `{odd}` is not part of a case `0.input.0`, `0.output.0`, `1.input.0`, …")))
        }
        None if n_cases == 0 => Err(bad(PARITY, "there is no case")),
        None => Ok(n_cases),
    }
}

/// A directory beside `out`, so that it can become `out` in one step.
fn staging_dir(out: &Path) -> Result<tempfile::TempDir, PackageError> {
    let parent = match out.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(parent).map_err(PackageError::io(parent))?;
    tempfile::Builder::new()
        .prefix(".pack-")
        .permissions(Permissions::from_mode(0o755))
        .tempdir_in(parent)
        .map_err(PackageError::io(parent))
}

fn publish(staged: tempfile::TempDir, out: &Path) -> Result<Digest, PackageError> {
    let digest = Package::open(staged.path())?.digest();
    // A directory replaces an empty one, and nothing else.
    match fs::rename(staged.path(), out) {
        Ok(()) => {
            let _moved = staged.keep();
            Ok(digest)
        }
        Err(_) if fs::symlink_metadata(out).is_ok() => match Package::open(out).and_then(Package::verify) {
            Ok(there) if there.digest() == digest => Ok(digest),
            _ => Err(PackageError::OutputExists(out.to_owned())),
        },
        Err(e) => Err(PackageError::io(out)(e)),
    }
}

fn bad(file: &str, reason: impl ToString) -> PackageError {
    PackageError::Source { file: file.to_owned(), reason: reason.to_string() }
}
