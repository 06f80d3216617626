//! What `highroad serve`, `track` and `up` share: who may ask, and the certificate.

use std::net::SocketAddr;
use std::path::PathBuf;

use axum::http::Method;
use highroad_service::access::{Access, AccessFile, Needs, Scope};
use highroad_service::{Kind, Problem, Shell, Tls, TlsFiles};
use serde_json::{Value, json};

/// Who may ask, and over what.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Guard {
    /// Keys, tenants, rates and origins; `highroad access add` writes it. Without it everybody may ask everything.
    #[arg(long, value_name = "FILE", env = "HIGHROAD_ACCESS")]
    access: Option<PathBuf>,
    /// The server's certificate and those that sign it (PEM); read again when it changes.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The certificate's private key (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Certificates of who signs clients (PEM); then a client needs one.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_client_ca: Option<PathBuf>,
}

impl Guard {
    /// One that asks for the keys of `access`, where it is there, and has no certificate.
    pub fn with_access(access: Option<PathBuf>) -> Self {
        Self { access, ..Self::default() }
    }

    /// The shell that these ask for; `own` is a key for the process itself.
    pub fn shell(&self, own: Option<String>) -> anyhow::Result<Shell> {
        let access = self.access.as_deref().map(|path| Access::open(path, needs, own)).transpose()?;
        let files = self.tls_cert.clone().zip(self.tls_key.clone());
        let tls = files
            .map(|(certificate, key)| Tls::open(TlsFiles { certificate, key, client_ca: self.tls_client_ca.clone() }));
        Ok(Shell { access, tls: tls.transpose()?, error_shape, ..Shell::default() })
    }

    /// The servers that share rates, by their name, where the access file says so.
    pub fn rates_pool(&self) -> anyhow::Result<Option<String>> {
        let file = self.access.as_deref().map(AccessFile::read).transpose()?;
        Ok(file.and_then(|file| file.rates.shared))
    }

    /// Says so where the whole network may ask.
    pub fn warn_if_open(&self, address: SocketAddr) {
        if self.access.is_none() && !address.ip().is_loopback() {
            tracing::warn!("Everybody who reaches {address} may ask everything; `--access FILE` asks for keys");
        }
    }

    /// `https` where there is a certificate.
    pub fn scheme(&self) -> &'static str {
        if self.tls_cert.is_some() { "https" } else { "http" }
    }

    /// Whether a key is needed.
    pub fn asks_for_keys(&self) -> bool {
        self.access.is_some()
    }
}

/// What each path of our servers needs. Fails closed: what is not named here is asking a model.
fn needs(method: &Method, path: &str) -> Needs {
    let under = |prefix: &str| path == prefix || path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'));
    let reads = matches!(*method, Method::GET | Method::HEAD);
    match path {
        "/health" | "/ready" | "/v2/health/live" | "/v2/health/ready" => return Needs::Nothing,
        "/inference.GRPCInferenceService/ServerLive" | "/inference.GRPCInferenceService/ServerReady" => {
            return Needs::Nothing;
        }
        "/" if reads => return Needs::AnyKey,
        "/version" | "/openapi.json" | "/info" => return Needs::AnyKey,
        "/metrics" => return Needs::Scope(Scope::Observe),
        "/v1/traces" => return Needs::Scope(Scope::Track),
        _ => {}
    }
    // They tell of serving what `/v1/highroad` tells.
    if under("/ui/api/rollouts") || path.starts_with("/ui/api/servers/") {
        return Needs::Scope(Scope::Observe);
    }
    if under("/ui") || under("/docs") {
        return Needs::AnyKey;
    }
    // Products tell what was right with the key that they ask with.
    if path == "/v1/highroad/labels" && !reads {
        return Needs::Scope(Scope::Infer);
    }
    if under("/v1/highroad") {
        // What is computed again moves nothing.
        let observes = reads || path == "/v1/highroad/replay";
        return Needs::Scope(if observes { Scope::Observe } else { Scope::Deploy });
    }
    if under("/api") || under("/ajax-api") {
        return Needs::Scope(if moves_production(method, path) { Scope::Deploy } else { Scope::Track });
    }
    Needs::Scope(Scope::Infer)
}

/// The body of a refusal as the clients of `path` read it.
fn error_shape(path: &str, problem: &Problem) -> Value {
    if !path.starts_with("/api/") && !path.starts_with("/ajax-api/") {
        return highroad_serve::error_shape(path, problem);
    }
    let code = match problem.kind {
        Kind::Unauthenticated => "UNAUTHENTICATED",
        Kind::Forbidden => "PERMISSION_DENIED",
        Kind::Overloaded => "REQUEST_LIMIT_EXCEEDED",
        _ => "INTERNAL_ERROR",
    };
    json!({ "error_code": code, "message": problem.message })
}

/// Aliases and stages, promotion and rollback, tags of a model, which hold its rollouts, and the deletion or renaming of what
/// they name.
fn moves_production(method: &Method, path: &str) -> bool {
    let writes = !matches!(*method, Method::GET | Method::HEAD);
    let moves = [
        "/registered-models/alias",
        "/registered-models/set-tag",
        "/registered-models/delete-tag",
        "/model-versions/transition-stage",
        "/promote",
        "/rollback",
        "/rollout",
    ];
    let removes = ["/registered-models/delete", "/registered-models/rename", "/model-versions/delete"];
    writes && (moves.iter().chain(&removes)).any(|part| path.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_needs_what_it_does() {
        let infer = Needs::Scope(Scope::Infer);
        let track = Needs::Scope(Scope::Track);
        let deploy = Needs::Scope(Scope::Deploy);
        for (method, path, expected) in [
            (Method::GET, "/health", Needs::Nothing),
            (Method::GET, "/v2/health/ready", Needs::Nothing),
            (Method::GET, "/healthy", infer),
            (Method::POST, "/", infer),
            (Method::GET, "/ui/assets/a.js", Needs::AnyKey),
            (Method::GET, "/uiserver", infer),
            (Method::GET, "/metrics", Needs::Scope(Scope::Observe)),
            (Method::GET, "/v1/highroad/requests/1", Needs::Scope(Scope::Observe)),
            (Method::POST, "/v1/highroad/rollouts", deploy),
            (Method::POST, "/v1/highroad/rollouts/router/abort", deploy),
            (Method::POST, "/v1/highroad/replay", Needs::Scope(Scope::Observe)),
            (Method::GET, "/ui/api/servers", Needs::AnyKey),
            (Method::GET, "/ui/api/servers/0/v1/highroad/portfolio", Needs::Scope(Scope::Observe)),
            (Method::GET, "/ui/api/rollouts", Needs::Scope(Scope::Observe)),
            (Method::POST, "/v1/embeddings", infer),
            (Method::POST, "/inference.GRPCInferenceService/ModelInfer", infer),
            (Method::POST, "/api/2.0/mlflow/runs/search", track),
            (Method::POST, "/api/2.0/mlflow/registered-models/alias", deploy),
            (Method::POST, "/api/2.0/mlflow/registered-models/set-tag", deploy),
            (Method::DELETE, "/ajax-api/2.0/mlflow/registered-models/alias", deploy),
            (Method::GET, "/api/2.0/mlflow/registered-models/alias", track),
            (Method::DELETE, "/api/2.0/mlflow/model-versions/delete", deploy),
        ] {
            assert_eq!(needs(&method, path), expected, "{method} {path}");
        }
    }
}
