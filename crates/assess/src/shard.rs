//! Golden sets that are answered in shards, on several machines, and joined to the results of one run.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::str::FromStr;

use highroad_package::Digest;
use highroad_task::Answer;
use serde::{Deserialize, Serialize};

use crate::results::{AnswersDigest, read_json, write_json};
use crate::{AssessError, Checked, GoldenKind, GoldenSet, Results, Speed, Value};

/// A part of a golden set: the `number`-th of `of` runs of neighbouring cases, counted from 1; written `2/8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Shard {
    of: u32,
    number: u32,
}

/// No shard is written so.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is no shard: the first of eight is `1/8`")]
pub struct ShardError(String);

impl FromStr for Shard {
    type Err = ShardError;

    fn from_str(text: &str) -> Result<Self, ShardError> {
        let parse = || {
            let (number, of) = text.split_once('/')?;
            let (number, of) = (number.parse().ok()?, of.parse().ok()?);
            (1..=of).contains(&number).then_some(Self { of, number })
        };
        parse().ok_or_else(|| ShardError(text.to_owned()))
    }
}

impl TryFrom<String> for Shard {
    type Error = ShardError;

    fn try_from(text: String) -> Result<Self, ShardError> {
        text.parse()
    }
}

impl From<Shard> for String {
    fn from(shard: Shard) -> Self {
        shard.to_string()
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.of)
    }
}

impl Shard {
    /// Its positions among `n_cases`: sizes differ by one at most.
    pub fn cases(self, n_cases: usize) -> Range<usize> {
        let end = |number: u32| (u64::from(number) * n_cases as u64 / u64::from(self.of)) as usize;
        end(self.number - 1)..end(self.number)
    }
}

/// What a package answered to one shard of a golden set: the file that `highroad eval --shard` writes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardAnswers {
    /// Format version, 1.
    pub highroad_shard: u32,
    /// Which shard.
    pub shard: Shard,
    /// The digest of each answer, in the order of the cases: see [`answers_digest`](crate::answers_digest).
    pub answer_digests: Vec<Digest>,
    /// The shard's cases; `golden_set` names the whole set.
    pub results: Results,
}

/// Shards cannot be joined.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum JoinError {
    #[error("there is no shard to join")]
    Nothing,
    #[error("shard {shard} has format version {found}; this highroad knows 1")]
    Version { shard: Shard, found: u32 },
    #[error("shards {shard} and {other} differ in {what}: {value} and {other_value}")]
    Differ { what: &'static str, shard: Shard, other: Shard, value: String, other_value: String },
    #[error("shard {0} is given twice")]
    Twice(Shard),
    #[error("shard {0} is missing")]
    Missing(Shard),
    #[error("shard {shard} of {n_cases} cases has none: make at most as many shards as there are cases")]
    TooMany { n_cases: usize, shard: Shard },
    #[error("shard {0} does not hold exactly its cases of the golden set, in order")]
    OtherCases(Shard),
    #[error("the answer of shard {shard} to case `{case}` does not have the digest it is told to have")]
    OtherDigest { shard: Shard, case: String },
    #[error("the shards were answered by package {found}, not {expected}")]
    OtherPackage { expected: Digest, found: Digest },
    #[error("the shards were answered on `{found}`, and this machine is `{expected}`: join them on such a machine")]
    OtherNumerics { expected: String, found: String },
    #[error("this machine answers case `{case}` with other bits than its shard holds")]
    OtherBits { case: String },
}

impl ShardAnswers {
    /// Reads a shard's file.
    pub fn read(path: &Path) -> Result<Self, AssessError> {
        read_json(path)
    }

    /// Writes a shard's file.
    pub fn write(&self, path: &Path) -> Result<(), AssessError> {
        write_json(self, path)
    }

    /// Errors unless `other` is a part of the same whole.
    fn check_same_whole(&self, other: &Self) -> Result<(), JoinError> {
        let differ = |what, value: &dyn ToString, other_value: &dyn ToString| {
            let (value, other_value) = (value.to_string(), other_value.to_string());
            let (same, shard, other) = (value == other_value, self.shard, other.shard);
            if same { Ok(()) } else { Err(JoinError::Differ { what, shard, other, value, other_value }) }
        };
        let (mine, theirs) = (&self.results, &other.results);
        differ("the number of shards", &self.shard.of, &other.shard.of)?;
        differ("the package", &mine.package, &theirs.package)?;
        differ("the golden set", &mine.golden_set.digest, &theirs.golden_set.digest)?;
        differ("the numerics id", &mine.numerics_id, &theirs.numerics_id)?;
        differ("the evidence", &format!("{:?}", mine.evidence), &format!("{:?}", theirs.evidence))?;
        differ("the labels", &mine.labels.join(", "), &theirs.labels.join(", "))
    }

