use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What was met in some time: how often each bin of each signal, as a baseline fixes them. Panes of one baseline add up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pane {
    /// Observations.
    pub n_rows: u64,
    /// By signal, then by bin. A signal that never occurred is not there.
    pub counts: BTreeMap<String, Vec<u64>>,
}

impl Pane {
    /// Counts one observation of a signal of `n_bins` bins.
    pub(crate) fn add(&mut self, signal: &str, bin: usize, n_bins: usize) {
        if !self.counts.contains_key(signal) {
            self.counts.insert(signal.to_owned(), vec![0; n_bins]);
        }
        if let Some(count) = self.counts.get_mut(signal).and_then(|counts| counts.get_mut(bin)) {
            *count = count.saturating_add(1);
        }
    }

    /// Takes in what another pane counted. Bins that this one does not have are left out: they are of another baseline.
    pub fn merge(&mut self, other: &Self) {
        self.n_rows = self.n_rows.saturating_add(other.n_rows);
        for (signal, counts) in &other.counts {
            match self.counts.get_mut(signal) {
                Some(mine) => {
                    mine.iter_mut().zip(counts).for_each(|(mine, theirs)| *mine = mine.saturating_add(*theirs))
                }
                None => drop(self.counts.insert(signal.clone(), counts.clone())),
            }
        }
    }
}
