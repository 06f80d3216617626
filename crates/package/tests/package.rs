//! Packing, verification and stores, on the tiny packages of `conformance/packages`.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use highroad_package::{
    DataRole, Digest, MANIFEST, PARITY, PROGRAM, Package, PackageError, Store, TOKENIZER, Verdicts, pack,
};
use proptest::prelude::*;
use serde_json::{Value, json};

const FILES: [&str; 4] = [MANIFEST, PARITY, PROGRAM, TOKENIZER];

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance/packages").join(name)
}

/// Temporary directories with a writable copy of a source, packages and a store.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn source(&self) -> PathBuf {
        let to = self.path("source");
        copy_dir(&source("classify-a"), &to);
        to
    }

    fn package(&self) -> PathBuf {
        let to = self.path("package");
        pack(&source("classify-a"), &to).unwrap();
        to
    }

    fn store(&self) -> Store {
        Store::open(self.path("store")).unwrap()
    }
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

fn edit(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(path, bytes).unwrap();
}

/// The message of the error that verifying the package gives.
fn refused(package: &Path) -> String {
    match Package::open(package).and_then(Package::verify) {
        Ok(_) => panic!("accepted"),
        Err(error) => error.to_string(),
    }
}

/// The message of the error after `change` to the manifest, which stays canonical.
fn refused_manifest(change: impl FnOnce(&mut Value)) -> String {
    let bench = Bench::new();
    let package = bench.package();
    edit(&package.join(MANIFEST), |bytes| {
        let mut manifest: Value = serde_json::from_slice(bytes).unwrap();
        change(&mut manifest);
        *bytes = serde_json_canonicalizer::to_vec(&manifest).unwrap();
    });
    refused(&package)
}

mod packing {
    use super::*;

    #[test]
    fn the_same_source_gives_the_same_digest_anywhere() {
        let bench = Bench::new();
        let copy = bench.source();
        for file in fs::read_dir(&copy).unwrap() {
            fs::set_permissions(file.unwrap().path(), fs::Permissions::from_mode(0o600)).unwrap();
        }
        let first = pack(&source("classify-a"), &bench.path("one")).unwrap();
        let second = pack(&copy, &bench.path("deeper/two")).unwrap();
        assert_eq!(first, second);
        for file in FILES {
            assert_eq!(
                fs::read(bench.path("one").join(file)).unwrap(),
                fs::read(bench.path("deeper/two").join(file)).unwrap()
            );
        }
    }

    #[test]
    fn a_model_card_that_says_nothing_is_refused() {
        let bench = Bench::new();
        let source = bench.source();
        for (n, (card, is_said)) in [
            ("", false),
            ("# Card\n\nTODO\n", false),
            ("- [ ] TBD: *todo*", false),
            ("# Card\nFor support mail.", true),
        ]
        .into_iter()
        .enumerate()
        {
            fs::write(source.join("README.md"), card).unwrap();
            let packed = pack(&source, &bench.path(&n.to_string())).map_err(|error| error.to_string());
            match is_said {
                true => assert!(packed.is_ok(), "{packed:?}"),
                false => {
                    assert!(packed.unwrap_err().contains("`README.md`: is a model card that says nothing"), "{card}")
                }
            }
        }
    }

    #[test]
    fn a_licence_is_an_spdx_expression_or_the_nearest_is_named() {
        let bench = Bench::new();
        let source = bench.source();
        let told = fs::read_to_string(source.join("package.toml")).unwrap();
        let with = |licence: &str, out: &str| {
            fs::write(source.join("package.toml"), told.replace("Apache-2.0", licence)).unwrap();
            pack(&source, &bench.path(out)).map_err(|error| error.to_string())
        };
        for (n, fine) in ["MIT OR Apache-2.0", "LicenseRef-ours", "CC-BY-SA-4.0"].into_iter().enumerate() {
            assert!(with(fine, &n.to_string()).is_ok(), "{fine}");
        }
        let refused = with("Apache 2", "refused").unwrap_err();
        assert!(refused.contains("`licence` is `Apache 2`, which is no SPDX expression"), "{refused}");
        assert!(refused.ends_with("did you mean `Apache-2.0`?"), "{refused}");
        assert!(with("ours", "refused").unwrap_err().contains("or LicenseRef-NAME for your own"));
    }

