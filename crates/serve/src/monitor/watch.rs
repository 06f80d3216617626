use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use highroad_task::{Answer, Glimpse, Input, Prepared};

use crate::monitor::book::Book;
use crate::monitor::{Monitor, lock, now_s};
use crate::telemetry::MONITOR_VIOLATIONS;

/// What a revision hands its observations to.
pub(crate) struct Watch {
    monitor: Arc<Monitor>,
    book: Arc<Mutex<Book>>,
    unknown_id: Option<u32>,
    /// Draws which input of a request is looked at.
    n_drawn: AtomicU64,
}

/// One input of a request and its answer, on the way to being counted.
pub(crate) struct Seen {
    book: Arc<Mutex<Book>>,
    unknown_id: Option<u32>,
    glimpse: Glimpse,
    answer: Answer,
    n_inputs: usize,
}

/// The input that was drawn, before it is answered.
pub(crate) struct Drawn {
    at: usize,
    n_inputs: usize,
    glimpse: Glimpse,
}

impl Watch {
    pub(crate) fn new(monitor: Arc<Monitor>, book: Arc<Mutex<Book>>, unknown_id: Option<u32>) -> Self {
        Self { monitor, book, unknown_id, n_drawn: AtomicU64::new(0) }
    }

    /// Draws one input of a request: those of one request are alike, and a client that sends many at once must not count as many
    /// clients. `None` if there is none.
    pub(crate) fn draw(&self, inputs: &[Input]) -> Option<Drawn> {
        let n = self.n_drawn.fetch_add(1, Ordering::Relaxed);
        // Fibonacci hashing: neighbours fall far apart.
        let at = (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize % inputs.len().max(1);
        inputs.get(at).map(|input| Drawn { at, n_inputs: inputs.len(), glimpse: Glimpse::of(input) })
    }

    pub(crate) fn prepared(&self, drawn: Drawn, prepared: &[Prepared]) -> Drawn {
        match prepared.get(drawn.at) {
            Some(prepared) => Drawn { glimpse: drawn.glimpse.prepared(prepared), ..drawn },
            None => drawn,
        }
    }

    pub(crate) fn answered(&self, drawn: Drawn, answers: &[Answer]) -> Option<Box<Seen>> {
        let Drawn { at, n_inputs, glimpse } = drawn;
        let answer = answers.get(at)?.clone();
        let (book, unknown_id) = (Arc::clone(&self.book), self.unknown_id);
        Some(Box::new(Seen { book, unknown_id, glimpse, answer, n_inputs }))
    }

    pub(crate) fn violated(&self, kind: &'static str) {
        let mut book = lock(&self.book);
        metrics::counter!(MONITOR_VIOLATIONS, "member" => book.member.clone(), "kind" => kind).increment(1);
        book.violation(kind);
    }

    pub(crate) fn put(&self, seen: Box<Seen>) {
        self.monitor.put(seen);
    }
}

impl std::fmt::Debug for Seen {
    /// Nothing of what was asked.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seen").field("n_inputs", &self.n_inputs).finish_non_exhaustive()
    }
}

impl Seen {
    /// Counts it; takes some 50 µs.
    pub(crate) fn count(self) {
        let observation = self.glimpse.observe(&self.answer, self.unknown_id);
        lock(&self.book).count(&observation, self.n_inputs as u64, now_s());
    }

    /// Counts that it was not looked at.
    pub(crate) fn dropped(&self) {
        lock(&self.book).dropped();
    }
}
