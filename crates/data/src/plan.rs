//! Which samples make which batch: pure functions of lengths, seed, epoch and world size.

use rand::Rng as _;
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

/// Batches of one window, within which samples are sorted by length.
const WINDOW_BATCHES: u64 = 64;
/// Rows that are filled at the same time when packing: more fill better, and move a document further from its place.
const OPEN_ROWS: usize = 64;

/// How large a batch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// This many rows.
    Rows(u32),
    /// At most this many tokens, padding included: rows times the longest row. A longer row is a batch by itself.
    Tokens(u32),
}

/// What to do with the last batches where their number is no multiple of the world size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remainder {
    /// Halve the largest of them until each rank has one.
    Split,
    /// Leave them out.
    Drop,
    /// Give them to the first ranks.
    Uneven,
}

/// How batches are made of samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Size of a batch.
    pub size: Size,
    /// Whether samples of similar length share a batch; needs lengths.
    pub bucket: bool,
    /// Tokens of a row that several samples share; needs lengths.
    pub pack: Option<u32>,
    /// Seed of the permutation; `None` keeps the order of the files.
    pub seed: Option<u64>,
}

impl Layout {
    /// Whether the plan depends on the samples' lengths in tokens.
    pub fn needs_lengths(&self) -> bool {
        self.bucket || self.pack.is_some() || matches!(self.size, Size::Tokens(_))
    }
}

/// Samples in the order of an epoch, cut into rows and batches. All positions count samples from the epoch's start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Every sample exactly once.
    pub order: Vec<u32>,
    /// Where each row ends; `None` where each sample is a row.
    pub row_ends: Option<Vec<u32>>,
    /// Where each batch ends.
    pub batch_ends: Vec<u32>,
}

/// From this position on, so many ranks share the batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Position, in samples.
    pub start: u32,
    /// Number of ranks.
    pub world: u32,
}

/// Why batches cannot be dealt to ranks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the last {rows} rows of an epoch cannot be split over {world} ranks; use remainder=\"drop\" or \"uneven\"")]
pub struct TooFewRows {
    rows: usize,
    world: u32,
}

