//! Signatures on the tiny packages of `conformance/packages`, and stores that ask for them.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use highroad_package::signing::{Algorithm, Attestation, Policy, PublicKey, Signature, SigningKey};
use highroad_package::{Digest, Package, PackageError, Store, VerifiedPackage, pack};
use serde_json::Value;

struct Bench {
    dir: tempfile::TempDir,
    key: SigningKey,
}

impl Bench {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), key: SigningKey::generate(Algorithm::Ed25519).unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn package(&self, name: &str) -> VerifiedPackage {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance/packages").join(name);
        pack(&source, &self.path(name)).unwrap();
        Package::open(&self.path(name)).unwrap().verify().unwrap()
    }

    fn guarded(&self, keys: Vec<PublicKey>) -> Store {
        Store::open(self.path("store")).unwrap().with_policy(Policy::SignedBy(keys))
    }
}

fn verify(signature: &Signature, package: &VerifiedPackage, keys: &[PublicKey]) -> Result<(), PackageError> {
    signature.verify(&package.digest(), package.manifest(), keys).map(drop)
}

/// The bundle after `change`, read anew.
fn changed(signature: &Signature, change: impl FnOnce(&mut Value)) -> Signature {
    let mut bundle: Value = serde_json::from_slice(signature.bytes()).unwrap();
    change(&mut bundle);
    Signature::parse(bundle.to_string().into_bytes()).unwrap()
}

#[test]
fn a_signature_is_of_one_key_over_one_package() {
    let bench = Bench::new();
    let (a, b) = (bench.package("classify-a"), bench.package("classify-b"));
    for algorithm in [Algorithm::Ed25519, Algorithm::EcdsaP256] {
        let key = SigningKey::generate(algorithm).unwrap();
        let signature = Signature::sign(&a, &key).unwrap();
        let keys = [bench.key.public(), key.public()];
        assert_eq!(signature.verify(&a.digest(), a.manifest(), &keys).unwrap(), &key.public());
        assert_eq!(Signature::parse(signature.bytes().to_vec()).unwrap(), signature);
        let other = verify(&signature, &b, &keys).unwrap_err();
        assert!(matches!(&other, PackageError::SignedOther { file, .. } if file == "manifest.json"), "{other}");
        let stranger = verify(&signature, &a, &[bench.key.public()]).unwrap_err();
        assert!(matches!(stranger, PackageError::UntrustedKey { .. }), "{stranger}");
    }
}

#[test]
fn a_signature_that_was_changed_or_relabelled_is_forged() {
    let bench = Bench::new();
    let package = bench.package("classify-a");
    let signature = Signature::sign(&package, &SigningKey::generate(Algorithm::Ed25519).unwrap()).unwrap();
    let hint = |bundle: &mut Value| {
        bundle["verificationMaterial"]["publicKey"]["hint"] = bench.key.public().id().to_string().into();
    };
    // Without a name it is tried with every key.
    let nameless = |bundle: &mut Value| bundle["verificationMaterial"]["publicKey"] = serde_json::json!({});
    for forged in [changed(&signature, hint), changed(&signature, nameless)] {
        let error = verify(&forged, &package, &[bench.key.public()]).unwrap_err();
        assert!(matches!(error, PackageError::Forged { .. }), "{error}");
    }
}

#[test]
fn a_store_gives_only_what_a_trusted_key_signed() {
    let bench = Bench::new();
    let package = bench.package("classify-a");
    let store = bench.guarded(vec![bench.key.public()]);
    let digest = store.add(package.dir()).unwrap();
    assert!(matches!(store.get(&digest), Err(PackageError::Unsigned { .. })));
    let stranger = SigningKey::generate(Algorithm::Ed25519).unwrap();
    store.add_signature(&digest, &Signature::sign(&package, &stranger).unwrap()).unwrap();
    assert!(matches!(store.get(&digest), Err(PackageError::Refused { .. })));
    store.add_signature(&digest, &Signature::sign(&package, &bench.key).unwrap()).unwrap();
    store.get(&digest).unwrap();
    assert_eq!(store.signatures(&digest).unwrap().len(), 2);
    store.forget(&digest).unwrap();
    assert!(store.signatures(&digest).unwrap().is_empty());
}

