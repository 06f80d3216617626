use std::fmt;
use std::fs::{File, Permissions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::str::FromStr;

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, ED25519, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
    UnparsedPublicKey, VerificationAlgorithm,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Serialize;

use crate::{Digest, PackageError};

const PRIVATE_KEY: &str = "PRIVATE KEY";
const PUBLIC_KEY: &str = "PUBLIC KEY";
/// Largest file that is read as a key.
const MAX_KEY_BYTES: u64 = 16 << 10;

/// How a key signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Algorithm {
    /// Ed25519 (RFC 8032).
    Ed25519,
    /// ECDSA over P-256 with SHA-256: what `model_signing verify key` reads.
    EcdsaP256,
}

/// What names a public key: the SHA-256 of its PEM text, 64 hexadecimal digits, as `model-signing` computes its hint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct KeyId(String);

/// A key that checks signatures, and what its owner calls it.
///
/// Its text is `ALGORITHM:BASE64 NAME`: the algorithm, the SubjectPublicKeyInfo (the body of its PEM file), and any words.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    algorithm: Algorithm,
    info_der: Vec<u8>,
    name: String,
}

/// A key that signs. It is never printed.
pub struct SigningKey(Pair);

enum Pair {
    Ed25519(Ed25519KeyPair),
    EcdsaP256(EcdsaKeyPair),
}

impl Algorithm {
    const ALL: [Self; 2] = [Self::Ed25519, Self::EcdsaP256];

    /// `ed25519` or `ecdsa-p256`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ed25519 => "ed25519",
            Self::EcdsaP256 => "ecdsa-p256",
        }
    }

    /// What stands before the key's own bytes in its SubjectPublicKeyInfo: the one DER form of RFC 8410 and of RFC 5480 with
    /// an uncompressed point.
    fn info_prefix(self) -> &'static [u8] {
        match self {
            Self::Ed25519 => &[0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00],
            Self::EcdsaP256 => &[
                0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
                0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
            ],
        }
    }

    fn key_bytes(self) -> usize {
        match self {
            Self::Ed25519 => 32,
            Self::EcdsaP256 => 65,
        }
    }

    fn verification(self) -> &'static dyn VerificationAlgorithm {
        match self {
            Self::Ed25519 => &ED25519,
            Self::EcdsaP256 => &ECDSA_P256_SHA256_ASN1,
        }
    }
}

