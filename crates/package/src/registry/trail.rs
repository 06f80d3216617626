//! Moves of aliases on an MLflow server that is not ours: its own alias route moves them, and tags of the registered model
//! keep the record. Whoever may write there can move an alias or change a tag by hand, so the record advises and nothing
//! rests on it; what serves checks for itself.

use reqwest::Method;
use serde_json::{Value, json};
use tracing::warn;

use super::{AliasMove, MAX_MODEL_TAG_BYTES, RegistryClient, RegistryError};
use crate::Digest;

/// Tag of a registered model, followed by the time in milliseconds and eight digits of the record's digest.
const MOVE_TAG: &str = "highroad.move.";

/// A place an alias was at: the version, none if it was away, and the recorded move that led there, none if it was moved by
/// hand.
pub type Place<'a> = (Option<u64>, Option<&'a AliasMove>);

impl RegistryClient {
    /// The version an alias names now, whatever it holds.
    pub async fn aliased(&self, name: &str, alias: &str) -> Result<Option<u64>, RegistryError> {
        let asked = format!("{name}@{alias}");
        let found = self.version("registered-models/alias", &[("name", name), ("alias", alias)], &asked).await?;
        Ok(found.map(|version| version.number()))
    }

    /// Moves an alias to `moved.to` through MLflow's own route and records it, on a server without Highroad's gate. Nothing is
    /// checked but the length of the record: the caller has asked what admits the version.
    pub async fn move_without_gate(&self, mut moved: AliasMove) -> Result<AliasMove, RegistryError> {
        let record = serde_json::to_vec(&moved).unwrap_or_default();
        let asked = format!("move `{}@{}`", moved.model, moved.alias);
        if record.len() > MAX_MODEL_TAG_BYTES {
            let (found, limit) = (record.len(), MAX_MODEL_TAG_BYTES);
            return Err(RegistryError::LongRecord { name: moved.model, alias: moved.alias, found, limit });
        }
        let (name, alias) = (&moved.model, &moved.alias);
        let request = match moved.to {
            Some(number) => {
                let body = json!({ "name": name, "alias": alias, "version": number.to_string() });
                self.mlflow(Method::POST, "registered-models/alias").json(&body)
            }
            None => {
                self.mlflow(Method::DELETE, "registered-models/alias").json(&json!({ "name": name, "alias": alias }))
            }
        };
        self.ask::<Value>(request, &asked).await?;
        let key = format!("{MOVE_TAG}{:013}.{}", moved.at, &Digest::of(&record).hex()[..8]);
        let asked = format!("record the move of `{name}@{alias}`, which was made");
        self.write_model_tag(name, &key, &String::from_utf8_lossy(&record), &asked).await?;
        moved.move_id = self.kept_moves(name).await?.first().map_or(0, |newest| newest.move_id);
        Ok(moved)
    }

    /// The moves that were recorded as tags, newest first; of every model if `name` is empty.
    pub(super) async fn kept_moves(&self, name: &str) -> Result<Vec<AliasMove>, RegistryError> {
        let mut moves: Vec<AliasMove> = Vec::new();
        if name.is_empty() {
            for model in self.models().await? {
                moves.extend(model.tags.iter().filter_map(|(key, value)| read(&model.name, key, value)));
            }
        } else {
            moves.extend(self.model_tags(name).await?.iter().filter_map(|(key, value)| read(name, key, value)));
        }
        moves.sort_by_key(|moved| moved.at);
        for (moved, number) in moves.iter_mut().zip(1..) {
            moved.move_id = number;
        }
        moves.reverse();
        Ok(moves)
    }
}

/// The move a tag records; `None` for other tags, and for those that somebody wrote who is not us.
fn read(model: &str, key: &str, value: &str) -> Option<AliasMove> {
    key.strip_prefix(MOVE_TAG)?;
    match serde_json::from_str::<AliasMove>(value) {
        // Under the name that the model had then.
        Ok(moved) => Some(moved),
        Err(error) => {
            warn!("Passing over the tag `{key}` of `{model}`: {error}");
            None
        }
    }
}

/// Where an alias was before `current`, the last place first, by `moves` (newest first) and without what rollbacks undid.
/// Moves by hand, which leave gaps between the recorded ones, are steps like others.
pub fn ways_back<'a>(moves: &'a [AliasMove], alias: &str, current: Option<u64>) -> Vec<Place<'a>> {
    let mut steps: Vec<(&str, Option<u64>, Option<&AliasMove>)> = Vec::new();
    for moved in moves.iter().rev().filter(|moved| moved.alias == alias) {
        if steps.last().is_none_or(|(_, at, _)| *at != moved.from) {
            steps.push(("set", moved.from, None));
        }
        steps.push((&moved.action, moved.to, Some(moved)));
    }
    if steps.last().is_none_or(|(_, at, _)| *at != current) {
        steps.push(("set", current, None));
    }
    let mut places = targets(steps);
    places.pop();
    places.reverse();
    places
}

