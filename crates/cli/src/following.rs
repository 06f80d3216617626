//! Which servers follow an alias after it moved, by what they tell the registry.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use highroad_package::registry::AliasMove;
use highroad_serve::rollout::Follower;
use jiff::Timestamp;
use serde::Serialize;

use crate::progress;
use crate::tracking::Tracking;

/// Pause between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// A refusal that lasts so long is one: what failed for a moment is tried again within two seconds.
const REFUSED_FOR: Duration = Duration::from_secs(5);

/// A member of a server that follows the alias, and whether it went along.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Server {
    pub state: State,
    #[serde(flatten)]
    pub told: Follower,
}

/// Whether a server went along.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Followed,
    /// It refuses the version and goes on with another.
    Refused,
    /// It serves another version still.
    Behind,
    /// It has told nothing for so long that it has stopped.
    Stopped,
}

/// Waits until every running server that follows the alias went where `moved` says, or refuses to, or for `limit`; what each did.
pub fn wait(tracking: &Tracking, moved: &AliasMove, limit: Duration) -> anyhow::Result<Vec<Server>> {
    let (begun, bar) = (Instant::now(), progress::bar("servers that followed"));
    let mut known = BTreeMap::new();
    let mut refused_since = None;
    let servers = loop {
        let is_last = begun.elapsed() >= limit;
        match tracking.block_on(tracking.client().model_tags(&moved.model)) {
            Ok(tags) => note(&mut known, Follower::all(&tags, &moved.alias)),
            Err(error) if is_last => {
                let moved =
                    format!("`{}@{}` has moved, and which servers followed is not known", moved.model, moved.alias);
                return Err(error).context(moved);
            }
            Err(_) => {}
        }
        let servers: Vec<Server> = known.values().map(|told| server(told, moved.to, Timestamp::now())).collect();
        let n_behind = servers.iter().filter(|server| server.state == State::Behind).count();
        progress::show(&bar, bar.message(), [servers.len() - n_behind, servers.len()]);
        if servers.iter().any(|server| server.state == State::Refused) {
            refused_since.get_or_insert_with(Instant::now);
        } else {
            refused_since = None;
        }
        let is_sure = refused_since.is_none_or(|since: Instant| since.elapsed() >= REFUSED_FOR);
        if is_last || (n_behind == 0 && is_sure) {
            break servers;
        }
        std::thread::sleep(LOOK_EVERY);
    };
    bar.finish_and_clear();
    Ok(servers)
}

/// Takes in what servers tell now, but for those that had stopped before anybody looked. A server that ended in order has taken
/// away what it told.
fn note(known: &mut BTreeMap<String, Follower>, told: Vec<Follower>) {
    let (before, now) = (std::mem::take(known), Timestamp::now());
    for follower in told {
        let id = format!("{} {} {}", follower.host, follower.process, follower.member);
        if follower.is_running(now) || before.contains_key(&id) {
            known.insert(id, follower);
        }
    }
}

fn server(told: &Follower, to: Option<u64>, now: Timestamp) -> Server {
    let state = match &told.refused {
        _ if told.serving == to => State::Followed,
        Some(refused) if Some(refused.version) == to => State::Refused,
        _ if !told.is_running(now) => State::Stopped,
        _ => State::Behind,
    };
    Server { state, told: told.clone() }
}

impl Server {
    /// One line.
    pub fn in_words(&self, model: &str) -> String {
        let Follower { host, process, member, serving, refused, at, .. } = &self.told;
        let version = |number: u64| format!("{model}:{number}");
        let serves = serving.map_or("nothing".to_owned(), version);
        let told = match (self.state, refused) {
            (State::Refused, Some(refused)) => {
                format!("refuses {} and goes on with {serves}: {}", version(refused.version), refused.reason)
            }
            (State::Stopped, _) => format!("has told nothing since {at}, when it served {serves}: it may have stopped"),
            (State::Behind, _) => format!("still serves {serves}"),
            _ => format!("serves {serves}"),
        };
        format!("{host}, process {process}, member `{member}`: {told}")
    }
}

#[cfg(test)]
mod tests {
    use highroad_serve::rollout::RefusedVersion;

    use super::*;

    fn told(serving: Option<u64>, refused: Option<u64>, at: &str) -> Follower {
        let refused = refused.map(|version| RefusedVersion { version, reason: "program.pt2 was changed".to_owned() });
        let (host, member) = ("web-1".to_owned(), "router".to_owned());
        Follower { host, process: 7, member, serving, refused, at: at.to_owned(), every_s: 15 }
    }

    #[test]
    fn a_server_followed_refuses_is_behind_or_has_stopped() {
        let now: Timestamp = "2026-11-29T09:00:10Z".parse().expect("it is a time");
        let state = |told: &Follower, to| server(told, to, now).state;
        let (fresh, old) = ("2026-11-29T09:00:00Z", "2026-11-29T08:00:00Z");
        assert_eq!(state(&told(Some(2), None, fresh), Some(2)), State::Followed);
        assert_eq!(state(&told(None, None, fresh), None), State::Followed, "nothing is to be served");
        assert_eq!(state(&told(Some(1), Some(2), fresh), Some(2)), State::Refused);
        assert_eq!(state(&told(Some(1), Some(3), fresh), Some(2)), State::Behind, "it refused another version before");
        assert_eq!(state(&told(Some(1), None, old), Some(2)), State::Stopped);
        let refused = server(&told(Some(1), Some(2), fresh), Some(2), now).in_words("router");
        assert_eq!(
            refused,
            "web-1, process 7, member `router`: refuses router:2 and goes on with router:1: program.pt2 was changed"
        );
    }

    #[test]
    fn servers_that_had_stopped_before_are_left_out() {
        let mut known = BTreeMap::new();
        note(&mut known, vec![told(Some(1), None, "2020-01-01T00:00:00Z")]);
        assert!(known.is_empty());
        note(&mut known, vec![told(Some(1), None, &Timestamp::now().to_string())]);
        assert_eq!(known.len(), 1);
        note(&mut known, vec![told(Some(1), None, "2020-01-01T00:00:00Z")]);
        assert_eq!(known.len(), 1, "it has stopped since");
        note(&mut known, Vec::new());
        assert!(known.is_empty(), "it ended in order");
    }
}
