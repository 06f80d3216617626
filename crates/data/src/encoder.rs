//! Tokenising for training: the ids of `tokenizers`, without its cost for words that were met before.

use std::sync::Arc;

use ahash::RandomState;
use std::collections::HashMap;
use tokenizers::EncodeInput;
use tokenizers::models::ModelWrapper;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;

use crate::tokenizer::{guarded, parsed, within_limit};
use crate::{EncodedPair, TokenizerError};

/// Longest word that is remembered, in bytes.
const MAX_WORD_BYTES: usize = 48;
/// Most words that a thread remembers; natural text repeats far fewer.
const MAX_WORDS: usize = 1 << 17;
/// Marks tokens of type 1. Ids are below it: no vocabulary has 2^31 tokens.
const TYPE_BIT: u32 = 1 << 31;

/// A token: its id and its type (0 or 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token(u32);

impl Token {
    fn new(id: u32, kind: u32) -> Result<Self, TokenizerError> {
        if id >= TYPE_BIT || kind > 1 {
            return Err(TokenizerError::Encode(format!("token {id} of type {kind}: types are 0 and 1")));
        }
        Ok(Self(id | (kind * TYPE_BIT)))
    }

    pub(crate) fn id(self) -> u32 {
        self.0 & !TYPE_BIT
    }

    pub(crate) fn kind(self) -> u32 {
        self.0 / TYPE_BIT
    }

    pub(crate) fn to_bytes(self) -> [u8; 4] {
        self.0.to_le_bytes()
    }

    pub(crate) fn from_bytes(bytes: [u8; 4]) -> Self {
        Self(u32::from_le_bytes(bytes))
    }
}

/// A `tokenizer.json` with truncation, for one text or a pair of texts a sample.
#[derive(Clone)]
pub struct Encoder {
    inner: Arc<tokenizers::Tokenizer>,
    add_special_tokens: bool,
    pad_id: u32,
    splitting: Splitting,
    /// Where special tokens stand around the texts.
    frame: Vec<Piece>,
    /// Tokens of the texts together.
    room: usize,
}

/// How a pair that is too long is cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PairCut {
    /// Which of its texts loses tokens.
    pub which: PairCutWhich,
    /// Where a text loses them.
    pub side: Side,
}

/// Which text of a pair loses tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PairCutWhich {
    /// The longer one, until both are equally long: `longest_first` of `tokenizers`.
    #[default]
    Longest,
    /// The second one: `only_second`.
    Second,
}

/// An end of a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Side {
    /// Its end.
    #[default]
    Right,
    /// Its start.
    Left,
}

/// Where a text may be cut so that its parts encode to the same ids.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Splitting {
    /// At spaces, tabs and line ends, which `BertPreTokenizer` removes.
    AtSpaces,
    /// Before a single space between two visible ASCII characters, where the pattern of `ByteLevel` always cuts.
    BeforeSpaces,
    /// Nowhere: its words influence each other, or that is not known.
    Nowhere,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Piece {
    Special(u32, u32),
    /// A text by its index, with its tokens' type.
    Text(usize, u32),
}

/// Words that one thread has met, with their ids.
#[derive(Default)]
pub(crate) struct Words {
    known: HashMap<Box<[u8]>, (u32, u32), RandomState>,
    ids: Vec<u32>,
    texts: [Vec<u32>; 2],
}

impl Encoder {
    /// Reads a `tokenizer.json` for samples of `n_texts` (1 or 2) texts and at most `max_length` tokens.
    ///
    /// Errors, and never panics, on a file that is over 128 MiB, is no tokenizer, or adds so many special tokens that no
    /// text fits.
    pub fn from_bytes(
        json: &[u8],
        n_texts: usize,
        max_length: usize,
        add_special_tokens: bool,
    ) -> Result<Self, TokenizerError> {
        let (mut inner, pad_id, _) = parsed(json, n_texts == 2)?;
        inner.with_truncation(None).map_err(|error| TokenizerError::Invalid(error.to_string()))?;
        let splitting = Splitting::of(&inner);
        let inner = Arc::new(inner);
        let mut encoder = Self { inner, add_special_tokens, pad_id, splitting, frame: Vec::new(), room: usize::MAX };
        encoder.frame = encoder.learn_frame(&PROBES[..n_texts])?;
        // The frame was read off one sample; it must explain an empty one too.
        for texts in [&PROBES[..n_texts], &["", ""][..n_texts]] {
            let mut tokens = Vec::new();
            encoder.encode(texts, &mut Words::default(), &mut tokens)?;
            let expected = encoder.reference(texts, add_special_tokens)?;
            if !tokens.iter().map(|token| token.id()).eq(expected.get_ids().iter().copied()) {
                return Err(TokenizerError::Invalid("its special tokens depend on the text".to_owned()));
            }
        }
        let n_special = encoder.frame.iter().filter(|piece| matches!(piece, Piece::Special(..))).count();
        encoder.room = max_length
            .checked_sub(n_special)
            .filter(|&room| room > 0)
            .ok_or(TokenizerError::NoRoom { max_tokens: max_length, n_special })?;
        Ok(encoder)
    }