impl Plan {
    /// The plan of `epoch` over `n_samples`. `lengths`, in tokens, may be empty where the layout does not need them.
    pub fn of_epoch(n_samples: u32, lengths: &[u32], layout: &Layout, epoch: u64) -> Self {
        let mut rng = layout.seed.map(|seed| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(epoch);
            rng
        });
        let mut order: Vec<u32> = (0..n_samples).collect();
        if let Some(rng) = &mut rng {
            shuffle(&mut order, rng);
        }
        let plan = match layout.pack {
            Some(width) => packed(&order, lengths, width, layout.size),
            None if layout.bucket => bucketed(order, lengths, layout.size),
            None => plain(order, lengths, layout.size),
        };
        match &mut rng {
            Some(rng) if layout.bucket && layout.pack.is_none() => plan.with_batches_shuffled(rng),
            _ => plan,
        }
    }

    /// The plan as `segments` of ranks go through it, each from its own start with its own number of ranks.
    pub fn dealt(mut self, segments: &[Segment], remainder: Remainder) -> Result<Self, TooFewRows> {
        let base = std::mem::take(&mut self.batch_ends);
        let mut ends: Vec<u32> = Vec::new();
        for segment in segments {
            ends.retain(|&end| end <= segment.start);
            let rest: Vec<u32> = base.iter().copied().filter(|&end| end > segment.start).collect();
            ends.extend(self.deal(segment, rest, remainder)?);
        }
        self.batch_ends = ends;
        Ok(self)
    }

    fn deal(&self, segment: &Segment, mut ends: Vec<u32>, remainder: Remainder) -> Result<Vec<u32>, TooFewRows> {
        let world = segment.world as usize;
        let n_left = ends.len() % world;
        match remainder {
            _ if n_left == 0 => Ok(ends),
            Remainder::Uneven => Ok(ends),
            Remainder::Drop => {
                ends.truncate(ends.len() - n_left);
                Ok(ends)
            }
            Remainder::Split => {
                // The last step alone may have too few rows; the one before it then gives some of its own.
                let from = |n: usize| ends.len().saturating_sub(n);
                self.split(segment, &ends, from(n_left)).or_else(|_| self.split(segment, &ends, from(n_left + world)))
            }
        }
    }

    /// Halves the largest of the batches from index `from` until their number is a multiple of the world size.
    fn split(&self, segment: &Segment, ends: &[u32], from: usize) -> Result<Vec<u32>, TooFewRows> {
        let world = segment.world as usize;
        let start = if from == 0 { segment.start } else { ends[from - 1] };
        let tail = self.row_ends_between(start, *ends.last().expect("something is left over"));
        let rows = tail.len();
        let mut cuts: Vec<usize> = ends[from..].iter().map(|end| tail.partition_point(|row| row <= end)).collect();
        while !cuts.len().is_multiple_of(world) {
            let begin_of = |i: usize| if i == 0 { 0 } else { cuts[i - 1] };
            let n_rows = |i: usize| cuts[i] - begin_of(i);
            let largest = (0..cuts.len()).rev().max_by_key(|&i| n_rows(i)).expect("there is a batch");
            if n_rows(largest) < 2 {
                return Err(TooFewRows { rows, world: segment.world });
            }
            let middle = begin_of(largest) + n_rows(largest).div_ceil(2);
            cuts.insert(largest, middle);
        }
        let mut dealt = ends[..from].to_vec();
        dealt.extend(cuts.iter().map(|&cut| tail[cut - 1]));
        Ok(dealt)
    }

    /// Ends of the rows in `start..end`.
    pub fn row_ends_between(&self, start: u32, end: u32) -> Vec<u32> {
        match &self.row_ends {
            None => (start + 1..=end).collect(),
            Some(ends) => {
                let index = |position| ends.partition_point(|&row| row <= position);
                ends[index(start)..index(end)].to_vec()
            }
        }
    }

    /// Where batch `index` begins and ends.
    pub fn batch(&self, index: usize) -> std::ops::Range<u32> {
        let start = if index == 0 { 0 } else { self.batch_ends[index - 1] };
        start..self.batch_ends[index]
    }

    fn with_batches_shuffled(self, rng: &mut ChaCha8Rng) -> Self {
        let mut batches: Vec<u32> = (0..self.batch_ends.len() as u32).collect();
        shuffle(&mut batches, rng);
        let mut shuffled = Self { order: Vec::with_capacity(self.order.len()), row_ends: None, batch_ends: Vec::new() };
        for batch in batches {
            let range = self.batch(batch as usize);
            shuffled.order.extend_from_slice(&self.order[range.start as usize..range.end as usize]);
            shuffled.batch_ends.push(shuffled.order.len() as u32);
        }
        shuffled
    }
}

/// Samples as they come.
fn plain(order: Vec<u32>, lengths: &[u32], size: Size) -> Plan {
    let batch_ends = match size {
        Size::Rows(rows) => every(order.len() as u32, rows),
        Size::Tokens(_) => cut(&order, lengths, size, 0),
    };
    Plan { order, row_ends: None, batch_ends }
}

/// Samples sorted by length within windows of the order; equal lengths keep their order.
fn bucketed(mut order: Vec<u32>, lengths: &[u32], size: Size) -> Plan {
    let length = |&sample: &u32| u64::from(lengths[sample as usize]);
    let mut batch_ends = Vec::new();
    let mut start = 0;
    while start < order.len() {
        let n = match size {
            Size::Rows(rows) => (u64::from(rows) * WINDOW_BATCHES) as usize,
            Size::Tokens(tokens) => {
                let mut left = u64::from(tokens) * WINDOW_BATCHES;
                order[start..]
                    .iter()
                    .take_while(|sample| {
                        left = left.saturating_sub(length(sample));
                        left > 0
                    })
                    .count()
            }
        };
        let end = (start + n.max(1)).min(order.len());
        order[start..end].sort_by_key(length);
        batch_ends.extend(cut(&order[start..end], lengths, size, start as u32));
        start = end;
    }
    Plan { order, row_ends: None, batch_ends }
}

/// Cuts samples into batches as they come; gives the ends, counted from `offset`.
fn cut(samples: &[u32], lengths: &[u32], size: Size, offset: u32) -> Vec<u32> {
    let mut ends = Vec::new();
    let (mut n, mut longest) = (0u64, 0u64);
    for (i, &sample) in samples.iter().enumerate() {
        let length = u64::from(lengths[sample as usize]);
        let full = match size {
            Size::Rows(rows) => n == u64::from(rows),
            Size::Tokens(tokens) => n > 0 && (n + 1) * longest.max(length) > u64::from(tokens),
        };
        if full {
            ends.push(offset + i as u32);
            (n, longest) = (0, 0);
        }
        n += 1;
        longest = longest.max(length);
    }
    if n > 0 {
        ends.push(offset + samples.len() as u32);
    }
    ends
}