    #[test]
    fn other_weights_give_another_digest() {
        let bench = Bench::new();
        let a = pack(&source("classify-a"), &bench.path("a")).unwrap();
        let b = pack(&source("classify-b"), &bench.path("b")).unwrap();
        assert_ne!(a, b);
    }

    #[test]
    fn the_manifest_says_what_the_source_says() {
        let bench = Bench::new();
        let digest = pack(&source("embed"), &bench.path("package")).unwrap();
        let package = Package::open(&bench.path("package")).unwrap().verify().unwrap();
        assert_eq!(package.digest(), digest);
        let manifest = serde_json::to_value(package.manifest()).unwrap();
        assert_eq!(manifest["task"], json!({"task": "embed", "dimensions": 16, "normalized": true, "max_tokens": 48}));
        assert_eq!(manifest["parity"], json!({"file": PARITY, "n_cases": 4, "check": {"relative_rms": 1e-5}}));
        assert_eq!(manifest["provenance"]["run_id"], "0123456789abcdef0123456789abcdef");
    }

    #[test]
    fn a_data_file_may_say_what_it_was_for_and_a_manifest_without_roles_stays_as_it_was() {
        let bench = Bench::new();
        let (source, digest) = (bench.source(), Digest::of(b"data"));
        // The source ends in [provenance.data].
        let data = format!("\"a.csv\" = \"{digest}\"\n\"b.csv\" = \"{digest}\"\n");
        let with = |more: &str| edit(&source.join("package.toml"), |text| text.extend(more.as_bytes()));
        with(&data);
        pack(&source, &bench.path("without")).unwrap();
        let manifest = |name: &str| Package::open(&bench.path(name)).unwrap().manifest().clone();
        assert!(serde_json::to_value(manifest("without")).unwrap()["provenance"].get("data_roles").is_none());
        assert!(manifest("without").provenance.may_have_trained("a.csv"), "who knows");
        with("[provenance.data_roles]\n\"a.csv\" = \"test\"\n");
        pack(&source, &bench.path("with")).unwrap();
        let provenance = manifest("with").provenance;
        assert_eq!(provenance.data_roles["a.csv"], DataRole::Test);
        assert_eq!(["a.csv", "b.csv"].map(|name| provenance.may_have_trained(name)), [false, true]);
        with("\"c.csv\" = \"train\"\n");
        let refused = pack(&source, &bench.path("stray")).unwrap_err().to_string();
        assert!(refused.contains("`data_roles` names `c.csv`, which `data` does not"), "{refused}");
    }

    #[test]
    fn the_program_keeps_every_weight_aligned_and_leaves_the_example_inputs_behind() {
        let bench = Bench::new();
        let open = |path: &Path| zip::ZipArchive::new(fs::File::open(path).unwrap()).unwrap();
        let mut before = open(&source("classify-a").join(PROGRAM));
        let mut after = open(&bench.package().join(PROGRAM));
        assert_eq!(before.len(), after.len() + 1);
        let mut raw = Vec::new();
        for i in 0..after.len() {
            let mut record = after.by_index(i).unwrap();
            let name = record.name().unwrap().into_owned();
            assert_eq!(record.data_start().unwrap() % 64, 0, "{name}");
            raw.clear();
            std::io::copy(&mut record, &mut raw).unwrap();
            if name == "program/data/sample_inputs/model.pt" {
                assert_eq!(raw, b"");
                continue;
            }
            let mut original = Vec::new();
            std::io::copy(&mut before.by_name(&name).unwrap(), &mut original).unwrap();
            assert!(raw == original, "{name} changed");
        }
    }