#[test]
fn a_signature_beside_a_directory_comes_along() {
    let bench = Bench::new();
    let package = bench.package("classify-a");
    let signature = Signature::sign(&package, &bench.key).unwrap();
    std::fs::write(Signature::path_beside(package.dir()), signature.bytes()).unwrap();
    let store = bench.guarded(vec![bench.key.public()]);
    let digest = store.add(package.dir()).unwrap();
    store.get(&digest).unwrap();
    // Another tool's file of that name is no signature, and no obstacle where none is asked for.
    std::fs::write(Signature::path_beside(package.dir()), "-----BEGIN PGP SIGNATURE-----").unwrap();
    let open = Store::open(bench.path("open")).unwrap();
    open.get(&open.add(package.dir()).unwrap()).unwrap();
}

#[test]
fn where_no_key_is_trusted_nothing_is_loaded() {
    let bench = Bench::new();
    let package = bench.package("classify-a");
    let store = bench.guarded(Vec::new());
    let digest = store.add(package.dir()).unwrap();
    store.add_signature(&digest, &Signature::sign(&package, &bench.key).unwrap()).unwrap();
    let error = store.get(&digest).unwrap_err().to_string();
    assert!(error.contains("no key is trusted"), "{error}");
}

#[test]
fn a_bundle_with_one_changed_byte_proves_nothing_that_was_not_signed() {
    let bench = Bench::new();
    let package = bench.package("classify-a");
    let signature = Signature::sign(&package, &bench.key).unwrap();
    let payload = |signature: &Signature| {
        let bundle: Value = serde_json::from_slice(signature.bytes()).unwrap();
        bundle["dsseEnvelope"]["payload"].clone()
    };
    let keys = [bench.key.public()];
    for at in 0..signature.bytes().len() {
        for flipped in [0x01, 0x20, 0x80] {
            let mut bytes = signature.bytes().to_vec();
            bytes[at] ^= flipped;
            let Ok(changed) = Signature::parse(bytes) else { continue };
            // Nobody signs the name of a field that may be left out; what is said about the package is signed.
            let accepted = verify(&changed, &package, &keys).is_ok();
            assert!(!accepted || payload(&changed) == payload(&signature), "byte {at} ^ {flipped}");
        }
    }
}

#[test]
fn a_statement_about_artifacts_is_read_by_whoever_trusts_its_key_and_by_nobody_else() {
    let [ours, theirs] = [Algorithm::Ed25519, Algorithm::EcdsaP256].map(|kind| SigningKey::generate(kind).unwrap());
    let said = Attestation {
        subjects: [("package".to_owned(), Digest::of(b"package"))].into(),
        predicate_type: "https://example.com/review/v1".to_owned(),
        predicate: serde_json::json!({"score": 4.5}),
    };
    for key in [&ours, &theirs] {
        let bytes = said.clone().sign(key).unwrap();
        let keys = [key.public()];
        assert_eq!(Attestation::verify(&bytes, &keys).unwrap(), (said.clone(), &keys[0]));
        let other = if key.public() == ours.public() { &theirs } else { &ours };
        assert!(Attestation::verify(&bytes, &[other.public()]).is_err());
        let mut bundle: Value = serde_json::from_slice(&bytes).unwrap();
        bundle["dsseEnvelope"]["payload"] = "e30=".into();
        let forged = Attestation::verify(bundle.to_string().as_bytes(), &keys);
        assert!(matches!(forged, Err(PackageError::Forged { .. })), "{forged:?}");
    }
    // A signature over a package is a statement too, of another kind: nobody takes it for this one unseen.
    let bench = Bench::new();
    let signature = Signature::sign(&bench.package("classify-a"), &bench.key).unwrap();
    let keys = [bench.key.public()];
    let (read, _) = Attestation::verify(signature.bytes(), &keys).unwrap();
    assert_ne!(read.predicate_type, said.predicate_type);
    assert!(Attestation::verify(b"{}", &keys).is_err());
}