impl FromStr for Algorithm {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|algorithm| algorithm.name() == text);
        found.ok_or_else(|| format!("`{text}` is no algorithm: expected `ed25519` or `ecdsa-p256`"))
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl KeyId {
    /// The first 12 digits, for people.
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl PartialEq<str> for KeyId {
    fn eq(&self, text: &str) -> bool {
        self.0 == text
    }
}

impl PublicKey {
    /// The key of a PEM file (`-----BEGIN PUBLIC KEY-----`).
    pub fn from_pem(text: &str) -> Result<Self, PackageError> {
        let block = pem::parse(text).map_err(|error| not_a_key(format!("it is no PEM file ({error})")))?;
        match block.tag() {
            PUBLIC_KEY => Self::from_der(block.into_contents()),
            PRIVATE_KEY => Ok(SigningKey::from_pem(text)?.public()),
            other => Err(not_a_key(format!("it holds a `{other}`, not a `{PUBLIC_KEY}`"))),
        }
    }

    fn from_der(info_der: Vec<u8>) -> Result<Self, PackageError> {
        let fits = |algorithm: &Algorithm| {
            let prefix = algorithm.info_prefix();
            info_der.starts_with(prefix) && info_der.len() == prefix.len() + algorithm.key_bytes()
        };
        let found = Algorithm::ALL.into_iter().find(fits);
        let algorithm = found.ok_or_else(|| not_a_key("it is neither an Ed25519 nor an ECDSA P-256 key".to_owned()))?;
        Ok(Self { algorithm, info_der, name: String::new() })
    }

    /// The key of the file at `path`, PEM; a private key's public half where it holds that.
    pub fn read(path: &Path) -> Result<Self, PackageError> {
        let file = File::open(path).map_err(PackageError::io(path))?;
        let text = read_text(file, path)?;
        Self::from_pem(&text).map_err(|error| in_file(path, error))
    }

    /// PEM with lines of 64 columns, as OpenSSL writes it.
    pub fn to_pem(&self) -> String {
        encode_pem(PUBLIC_KEY, self.info_der.clone())
    }

    /// What names it.
    pub fn id(&self) -> KeyId {
        KeyId(Digest::of(self.to_pem().as_bytes()).hex())
    }

    /// How it signs.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// What its owner calls it, else the first digits of its id.
    pub fn label(&self) -> String {
        if self.name.is_empty() { self.id().short().to_owned() } else { self.name.clone() }
    }

    /// Whether `signature` is this key's over `message`.
    pub(super) fn signed(&self, message: &[u8], signature: &[u8]) -> bool {
        let key = &self.info_der[self.algorithm.info_prefix().len()..];
        UnparsedPublicKey::new(self.algorithm.verification(), key).verify(message, signature).is_ok()
    }
}

impl FromStr for PublicKey {
    type Err = PackageError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (key, name) = text.trim().split_once(char::is_whitespace).unwrap_or((text.trim(), ""));
        let form = || not_a_key(format!("`{text}` is not `ed25519:BASE64` or `ecdsa-p256:BASE64`"));
        let (algorithm, encoded) = key.split_once(':').ok_or_else(form)?;
        let algorithm: Algorithm = algorithm.parse().map_err(|_| form())?;
        let parsed = Self::from_der(BASE64.decode(encoded).map_err(|_| form())?)?;
        if parsed.algorithm != algorithm {
            return Err(not_a_key(format!("`{text}` holds an {} key", parsed.algorithm)));
        }
        Ok(Self { name: name.trim().to_owned(), ..parsed })
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm, BASE64.encode(&self.info_der))?;
        if self.name.is_empty() { Ok(()) } else { write!(f, " {}", self.name) }
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl SigningKey {
    /// A new key from the system's random numbers.
    pub fn generate(algorithm: Algorithm) -> Result<Self, PackageError> {
        let refused = |_| not_a_key("the system gave no random numbers".to_owned());
        Ok(Self(match algorithm {
            Algorithm::Ed25519 => Pair::Ed25519(Ed25519KeyPair::generate().map_err(refused)?),
            Algorithm::EcdsaP256 => {
                Pair::EcdsaP256(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map_err(refused)?)
            }
        }))
    }

    /// The key of a PKCS#8 PEM file (`-----BEGIN PRIVATE KEY-----`) without a passphrase.
    pub fn from_pem(text: &str) -> Result<Self, PackageError> {
        let block = pem::parse(text).map_err(|error| not_a_key(format!("it is no PEM file ({error})")))?;
        if block.tag() != PRIVATE_KEY {
            let hint = "`openssl pkcs8 -topk8 -nocrypt` converts other private keys";
            return Err(not_a_key(format!("it holds a `{}`, not a `{PRIVATE_KEY}` ({hint})", block.tag())));
        }
        let der = block.contents();
        let ed25519 = Ed25519KeyPair::from_pkcs8(der).map(Pair::Ed25519).ok();
        let ecdsa = || EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der).map(Pair::EcdsaP256).ok();
        let pair = ed25519.or_else(ecdsa);
        pair.map(Self).ok_or_else(|| not_a_key("it is neither an Ed25519 nor an ECDSA P-256 key".to_owned()))
    }

    /// The key of the file at `path`. Errors if anybody but its owner may read it.
    pub fn read(path: &Path) -> Result<Self, PackageError> {
        let file = File::open(path).map_err(PackageError::io(path))?;
        let mode = file.metadata().map_err(PackageError::io(path))?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(PackageError::ExposedKey { path: path.to_owned(), mode });
        }
        let text = read_text(file, path)?;
        Self::from_pem(&text).map_err(|error| in_file(path, error))
    }

    /// Writes the key to a new file that only its owner may read.
    pub fn write_new(&self, path: &Path) -> Result<(), PackageError> {
        let mut options = File::options();
        let file = options.write(true).create_new(true).mode(0o600).open(path);
        let mut file = file.map_err(PackageError::io(path))?;
        // The mode of `open` is cut by the umask, never widened; a file system with rules of its own may still differ.
        file.set_permissions(Permissions::from_mode(0o600)).map_err(PackageError::io(path))?;
        file.write_all(self.to_pem()?.as_bytes()).and_then(|()| file.sync_all()).map_err(PackageError::io(path))
    }

    fn to_pem(&self) -> Result<String, PackageError> {
        let der = match &self.0 {
            Pair::Ed25519(pair) => pair.to_pkcs8v1(),
            Pair::EcdsaP256(pair) => pair.to_pkcs8v1(),
        };
        let der = der.map_err(|_| not_a_key("it cannot be written".to_owned()))?;
        Ok(encode_pem(PRIVATE_KEY, der.as_ref().to_vec()))
    }

    /// The half that others get.
    pub fn public(&self) -> PublicKey {
        let (algorithm, info) = match &self.0 {
            Pair::Ed25519(pair) => (Algorithm::Ed25519, AsDer::<PublicKeyX509Der<'_>>::as_der(pair.public_key())),
            Pair::EcdsaP256(pair) => (Algorithm::EcdsaP256, AsDer::<PublicKeyX509Der<'_>>::as_der(pair.public_key())),
        };
        let info_der = info.expect("a key of a fixed length has a DER form").as_ref().to_vec();
        PublicKey { algorithm, info_der, name: String::new() }
    }

    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, PackageError> {
        match &self.0 {
            Pair::Ed25519(pair) => Ok(pair.sign(message).as_ref().to_vec()),
            Pair::EcdsaP256(pair) => {
                let signature = pair.sign(&SystemRandom::new(), message);
                let refused = |_| not_a_key("the system gave no random numbers".to_owned());
                signature.map(|signature| signature.as_ref().to_vec()).map_err(refused)
            }
        }
    }
}

fn encode_pem(tag: &str, der: Vec<u8>) -> String {
    pem::encode_config(&pem::Pem::new(tag, der), pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF))
}