    #[test]
    fn a_packed_program_packs_to_itself() {
        let bench = Bench::new();
        let (copy, package) = (bench.source(), bench.package());
        fs::copy(package.join(PROGRAM), copy.join(PROGRAM)).unwrap();
        pack(&copy, &bench.path("again")).unwrap();
        assert_eq!(fs::read(bench.path("again").join(PROGRAM)).unwrap(), fs::read(package.join(PROGRAM)).unwrap());
    }

    #[test]
    fn packing_over_the_same_package_changes_nothing() {
        let bench = Bench::new();
        let package = bench.package();
        assert_eq!(pack(&source("classify-a"), &package).unwrap(), Package::open(&package).unwrap().digest());
    }

    #[test]
    fn packing_over_something_else_is_refused_and_leaves_it_alone() {
        let bench = Bench::new();
        let package = bench.package();
        let error = pack(&source("classify-b"), &package).unwrap_err();
        assert!(matches!(error, PackageError::OutputExists(_)), "{error}");
        assert_eq!(pack(&source("classify-a"), &package).unwrap(), Package::open(&package).unwrap().digest());
        assert_eq!(fs::read_dir(bench.dir.path()).unwrap().count(), 1, "temporary directories are gone");
    }

    fn error(change: impl FnOnce(&Path)) -> String {
        let bench = Bench::new();
        let copy = bench.source();
        change(&copy);
        let error = pack(&copy, &bench.path("package")).unwrap_err().to_string();
        assert!(!bench.path("package").exists());
        error
    }

    #[test]
    fn widths_that_an_embedding_may_be_cut_to_ascend_below_its_own() {
        let bench = Bench::new();
        let packed = |widths: &str, name: &str| {
            let source = bench.path(&format!("{name}.source"));
            fs::create_dir(&source).unwrap();
            for file in fs::read_dir(self::source("embed")).unwrap().map(Result::unwrap) {
                fs::copy(file.path(), source.join(file.file_name())).unwrap();
            }
            let text = fs::read_to_string(source.join("package.toml")).unwrap();
            let text = text.replace("max_tokens = 48", &format!("max_tokens = 48\nmatryoshka_dimensions = {widths}"));
            fs::write(source.join("package.toml"), text).unwrap();
            pack(&source, &bench.path(name)).map_err(|error| error.to_string())
        };
        packed("[4, 8]", "fine").unwrap();
        let manifest = Package::open(&bench.path("fine")).unwrap().manifest().clone();
        assert_eq!(serde_json::to_value(manifest).unwrap()["task"]["matryoshka_dimensions"], json!([4, 8]));
        for (i, widths) in ["[8, 4]", "[4, 4]", "[0]", "[16]"].iter().enumerate() {
            let error = packed(widths, &format!("bad-{i}")).unwrap_err();
            assert!(error.contains("numbers above 0 and below `dimensions` (16), ascending"), "{error}");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        for file in [PROGRAM, TOKENIZER, PARITY, "package.toml"] {
            let message = error(|source| fs::remove_file(source.join(file)).unwrap());
            assert!(message.starts_with(&format!("`{file}`: is missing")), "{message}");
        }
    }

    #[test]
    fn a_file_that_does_not_belong_there_is_named() {
        let message = error(|source| fs::write(source.join("LICENCE"), "").unwrap());
        assert!(message.starts_with("`LICENCE`: is not a file of a package source"), "{message}");
        assert!(message.ends_with("did you mean `LICENSE`?"), "{message}");
    }

    #[test]
    fn a_symbolic_link_is_not_packed() {
        let message = error(|source| {
            fs::rename(source.join(TOKENIZER), source.join("../elsewhere")).unwrap();
            symlink("../elsewhere", source.join(TOKENIZER)).unwrap();
        });
        assert_eq!(message, "`tokenizer.json` is not a regular file");
    }

    #[test]
    fn a_program_that_is_no_archive_is_refused() {
        let message = error(|source| fs::write(source.join(PROGRAM), "weights").unwrap());
        assert!(message.starts_with("`program.pt2`: is not a .pt2 archive"), "{message}");
    }

    #[test]
    fn a_program_with_a_damaged_record_is_refused() {
        let message = error(|source| edit(&source.join(PROGRAM), |bytes| bytes[200] ^= 1));
        assert!(message.starts_with("`program.pt2`: record `program/data/weights/weight_0`"), "{message}");
    }

    #[test]
    fn parity_cases_with_a_gap_are_refused() {
        let message = error(|source| {
            edit(&source.join(PARITY), |bytes| {
                let at = bytes.windows(10).position(|window| window == b"1.output.0").unwrap();
                bytes[at] = b'7';
            });
        });
        assert!(message.starts_with("`parity.safetensors`: tensor `1.input.0` is not part of a case"), "{message}");
    }
}

mod tampering {
    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn one_changed_bit_anywhere_is_refused_naming_the_file(file in 0..FILES.len(), at in any::<prop::sample::Index>(), bit in 0..8) {
            let (bench, file) = (Bench::new(), FILES[file]);
            let store = bench.store();
            let digest = store.add(&bench.package()).unwrap();
            edit(&bench.path("store").join(digest.hex()).join(file), |bytes| {
                let at = at.index(bytes.len());
                bytes[at] ^= 1u8 << bit;
            });
            let error = store.get(&digest).unwrap_err().to_string();
            prop_assert!(error.contains(&format!("`{file}`")), "{}", error);
        }
    }

