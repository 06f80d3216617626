mod cost;
mod shares;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

pub use cost::RunCost;
pub use shares::Flow;
use shares::{Order, Shares};

/// One row of work that waits for a batch.
pub trait Waiting {
    /// Length of the row; a batch costs its number of rows times the longest.
    fn n_tokens(&self) -> usize;

    /// Whether the row may share a batch with others.
    fn may_share(&self) -> bool {
        true
    }
}

/// Rows that wait for their turn, and the choice of the next batch: what a server runs, and what a load test models.
///
/// A batch is anchored at the request whose turn it is (requests take turns, so that one request with thousands of rows does
/// not hold up the others) and filled with the waiting rows closest in length, as far as the token budget goes and as long as
/// their padding costs less than a run of their own. Which request that is, of those of several [`Flow`]s, is decided by what each class and owner has had. A batch holds rows of
/// its anchor's class and of higher ones: nobody waits longer for the company of a lower class.
#[derive(Debug)]
pub struct TurnQueue<R> {
    rows: VecDeque<Entry<R>>,
    next_turn: u64,
    shares: Shares,
}

#[derive(Debug)]
struct Entry<R> {
    /// All rows of a request have one.
    turn: u64,
    flow: Flow,
    row: R,
}

/// The waiting rows of a request.
struct Request {
    turn: u64,
    flow: Flow,
    n_rows: usize,
}

impl<R> Default for TurnQueue<R> {
    fn default() -> Self {
        Self { rows: VecDeque::new(), next_turn: 0, shares: Shares::default() }
    }
}

impl<R: Waiting> TurnQueue<R> {
    /// Number of rows that wait.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether no row waits.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The waiting rows, in no order that a caller may rely on.
    pub fn iter(&self) -> impl Iterator<Item = &R> {
        self.rows.iter().map(|entry| &entry.row)
    }

    /// Tokens of all waiting rows, without padding.
    pub fn n_tokens(&self) -> usize {
        self.iter().map(R::n_tokens).sum()
    }

    /// The rows that a new request of `flow` would wait for if all of its class and of higher ones came first.
    pub fn before(&self, flow: Flow) -> impl Iterator<Item = &R> {
        self.rows.iter().filter(move |entry| entry.flow.weight >= flow.weight).map(|entry| &entry.row)
    }

    /// The row that the next batch is anchored at.
    pub fn next(&self) -> Option<&R> {
        self.anchor().map(|idx| &self.rows[idx].row)
    }

    /// Queues the rows of one request behind all others, where all are alike.
    pub fn push_request(&mut self, rows: impl IntoIterator<Item = R>) {
        self.push_request_of(Flow::default(), rows);
    }

    /// Queues the rows of one request behind all others of `flow`.
    pub fn push_request_of(&mut self, flow: Flow, rows: impl IntoIterator<Item = R>) {
        let turn = self.take_turn();
        let waits = |is: &dyn Fn(Flow) -> bool| self.rows.iter().any(|entry| is(entry.flow));
        let class = waits(&|other| other.weight == flow.weight);
        self.shares.enter(flow, [!self.rows.is_empty(), class, waits(&|other| other == flow)]);
        self.rows.extend(rows.into_iter().map(|row| Entry { turn, flow, row }));
    }

    /// Takes out whole requests until no more than `room` rows wait, or none where that many may not go for a request of `n_rows` of
    /// `flow`: those of lower classes go first, the lowest and newest of them before others; then those of owners of its own class who
    /// would still have as many rows waiting as its owner.
    pub fn make_room(&mut self, flow: Flow, n_rows: usize, room: usize) -> Option<Vec<R>> {
        let mut need = self.rows.len().saturating_sub(room);
        let (mut lower, mut peers) = (Vec::new(), Vec::new());
        for request in self.requests() {
            match request.flow.weight.cmp(&flow.weight) {
                std::cmp::Ordering::Less => lower.push(request),
                std::cmp::Ordering::Equal => peers.push(request),
                std::cmp::Ordering::Greater => {}
            }
        }
        let mut out = BTreeSet::new();
        lower.sort_by_key(|request| (request.flow.weight, Reverse(request.turn)));
        for request in lower {
            if need == 0 {
                break;
            }
            need = need.saturating_sub(request.n_rows);
            out.insert(request.turn);
        }
        let mut held: BTreeMap<u64, usize> = BTreeMap::new();
        peers.iter().for_each(|request| *held.entry(request.flow.owner).or_default() += request.n_rows);
        let mine = held.get(&flow.owner).copied().unwrap_or_default() + n_rows;
        while need > 0 {
            let has = |request: &Request| held.get(&request.flow.owner).copied().unwrap_or_default();
            let may_go = |request: &&Request| {
                request.flow.owner != flow.owner
                    && !out.contains(&request.turn)
                    && has(request) >= mine + request.n_rows
            };
            let next = peers.iter().filter(may_go).max_by_key(|request| (has(request), request.turn))?;
            need = need.saturating_sub(next.n_rows);
            out.insert(next.turn);
            *held.entry(next.flow.owner).or_default() -= next.n_rows;
        }
        Some(self.take_entries(|entry| out.contains(&entry.turn)))
    }

