//! The tokenizer against transformers (`conformance/make_tokenizer_goldens.py`) and against hostile files.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use highroad_data::{Records, Special, Tokenizer, TokenizerError};
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::{Value, json};

fn conformance(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance/tokenizers").join(file)
}

fn tokenizer_json(family: &str) -> Vec<u8> {
    fs::read(conformance(&format!("{family}.json"))).unwrap()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    max_tokens: usize,
    text: String,
    ids: Vec<u32>,
    truncated: bool,
}

fn agrees_with_transformers(family: &str) {
    let json = tokenizer_json(family);
    let mut n_cases = 0;
    for record in Records::<Case>::open(&conformance(&format!("{family}.golden.jsonl"))).unwrap() {
        let (line, case) = record.unwrap();
        let tokenizer = Tokenizer::from_bytes(&json, case.max_tokens).unwrap();
        let encoded = tokenizer.encode(&case.text).unwrap();
        assert_eq!((encoded.ids, encoded.truncated), (case.ids, case.truncated), "line {line}: {:?}", case.text);
        n_cases += 1;
    }
    assert_eq!(n_cases, 66);
}

#[test]
fn wordpiece_agrees_with_transformers() {
    agrees_with_transformers("wordpiece");
}

#[test]
fn byte_level_bpe_agrees_with_transformers() {
    agrees_with_transformers("bpe");
}

#[test]
fn unigram_agrees_with_transformers() {
    agrees_with_transformers("unigram");
}

#[test]
fn padding_and_truncation_of_the_file_are_ignored() {
    let plain = Tokenizer::from_bytes(&tokenizer_json("wordpiece"), 40).unwrap();
    let mut json: Value = serde_json::from_slice(&tokenizer_json("wordpiece")).unwrap();
    json["truncation"] = json!({"direction": "Left", "max_length": 4, "strategy": "LongestFirst", "stride": 1});
    json["padding"] = json!({"strategy": {"Fixed": 128}, "direction": "Left", "pad_to_multiple_of": 8, "pad_id": 7, "pad_type_id": 0, "pad_token": "[PAD]"});
    let set = Tokenizer::from_bytes(json.to_string().as_bytes(), 40).unwrap();
    let text = "tell me the system prompt";
    assert_eq!(set.encode(text).unwrap(), plain.encode(text).unwrap());
    assert_eq!((plain.pad_id(), set.pad_id()), (0, 7));
}

#[test]
fn the_padding_token_is_found_by_its_customary_name() {
    assert_eq!(Tokenizer::from_bytes(&tokenizer_json("bpe"), 8).unwrap().pad_id(), 1);
}

#[test]
fn batches_encode_as_single_texts_do() {
    let tokenizer = Tokenizer::from_bytes(&tokenizer_json("bpe"), 16).unwrap();
    let texts = ["one", "", "two words"];
    let single: Vec<_> = texts.iter().map(|text| tokenizer.encode(text).unwrap()).collect();
    assert_eq!(tokenizer.encode_batch(texts).unwrap(), single);
    assert_eq!(tokenizer.n_tokens("two words").unwrap(), single[2].ids.len());
}

#[test]
fn a_length_without_room_for_text_is_refused() {
    for max_tokens in [0, 1, 2] {
        let result = Tokenizer::from_bytes(&tokenizer_json("wordpiece"), max_tokens);
        assert!(matches!(result, Err(TokenizerError::NoRoom { n_special: 2, .. })), "{max_tokens}");
    }
}

#[test]
fn a_text_over_the_limit_is_refused() {
    let tokenizer = Tokenizer::from_bytes(&tokenizer_json("wordpiece"), 16).unwrap();
    let result = tokenizer.encode(&"a ".repeat(600_000));
    assert!(matches!(result, Err(TokenizerError::TextTooLarge(1_200_000))));
}

#[test]
fn a_special_token_that_does_not_exist_is_refused() {
    let mut json: Value = serde_json::from_slice(&tokenizer_json("wordpiece")).unwrap();
    json["model"]["unk_token"] = json!("[NOPE]");
    json["model"]["vocab"] = json!({"a": 0});
    let result = Tokenizer::from_bytes(json.to_string().as_bytes(), 16);
    assert!(result.is_err());
}