    fn after(change: impl FnOnce(&Path)) -> String {
        let bench = Bench::new();
        let package = bench.package();
        change(&package);
        let message = refused(&package);
        assert_eq!(bench.store().add(&package).unwrap_err().to_string(), message);
        assert_eq!(fs::read_dir(bench.path("store")).unwrap().count(), 0, "nothing half-added is left");
        message
    }

    #[test]
    fn a_missing_file_is_named() {
        for file in FILES {
            let message = after(|package| fs::remove_file(package.join(file)).unwrap());
            assert_eq!(message, format!("`{file}` is missing from the package"));
        }
    }

    #[test]
    fn an_extra_file_is_named() {
        let message = after(|package| fs::write(package.join("sitecustomize.py"), "").unwrap());
        assert_eq!(message, "`sitecustomize.py` is in the package's directory but not in its manifest");
        let message = after(|package| fs::create_dir(package.join(".git")).unwrap());
        assert_eq!(message, "`.git` is in the package's directory but not in its manifest");
    }

    #[test]
    fn a_renamed_file_is_named() {
        let message = after(|package| fs::rename(package.join(TOKENIZER), package.join("tokenizer.JSON")).unwrap());
        assert!(message.starts_with("`tokenizer.JSON` is in the package's directory"), "{message}");
    }

    #[test]
    fn swapped_files_are_named() {
        let message = after(|package| {
            fs::rename(package.join(TOKENIZER), package.join("x")).unwrap();
            fs::rename(package.join(PARITY), package.join(TOKENIZER)).unwrap();
            fs::rename(package.join("x"), package.join(PARITY)).unwrap();
        });
        assert!(message.starts_with("`parity.safetensors` has "), "{message}");
    }

    #[test]
    fn the_weights_of_another_package_are_refused() {
        let other = Bench::new();
        pack(&source("classify-b"), &other.path("package")).unwrap();
        let message = after(|package| {
            fs::copy(other.path("package").join(PROGRAM), package.join(PROGRAM)).unwrap();
        });
        assert!(message.starts_with("`program.pt2` was changed: its digest is sha256:"), "{message}");
    }

    #[test]
    fn a_shorter_or_longer_file_is_named_with_both_sizes() {
        let message = after(|package| edit(&package.join(TOKENIZER), |bytes| bytes.truncate(2148)));
        assert!(message.starts_with("`tokenizer.json` has 2148 bytes, but the manifest says 2149"), "{message}");
    }

