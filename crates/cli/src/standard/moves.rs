//! What moved between two versions of a file that declares a standard.

use serde::Serialize;
use toml::Value;

use super::effective::Flat;

/// One key that differs.
#[derive(Debug, PartialEq, Serialize)]
pub struct Move {
    /// Dotted key.
    pub key: String,
    /// Value before; absent if the key is new.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<Value>,
    /// Value now; absent if the key is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<Value>,
    /// What this repo says instead; absent if the change reaches it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overridden: Option<Value>,
}

/// Every key that differs between `before` and `after`, in order, with what `own` says instead.
pub fn moves(before: &Flat, after: &Flat, own: &Flat) -> Vec<Move> {
    let new = after.keys().filter(|key| !before.contains_key(*key));
    let mut keys: Vec<&String> = before.keys().chain(new).collect();
    keys.sort();
    let differs = |key: &&String| before.get(*key) != after.get(*key);
    let at = |flat: &Flat, key: &String| flat.get(key).cloned();
    keys.into_iter()
        .filter(differs)
        .map(|key| Move { key: key.clone(), before: at(before, key), after: at(after, key), overridden: at(own, key) })
        .collect()
}

impl std::fmt::Display for Move {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.before, &self.after) {
            (Some(before), Some(after)) => write!(f, "~ {} = {before} -> {after}", self.key)?,
            (Some(before), None) => write!(f, "- {} = {before}", self.key)?,
            (None, Some(after)) => write!(f, "+ {} = {after}", self.key)?,
            (None, None) => {}
        }
        match &self.overridden {
            Some(own) => write!(f, "    (this repo says {own})"),
            None => Ok(()),
        }
    }
}
