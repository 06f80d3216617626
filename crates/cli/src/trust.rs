//! Whose signature this machine asks for before it loads a package.

use std::path::Path;

use anyhow::{Context as _, bail};
use highroad_package::signing::{Policy, PublicKey};

use crate::standard::FILE;
use crate::standard::effective::Chain;

/// Asks for signatures where `highroad.toml` does not, such as on a server.
const REQUIRE: &str = "HIGHROAD_REQUIRE_SIGNATURE";
/// Trusted keys beside those of `highroad.toml`, separated by commas.
const TRUSTED: &str = "HIGHROAD_TRUSTED_KEYS";

/// What the environment and the standard of the repo at `root` say together. Either may ask for a signature; neither takes
/// back what the other asks for.
pub fn policy(root: &Path) -> anyhow::Result<Policy> {
    let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    policy_of(root, env(REQUIRE).as_deref(), env(TRUSTED).as_deref())
}

/// The keys that the environment and the standard of the repo at `root` trust.
pub fn trusted_keys(root: &Path) -> anyhow::Result<Vec<PublicKey>> {
    let env = std::env::var(TRUSTED).unwrap_or_default();
    keys_of(root, &env)
}

fn policy_of(root: &Path, require: Option<&str>, trusted: Option<&str>) -> anyhow::Result<Policy> {
    let by_env = match require {
        None | Some("0" | "false") => false,
        Some("1" | "true") => true,
        Some(other) => bail!("{REQUIRE} is `{other}`, not 1 or 0"),
    };
    let by_standard = standard_value(root, "packaging.require_signature")?.and_then(|value| value.as_bool());
    if !by_env && by_standard != Some(true) {
        return Ok(Policy::AnyPackage);
    }
    Ok(Policy::SignedBy(keys_of(root, trusted.unwrap_or_default())?))
}

fn keys_of(root: &Path, env: &str) -> anyhow::Result<Vec<PublicKey>> {
    let standard = standard_value(root, "packaging.trusted_keys")?;
    let standard = standard.as_ref().and_then(|keys| keys.as_array()).cloned().unwrap_or_default();
    let mut keys = Vec::new();
    for key in standard.iter().filter_map(|key| key.as_str()) {
        keys.push(key.parse().context("`packaging.trusted_keys` of highroad.toml")?);
    }
    for key in env.split(',').filter(|key| !key.trim().is_empty()) {
        keys.push(key.parse().with_context(|| TRUSTED.to_owned())?);
    }
    Ok(keys)
}

/// The effective value of `key`.
///
/// Errors where a file has a key that nothing reads, or a value of another type, or changes what the organisation locks: a
/// misspelt or weakened rule must not mean that there is none.
fn standard_value(root: &Path, key: &str) -> anyhow::Result<Option<toml::Value>> {
    let path = root.join(FILE);
    if !path.exists() {
        return Ok(None);
    }
    let chain = Chain::read(&path)?;
    chain.check()?;
    if let Some(breach) = chain.breaches().into_iter().find(|breach| breach.key == key) {
        bail!("`{key}` of highroad.toml {}", breach.problem);
    }
    Ok(chain.merged().remove(key))
}

#[cfg(test)]
mod tests {
    use highroad_package::signing::{Algorithm, SigningKey};

    use super::*;

    fn key() -> PublicKey {
        SigningKey::generate(Algorithm::Ed25519).unwrap().public()
    }

    #[test]
    fn the_environment_may_ask_for_more_but_not_for_less() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, servers) = (key(), key());
        let standard = format!("[packaging]\nrequire_signature = true\ntrusted_keys = ['{ours}']\n");
        std::fs::write(dir.path().join("highroad.toml"), standard).unwrap();
        let both = policy_of(dir.path(), Some("0"), Some(&format!("{servers} server,"))).unwrap();
        let Policy::SignedBy(keys) = both else { panic!("nothing is asked for") };
        assert_eq!(keys.iter().map(PublicKey::id).collect::<Vec<_>>(), [ours.id(), servers.id()]);
    }

    #[test]
    fn a_misspelt_or_weakened_rule_is_an_error_and_not_the_absence_of_one() {
        let dir = tempfile::tempdir().unwrap();
        let policy = |repo: &str| {
            std::fs::write(dir.path().join("highroad.toml"), repo).unwrap();
            policy_of(dir.path(), None, None).map_err(|error| error.to_string())
        };
        assert!(policy("[packaging]\nrequire_signatures = true\n").unwrap_err().contains("`require_signatures`"));
        assert!(policy("[packaging]\nrequire_signature = 'true'\n").unwrap_err().contains("require_signature"));
        let organisation = "locked = ['packaging.require_signature']\n[packaging]\nrequire_signature = true\n";
        std::fs::write(dir.path().join("standard.toml"), organisation).unwrap();
        let weakened = policy("extends = 'standard.toml'\n[packaging]\nrequire_signature = false\n").unwrap_err();
        assert!(weakened.contains("locks it at true"), "{weakened}");
        assert_eq!(policy("extends = 'standard.toml'\n").unwrap(), Policy::SignedBy(Vec::new()));
    }

    #[test]
    fn without_a_word_about_signatures_any_package_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(policy_of(dir.path(), None, None).unwrap(), Policy::AnyPackage);
        assert_eq!(policy_of(dir.path(), Some("1"), None).unwrap(), Policy::SignedBy(Vec::new()));
        assert!(policy_of(dir.path(), Some("yes please"), None).is_err());
        let wrong = policy_of(dir.path(), Some("1"), Some("ed25519:AAAA")).unwrap_err();
        assert!(crate::describe(&wrong).starts_with("HIGHROAD_TRUSTED_KEYS: "), "{wrong:#}");
    }
}