    /// The id that fills rows of a batch.
    pub fn pad_id(&self) -> u32 {
        self.pad_id
    }

    /// Whether words are encoded one by one and remembered.
    pub fn is_by_word(&self) -> bool {
        self.splitting != Splitting::Nowhere
    }

    /// Ids of one sample, as `tokenizers` gives them.
    pub fn ids(&self, texts: &[&str]) -> Result<Vec<u32>, TokenizerError> {
        let mut tokens = Vec::new();
        self.encode(texts, &mut Words::default(), &mut tokens)?;
        Ok(tokens.into_iter().map(Token::id).collect())
    }

    /// Tokens of a pair, for an encoder of two texts, cut as `cut` says where they are too long together. Errors on texts over 1 MiB,
    /// and on a first text that leaves no token of a second one that alone is cut.
    pub fn pair(&self, first: &str, second: &str, cut: PairCut) -> Result<EncodedPair, TokenizerError> {
        within_limit(first)?;
        within_limit(second)?;
        // Whole texts: to look up word by word pays only where words are met again.
        let encoded = [self.text_ids(first)?, self.text_ids(second)?];
        let lengths = [encoded[0].len(), encoded[1].len()];
        let n_tokens: usize = lengths.iter().sum();
        let kept = match cut.which {
            PairCutWhich::Longest => kept(lengths, self.room),
            PairCutWhich::Second => kept_of_second(lengths, self.room)?,
        };
        let mut tokens = Vec::new();
        let part = |text: usize| match cut.side {
            Side::Right => &encoded[text][..kept[text]],
            Side::Left => &encoded[text][encoded[text].len() - kept[text]..],
        };
        self.framed([part(0), part(1)], &mut tokens)?;
        let (ids, types) = tokens.into_iter().map(|token| (token.id(), token.kind())).unzip();
        Ok(EncodedPair { ids, types, truncated: n_tokens > self.room })
    }

    /// Appends the tokens of one sample.
    pub(crate) fn encode(&self, texts: &[&str], words: &mut Words, out: &mut Vec<Token>) -> Result<(), TokenizerError> {
        let mut encoded = std::mem::take(&mut words.texts);
        for (text, ids) in texts.iter().zip(&mut encoded) {
            ids.clear();
            // A single text needs no more than fits; of a pair the longer side is cut, so both lengths matter.
            let enough = if texts.len() == 1 { self.room } else { usize::MAX };
            for word in self.splitting.words(text) {
                if ids.len() >= enough {
                    break;
                }
                words.push(self, word, ids)?;
            }
        }
        self.frame_around(&encoded, out)?;
        words.texts = encoded;
        Ok(())
    }

    /// Appends the ids of the texts as far as there is room for them, with the special tokens around.
    fn frame_around(&self, encoded: &[Vec<u32>; 2], out: &mut Vec<Token>) -> Result<(), TokenizerError> {
        let kept = kept([encoded[0].len(), encoded[1].len()], self.room);
        self.framed([&encoded[0][..kept[0]], &encoded[1][..kept[1]]], out)
    }

    /// Appends these ids with the special tokens around.
    fn framed(&self, texts: [&[u32]; 2], out: &mut Vec<Token>) -> Result<(), TokenizerError> {
        for piece in &self.frame {
            match *piece {
                Piece::Special(id, kind) => out.push(Token::new(id, kind)?),
                Piece::Text(text, kind) => {
                    let bit = kind * TYPE_BIT;
                    out.extend(texts[text].iter().map(|id| Token(id | bit)));
                }
            }
        }
        Ok(())
    }