/// Samples joined to rows of at most `width` tokens: each goes to the first open row with room, and the oldest row is
/// closed when there are too many.
fn packed(order: &[u32], lengths: &[u32], width: u32, size: Size) -> Plan {
    let mut plan = Plan { order: Vec::with_capacity(order.len()), row_ends: None, batch_ends: Vec::new() };
    let mut row_ends = Vec::new();
    let mut close = |row: (u32, Vec<u32>)| {
        plan.order.extend(row.1);
        row_ends.push(plan.order.len() as u32);
    };
    let mut open: std::collections::VecDeque<(u32, Vec<u32>)> = std::collections::VecDeque::new();
    for &sample in order {
        let length = lengths[sample as usize].min(width);
        match open.iter_mut().find(|(room, _)| *room >= length) {
            Some((room, row)) => {
                *room -= length;
                row.push(sample);
            }
            None => {
                if open.len() == OPEN_ROWS {
                    open.pop_front().into_iter().for_each(&mut close);
                }
                open.push_back((width - length, vec![sample]));
            }
        }
    }
    open.into_iter().for_each(&mut close);
    let rows = match size {
        Size::Rows(rows) => rows,
        Size::Tokens(tokens) => (tokens / width).max(1),
    };
    plan.batch_ends = every(row_ends.len() as u32, rows).iter().map(|&row| row_ends[row as usize - 1]).collect();
    plan.row_ends = Some(row_ends);
    plan
}

/// `step`, `2 * step`, … up to `n`.
fn every(n: u32, step: u32) -> Vec<u32> {
    (0..n.div_ceil(step)).map(|i| ((u64::from(i) + 1) * u64::from(step)).min(u64::from(n)) as u32).collect()
}

/// Fisher-Yates. Written out because the order must never change, and `rand` promises that for its generators only.
fn shuffle(items: &mut [u32], rng: &mut ChaCha8Rng) {
    for last in (1..items.len()).rev() {
        items.swap(last, below(last as u64 + 1, rng) as usize);
    }
}

