use highroad_service::RequestId;
use highroad_service::access::Principal;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Who asked, and the id by which nobody else's answer is found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Caller {
    /// The server's own id, where `request_id` is the client's, which may come again. Either finds the record, as long as it names no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unique_id: Option<String>,
    /// Whose key asked; absent where no keys are asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Name of the key that asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

impl Caller {
    /// Of the request that this task answers.
    pub(crate) fn current() -> Self {
        let (tenant, key) = Principal::current().map(|principal| (principal.tenant, principal.key)).unzip();
        Self { unique_id: RequestId::unique(), tenant, key }
    }

    /// Of a part of it, whose id is `REQUEST.PART`.
    pub(crate) fn part(self, part: &str) -> Self {
        Self { unique_id: self.unique_id.map(|id| format!("{id}.{part}")), ..self }
    }
}