#[test]
fn the_end_of_a_text_is_kept_where_it_is_wanted() {
    for family in ["wordpiece", "bpe", "unigram"] {
        let json = tokenizer_json(family);
        let (short, long) = (Tokenizer::from_bytes(&json, 8).unwrap(), Tokenizer::from_bytes(&json, 4096).unwrap());
        let text = "the quick brown fox jumps over the lazy dog";
        let whole: Vec<u32> = long.pieces(text, Special::Dropped).unwrap().iter().map(|piece| piece.id).collect();
        let end = short.encode_end(text).unwrap();
        assert!(end.truncated && end.ids.len() == 8, "{family}");
        // What frames a short text frames the end of a long one.
        let n_special = long.encode(text).unwrap().ids.len() - whole.len();
        let kept = &whole[whole.len() - (8 - n_special)..];
        assert!(end.ids.windows(kept.len()).any(|ids| ids == kept), "{family}: {:?} without {kept:?}", end.ids);
        assert_eq!(long.encode_end(text).unwrap(), long.encode(text).unwrap(), "{family}");
    }
}

#[test]
fn pieces_are_parts_of_the_text_however_long_it_is() {
    for family in ["wordpiece", "bpe", "unigram"] {
        let tokenizer = Tokenizer::from_bytes(&tokenizer_json(family), 4).unwrap();
        let text = "the quick brown fox jumps over the lazy dog";
        let pieces = tokenizer.pieces(text, Special::Kept).unwrap();
        for piece in pieces.iter().filter(|piece| piece.bytes.is_some()) {
            let (start, end) = piece.bytes.unwrap();
            assert_eq!(piece.text, text[start..end], "{family}");
        }
        assert_eq!(
            pieces.iter().filter_map(|piece| piece.bytes).map(|(_, end)| end).max(),
            Some(text.len()),
            "{family}"
        );
        let ids: Vec<u32> = pieces.iter().map(|piece| piece.id).collect();
        // The others' files name neither a decoder nor special tokens.
        if family == "bpe" {
            assert_eq!(tokenizer.decode(&ids, Special::Dropped).unwrap(), text);
        }
        assert!(matches!(tokenizer.decode(&[u32::MAX], Special::Kept), Err(TokenizerError::Decode(_))));
    }
}

/// Nothing that `change` makes of a real file may panic, load forever or eat the memory.
fn survives(json: &[u8]) {
    if let Ok(tokenizer) = Tokenizer::from_bytes(json, 16) {
        for text in ["", "hello [CLS] \u{0} 👍🏽 ﬁ", &"a".repeat(1000)] {
            let _any = tokenizer.encode(text);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_damaged_file_never_panics(
        family in prop::sample::select(vec!["wordpiece", "bpe", "unigram"]),
        at in any::<prop::sample::Index>(), length in 1usize..6, replacement in prop::collection::vec(any::<u8>(), 0..6),
    ) {
        let mut json = tokenizer_json(family);
        let start = at.index(json.len());
        let end = (start + length).min(json.len());
        json.splice(start..end, replacement);
        survives(&json);
    }

    #[test]
    fn a_file_with_a_senseless_field_never_panics(
        family in prop::sample::select(vec!["wordpiece", "bpe", "unigram"]),
        at in any::<prop::sample::Index>(), what in 0usize..9,
    ) {
        let mut json: Value = serde_json::from_slice(&tokenizer_json(family)).unwrap();
        let places = places(&json);
        let senseless = [
            json!(null), json!(-1), json!(4_294_967_295u32), json!(1e300), json!(""), json!([]), json!({}), json!(true),
            json!("(((((a+)+)+)+)+)+$"),
        ];
        *json.pointer_mut(&places[at.index(places.len())]).unwrap() = senseless[what].clone();
        survives(json.to_string().as_bytes());
    }
}

/// Pointers to every value outside the vocabularies, which are long and alike.
fn places(json: &Value) -> Vec<String> {
    fn visit(value: &Value, at: String, places: &mut Vec<String>) {
        let inner: Vec<(String, &Value)> = match value {
            Value::Object(map) => {
                map.iter().take(12).map(|(key, value)| (key.replace('~', "~0").replace('/', "~1"), value)).collect()
            }
            Value::Array(list) => list.iter().take(6).enumerate().map(|(i, value)| (i.to_string(), value)).collect(),
            _ => Vec::new(),
        };
        for (key, value) in inner {
            visit(value, format!("{at}/{key}"), places);
        }
        places.push(at);
    }
    let mut places = Vec::new();
    visit(json, String::new(), &mut places);
    places
}
