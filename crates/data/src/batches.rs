use std::num::NonZeroUsize;

/// How large one run of a program may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Most tokens, padding included: rows times the longest row.
    pub max_tokens: NonZeroUsize,
    /// Most rows.
    pub max_rows: NonZeroUsize,
    /// Most tokens of padding that a row may bring to a group: what a run costs beside its tokens.
    pub max_padding: usize,
}

/// Groups of items of similar length, for padding: each group's `len * longest` is within the budget, except that an
/// item too long for any group gets its own.
///
/// Gives indices into `lengths`, every one exactly once, shortest first; items of one length keep their order, so
/// equal input gives equal groups.
pub fn batches(lengths: &[usize], budget: Budget) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&i| lengths[i]);
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for i in order {
        // Sorted, so the newcomer is the longest of its group.
        let fits = |group: &Vec<usize>| {
            let n_rows = group.len() + 1;
            let longest = group.last().map_or(0, |&last| lengths[last]);
            n_rows <= budget.max_rows.get()
                && n_rows.saturating_mul(lengths[i]) <= budget.max_tokens.get()
                && group.len().saturating_mul(lengths[i] - longest) <= budget.max_padding
        };
        match groups.last_mut().filter(|group| fits(group)) {
            Some(group) => group.push(i),
            None => groups.push(vec![i]),
        }
    }
    groups
}

/// Puts results of [`batches`] back: `results[k]` belongs to item `indices[k]`, and the items come out as `0, 1, …`.
///
/// Panics if `indices` is not a permutation of `0..indices.len()` or lengths differ.
pub fn in_order<T>(indices: &[usize], results: Vec<T>) -> Vec<T> {
    assert_eq!(indices.len(), results.len(), "one result an item");
    let mut slots: Vec<Option<T>> = results.iter().map(|_| None).collect();
    for (&i, result) in indices.iter().zip(results) {
        slots[i] = Some(result);
    }
    slots.into_iter().map(|slot| slot.expect("`indices` is a permutation")).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn budget(max_tokens: usize, max_rows: usize) -> Budget {
        Budget {
            max_tokens: NonZeroUsize::new(max_tokens).unwrap(),
            max_rows: NonZeroUsize::new(max_rows).unwrap(),
            max_padding: usize::MAX,
        }
    }

    #[test]
    fn similar_lengths_share_a_batch() {
        assert_eq!(batches(&[9, 2, 8, 2, 30], budget(20, 8)), [vec![1, 3], vec![2, 0], vec![4]]);
    }

    #[test]
    fn rows_are_limited_too() {
        assert_eq!(batches(&[1; 5], budget(100, 2)), [vec![0, 1], vec![2, 3], vec![4]]);
    }

    #[test]
    fn a_row_brings_no_more_padding_than_it_may() {
        let budget = Budget { max_padding: 10, ..budget(1000, 8) };
        assert_eq!(batches(&[10, 15, 18, 20, 40], budget), [vec![0, 1, 2, 3], vec![4]]);
    }

    proptest! {
        #[test]
        fn every_item_comes_back_once_and_in_order(
            lengths in prop::collection::vec(0usize..600, 0..80), tokens in 1usize..2000, rows in 1usize..40,
        ) {
            let groups = batches(&lengths, budget(tokens, rows));
            for group in &groups {
                let longest = group.iter().map(|&i| lengths[i]).max().unwrap();
                prop_assert!(group.len() <= rows && (group.len() * longest <= tokens || group.len() == 1));
            }
            let indices = groups.concat();
            let results: Vec<usize> = indices.clone();
            prop_assert_eq!(in_order(&indices, results), (0..lengths.len()).collect::<Vec<_>>());
        }
    }
}