    #[test]
    fn a_link_is_refused_even_to_the_right_bytes() {
        let message = after(|package| {
            fs::rename(package.join(PROGRAM), package.join("../elsewhere")).unwrap();
            symlink("../elsewhere", package.join(PROGRAM)).unwrap();
        });
        assert_eq!(message, "`program.pt2` is not a regular file");
    }

    #[test]
    fn a_directory_in_the_place_of_a_file_is_refused() {
        let message = after(|package| {
            fs::remove_file(package.join(PROGRAM)).unwrap();
            fs::create_dir(package.join(PROGRAM)).unwrap();
        });
        assert_eq!(message, "`program.pt2` is not a regular file");
    }

    #[test]
    fn names_that_leave_the_directory_are_refused() {
        for name in
            ["../program.pt2", "/etc/passwd", "a/b", "..", ".hidden", "a\\b", "", "manifest.json", "naïve", "a\0b"]
        {
            let message = refused_manifest(|manifest| manifest["files"][0]["path"] = json!(name));
            assert!(message.ends_with("is not a plain file name"), "{name:?}: {message}");
        }
    }

    #[test]
    fn a_repeated_file_is_refused() {
        let message = refused_manifest(|manifest| {
            let first = manifest["files"][0].clone();
            manifest["files"].as_array_mut().unwrap().insert(0, first);
        });
        assert!(message.ends_with("`parity.safetensors` is repeated or not sorted"), "{message}");
    }

    #[test]
    fn absurd_sizes_are_refused_before_anything_is_read() {
        let message = refused_manifest(|manifest| {
            manifest["files"][0]["size_bytes"] = json!(1u64 << 52);
            manifest["files"][1]["size_bytes"] = json!(1u64 << 52);
        });
        assert!(message.contains("its files have more than"), "{message}");
    }

    #[test]
    fn a_file_larger_than_its_size_is_not_read_to_its_end() {
        let message = after(|package| {
            let file = fs::OpenOptions::new().write(true).open(package.join(TOKENIZER)).unwrap();
            file.set_len(1 << 40).unwrap();
        });
        assert!(message.starts_with("`tokenizer.json` has 1099511627776 bytes"), "{message}");
    }

    #[test]
    fn a_huge_manifest_is_not_read() {
        let message = after(|package| edit(&package.join(MANIFEST), |bytes| bytes.resize(2 << 20, b' ')));
        assert!(message.starts_with("`manifest.json` is over a limit: size in bytes is 2097152"), "{message}");
    }

    #[test]
    fn a_manifest_has_one_spelling() {
        let message = after(|package| edit(&package.join(MANIFEST), |bytes| bytes.push(b'\n')));
        assert!(message.contains("not canonical JSON"), "{message}");
        for place in ["", "/task", "/parity", "/provenance", "/files/0"] {
            let message = refused_manifest(|manifest| manifest.pointer_mut(place).unwrap()["x"] = json!(1));
            assert!(message.starts_with("`manifest.json` is not a package manifest"), "{place}: {message}");
        }
    }

    #[test]
    fn fields_without_sense_are_refused() {
        let changes: [(&str, Value, &str); 9] = [
            ("/highroad_package", json!(2), "format version 2 is not 1"),
            ("/name", json!("a/b"), "`a/b` cannot name a model"),
            ("/owner", json!(" "), "`owner` must be one short line"),
            ("/task/labels", json!(["one"]), "`labels` must have at least two"),
            ("/task/labels", json!(["a", "a"]), "label `a` is repeated"),
            ("/task/flagged", json!("spam"), "`flagged` is `spam`, no label"),
            ("/task/max_tokens", json!(0), "`max_tokens` is 0"),
            ("/parity/n_cases", json!(0), "at least one parity case"),
            ("/parity/check/relative_rms", json!(1), "`relative_rms` is 1, not in (0, 1)"),
        ];
        for (place, value, reason) in changes {
            let message = refused_manifest(|manifest| *manifest.pointer_mut(place).unwrap() = value);
            assert!(message.contains(reason), "{place}: {message}");
        }
    }
}

