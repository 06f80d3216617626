//! The body and the signature of what a webhook is told.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::{Value, json};
use sha2::Sha256;

use super::Event;
use super::config::Format;

/// A key that bodies are signed with, as Standard Webhooks has it: `whsec_` and base64.
#[derive(Clone, PartialEq)]
pub(super) struct Secret(Vec<u8>);

/// Bytes of a key, as the specification wants them.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

impl Secret {
    /// Errors, without a word of what it holds, if `text` is no such key.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let base64 = text.trim().strip_prefix("whsec_").unwrap_or_else(|| text.trim());
        let bytes = BASE64_STANDARD.decode(base64).ok().filter(|bytes| SECRET_BYTES.contains(&bytes.len()));
        bytes.map(Self).ok_or_else(|| {
            "its secret must be 24 to 64 random bytes in base64, as `echo whsec_$(openssl rand -base64 32)` makes"
                .to_owned()
        })
    }

    /// The `webhook-signature` of a message: `v1,` and the HMAC-SHA256 of `ID.TIMESTAMP.BODY` in base64.
    pub(super) fn sign(&self, id: &str, timestamp_s: i64, body: &str) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        mac.update(format!("{id}.{timestamp_s}.{body}").as_bytes());
        format!("v1,{}", BASE64_STANDARD.encode(mac.finalize().into_bytes()))
    }
}

/// The body that tells `event` to the webhook called `receiver`.
pub(super) fn body(format: Format, receiver: &str, event: &Event) -> String {
    let Event { kind, timestamp, text, data, .. } = event;
    match format {
        Format::Standard => json!({ "type": kind, "timestamp": timestamp, "text": text, "data": data }),
        Format::Slack => json!({ "text": text }),
        Format::Alertmanager => alertmanager(receiver, data),
    }
    .to_string()
}

/// Version 4 of what Alertmanager sends: one group of one alert.
fn alertmanager(receiver: &str, data: &Value) -> Value {
    let mut labels = data["labels"].clone();
    labels["alertname"] = data["alert"].clone();
    labels["severity"] = data["severity"].clone();
    let annotations = json!({ "summary": data["summary"] });
    // What has not ended ends at the zero of Go's times.
    let ends_at = data["resolved_at"].as_str().unwrap_or("0001-01-01T00:00:00Z");
    let alert = json!({
        "status": data["state"], "labels": labels, "annotations": annotations, "startsAt": data["since"], "endsAt": ends_at,
        "generatorURL": "", "fingerprint": data["fingerprint"],
    });
    json!({
        "version": "4", "groupKey": format!("{{}}:{{alertname={}}}", data["alert"]), "truncatedAlerts": 0, "status": data["state"],
        "receiver": receiver, "groupLabels": { "alertname": data["alert"] }, "commonLabels": labels,
        "commonAnnotations": annotations, "externalURL": "", "alerts": [alert],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_that_of_the_specification() {
        // The example of the Standard Webhooks specification's libraries.
        let secret = Secret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signed = secret.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, r#"{"test": 2432232314}"#);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn what_is_no_key_is_refused_without_showing_it() {
        for text in ["", "whsec_", "hunter2-hunter2", "whsec_c2hvcnQ="] {
            let told = Secret::parse(text).err().unwrap();
            assert!(text.is_empty() || !told.contains(text.trim_start_matches("whsec_")) || text == "whsec_", "{told}");
        }
    }
}