    /// Ids of a text by itself, without special tokens; all are below [`TYPE_BIT`].
    fn text_ids(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let ids = self.reference(&[text], false)?.get_ids().to_vec();
        match ids.iter().find(|id| **id >= TYPE_BIT) {
            Some(id) => Err(TokenizerError::Encode(format!("token {id} is out of range"))),
            None => Ok(ids),
        }
    }

    /// What `tokenizers` makes of the texts.
    fn reference(&self, texts: &[&str], add_special_tokens: bool) -> Result<tokenizers::Encoding, TokenizerError> {
        let input: EncodeInput<'_> = match *texts {
            [text] => text.into(),
            [first, second] => (first, second).into(),
            _ => return Err(TokenizerError::Encode("a sample has one text or two".to_owned())),
        };
        // The fast one gives the second text's tokens the first one's type.
        let encode = || match texts {
            [_] => self.inner.encode_fast(input, add_special_tokens),
            _ => self.inner.encode(input, add_special_tokens),
        };
        guarded(encode).map_err(TokenizerError::Encode)?.map_err(|error| TokenizerError::Encode(error.to_string()))
    }

    /// Where the special tokens stand around `texts`.
    fn learn_frame(&self, texts: &[&str]) -> Result<Vec<Piece>, TokenizerError> {
        let encoding = self.reference(texts, self.add_special_tokens)?;
        let mut frame: Vec<Piece> = Vec::new();
        let parts = encoding.get_ids().iter().zip(encoding.get_type_ids()).zip(encoding.get_sequence_ids());
        for ((&id, &kind), text) in parts {
            match text {
                None => frame.push(Piece::Special(id, kind)),
                Some(text) if frame.last() == Some(&Piece::Text(text, kind)) => {}
                Some(text) => frame.push(Piece::Text(text, kind)),
            }
        }
        Ok(frame)
    }
}

/// Samples of which the places of special tokens are learnt.
const PROBES: [&str; 2] = ["the highroad is paved", "and so is this one"];

impl Words {
    fn push(&mut self, encoder: &Encoder, word: &str, out: &mut Vec<u32>) -> Result<(), TokenizerError> {
        if let Some(&(start, end)) = self.known.get(word.as_bytes()) {
            out.extend_from_slice(&self.ids[start as usize..end as usize]);
            return Ok(());
        }
        let ids = encoder.text_ids(word)?;
        out.extend_from_slice(&ids);
        if word.len() <= MAX_WORD_BYTES && self.known.len() < MAX_WORDS {
            let start = self.ids.len() as u32;
            self.ids.extend_from_slice(&ids);
            self.known.insert(word.as_bytes().into(), (start, self.ids.len() as u32));
        }
        Ok(())
    }
}

impl Splitting {
    /// How this tokenizer's texts may be cut: at all only if it is of a kind for which that is proved.
    fn of(tokenizer: &tokenizers::Tokenizer) -> Self {
        Self::proved(tokenizer).unwrap_or(Self::Nowhere)
    }

    fn proved(tokenizer: &tokenizers::Tokenizer) -> Option<Self> {
        let added = tokenizer.get_added_tokens_decoder();
        if added.values().any(|token| token.content.contains(char::is_whitespace)) {
            return None;
        }
        match (tokenizer.get_normalizer(), tokenizer.get_pre_tokenizer()?, tokenizer.get_model()) {
            (
                Some(NormalizerWrapper::BertNormalizer(_)),
                PreTokenizerWrapper::BertPreTokenizer(_),
                ModelWrapper::WordPiece(_),
            ) => Some(Self::AtSpaces),
            (None, pre_tokenizer, ModelWrapper::BPE(model))
                if model.dropout.is_none() && is_byte_level(pre_tokenizer) =>
            {
                // Such a token swallows spaces, which are tokens here.
                let swallows = added.values().any(|token| token.lstrip || token.rstrip || token.single_word);
                (!swallows).then_some(Self::BeforeSpaces)
            }
            _ => None,
        }
    }

    fn words(self, text: &str) -> Box<dyn Iterator<Item = &str> + '_> {
        match self {
            Self::AtSpaces => Box::new(text.split([' ', '\t', '\n', '\r']).filter(|word| !word.is_empty())),
            Self::BeforeSpaces => Box::new(BeforeSpaces(text)),
            Self::Nowhere => Box::new(std::iter::once(text).filter(|text| !text.is_empty())),
        }
    }
}