mod archive {
    use highroad_package::write_archive;

    use super::*;

    fn archive(bench: &Bench) -> PathBuf {
        let package = Package::open(&bench.package()).unwrap().verify().unwrap();
        write_archive(&package, &bench.path("one.tar")).unwrap();
        bench.path("one.tar")
    }

    #[test]
    fn one_package_is_one_file_and_comes_out_as_it_went_in() {
        let bench = Bench::new();
        let (one, store) = (archive(&bench), bench.store());
        let digest = store.add_archive(&one).unwrap();
        assert_eq!(digest, Package::open(&bench.path("package")).unwrap().digest());
        let again = bench.path("again.tar");
        write_archive(&store.get(&digest).unwrap(), &again).unwrap();
        assert_eq!(fs::read(one).unwrap(), fs::read(again).unwrap());
    }

    #[test]
    fn a_changed_byte_is_found_whatever_it_belongs_to() {
        let bench = Bench::new();
        let one = archive(&bench);
        let sound = fs::read(&one).unwrap();
        let digest = Package::open(&bench.path("package")).unwrap().digest();
        // After the manifest's own header.
        let manifest = 512..512 + fs::metadata(bench.path("package").join(MANIFEST)).unwrap().len() as usize;
        for at in (0..sound.len()).step_by(97) {
            let mut bytes = sound.clone();
            bytes[at] ^= 1;
            fs::write(bench.path("changed.tar"), &bytes).unwrap();
            match bench.store().add_archive(&bench.path("changed.tar")) {
                // Another manifest is another package, and says so by its name.
                Ok(found) if manifest.contains(&at) => assert_ne!(found, digest, "byte {at}"),
                // A bit of a header that nobody reads, such as a mode, changes nothing.
                Ok(found) => assert_eq!(found, digest, "byte {at}"),
                Err(_) => {}
            }
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let bench = Bench::new();
        let one = archive(&bench);
        let sound = fs::read(&one).unwrap();
        let refused = |bytes: &[u8]| {
            let path = bench.path("wrong.tar");
            fs::write(&path, bytes).unwrap();
            bench.store().add_archive(&path).unwrap_err().to_string()
        };
        let inside = sound.windows(4).position(|bytes| bytes == b"PK\x03\x04").expect("the program is a zip") + 400;
        let mut changed = sound.clone();
        changed[inside] ^= 1;
        assert!(refused(&changed).contains("`program.pt2` was changed"), "{}", refused(&changed));
        let end = sound.len() - 1024;
        let cut = refused(&sound[..end - 2000]);
        assert!(cut.contains("`tokenizer.json` has"), "{cut}");
        let extra = [&sound[..end], &sound[..sound.len()]].concat();
        assert!(refused(&extra).contains("`manifest.json` is in the package's directory but not in its manifest"));
        assert!(refused(b"").contains("`manifest.json` is missing"));
        assert!(!refused(&[7; 4096]).is_empty());
        assert!(bench.store().list().unwrap().is_empty());
    }
}

mod store {
    use super::*;

    #[test]
    fn a_package_comes_out_as_it_went_in() {
        let bench = Bench::new();
        let (store, package) = (bench.store(), bench.package());
        let digest = store.add(&package).unwrap();
        let stored = store.get(&digest).unwrap();
        assert_eq!((stored.digest(), store.list().unwrap()), (digest, vec![digest]));
        assert_eq!(stored.read(TOKENIZER).unwrap(), fs::read(package.join(TOKENIZER)).unwrap());
        assert_eq!(stored.path(PROGRAM).unwrap(), stored.dir().join(PROGRAM));
        assert!(matches!(stored.path("../x"), Err(PackageError::Missing { .. })));
    }

