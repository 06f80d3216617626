use highroad_eval::{LengthShare, Lengths};
use highroad_package::TaskKind;
use highroad_task::{Input, Waiting as _};

use crate::run::texts;
use crate::{AssessError, GoldenInput, GoldenSet, Served, Truncated};

/// The requests that a load draws from.
#[derive(Clone, Debug, PartialEq)]
pub struct Mix {
    /// The rows of each request: one a text; for a reranker one for each document of a query.
    pub requests: Vec<Vec<Input>>,
    /// How often each is drawn, relative to the others.
    pub weights: Vec<f64>,
}

/// Different texts of one length.
const TEXTS_A_LENGTH: usize = 16;
/// Most bytes of pictures that stand for a golden set's; later ones are not asked.
const MAX_IMAGES_BYTES: usize = 256 << 20;

impl Mix {
    /// The declared `lengths` as requests to `served`, which is made to do `task`.
    ///
    /// Errors if a table of lengths asks for rows that the model cuts or that are too short for a single word.
    pub fn new(
        lengths: &Lengths,
        golden: &GoldenSet,
        task: &TaskKind,
        served: &impl Served,
    ) -> Result<Self, AssessError> {
        let requests = of_golden(golden, task)?;
        match lengths {
            Lengths::Golden(_) => Ok(Self { weights: vec![1.0; requests.len()], requests }),
            Lengths::Shares(shares) => Self::of_lengths(shares, &requests, served),
        }
    }

    fn of_lengths(shares: &[LengthShare], golden: &[Vec<Input>], served: &impl Served) -> Result<Self, AssessError> {
        let pieces = Pieces::of(golden);
        let mut mix = Self { requests: Vec::new(), weights: Vec::new() };
        for &LengthShare { tokens, share } in shares {
            if tokens > served.max_tokens() {
                return Err(AssessError::RowTooLong { tokens, max_tokens: served.max_tokens() });
            }
            for variant in 0..TEXTS_A_LENGTH {
                let like = &golden[variant % golden.len()];
                let row = |(idx, like): (usize, &Input)| pieces.row(like, variant + idx, tokens, served);
                mix.requests.push(like.iter().enumerate().map(row).collect::<Result<_, _>>()?);
                mix.weights.push(share / TEXTS_A_LENGTH as f64);
            }
        }
        Ok(mix)
    }
}

/// What a golden set's cases ask, as requests: a query with its documents to a reranker, single texts to other models.
fn of_golden(golden: &GoldenSet, task: &TaskKind) -> Result<Vec<Vec<Input>>, AssessError> {
    let (mut requests, mut n_image_bytes) = (Vec::new(), 0);
    for idx in 0..golden.cases.len() {
        let input = golden.input(idx)?;
        if let GoldenInput::One(Input::Image(bytes)) = &*input {
            n_image_bytes += bytes.len();
            if n_image_bytes > MAX_IMAGES_BYTES && !requests.is_empty() {
                break;
            }
        }
        requests.extend(requests_of(&input, task));
    }
    Ok(requests)
}

fn requests_of(input: &GoldenInput, task: &TaskKind) -> Vec<Vec<Input>> {
    match input {
        GoldenInput::One(input) => vec![vec![input.clone()]],
        GoldenInput::Ranking { query, documents } if matches!(task, TaskKind::Rerank) => {
            let pair = |document: &String| Input::Pair { query: query.clone(), document: document.clone() };
            vec![documents.iter().map(pair).collect()]
        }
        input => texts(input).map(|text| vec![Input::Text(text.to_owned())]).collect(),
    }
}

/// What rows of a declared length are made of.
struct Pieces {
    words: Vec<String>,
    ids: Vec<u32>,
}

impl Pieces {
    fn of(golden: &[Vec<Input>]) -> Self {
        let mut pieces = Self { words: Vec::new(), ids: Vec::new() };
        for input in golden.iter().flatten() {
            match input {
                Input::Text(text) | Input::Prompted { text, .. } | Input::Pair { document: text, .. } => {
                    pieces.words.extend(text.split_whitespace().map(str::to_owned));
                }
                Input::Tokens(ids) => pieces.ids.extend(ids),
                Input::Image(_) | Input::Tensors(_) => {}
            }
        }
        pieces
    }