/// What an alias named, oldest first and without what rollbacks undid: action, version and what else is known of each move.
/// The last is what it names now.
pub fn targets<'a, V: PartialEq + Copy, T>(
    trail: impl IntoIterator<Item = (&'a str, Option<V>, T)>,
) -> Vec<(Option<V>, T)> {
    let mut stack: Vec<(Option<V>, T)> = Vec::new();
    for (action, to, known) in trail {
        match action {
            "rename" => {}
            "rollback" => {
                stack.pop();
                while stack.last().is_some_and(|(target, _)| *target != to) {
                    stack.pop();
                }
            }
            _ if stack.last().is_some_and(|(target, _)| *target == to) => {}
            _ => stack.push((to, known)),
        }
    }
    stack
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trail(moves: &[(&str, Option<u64>)]) -> Vec<Option<u64>> {
        targets(moves.iter().map(|(action, to)| (*action, *to, ()))).into_iter().map(|(target, ())| target).collect()
    }

    #[test]
    fn each_rollback_undoes_one_more_promotion() {
        let promoted = [("promote", Some(1)), ("override", Some(2)), ("set", Some(3))];
        assert_eq!(trail(&promoted), [Some(1), Some(2), Some(3)]);
        let mut moves = promoted.to_vec();
        moves.push(("rollback", Some(2)));
        assert_eq!(trail(&moves), [Some(1), Some(2)]);
        moves.push(("rollback", Some(1)));
        assert_eq!(trail(&moves), [Some(1)]);
        moves.push(("rollback", None));
        assert_eq!(trail(&moves), []);
    }

    #[test]
    fn a_promotion_after_a_rollback_goes_back_to_where_the_rollback_led() {
        let moves = [("promote", Some(1)), ("promote", Some(2)), ("rollback", Some(1)), ("promote", Some(3))];
        assert_eq!(trail(&moves), [Some(1), Some(3)]);
    }

    #[test]
    fn promoting_the_champion_again_is_not_a_step() {
        assert_eq!(trail(&[("promote", Some(1)), ("promote", Some(1)), ("rename", Some(1))]), [Some(1)]);
    }

    /// Recorded moves of `champion`, oldest first, as `from`, action, `to`.
    fn recorded(moves: &[(Option<u64>, &str, Option<u64>)]) -> Vec<AliasMove> {
        let made = |(from, action, to): &(Option<u64>, &str, Option<u64>)| AliasMove {
            move_id: 0,
            at: 0,
            model: "m".to_owned(),
            alias: "champion".to_owned(),
            action: (*action).to_owned(),
            from: *from,
            to: *to,
            by: "ann".to_owned(),
            why: "better".to_owned(),
            package: None,
            verdict: None,
            overridden: None,
            rehearsal: None,
            caution: None,
            renamed_from: None,
        };
        moves.iter().rev().map(made).collect()
    }

    fn back(moves: &[(Option<u64>, &str, Option<u64>)], current: Option<u64>) -> Vec<Option<u64>> {
        ways_back(&recorded(moves), "champion", current).into_iter().map(|(version, _)| version).collect()
    }

    #[test]
    fn a_move_by_hand_is_undone_like_any_other() {
        let promoted = [(None, "promote", Some(1)), (Some(1), "promote", Some(2))];
        assert_eq!(back(&promoted, Some(2)), [Some(1), None]);
        assert_eq!(back(&promoted, Some(7)), [Some(2), Some(1), None], "somebody moved it to 7");
        let between = [(None, "promote", Some(1)), (Some(5), "promote", Some(2))];
        assert_eq!(back(&between, Some(2)), [Some(5), Some(1), None]);
        let before = [(Some(4), "promote", Some(5))];
        assert_eq!(back(&before, Some(5)), [Some(4)], "where it was before that, nobody wrote down");
        assert_eq!(back(&[], Some(3)), []);
    }

    #[test]
    fn other_aliases_and_the_tags_of_others_are_passed_over() {
        assert_eq!(ways_back(&recorded(&[(None, "promote", Some(1))]), "staging", None), []);
        assert_eq!(read("m", "highroad.move.1.aa", "not ours"), None);
        assert_eq!(read("m", "owner", "ann"), None);
    }
}
