use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use highroad_eval::drift::{Observation, TensorRow};
use highroad_task::raw::Tensor;
use highroad_task::{Answer, Glimpse, Input, MetTensors, Prepared, TensorGlimpse, Written};

use crate::monitor::book::Book;
use crate::monitor::{Monitor, lock, now_s};
use crate::telemetry::{MONITOR_DROPPED, MONITOR_VIOLATIONS};

/// What a revision hands its observations to.
pub(crate) struct Watch {
    monitor: Arc<Monitor>,
    book: Arc<Mutex<Book>>,
    has_baseline: Arc<AtomicBool>,
    unknown_id: Option<u32>,
    /// Of a package that computes tensors.
    tensors: Option<TensorGlimpse>,
    /// Draws which input of a request is looked at.
    n_drawn: AtomicU64,
}

/// One input of a request and its answer, on the way to being counted.
pub(crate) struct Seen {
    book: Arc<Mutex<Book>>,
    what: What,
    n_inputs: usize,
}

enum What {
    /// Where no baseline says what to look for.
    Asked,
    Answered {
        glimpse: Glimpse,
        answer: Answer,
        unknown_id: Option<u32>,
    },
    Written {
        glimpse: Glimpse,
        written: Written,
    },
    Computed(Vec<TensorRow>),
}

/// The input that was drawn, before it is answered.
pub(crate) struct Drawn {
    at: usize,
    n_inputs: usize,
    /// Where there is a baseline.
    glimpse: Option<Glimpse>,
}

/// The row that was drawn of a request for tensors, before these are computed.
pub(crate) struct DrawnRow {
    at: usize,
    draw: u64,
    n_rows: usize,
    inputs: Vec<TensorRow>,
}

impl Watch {
    pub(crate) fn new(monitor: Arc<Monitor>, book: Arc<Mutex<Book>>, unknown_id: Option<u32>) -> Self {
        let has_baseline = Arc::clone(&lock(&book).has_baseline);
        Self { monitor, book, has_baseline, unknown_id, tensors: None, n_drawn: AtomicU64::new(0) }
    }

    /// The same of a package that computes tensors, and what is looked at of them.
    pub(crate) fn of_tensors(self, tensors: TensorGlimpse) -> Self {
        Self { tensors: Some(tensors), ..self }
    }

    /// Draws one input of a request: those of one request are alike, and a client that sends many at once must not count as many
    /// clients. `None` if there is none.
    pub(crate) fn draw(&self, inputs: &[Input]) -> Option<Drawn> {
        self.draw_of(inputs.len(), |at| inputs.get(at).map(Glimpse::of))
    }

    /// The same of `n_inputs`, of which `glimpse` looks at one.
    pub(crate) fn draw_of(&self, n_inputs: usize, glimpse: impl FnOnce(usize) -> Option<Glimpse>) -> Option<Drawn> {
        let (at, _) = self.drawn_of(n_inputs)?;
        if !self.has_baseline() {
            return Some(Drawn { at, n_inputs, glimpse: None });
        }
        glimpse(at).map(|glimpse| Drawn { at, n_inputs, glimpse: Some(glimpse) })
    }

    /// The same of the rows of tensors; nothing of a package that has another task.
    pub(crate) fn draw_row(&self, inputs: &[Tensor]) -> Option<DrawnRow> {
        let look = self.tensors.as_ref()?;
        let n_rows = look.n_rows(inputs);
        let (at, draw) = self.drawn_of(n_rows)?;
        Some(DrawnRow { at, draw, n_rows, inputs: look.of_inputs(inputs, at, draw) })
    }

    fn has_baseline(&self) -> bool {
        self.has_baseline.load(Ordering::Relaxed)
    }

    /// One of `n`, and the number of the draw; `None` of none.
    fn drawn_of(&self, n: usize) -> Option<(usize, u64)> {
        let draw = self.n_drawn.fetch_add(1, Ordering::Relaxed);
        // Fibonacci hashing: neighbours fall far apart.
        ((draw.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize).checked_rem(n).map(|at| (at, draw))
    }

    pub(crate) fn prepared(&self, drawn: Drawn, prepared: &[Prepared]) -> Drawn {
        match prepared.get(drawn.at) {
            Some(prepared) => Drawn { glimpse: drawn.glimpse.map(|glimpse| glimpse.prepared(prepared)), ..drawn },
            None => drawn,
        }
    }

    pub(crate) fn answered(&self, drawn: Drawn, answers: &[Answer]) -> Option<Box<Seen>> {
        let Drawn { at, n_inputs, glimpse } = drawn;
        let answer = answers.get(at)?;
        let answered = |glimpse| What::Answered { glimpse, answer: answer.clone(), unknown_id: self.unknown_id };
        Some(self.seen(glimpse.map_or(What::Asked, answered), n_inputs))
    }

    /// The tensors that came of a request.
    pub(crate) fn computed(&self, drawn: DrawnRow, outputs: &[Tensor]) -> Option<Box<Seen>> {
        let DrawnRow { at, draw, n_rows, inputs: mut rows } = drawn;
        rows.extend(self.tensors.as_ref()?.of_outputs(outputs, at, draw));
        Some(self.seen(What::Computed(rows), n_rows))
    }

    /// The tensors of a request that somebody else answered.
    pub(crate) fn passed_on(&self, met: &MetTensors) -> Option<Box<Seen>> {
        let n_rows = met.n_rows_or_one();
        let (at, draw) = self.drawn_of(n_rows)?;
        Some(self.seen(What::Computed(met.rows_of_any(at, draw)), n_rows))
    }

    /// A text that was written.
    pub(crate) fn wrote(&self, glimpse: Glimpse, written: Written) -> Box<Seen> {
        self.seen(What::Written { glimpse, written }, 1)
    }

    fn seen(&self, what: What, n_inputs: usize) -> Box<Seen> {
        Box::new(Seen { book: Arc::clone(&self.book), what, n_inputs })
    }

    pub(crate) fn violated(&self, kind: &'static str) {
        let mut book = lock(&self.book);
        metrics::counter!(MONITOR_VIOLATIONS, "member" => book.member.clone(), "kind" => kind).increment(1);
        book.violation(kind);
    }

    pub(crate) fn put(&self, seen: Box<Seen>) {
        self.monitor.put(seen);
    }

    /// Counts a request that was not looked at.
    pub(crate) fn dropped(&self) {
        lock(&self.book).dropped();
        metrics::counter!(MONITOR_DROPPED).increment(1);
    }
}

impl std::fmt::Debug for Seen {
    /// Nothing of what was asked.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seen").field("n_inputs", &self.n_inputs).finish_non_exhaustive()
    }
}

impl Seen {
    /// Counts it; takes some 50 µs where there is a baseline.
    pub(crate) fn count(self) {
        let observation = match self.what {
            What::Asked => None,
            What::Answered { glimpse, answer, unknown_id } => Some(glimpse.observe(&answer, unknown_id)),
            What::Written { glimpse, written } => Some(glimpse.observe_written(written)),
            What::Computed(tensors) => Some(Observation { tensors, ..Observation::default() }),
        };
        lock(&self.book).count(observation.as_ref(), self.n_inputs as u64, now_s());
    }

    /// Counts that it was not looked at.
    pub(crate) fn dropped(&self) {
        lock(&self.book).dropped();
    }
}
