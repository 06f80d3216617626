use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

use tokenizers::{PostProcessor as _, TruncationDirection, TruncationParams};

/// Longest `tokenizer.json`; the largest vocabularies in use (250,000 pieces) take 17 MB.
const MAX_FILE_BYTES: usize = 128 << 20;
/// Longest text that is tokenised; truncation happens after tokenisation, so length costs time even when cut.
const MAX_TEXT_BYTES: usize = 1 << 20;

/// Why a tokenizer could not be made or a text not be encoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum TokenizerError {
    #[error("tokenizer.json has {0} bytes, and at most {MAX_FILE_BYTES} are accepted")]
    FileTooLarge(usize),
    #[error("tokenizer.json does not describe a tokenizer: {0}")]
    Invalid(String),
    #[error("an input of {max_tokens} tokens has no room beside the {n_special} special tokens")]
    NoRoom { max_tokens: usize, n_special: usize },
    #[error("the first text has {n_tokens} tokens, and the {room} that a pair takes leave none of the second one")]
    FirstTooLong { n_tokens: usize, room: usize },
    #[error("the text has {0} bytes, and at most {MAX_TEXT_BYTES} are accepted")]
    TextTooLarge(usize),
    #[error("the tokenizer cannot encode this text: {0}")]
    Encode(String),
    #[error("the tokenizer cannot decode these tokens: {0}")]
    Decode(String),
}

/// Token ids of one text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// Ids with the special tokens the model expects; at most `max_tokens`.
    pub ids: Vec<u32>,
    /// Whether the text was longer and lost its end.
    pub truncated: bool,
}

/// What is done about special tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// They are kept, or put around the text.
    Kept,
    /// They are left out.
    Dropped,
}

/// One token of a text, as a person reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its id.
    pub id: u32,
    /// The part of the text that it stands for; of a special token its name.
    pub text: String,
    /// Where that part is in the text, in bytes; a special token is nowhere.
    pub bytes: Option<(usize, usize)>,
}

/// Tokens of two texts that a model reads as one input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedPair {
    /// Ids with the special tokens the model expects.
    pub ids: Vec<u32>,
    /// Of each id: 0 in the first text, 1 in the second, as the tokenizer says.
    pub types: Vec<u32>,
    /// Whether they were longer together and the longer one lost its end.
    pub truncated: bool,
}