    /// A row of the kind of `like` with at most `tokens` tokens and no room for one more word, from the `start`-th piece on.
    fn row(&self, like: &Input, start: usize, tokens: usize, served: &impl Served) -> Result<Input, AssessError> {
        let of_words = |n_words: usize| {
            let words = self.words.iter().cycle().skip(start * 7 % self.words.len().max(1)).take(n_words);
            let text = words.map(String::as_str).collect::<Vec<_>>().join(" ");
            match like {
                Input::Pair { query, .. } => Input::Pair { query: query.clone(), document: text },
                _ => Input::Text(text),
            }
        };
        if let Input::Tokens(_) = like {
            return Ok(Input::Tokens(self.ids.iter().copied().cycle().skip(start).take(tokens).collect()));
        }
        if let Input::Tensors(_) = like {
            return Err(AssessError::TensorTokens);
        }
        if let Input::Image(_) = like {
            return match served.max_tokens() {
                n_tokens if n_tokens == tokens => Ok(like.clone()),
                n_tokens => Err(AssessError::ImageTokens { tokens, n_tokens }),
            };
        }
        let fits = |n_words: usize| -> Result<bool, AssessError> {
            let row = served.prepare(&of_words(n_words)).map_err(|source| AssessError::Load { source })?;
            let (row, Truncated(truncated)) = row;
            Ok(row.n_tokens() <= tokens && !truncated)
        };
        // The most words that fit; each has a token at least, so there are never more than `tokens`.
        let (mut most, mut too_many) = (0, tokens + 1);
        while too_many - most > 1 {
            let middle = usize::midpoint(most, too_many);
            if fits(middle)? { most = middle } else { too_many = middle }
        }
        if most == 0 { Err(AssessError::RowTooShort { tokens }) } else { Ok(of_words(most)) }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use highroad_task::{TaskError, Waiting};

    use super::*;

    /// A token a word and two special ones, at most 10.
    struct Words;

    impl Served for Words {
        type Row = Row;

        fn max_tokens(&self) -> usize {
            10
        }

        fn prepare(&self, input: &Input) -> Result<(Row, Truncated), TaskError> {
            let n_tokens = 2 + match input {
                Input::Text(text) | Input::Prompted { text, .. } => text.split_whitespace().count(),
                Input::Pair { query, document } => query.split(' ').count() + document.split_whitespace().count(),
                Input::Tokens(ids) => ids.len() - 2,
                Input::Image(_) | Input::Tensors(_) => 0,
            };
            Ok((Row(n_tokens.min(10)), Truncated(n_tokens > 10)))
        }

        fn answer(&self, _: Vec<Row>) -> Result<(), TaskError> {
            Ok(())
        }
    }

    struct Row(usize);

    impl Waiting for Row {
        fn n_tokens(&self) -> usize {
            self.0
        }
    }

    fn golden(lines: &str) -> GoldenSet {
        GoldenSet::parse(lines.as_bytes(), Path::new("golden.jsonl")).unwrap()
    }

    fn labelled() -> GoldenSet {
        golden(
            r#"{"id": "1", "input": {"text": "one two three"}, "expected": "x"}
               {"id": "2", "input": {"text": "four five"}, "expected": "x"}"#,
        )
    }

    fn rankings() -> GoldenSet {
        golden(r#"{"id": "1", "input": {"query": "red car", "documents": ["a car", "a boat"]}, "expected": [1, 0]}"#)
    }

    fn classify() -> TaskKind {
        TaskKind::Classify { labels: vec!["x".to_owned()], flagged: None, pairs: false, thresholds: Vec::new() }
    }

    fn lengths(shares: &[(usize, f64)]) -> Lengths {
        Lengths::Shares(shares.iter().map(|&(tokens, share)| LengthShare { tokens, share }).collect())
    }

    #[test]
    fn the_golden_set_is_asked_as_it_is_and_a_reranker_gets_whole_queries() {
        let mix = Mix::new(&Lengths::default(), &labelled(), &classify(), &Words).unwrap();
        assert_eq!((mix.requests.len(), &mix.weights[..]), (2, &[1.0, 1.0][..]));
        let mix = Mix::new(&Lengths::default(), &rankings(), &TaskKind::Rerank, &Words).unwrap();
        assert_eq!(mix.requests.iter().map(Vec::len).collect::<Vec<_>>(), [2]);
        let embed = TaskKind::Embed { dimensions: 2, normalized: false, matryoshka_dimensions: Vec::new() };
        let mix = Mix::new(&Lengths::default(), &rankings(), &embed, &Words).unwrap();
        assert_eq!(mix.requests.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1, 1]);
    }

    #[test]
    fn rows_of_a_declared_length_are_words_of_the_golden_set() {
        let mix = Mix::new(&lengths(&[(4, 0.75), (10, 0.25)]), &labelled(), &classify(), &Words).unwrap();
        let n_tokens: Vec<usize> = mix.requests.iter().map(|rows| Words.prepare(&rows[0]).unwrap().0.0).collect();
        assert_eq!(n_tokens, [[4; TEXTS_A_LENGTH], [10; TEXTS_A_LENGTH]].concat());
        let share: f64 = mix.weights[..TEXTS_A_LENGTH].iter().sum();
        assert!((share - 0.75).abs() < 1e-12);
        // As long as the model takes, and not a word that it would cut.
        let Input::Text(longest) = &mix.requests[TEXTS_A_LENGTH][0] else { panic!() };
        assert_eq!(longest, "one two three four five one two three");
    }

    #[test]
    fn a_reranker_keeps_its_queries_and_gets_documents_of_the_length() {
        let mix = Mix::new(&lengths(&[(7, 1.0)]), &rankings(), &TaskKind::Rerank, &Words).unwrap();
        let rows = &mix.requests[0];
        assert!(rows.iter().all(|row| Words.prepare(row).unwrap().0.0 == 7), "{rows:?}");
        assert!(rows.iter().all(|row| matches!(row, Input::Pair { query, .. } if query == "red car")), "{rows:?}");
        assert_eq!(rows.len(), 2);
    }

    #[test]
    fn lengths_that_the_model_cannot_have_are_refused() {
        let error =
            |tokens| Mix::new(&lengths(&[(tokens, 1.0)]), &labelled(), &classify(), &Words).unwrap_err().to_string();
        assert_eq!(error(11), "[traffic] asks for rows of 11 tokens, and the model takes 10 at most");
        assert_eq!(error(2), "[traffic] asks for rows of 2 tokens, in which no word of the golden set fits");
    }
}