/// A uniform number below `n` (Lemire's method, exact).
fn below(n: u64, rng: &mut ChaCha8Rng) -> u64 {
    loop {
        let product = u128::from(rng.next_u64()) * u128::from(n);
        if product as u64 >= n.wrapping_neg() % n {
            return (product >> 64) as u64;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn layout(size: Size) -> Layout {
        Layout { size, bucket: false, pack: None, seed: None }
    }

    fn ranges(plan: &Plan) -> Vec<Vec<u32>> {
        (0..plan.batch_ends.len())
            .map(|i| plan.order[plan.batch(i).start as usize..plan.batch(i).end as usize].to_vec())
            .collect()
    }

    fn dealt(n: u32, rows: u32, world: u32, remainder: Remainder) -> Result<Vec<Vec<u32>>, String> {
        let plan = Plan::of_epoch(n, &[], &layout(Size::Rows(rows)), 0);
        plan.dealt(&[Segment { start: 0, world }], remainder).map(|p| ranges(&p)).map_err(|e| e.to_string())
    }

    #[test]
    fn the_permutation_of_a_seed_never_changes() {
        let seeded = Layout { seed: Some(7), ..layout(Size::Rows(10)) };
        assert_eq!(Plan::of_epoch(10, &[], &seeded, 0).order, GOLDEN_EPOCHS[0]);
        assert_eq!(Plan::of_epoch(10, &[], &seeded, 1).order, GOLDEN_EPOCHS[1]);
    }
    const GOLDEN_EPOCHS: [[u32; 10]; 2] = [[4, 6, 2, 0, 8, 3, 7, 5, 9, 1], [7, 1, 6, 4, 2, 8, 3, 5, 0, 9]];

    #[test]
    fn the_last_batches_are_split_dropped_or_uneven() {
        assert_eq!(dealt(7, 2, 2, Remainder::Split).unwrap(), [vec![0, 1], vec![2, 3], vec![4, 5], vec![6]]);
        assert_eq!(dealt(6, 2, 2, Remainder::Split).unwrap(), [vec![0, 1], vec![2, 3], vec![4], vec![5]]);
        assert_eq!(dealt(6, 2, 2, Remainder::Drop).unwrap(), [[0, 1], [2, 3]]);
        assert_eq!(dealt(6, 2, 2, Remainder::Uneven).unwrap(), [[0, 1], [2, 3], [4, 5]]);
    }

    #[test]
    fn a_last_step_with_too_few_rows_takes_from_the_one_before() {
        assert_eq!(dealt(7, 3, 2, Remainder::Split).unwrap(), [vec![0, 1], vec![2], vec![3, 4, 5], vec![6]]);
    }

    #[test]
    fn too_few_rows_for_all_ranks_are_an_error() {
        let message = "the last 3 rows of an epoch cannot be split over 2 ranks; use remainder=\"drop\" or \"uneven\"";
        assert_eq!(dealt(3, 1, 2, Remainder::Split).unwrap_err(), message);
    }

    #[test]
    fn rows_are_filled_with_the_documents_that_fit() {
        let packing = Layout { pack: Some(10), ..layout(Size::Rows(1)) };
        let plan = Plan::of_epoch(5, &[6, 7, 4, 3, 12], &packing, 0);
        assert_eq!(ranges(&plan), [vec![0, 2], vec![1, 3], vec![4]]);
    }

    fn layouts() -> impl Strategy<Value = Layout> {
        let size = prop_oneof![(1u32..9).prop_map(Size::Rows), (1u32..200).prop_map(Size::Tokens)];
        (size, any::<bool>(), prop::option::of(1u32..80), prop::option::of(any::<u64>()))
            .prop_map(|(size, bucket, pack, seed)| Layout { size, bucket, pack, seed })
    }

    proptest! {
        #[test]
        fn every_sample_is_in_one_batch_of_the_size(
            lengths in prop::collection::vec(0u32..60, 0..300), layout in layouts(), epoch in 0u64..4,
        ) {
            let plan = Plan::of_epoch(lengths.len() as u32, &lengths, &layout, epoch);
            let mut all = plan.order.clone();
            all.sort_unstable();
            prop_assert_eq!(all, (0..lengths.len() as u32).collect::<Vec<_>>());
            prop_assert_eq!(plan.batch_ends.last().copied().unwrap_or(0) as usize, lengths.len());
            prop_assert!(plan.batch_ends.is_sorted_by(|a, b| a < b));
            for i in 0..plan.batch_ends.len() {
                let range = plan.batch(i);
                let rows = plan.row_ends_between(range.start, range.end);
                let mut start = range.start as usize;
                let mut longest = 0;
                for &end in &rows {
                    let row: u32 = plan.order[start..end as usize].iter().map(|&s| lengths[s as usize].min(layout.pack.unwrap_or(u32::MAX))).sum();
                    if let Some(width) = layout.pack {
                        prop_assert!(row <= width);
                        longest = width;
                    }
                    longest = longest.max(row);
                    start = end as usize;
                }
                match layout.size {
                    Size::Rows(n) => prop_assert!(rows.len() <= n as usize),
                    Size::Tokens(n) => prop_assert!(rows.len() == 1 || rows.len() as u32 * longest <= n),
                }
            }
        }

        #[test]
        fn each_rank_makes_as_many_steps_also_when_their_number_changes(
            n in 1u32..400, rows in 2u32..9, worlds in prop::collection::vec(1u32..5, 1..4), stop in 0usize..30,
        ) {
            let base = Plan::of_epoch(n, &[], &Layout { seed: Some(1), ..layout(Size::Rows(rows)) }, 0);
            let mut segments = vec![Segment { start: 0, world: worlds[0] }];
            let mut given = Vec::new();
            let mut first = 0;
            for (i, &world) in worlds.iter().enumerate() {
                if i > 0 {
                    let start = given.len() as u32;
                    if start >= n { break; }
                    segments.push(Segment { start, world });
                }
                let Ok(plan) = base.clone().dealt(&segments, Remainder::Split) else { return Ok(()) };
                let rest = plan.batch_ends.len() - first;
                prop_assert_eq!(rest % world as usize, 0);
                let last = i + 1 == worlds.len();
                let n_batches = if last { rest } else { (stop * world as usize).min(rest) };
                for batch in first..first + n_batches {
                    let range = plan.batch(batch);
                    given.extend_from_slice(&plan.order[range.start as usize..range.end as usize]);
                }
                first += n_batches;
            }
            prop_assert_eq!(given, base.order);
        }
    }
}