    /// Errors unless these are answers to exactly this shard of `golden`, and labels have the digests they are told to have.
    fn check_cases(&self, golden: &GoldenSet) -> Result<(), JoinError> {
        let other = || JoinError::OtherCases(self.shard);
        let (cases, digests) = (&self.results.cases, &self.answer_digests);
        let expected = &golden.cases[self.shard.cases(golden.cases.len())];
        let same =
            expected.len() == cases.len() && expected.iter().zip(cases).all(|(case, answer)| case.case.id == answer.id);
        let is_labelled = golden.kind() == GoldenKind::Labels;
        if !same || (is_labelled && digests.len() != cases.len()) {
            return Err(other());
        }
        for (answer, digest) in cases.iter().zip(digests).filter(|_| is_labelled) {
            let Value::Class { label, scores } = &answer.value else { return Err(other()) };
            let found = Answer::Class { label: label.clone(), scores: scores.clone() }.digest();
            if found != *digest {
                return Err(JoinError::OtherDigest { shard: self.shard, case: answer.id.clone() });
            }
        }
        Ok(())
    }
}

/// All shards of a golden set: what one run would have answered.
#[derive(Clone, Debug)]
pub struct Joined {
    pub(crate) results: Results,
    /// In the order of the cases.
    pub(crate) answer_digests: Vec<Digest>,
}

impl Joined {
    /// Joins the shards of `golden`, in any order.
    ///
    /// Errors unless all are there once, of one package, golden set, numerics id and number of shards, and hold exactly their
    /// cases.
    pub fn of(golden: &GoldenSet, shards: Vec<ShardAnswers>) -> Result<Self, AssessError> {
        let mut in_order: BTreeMap<Shard, ShardAnswers> = BTreeMap::new();
        for shard in shards {
            let name = shard.shard;
            if shard.highroad_shard != 1 {
                return Err(JoinError::Version { shard: name, found: shard.highroad_shard }.into());
            }
            in_order.values().next().map_or(Ok(()), |first| first.check_same_whole(&shard))?;
            if in_order.insert(name, shard).is_some() {
                return Err(JoinError::Twice(name).into());
            }
        }
        let Shard { of, .. } = *in_order.keys().next().ok_or(JoinError::Nothing)?;
        let missing = (1..=of).map(|number| Shard { of, number }).find(|shard| !in_order.contains_key(shard));
        if let Some(shard) = missing {
            return Err(JoinError::Missing(shard).into());
        }
        for shard in in_order.values() {
            let found: Digest = shard.results.golden_set.digest.parse().map_err(|_| AssessError::OtherCases)?;
            if found != golden.digest {
                return Err(AssessError::OtherGolden { expected: golden.digest, found });
            }
            shard.check_cases(golden)?;
        }
        in_order
            .into_values()
            .map(Self::whole)
            .reduce(Self::and)
            .ok_or_else(|| JoinError::Nothing.into())
            .map(Self::named)
    }

    fn whole(shard: ShardAnswers) -> Self {
        let ShardAnswers { answer_digests, results, .. } = shard;
        let speed = Speed { single_ms: Vec::new(), inputs_per_s: 0.0, gpu_s_per_1000: None, measured: String::new() };
        Self { results: Results { checked: Checked::default(), speed, ..results }, answer_digests }
    }

    fn and(mut self, next: Self) -> Self {
        self.results.batch_invariant &= next.results.batch_invariant;
        self.results.cases.extend(next.results.cases);
        self.answer_digests.extend(next.answer_digests);
        self
    }

    fn named(mut self) -> Self {
        let mut all = AnswersDigest::default();
        self.answer_digests.iter().for_each(|&digest| all.add(digest));
        self.results.answers = all.finish();
        self
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn shards_follow_each_other_and_differ_by_a_case_at_most() {
        for (n_cases, of) in [(10, 3), (7, 7), (1_000_003, 64), (2, 5)] {
            let shards: Vec<Range<usize>> = (1..=of).map(|number| Shard { of, number }.cases(n_cases)).collect();
            assert_eq!((shards[0].start, shards[of as usize - 1].end), (0, n_cases));
            assert!(shards.windows(2).all(|pair| pair[0].end == pair[1].start));
            let sizes = || shards.iter().map(Range::len);
            assert!(sizes().max().unwrap() - sizes().min().unwrap() <= 1);
        }
        assert_eq!("2/8".parse(), Ok(Shard { of: 8, number: 2 }));
        for wrong in ["0/8", "9/8", "1", "1/0", "a/b", "1/2/3", "-1/2"] {
            assert!(wrong.parse::<Shard>().is_err(), "{wrong}");
        }
    }
}