    fn requests(&self) -> impl Iterator<Item = Request> {
        let mut by_turn: BTreeMap<u64, Request> = BTreeMap::new();
        for &Entry { turn, flow, .. } in &self.rows {
            by_turn.entry(turn).or_insert(Request { turn, flow, n_rows: 0 }).n_rows += 1;
        }
        by_turn.into_values()
    }

    /// Takes out every row that `leaves` names.
    pub fn take_out(&mut self, leaves: impl Fn(&R) -> bool) -> Vec<R> {
        self.take_entries(|entry| leaves(&entry.row))
    }

    fn take_entries(&mut self, leaves: impl Fn(&Entry<R>) -> bool) -> Vec<R> {
        if !self.rows.iter().any(&leaves) {
            return Vec::new();
        }
        let (out, stay): (VecDeque<_>, _) = self.rows.drain(..).partition(leaves);
        self.rows = stay;
        out.into_iter().map(|entry| entry.row).collect()
    }

    /// The next batch, its rows in the order they came in: at most `budget_tokens` with padding, or one longer row alone. A row joins if
    /// that brings at most `run_tokens` of padding: see [`RunCost`]. `None` if nothing waits.
    pub fn take_batch(&mut self, budget_tokens: usize, run_tokens: usize) -> Option<Vec<R>> {
        let anchor_idx = self.anchor()?;
        let Entry { turn: anchor_turn, flow, .. } = self.rows[anchor_idx];
        let mut chosen = self.choose(anchor_idx, budget_tokens, run_tokens);
        chosen.sort_unstable();
        let taken = chosen.iter().map(|&idx| (self.rows[idx].flow, self.rows[idx].row.n_tokens()));
        self.shares.pay(flow, taken);
        let mut batch = Vec::with_capacity(chosen.len());
        for idx in chosen.into_iter().rev() {
            batch.extend(self.rows.remove(idx).map(|entry| entry.row));
        }
        batch.reverse();
        // The request has had its turn; what is left of it queues up behind the others.
        let turn = self.take_turn();
        self.rows.iter_mut().filter(|entry| entry.turn == anchor_turn).for_each(|entry| entry.turn = turn);
        self.shares.tidy(|flow| self.rows.iter().any(|entry| entry.flow == flow));
        Some(batch)
    }

    fn anchor(&self) -> Option<usize> {
        // Ties keep the order of submission: `min_by_key` returns the first.
        let mut known: Option<(Flow, Order)> = None;
        (0..self.rows.len()).min_by_key(|&idx| {
            let Entry { turn, flow, .. } = self.rows[idx];
            // Rows of one flow mostly come together.
            let order = known.filter(|&(of, _)| of == flow).map_or_else(|| self.shares.order(flow), |(_, order)| order);
            known = Some((flow, order));
            (order, turn)
        })
    }

    fn take_turn(&mut self) -> u64 {
        self.next_turn += 1;
        self.next_turn
    }

