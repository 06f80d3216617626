use highroad_hosted::Price;
use schemars::JsonSchema;
use serde::Serialize;

use super::{HostedMember, lock};

/// How a hosted member is doing, and how it is asked. Nothing of its key, and of its address the host alone.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct Standing {
    /// What the host calls the model.
    pub(crate) model: String,
    /// The host's name and port.
    pub(crate) host: String,
    /// `closed`, `half_open` or `open`.
    pub(crate) breaker: &'static str,
    /// Requests under way.
    pub(crate) n_in_flight: usize,
    /// Requests that may be.
    pub(crate) concurrency: u32,
    /// Requests that wait for a place.
    pub(crate) n_waiting: usize,
    /// Requests that may wait.
    pub(crate) queue_requests: usize,
    /// Members that answer in its place.
    pub(crate) fallback: Vec<String>,
    /// What it costs.
    pub(crate) price: Option<Price>,
}

impl HostedMember {
    pub(crate) fn standing(&self) -> Standing {
        let concurrency = self.hosted().limits.concurrency.get();
        Standing {
            model: self.hosted().model.clone(),
            host: host_of(&self.hosted().base_url).to_owned(),
            breaker: lock(&self.breaker).circuit().name(),
            n_in_flight: (concurrency as usize).saturating_sub(self.places.available_permits()),
            concurrency,
            n_waiting: self.n_waiting(),
            queue_requests: self.config.queue,
            fallback: self.config.fallback.clone(),
            price: self.hosted().price.clone(),
        }
    }
}

/// `api.example.com:8443` of `https://user:secret@api.example.com:8443/v1`.
fn host_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    authority.rsplit_once('@').map_or(authority, |(_, host)| host)
}

#[cfg(test)]
mod tests {
    use super::host_of;

    #[test]
    fn of_an_address_the_host_alone_is_told() {
        for (url, host) in [
            ("https://api.example.com/v1", "api.example.com"),
            ("http://user:p@ss@[::1]:80?key=secret", "[::1]:80"),
            ("localhost", "localhost"),
            ("", ""),
        ] {
            assert_eq!(host_of(url), host);
        }
    }
}
