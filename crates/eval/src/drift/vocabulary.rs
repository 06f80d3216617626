use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// Largest vocabulary: those of today have a quarter of it.
const MAX_IDS: usize = 1 << 20;

/// Which token ids a baseline met: one bit an id, four ids a hexadecimal digit. No text can be read from it beyond its tokens' set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Vocabulary {
    digits: Vec<u8>,
}

impl Vocabulary {
    /// Ids beyond a million are left out.
    pub(crate) fn of(ids: &BTreeSet<u32>) -> Self {
        let ids: Vec<usize> = ids.iter().map(|&id| id as usize).filter(|&id| id < MAX_IDS).collect();
        let mut digits = vec![0; ids.last().map_or(0, |last| last / 4 + 1)];
        ids.iter().for_each(|id| digits[id / 4] |= 1 << (id % 4));
        Self { digits }
    }

    pub(crate) fn holds(&self, id: u32) -> bool {
        self.digits.get(id as usize / 4).is_some_and(|digit| digit >> (id % 4) & 1 == 1)
    }

    /// The share of `ids` that the baseline never met; 0 of none.
    pub(crate) fn unseen(&self, ids: &[u32]) -> f64 {
        ids.iter().filter(|&&id| !self.holds(id)).count() as f64 / ids.len().max(1) as f64
    }
}

impl From<Vocabulary> for String {
    fn from(vocabulary: Vocabulary) -> Self {
        vocabulary.digits.iter().fold(Self::new(), |mut text, digit| {
            write!(text, "{digit:x}").expect("a string takes what is written");
            text
        })
    }
}

impl TryFrom<String> for Vocabulary {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text.len() > MAX_IDS / 4 {
            return Err(format!("a vocabulary of {} digits", text.len()));
        }
        let digit = |c: char| c.to_digit(16).map(|digit| digit as u8);
        let digits: Option<Vec<u8>> = text.chars().map(digit).collect();
        digits.map(|digits| Self { digits }).ok_or_else(|| "a vocabulary is hexadecimal digits".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vocabulary_holds_what_it_was_made_of() {
        let ids: BTreeSet<u32> = [0, 5, 63, 64, 30521, u32::MAX].into();
        let vocabulary = Vocabulary::of(&ids);
        let again = Vocabulary::try_from(String::from(vocabulary.clone())).expect("it was written just now");
        assert_eq!(again, vocabulary);
        let held: Vec<u32> = (0..40_000).filter(|&id| again.holds(id)).collect();
        assert_eq!(held, [0, 5, 63, 64, 30521]);
        assert_eq!(again.unseen(&[0, 1, 5, 6]), 0.5);
        assert!(Vocabulary::try_from("0g".to_owned()).is_err());
    }
}