    // The rows that run with the anchor: the closest in length first, each that fits the budget and costs less padding than a run.
    fn choose(&self, anchor_idx: usize, budget_tokens: usize, run_tokens: usize) -> Vec<usize> {
        let Entry { row: anchor, flow, .. } = &self.rows[anchor_idx];
        if !anchor.may_share() {
            return vec![anchor_idx];
        }
        let may_come = |entry: &Entry<R>| entry.row.may_share() && entry.flow.weight >= flow.weight;
        let mut candidates: Vec<usize> =
            (0..self.rows.len()).filter(|&idx| idx != anchor_idx && may_come(&self.rows[idx])).collect();
        candidates.sort_by_key(|&idx| {
            let Entry { turn, row, .. } = &self.rows[idx];
            (row.n_tokens().abs_diff(anchor.n_tokens()), *turn)
        });
        let mut longest = anchor.n_tokens();
        let mut chosen = vec![anchor_idx];
        for idx in candidates {
            let (n_rows, n_tokens) = (chosen.len(), self.rows[idx].row.n_tokens());
            let padding = n_rows * n_tokens.saturating_sub(longest) + longest.saturating_sub(n_tokens);
            if (n_rows + 1) * longest.max(n_tokens) <= budget_tokens && padding <= run_tokens {
                chosen.push(idx);
                longest = longest.max(n_tokens);
            }
        }
        chosen
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    impl Waiting for usize {
        fn n_tokens(&self) -> usize {
            *self
        }
    }

    fn queue(requests: &[&[usize]]) -> TurnQueue<usize> {
        let mut queue = TurnQueue::default();
        requests.iter().for_each(|rows| queue.push_request(rows.iter().copied()));
        queue
    }

    #[test]
    fn a_batch_fills_with_the_rows_closest_in_length_to_the_oldest() {
        let mut queue = queue(&[&[400], &[30], &[390], &[410]]);
        assert_eq!(queue.take_batch(1300, 32), Some(vec![400, 390, 410]));
        assert_eq!((queue.take_batch(1300, 32), queue.take_batch(1300, 32)), (Some(vec![30]), None));
    }

    #[test]
    fn a_request_of_many_rows_takes_turns_with_the_others() {
        let mut queue = queue(&[&[100, 100, 100], &[10]]);
        assert_eq!(queue.take_batch(100, 32), Some(vec![100]));
        assert_eq!(queue.take_batch(100, 32), Some(vec![10]));
        assert_eq!((queue.take_batch(100, 32), queue.n_tokens()), (Some(vec![100]), 100));
    }

    const HIGH: u32 = 16;
    const NORMAL: u32 = 4;
    const LOW: u32 = 1;

    fn flow(weight: u32, owner: u64) -> Flow {
        Flow { weight: NonZeroU32::new(weight).unwrap(), owner }
    }

    /// A row of a class and an owner, of so many tokens.
    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Of(u32, u64, usize);

    impl Waiting for Of {
        fn n_tokens(&self) -> usize {
            self.2
        }
    }

    /// Serves `n` batches of one row, where every flow of `flows` always has two rows waiting; how many tokens each got.
    fn served(flows: &[(u32, u64, usize)], n: usize) -> Vec<usize> {
        let mut queue = TurnQueue::default();
        for &(weight, owner, tokens) in flows {
            (0..2).for_each(|_| queue.push_request_of(flow(weight, owner), [Of(weight, owner, tokens)]));
        }
        let mut got = vec![0; flows.len()];
        for _ in 0..n {
            let Of(weight, owner, tokens) = queue.take_batch(1, 32).unwrap()[0];
            let at = flows.iter().position(|known| (known.0, known.1) == (weight, owner)).unwrap();
            got[at] += tokens;
            queue.push_request_of(flow(weight, owner), [Of(weight, owner, tokens)]);
        }
        got
    }

    #[test]
    fn classes_share_by_their_weights_and_the_lowest_never_starves() {
        assert_eq!(served(&[(HIGH, 0, 10), (NORMAL, 0, 10), (LOW, 0, 10)], 2100), [16_000, 4000, 1000]);
    }

    #[test]
    fn owners_of_a_class_get_the_same_tokens_whatever_their_rows_are() {
        let got = served(&[(NORMAL, 1, 100), (NORMAL, 2, 10), (NORMAL, 3, 50)], 1300);
        assert!(got.iter().all(|tokens| tokens.abs_diff(10_000) <= 100), "{got:?}");
    }

    #[test]
    fn a_request_of_who_sends_little_goes_before_the_many_of_another() {
        let mut queue = TurnQueue::default();
        for n in 1..=50 {
            queue.push_request_of(flow(NORMAL, 1), [Of(NORMAL, 1, 100 + n)]);
        }
        queue.take_batch(1, 32);
        queue.push_request_of(flow(NORMAL, 2), [Of(NORMAL, 2, 7)]);
        assert_eq!(queue.take_batch(1, 32), Some(vec![Of(NORMAL, 2, 7)]));
        // Nothing is saved up while somebody is away.
        for _ in 0..20 {
            queue.take_batch(1, 32);
        }
        (0..4).for_each(|_| queue.push_request_of(flow(NORMAL, 2), [Of(NORMAL, 2, 100)]));
        let turns: Vec<u64> = (0..6).map(|_| queue.take_batch(1, 32).unwrap()[0].1).collect();
        assert!(turns.iter().filter(|owner| **owner == 1).count() >= 2, "{turns:?}");
    }

    #[test]
    fn a_batch_has_no_rows_of_a_class_below_its_anchors() {
        let mut queue = TurnQueue::default();
        for weight in [LOW, NORMAL, HIGH, LOW] {
            queue.push_request_of(flow(weight, 0), [Of(weight, 0, 10)]);
        }
        let weights = |batch: Option<Vec<Of>>| batch.map(|batch| batch.iter().map(|row| row.0).collect::<Vec<_>>());
        assert_eq!(weights(queue.take_batch(1000, 32)), Some(vec![HIGH]));
        queue.push_request_of(flow(HIGH, 0), [Of(HIGH, 0, 10)]);
        assert_eq!(weights(queue.take_batch(1000, 32)), Some(vec![NORMAL, HIGH]));
        assert_eq!(weights(queue.take_batch(1000, 32)), Some(vec![LOW, LOW]));
    }

    #[test]
    fn room_is_made_by_the_lowest_and_newest_and_then_by_who_has_most() {
        let mut queue = TurnQueue::default();
        let mut push = |weight, owner, tokens: &[usize]| {
            queue.push_request_of(flow(weight, owner), tokens.iter().map(|&n| Of(weight, owner, n)));
        };
        push(LOW, 1, &[1, 2]);
        push(LOW, 1, &[3]);
        push(NORMAL, 1, &[4]);
        push(NORMAL, 1, &[5, 6]);
        push(NORMAL, 2, &[7]);
        let tokens = |out: Option<Vec<Of>>| out.map(|out| out.iter().map(|row| row.2).collect::<Vec<_>>());
        assert_eq!(tokens(queue.make_room(flow(LOW, 1), 1, 6)), None, "no room is made by equals of the same owner");
        assert_eq!(tokens(queue.make_room(flow(HIGH, 1), 1, 6)), Some(vec![3]));
        assert_eq!(tokens(queue.make_room(flow(NORMAL, 3), 1, 3)), Some(vec![1, 2, 5, 6]));
        assert_eq!(tokens(queue.make_room(flow(NORMAL, 3), 1, 1)), None, "everybody has as little");
        assert_eq!(queue.len(), 2);
    }

    /// A row of ten tokens, and when it was sent.
    struct Sent {
        by: u64,
        at: u64,
    }

    impl Waiting for Sent {
        fn n_tokens(&self) -> usize {
            10
        }
    }

    /// Simulates a model that takes a tick for a token: every 40 ticks somebody sends one row and somebody else `many`. How long the one row
    /// waits for its answer at most, where the queue knows the two as `owners`.
    fn longest_wait(owners: [u64; 2], many: usize) -> u64 {
        let (mut queue, mut now, mut next, mut longest) = (TurnQueue::default(), 0, 0, 0);
        while now < 4000 {
            while next <= now {
                (0..many).for_each(|_| queue.push_request_of(flow(NORMAL, owners[0]), [Sent { by: 0, at: next }]));
                queue.push_request_of(flow(NORMAL, owners[1]), [Sent { by: 1, at: next }]);
                next += 40;
            }
            let Some(batch) = queue.take_batch(1, 32) else {
                now = next;
                continue;
            };
            now += 10;
            let waits = batch.iter().filter(|sent| sent.by == 1).map(|sent| now - sent.at);
            longest = longest.max(waits.max().unwrap_or_default());
        }
        longest
    }

    #[test]
    fn who_sends_ten_times_as_much_slows_nobody_else() {
        let alone = longest_wait([1, 2], 1);
        assert!(longest_wait([1, 2], 10) <= alone + 10, "at most one batch more");
        assert!(longest_wait([1, 1], 10) > 20 * alone, "as it would be if both were one");
    }

    #[test]
    fn owners_that_owe_nothing_are_forgotten() {
        let mut queue = TurnQueue::default();
        queue.push_request_of(flow(NORMAL, 0), [Of(NORMAL, 0, 10); 3000]);
        for owner in 1..2900 {
            queue.push_request_of(flow(NORMAL, owner), [Of(NORMAL, owner, 10)]);
            (0..2).for_each(|_| drop(queue.take_batch(1, 32)));
        }
        assert!(queue.shares.n_owners() < 1100, "{}", queue.shares.n_owners());
    }

    #[test]
    fn rows_that_leave_are_taken_out_and_the_others_stay() {
        let mut queue = queue(&[&[1, 2], &[3]]);
        assert_eq!(queue.take_out(|&row| row == 2), [2]);
        assert_eq!(queue.iter().copied().collect::<Vec<_>>(), [1, 3]);
    }
}