fn read_text(file: File, path: &Path) -> Result<String, PackageError> {
    let mut text = String::new();
    file.take(MAX_KEY_BYTES).read_to_string(&mut text).map_err(PackageError::io(path))?;
    Ok(text)
}

fn not_a_key(reason: String) -> PackageError {
    PackageError::Key { key: "the key".to_owned(), reason }
}

fn in_file(path: &Path, error: PackageError) -> PackageError {
    match error {
        PackageError::Key { reason, .. } => PackageError::Key { key: format!("`{}`", path.display()), reason },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_comes_back_from_its_file_and_only_its_owner_may_read_it() {
        let dir = tempfile::tempdir().unwrap();
        for algorithm in Algorithm::ALL {
            let path = dir.path().join(algorithm.name());
            let key = SigningKey::generate(algorithm).unwrap();
            key.write_new(&path).unwrap();
            let again = SigningKey::read(&path).unwrap();
            assert_eq!(again.public(), key.public());
            assert!(key.public().signed(b"x", &again.sign(b"x").unwrap()));
            assert!(!key.public().signed(b"y", &again.sign(b"x").unwrap()));
            std::fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
            let error = SigningKey::read(&path).err().unwrap().to_string();
            assert!(error.contains("mode is 0640") && error.contains("chmod 600"), "{error}");
        }
    }

    #[test]
    fn a_public_key_is_the_same_as_text_and_as_pem() {
        for algorithm in Algorithm::ALL {
            let key = SigningKey::generate(algorithm).unwrap().public();
            assert_eq!(PublicKey::from_pem(&key.to_pem()).unwrap(), key);
            let named: PublicKey = format!("{key}  release team ").parse().unwrap();
            assert_eq!((named.id(), named.label()), (key.id(), "release team".to_owned()));
            assert_eq!(named.to_string().parse::<PublicKey>().unwrap(), named);
        }
    }

    #[test]
    fn a_key_of_another_kind_is_refused_with_what_it_is() {
        let key = SigningKey::generate(Algorithm::Ed25519).unwrap().public().to_string();
        let swapped = key.replace("ed25519:", "ecdsa-p256:").parse::<PublicKey>().unwrap_err().to_string();
        assert!(swapped.contains("holds an ed25519 key"), "{swapped}");
        for bad in ["", "ed25519", "ed25519:", "ed25519:AAAA", "rsa:AAAA", &key[..key.len() - 4]] {
            assert!(bad.parse::<PublicKey>().is_err(), "{bad}");
        }
    }

    /// Vector 1 of RFC 8410, section 10.3: the private key, and its public key of section 10.1.
    #[test]
    fn the_keys_of_rfc_8410_belong_together() {
        let private = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
                       -----END PRIVATE KEY-----\n";
        let public = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n\
                      -----END PUBLIC KEY-----\n";
        assert_eq!(SigningKey::from_pem(private).unwrap().public().to_pem(), public);
    }
}
