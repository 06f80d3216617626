use std::collections::VecDeque;

use highroad_eval::drift::{Pane, Suffix};
use serde::{Deserialize, Serialize};

/// Finest panes in the next coarser one, and those in the coarsest.
const TO_MIDDLE: i64 = 60;
const TO_COARSE: i64 = 24;
/// How many finer panes stay beside the coarser ones: two of what they make up.
const STAY: i64 = 2;

/// Counts over time: minutes for two hours, hours for two days, days beyond. Bounded, whatever happens.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Panes {
    /// Oldest first, each beginning with its second since 1970.
    fine: VecDeque<(i64, Pane)>,
    middle: VecDeque<(i64, Pane)>,
    coarse: VecDeque<(i64, Pane)>,
}

impl Panes {
    /// The pane of now. A clock that was set back counts into the newest there is, unless that lies further ahead than a coarsest pane: then
    /// the date was wrong, and what was counted under it goes, as nothing newer would ever follow.
    pub(crate) fn at(&mut self, now_s: i64, pane_s: u32) -> &mut Pane {
        let furthest = now_s + i64::from(pane_s) * TO_MIDDLE * TO_COARSE;
        for panes in [&mut self.fine, &mut self.middle, &mut self.coarse] {
            while panes.pop_back_if(|(start, _)| *start > furthest).is_some() {}
        }
        let start = now_s - now_s.rem_euclid(i64::from(pane_s));
        if self.fine.back().is_none_or(|(newest, _)| *newest < start) {
            self.fine.push_back((start, Pane::default()));
        }
        &mut self.fine.back_mut().expect("there is one now").1
    }

    /// Puts what is old together, and drops what is older than is kept.
    pub(crate) fn turn(&mut self, now_s: i64, pane_s: u32, keep_days: u32) {
        let middle_s = i64::from(pane_s) * TO_MIDDLE;
        let coarse_s = middle_s * TO_COARSE;
        move_old(&mut self.fine, &mut self.middle, now_s - STAY * middle_s, middle_s);
        move_old(&mut self.middle, &mut self.coarse, now_s - STAY * coarse_s, coarse_s);
        let oldest = now_s - i64::from(keep_days) * coarse_s;
        while self.coarse.front().is_some_and(|(start, _)| *start < oldest) {
            self.coarse.pop_front();
        }
    }

    /// Newest first.
    pub(crate) fn newest_first(&self) -> Vec<Suffix<'_>> {
        let all = [&self.fine, &self.middle, &self.coarse].into_iter().flat_map(|panes| panes.iter().rev());
        all.map(|(since_s, pane)| Suffix { since_s: *since_s, pane }).collect()
    }
}

fn move_old(from: &mut VecDeque<(i64, Pane)>, to: &mut VecDeque<(i64, Pane)>, before_s: i64, width_s: i64) {
    while let Some((start, pane)) = from.pop_front_if(|(start, _)| *start < before_s) {
        let start = start - start.rem_euclid(width_s);
        match to.back_mut() {
            Some((last, sum)) if *last >= start => sum.merge(&pane),
            _ => to.push_back((start, pane)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minutes_become_hours_and_days_and_the_oldest_go() {
        let mut panes = Panes::default();
        for minute in 0..60 * 24 * 40 {
            let now_s = minute * 60;
            panes.at(now_s, 60).n_rows += 1;
            panes.turn(now_s, 60, 30);
        }
        assert!(panes.fine.len() <= 121 && panes.middle.len() <= 49 && panes.coarse.len() <= 31);
        let all = panes.newest_first();
        assert!(all.windows(2).all(|pair| pair[0].since_s > pair[1].since_s), "each begins before the one it follows");
        let n_rows: u64 = all.iter().map(|suffix| suffix.pane.n_rows).sum();
        assert!((30 * 1440..=31 * 1440).contains(&n_rows), "{n_rows}");
        panes.turn(60 * 60 * 24 * 400, 60, 30);
        assert_eq!(panes, Panes::default());
    }

    #[test]
    fn a_clock_that_had_the_wrong_date_does_not_end_the_counting() {
        let mut panes = Panes::default();
        panes.at(400 * 86_400, 60).n_rows += 7;
        panes.at(86_400, 60).n_rows += 1;
        assert_eq!(
            panes.newest_first().iter().map(|suffix| (suffix.since_s, suffix.pane.n_rows)).collect::<Vec<_>>(),
            [(86_400, 1)]
        );
    }

    #[test]
    fn a_clock_that_is_set_back_loses_nothing() {
        let mut panes = Panes::default();
        panes.at(1000, 60).n_rows += 1;
        panes.at(400, 60).n_rows += 1;
        assert_eq!(panes.newest_first().iter().map(|suffix| suffix.pane.n_rows).collect::<Vec<_>>(), [2]);
    }
}
