//! What a single request may ask: of all members, and of one.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::protocol::rerank::MAX_DOCUMENTS;

/// What a single request may ask; more gets 400, or 413 for the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RequestLimits {
    /// Largest body after decompression.
    pub body_bytes: usize,
    /// Most inputs in one request; OpenAI's own limit is 2048.
    pub inputs: usize,
    /// Longest single text. Texts past the model's tokens are cut anyway, but only after they are tokenised.
    pub input_bytes: usize,
    /// Most tokens over all inputs of a request; OpenAI's own limit is 300,000.
    pub tokens: usize,
    /// Most documents of a reranking; Cohere's own limit is 1000, and so is the highest.
    pub documents: usize,
}

impl Default for RequestLimits {
    fn default() -> Self {
        Self { body_bytes: 16 << 20, inputs: 2048, input_bytes: 1 << 20, tokens: 300_000, documents: MAX_DOCUMENTS }
    }
}

/// What a single request may ask of one member, where that is something else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs, reason = "those of `RequestLimits`")]
pub struct MemberLimits {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inputs: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input_bytes: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub documents: Option<usize>,
}

impl RequestLimits {
    /// Errors as [`MemberLimits::check`].
    pub(super) fn check(&self) -> Result<(), String> {
        let documents = Some(self.documents);
        MemberLimits { documents, ..MemberLimits::default() }.check().map(drop)
    }
}

impl MemberLimits {
    /// The limits of all members with its own in their place.
    pub fn over(&self, of_all: &RequestLimits) -> RequestLimits {
        RequestLimits {
            body_bytes: of_all.body_bytes,
            inputs: self.inputs.unwrap_or(of_all.inputs),
            input_bytes: self.input_bytes.unwrap_or(of_all.input_bytes),
            tokens: self.tokens.unwrap_or(of_all.tokens),
            documents: self.documents.unwrap_or(of_all.documents),
        }
    }

    /// Errors on a limit that lets nothing through, or more documents than are ever taken.
    pub(crate) fn check(self) -> Result<Self, String> {
        let said = [
            ("inputs", self.inputs),
            ("input_bytes", self.input_bytes),
            ("tokens", self.tokens),
            ("documents", self.documents),
        ];
        if let Some(n) = self.documents.filter(|n| *n > MAX_DOCUMENTS) {
            return Err(format!("limits: `documents` is {n}, and a reranking has at most {MAX_DOCUMENTS}"));
        }
        match said.into_iter().find(|(_, limit)| *limit == Some(0)) {
            Some((key, _)) => Err(format!("limits: `{key}` is 0, which lets nothing through")),
            None => Ok(self),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_has_its_own_limits_in_the_place_of_all_members() {
        let own = MemberLimits { inputs: Some(4), documents: Some(9), ..MemberLimits::default() };
        let of_all = RequestLimits { body_bytes: 10, inputs: 2, input_bytes: 3, tokens: 5, documents: 7 };
        assert_eq!(own.check(), Ok(own));
        assert_eq!(own.over(&of_all), RequestLimits { inputs: 4, documents: 9, ..of_all });
        for refused in [
            MemberLimits { tokens: Some(0), ..own },
            MemberLimits { documents: Some(0), ..own },
            MemberLimits { documents: Some(MAX_DOCUMENTS + 1), ..own },
        ] {
            assert!(refused.check().is_err(), "{refused:?}");
        }
        assert!(RequestLimits { documents: 0, ..of_all }.check().is_err());
    }
}