/// Whether the pattern of GPT-2 cuts words, perhaps after digits were set apart.
fn is_byte_level(pre_tokenizer: &PreTokenizerWrapper) -> bool {
    match pre_tokenizer {
        PreTokenizerWrapper::ByteLevel(byte_level) => byte_level.use_regex,
        PreTokenizerWrapper::Sequence(sequence) => match sequence.as_ref() {
            [PreTokenizerWrapper::Digits(_), PreTokenizerWrapper::ByteLevel(byte_level)] => byte_level.use_regex,
            _ => false,
        },
        _ => false,
    }
}

struct BeforeSpaces<'t>(&'t str);

impl<'t> Iterator for BeforeSpaces<'t> {
    type Item = &'t str;

    fn next(&mut self) -> Option<&'t str> {
        if self.0.is_empty() {
            return None;
        }
        let bytes = self.0.as_bytes();
        let cut = |&at: &usize| bytes[at - 1].is_ascii_graphic() && bytes.get(at + 1).is_some_and(u8::is_ascii_graphic);
        let at = memchr::memchr_iter(b' ', &bytes[1..]).map(|at| at + 1).find(cut).unwrap_or(bytes.len());
        let (word, rest) = self.0.split_at(at);
        self.0 = rest;
        Some(word)
    }
}

/// How many tokens of each text are kept so that both fit: `longest_first` of `tokenizers`, applied to the lengths of the whole
/// texts. (Version 0.23.2 stops tokenising early and so may take the shorter side for the longer.)
fn kept([first, second]: [usize; 2], room: usize) -> [usize; 2] {
    if first.saturating_add(second) <= room {
        return [first, second];
    }
    if second == 0 {
        return [first.min(room), 0];
    }
    let (short, is_swapped) = (first.min(second), first > second);
    let mut kept = [short, short.max(room.saturating_sub(short))];
    if short > room || kept[0] + kept[1] > room {
        kept = [room / 2, room / 2 + room % 2];
    }
    if is_swapped { [kept[1], kept[0]] } else { kept }
}

