//! Models that others host behind an OpenAI-compatible API, Text Embeddings Inference or the Open Inference Protocol: what one is, and a client that asks it within limits of time
//! and money.
//!
//! A [`Hosted`] description is a file; its [digest](Hosted::digest) stands where a package's digest would. A [`Client`] asks
//! it: bounded replies, retries that obey `Retry-After`, and a [`Budget`] that is never overspent. The key comes from the
//! environment or a file, never from the description, and is in no error and no log.

mod answer;
mod budget;
mod client;
mod description;
mod error;
mod key;
mod oip;
mod reply;
mod template;

pub use answer::{NO_LABEL, about_text, answer_of, finish_reason_of, one_of, relevances};
pub use budget::{Budget, Tokens};
pub use client::tensors::{inputs_of, outputs_of};
pub use client::{Answers, Client, Fault, FaultKind, Incoming, Question, Refusal, Vector, pause_before_retry};
pub use description::{Hosted, HostedTask, LimitName, Limits, NUMERICS_ID, Price, Protocol};
pub use error::{DescriptionError, HostedError};
pub use oip::{Datatype, Ids, Oip, Scores};
pub use reply::{Reply, Said, Usage};
pub use template::fill;