    #[test]
    fn what_is_in_the_store_is_read_only() {
        let bench = Bench::new();
        let digest = bench.store().add(&bench.package()).unwrap();
        let dir = bench.path("store").join(digest.hex());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o222;
        assert!(mode(&dir) == 0 && FILES.iter().all(|file| mode(&dir.join(file)) == 0));
    }

    #[test]
    fn many_adds_at_once_leave_one_package() {
        let bench = Bench::new();
        let (store, package) = (bench.store(), bench.package());
        let digests: Vec<Digest> = std::thread::scope(|scope| {
            let adds: Vec<_> = (0..8).map(|_| scope.spawn(|| store.add(&package).unwrap())).collect();
            adds.into_iter().map(|add| add.join().unwrap()).collect()
        });
        assert_eq!(store.list().unwrap(), [digests[0]]);
        assert_eq!(fs::read_dir(bench.path("store")).unwrap().count(), 1, "no temporary directory is left");
        store.get(&digests[0]).unwrap();
    }

    #[test]
    fn adding_again_repairs_a_damaged_package() {
        let bench = Bench::new();
        let (store, package) = (bench.store(), bench.package());
        let digest = store.add(&package).unwrap();
        edit(&bench.path("store").join(digest.hex()).join(PROGRAM), |bytes| bytes[1000] ^= 1);
        assert!(store.get(&digest).is_err());
        store.add(&package).unwrap();
        store.get(&digest).unwrap();
    }

    #[test]
    fn a_package_under_the_wrong_name_is_refused() {
        let bench = Bench::new();
        let store = bench.store();
        let digest = store.add(&bench.package()).unwrap();
        let other = Digest::of(b"another");
        fs::rename(bench.path("store").join(digest.hex()), bench.path("store").join(other.hex())).unwrap();
        let error = store.get(&other).unwrap_err();
        assert!(
            matches!(error, PackageError::ManifestChanged { expected, found } if (expected, found) == (other, digest))
        );
    }

    #[test]
    fn a_removed_package_is_gone() {
        let bench = Bench::new();
        let store = bench.store();
        let digest = store.add(&bench.package()).unwrap();
        store.remove(&digest).unwrap();
        assert!(matches!(store.get(&digest), Err(PackageError::NotInStore(gone)) if gone == digest));
        assert!(matches!(store.remove(&digest), Err(PackageError::NotInStore(_))));
        assert_eq!(fs::read_dir(bench.path("store")).unwrap().count(), 0);
    }

    #[test]
    fn a_verdict_is_kept_under_its_digest() {
        let bench = Bench::new();
        let (verdicts, package) = (Verdicts::open(bench.path("verdicts")).unwrap(), Digest::of(b"package"));
        let digest = verdicts.put(&package, b"{}").unwrap();
        assert_eq!(verdicts.put(&package, b"{}").unwrap(), digest);
        assert_eq!(verdicts.get(&package, &digest).unwrap(), b"{}");
        assert_eq!(verdicts.list(&package).unwrap(), [digest]);
        assert_eq!(verdicts.list(&Digest::of(b"other")).unwrap(), []);
        let missing = verdicts.get(&package, &Digest::of(b"none")).unwrap_err();
        assert!(matches!(missing, PackageError::NoVerdict { .. }));
    }

    #[test]
    fn a_changed_verdict_is_refused() {
        let bench = Bench::new();
        let (verdicts, package) = (Verdicts::open(bench.path("verdicts")).unwrap(), Digest::of(b"package"));
        let digest = verdicts.put(&package, br#"{"outcome":"fail"}"#).unwrap();
        let path = bench.path("verdicts").join(package.hex()).join(format!("{}.json", digest.hex()));
        edit(&path, |bytes| *bytes = br#"{"outcome":"pass"}"#.to_vec());
        assert!(matches!(verdicts.get(&package, &digest), Err(PackageError::Changed { .. })));
    }
}