/// A Hugging Face tokenizer (`tokenizer.json`) with a fixed truncation length.
///
/// Normalisation, splitting, merging and special tokens are those of the `tokenizers` crate. Truncation and padding
/// settings of the file are ignored: the package says how long an input may be, and batches are padded elsewhere.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// `inner` without truncation, which reads on where `inner` stops; made when it is first needed.
    whole: OnceLock<tokenizers::Tokenizer>,
    max_tokens: usize,
    n_special: usize,
    pad_id: u32,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`; inputs longer than `max_tokens`, special tokens included, lose their end.
    ///
    /// Errors, and never panics, on a file that is over 128 MiB, is no tokenizer, or adds so many special tokens
    /// that no text fits.
    pub fn from_bytes(json: &[u8], max_tokens: usize) -> Result<Self, TokenizerError> {
        guarded(|| Self::read(json, max_tokens)).unwrap_or_else(|panic| Err(TokenizerError::Invalid(panic)))
    }

    fn read(json: &[u8], max_tokens: usize) -> Result<Self, TokenizerError> {
        let (mut inner, pad_id, n_special) = read(json, false)?;
        if max_tokens <= n_special {
            return Err(TokenizerError::NoRoom { max_tokens, n_special });
        }
        let truncation = TruncationParams { max_length: max_tokens, ..TruncationParams::default() };
        inner.with_truncation(Some(truncation)).map_err(|e| TokenizerError::Invalid(e.to_string()))?;
        let tokenizer = Self { inner, whole: OnceLock::new(), max_tokens, n_special, pad_id };
        // A file can be well-formed and still name a special token that does not exist; find out now.
        tokenizer.encode("highroad")?;
        Ok(tokenizer)
    }

    /// Token ids of `text`, special tokens included. Errors on texts over 1 MiB and on characters that a vocabulary
    /// without an unknown token does not cover.
    pub fn encode(&self, text: &str) -> Result<Encoded, TokenizerError> {
        within_limit(text)?;
        let encoding = guarded(|| self.inner.encode_fast(text, true))
            .map_err(TokenizerError::Encode)?
            .map_err(|e| TokenizerError::Encode(e.to_string()))?;
        let truncated = !encoding.get_overflowing().is_empty();
        Ok(Encoded { ids: encoding.get_ids().to_vec(), truncated })
    }

    /// [`Tokenizer::encode`] that keeps the end of a text that is too long, and cuts its start.
    pub fn encode_end(&self, text: &str) -> Result<Encoded, TokenizerError> {
        let mut encoding = self.whole(text)?;
        let n_kept = self.max_tokens - self.n_special;
        let truncated = encoding.len() > n_kept;
        let ids = guarded(|| {
            encoding.truncate(n_kept, 0, TruncationDirection::Left);
            drop(encoding.take_overflowing());
            self.with_special_tokens(encoding).map(|encoding| encoding.get_ids().to_vec())
        });
        Ok(Encoded { ids: ids.map_err(TokenizerError::Encode)??, truncated })
    }

    /// The tokens of `text`, none of them cut off, with the special tokens around them if asked for. Errors as
    /// [`Tokenizer::encode`] does.
    pub fn pieces(&self, text: &str, special: Special) -> Result<Vec<Piece>, TokenizerError> {
        let mut encoding = self.whole(text)?;
        if special == Special::Kept {
            encoding = guarded(|| self.with_special_tokens(encoding)).map_err(TokenizerError::Encode)??;
        }
        let (ids, tokens, offsets) = (encoding.get_ids(), encoding.get_tokens(), encoding.get_offsets());
        let is_special = encoding.get_special_tokens_mask();
        let piece = |i: usize| {
            let bytes = (is_special[i] == 0).then_some(offsets[i]);
            let part = bytes.and_then(|(start, end)| text.get(start..end));
            Piece { id: ids[i], text: part.unwrap_or(&tokens[i]).to_owned(), bytes }
        };
        Ok((0..encoding.len()).map(piece).collect())
    }

    /// The text that `ids` stand for, as the file's decoder joins it. Errors on ids outside the vocabulary.
    pub fn decode(&self, ids: &[u32], special: Special) -> Result<String, TokenizerError> {
        if let Some(id) = ids.iter().find(|&&id| !self.has_id(id)) {
            return Err(TokenizerError::Decode(format!("{id} is not in the vocabulary")));
        }
        let decoded = guarded(|| self.inner.decode(ids, special == Special::Dropped));
        decoded.map_err(TokenizerError::Decode)?.map_err(|e| TokenizerError::Decode(e.to_string()))
    }

    /// All tokens but the special ones.
    fn whole(&self, text: &str) -> Result<tokenizers::Encoding, TokenizerError> {
        within_limit(text)?;
        let whole = self.whole.get_or_init(|| {
            let mut whole = self.inner.clone();
            // Only the settings themselves can be refused, and there are none.
            drop(whole.with_truncation(None));
            whole
        });
        guarded(|| whole.encode(text, false))
            .map_err(TokenizerError::Encode)?
            .map_err(|e| TokenizerError::Encode(e.to_string()))
    }

    fn with_special_tokens(&self, encoding: tokenizers::Encoding) -> Result<tokenizers::Encoding, TokenizerError> {
        match self.inner.get_post_processor() {
            Some(post) => post.process(encoding, None, true).map_err(|e| TokenizerError::Encode(e.to_string())),
            None => Ok(encoding),
        }
    }

    /// [`Tokenizer::encode`] of every text, in order.
    pub fn encode_batch<'t>(&self, texts: impl IntoIterator<Item = &'t str>) -> Result<Vec<Encoded>, TokenizerError> {
        texts.into_iter().map(|text| self.encode(text)).collect()
    }

    /// Number of tokens that [`Tokenizer::encode`] gives for `text`.
    pub fn n_tokens(&self, text: &str) -> Result<usize, TokenizerError> {
        Ok(self.encode(text)?.ids.len())
    }

    /// Longest input in tokens.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// The id that fills rows of a batch: the file's padding token, else a token of a customary name, else 0.
    pub fn pad_id(&self) -> u32 {
        self.pad_id
    }

    /// The id of what the vocabulary does not cover, by its customary names; `None` where it covers everything.
    pub fn unknown_id(&self) -> Option<u32> {
        ["[UNK]", "<unk>", "<|unk|>"].iter().find_map(|name| self.inner.token_to_id(name))
    }

    /// Whether `id` is a token of the vocabulary.
    pub fn has_id(&self, id: u32) -> bool {
        self.inner.id_to_token(id).is_some()
    }
}

pub(crate) fn within_limit(text: &str) -> Result<(), TokenizerError> {
    if text.len() > MAX_TEXT_BYTES { Err(TokenizerError::TextTooLarge(text.len())) } else { Ok(()) }
}

/// [`read`], with a panic of the `tokenizers` crate as an error.
pub(crate) fn parsed(json: &[u8], is_pair: bool) -> Result<(tokenizers::Tokenizer, u32, usize), TokenizerError> {
    guarded(|| read(json, is_pair)).unwrap_or_else(|panic| Err(TokenizerError::Invalid(panic)))
}

/// The tokenizer without padding, the id that pads, and the number of special tokens that it adds to a text or a pair.
fn read(json: &[u8], is_pair: bool) -> Result<(tokenizers::Tokenizer, u32, usize), TokenizerError> {
    if json.len() > MAX_FILE_BYTES {
        return Err(TokenizerError::FileTooLarge(json.len()));
    }
    let mut inner = tokenizers::Tokenizer::from_bytes(json).map_err(|e| TokenizerError::Invalid(e.to_string()))?;
    let n_special = inner.get_post_processor().map_or(0, |post| post.added_tokens(is_pair));
    let pad_id = pad_id(&inner);
    inner.with_padding(None);
    Ok((inner, pad_id, n_special))
}

fn pad_id(tokenizer: &tokenizers::Tokenizer) -> u32 {
    let named = || ["[PAD]", "<pad>"].into_iter().find_map(|token| tokenizer.token_to_id(token));
    tokenizer.get_padding().map(|padding| padding.pad_id).or_else(named).unwrap_or(0)
}

/// What `work` gives, or the message of its panic: the `tokenizers` crate indexes and asserts in places that a
/// malformed file reaches, and one bad file must not take a server down.
pub(crate) fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    // Nothing is used after a panic but the error, so no broken invariant can be seen.
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("internal error").to_owned()
    })
}