/// The same where the second text alone is cut: `only_second` of `tokenizers`, which keeps at least one token of it.
fn kept_of_second([first, second]: [usize; 2], room: usize) -> Result<[usize; 2], TokenizerError> {
    match first.saturating_add(second).saturating_sub(room) {
        0 => Ok([first, second]),
        surplus if surplus < second => Ok([first, second - surplus]),
        _ => Err(TokenizerError::FirstTooLong { n_tokens: first, room }),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;
    use tokenizers::utils::truncation::truncate_encodings;
    use tokenizers::{TruncationDirection, TruncationParams, TruncationStrategy};

    use super::*;

    const WORDPIECE: &str = r###"{
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                       "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "added_tokens": [{"id": 1, "content": "[CLS]", "special": true, "single_word": false, "lstrip": false,
                          "rstrip": false, "normalized": false},
                         {"id": 2, "content": "[SEP]", "special": true, "single_word": false, "lstrip": false,
                          "rstrip": false, "normalized": false}],
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                       {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
            "pair": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                     {"SpecialToken": {"id": "[SEP]", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}},
                     {"SpecialToken": {"id": "[SEP]", "type_id": 1}}],
            "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [1], "tokens": ["[CLS]"]},
                               "[SEP]": {"id": "[SEP]", "ids": [2], "tokens": ["[SEP]"]}}},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 10,
                  "vocab": {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "a": 3, "##a": 4, "b": 5, "##b": 6, "e": 7, "[": 8, "]": 9,
                            "中": 10, "ab": 11, ".": 12, "s": 13, "##e": 14, "##p": 15}}}"###;

    fn byte_level() -> String {
        let alphabet: Vec<char> = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet().into_iter().collect();
        let mut vocab: serde_json::Map<String, serde_json::Value> = serde_json::Map::new();
        for (id, letter) in alphabet.iter().enumerate() {
            vocab.insert(letter.to_string(), id.into());
        }
        for token in ["ab", "Ġa", "Ġab", "ĠĠ"] {
            vocab.insert(token.to_owned(), vocab.len().into());
        }
        serde_json::json!({
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Digits", "individual_digits": true},
                {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}]},
            "model": {"type": "BPE", "vocab": vocab, "merges": [["a", "b"], ["Ġ", "a"], ["Ġa", "b"], ["Ġ", "Ġ"]]},
        })
        .to_string()
    }

    /// Whole texts encoded by `tokenizers`, tokens taken off the longer side one by one, special tokens around.
    fn reference(json: &str, texts: &[&str], max_length: usize) -> Vec<u32> {
        let (inner, ..) = parsed(json.as_bytes(), texts.len() == 2).unwrap();
        let mut ids: Vec<Vec<u32>> =
            texts.iter().map(|text| inner.encode(*text, false).unwrap().get_ids().to_vec()).collect();
        let around: &[u32] = if json == WORDPIECE { &[1, 2, 2][..=texts.len()] } else { &[] };
        let first_is_longer = ids[0].len() > ids.last().unwrap().len();
        while ids.iter().map(Vec::len).sum::<usize>() + around.len() > max_length {
            let [first, last] = [ids[0].len(), ids.last().unwrap().len()];
            let shortened = if first > last || (first == last && !first_is_longer) { 0 } else { texts.len() - 1 };
            ids[shortened].pop();
        }
        match around {
            [] => ids.concat(),
            [begin, end @ ..] => {
                let parts = ids.into_iter().zip(end).flat_map(|(ids, end)| ids.into_iter().chain([*end]));
                std::iter::once(*begin).chain(parts).collect()
            }
        }
    }

    fn texts() -> impl Strategy<Value = String> {
        prop_oneof![
            "[ab]{0,4}( {1,2}[ab.1]{1,12}){0,6}",
            "\\PC{0,40}",
            "(a|b| |\t|\n|\u{a0}|é|e\u{301}|中|\\[SEP\\]|\u{200d}|'s){0,30}"
        ]
    }

    proptest! {
        #[test]
        fn ids_by_word_are_those_of_the_whole_text(
            first in texts(), second in texts(), is_pair: bool, max_length in 4usize..40,
        ) {
            for json in [WORDPIECE.to_owned(), byte_level()] {
                let texts = [first.as_str(), second.as_str()];
                let texts = if is_pair { &texts[..] } else { &texts[..1] };
                let encoder = Encoder::from_bytes(json.as_bytes(), texts.len(), max_length, true).unwrap();
                prop_assert!(encoder.is_by_word());
                prop_assert_eq!(encoder.ids(texts).unwrap(), reference(&json, texts, max_length));
            }
        }
    }

    proptest! {
        /// `tokenizers` itself truncates here, from the tokens of the whole texts.
        #[test]
        fn a_pair_is_cut_as_tokenizers_cuts_it(first in texts(), second in texts(), is_left: bool, only: bool, max_length in 4usize..40) {
            for json in [WORDPIECE.to_owned(), byte_level()] {
                let (mut inner, _, n_special) = parsed(json.as_bytes(), true).unwrap();
                let whole = |text: &str| inner.encode(text, false).unwrap();
                let strategy = if only { TruncationStrategy::OnlySecond } else { TruncationStrategy::LongestFirst };
                let direction = if is_left { TruncationDirection::Left } else { TruncationDirection::Right };
                let params = TruncationParams { direction, max_length: max_length - n_special, strategy, stride: 0 };
                let cut = truncate_encodings(whole(&first), Some(whole(&second)), &params);
                drop(inner.with_truncation(None));
                let expected = cut.ok().map(|(a, b)| inner.post_process(a, b, true).unwrap().get_ids().to_vec());
                let encoder = Encoder::from_bytes(json.as_bytes(), 2, max_length, true).unwrap();
                let which = if only { PairCutWhich::Second } else { PairCutWhich::Longest };
                let side = if is_left { Side::Left } else { Side::Right };
                let found = encoder.pair(&first, &second, PairCut { which, side }).ok().map(|pair| pair.ids);
                prop_assert_eq!(found, expected);
            }
        }
    }

    #[test]
    fn a_word_that_is_known_has_the_same_ids() {
        let encoder = Encoder::from_bytes(WORDPIECE.as_bytes(), 1, 64, true).unwrap();
        let (mut words, mut first, mut second) = (Words::default(), Vec::new(), Vec::new());
        encoder.encode(&["ab ab. bab"], &mut words, &mut first).unwrap();
        encoder.encode(&["ab ab. bab"], &mut words, &mut second).unwrap();
        assert_eq!(first, second);
    }
}
