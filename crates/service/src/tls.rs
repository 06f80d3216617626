//! TLS by rustls, with files that are read again when they change.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use axum_server::tls_rustls::RustlsConfig;
use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::ServiceError;

/// Where certificates are, all PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate and those that sign it, its own first.
    pub certificate: PathBuf,
    /// The private key (PKCS#8, PKCS#1 or SEC1).
    pub key: PathBuf,
    /// Certificates of those who sign clients; then a client without a certificate is refused in the handshake.
    pub client_ca: Option<PathBuf>,
}

/// Certificates in use. Cheap to clone; all clones follow the files.
#[derive(Clone)]
pub struct Tls {
    pub(crate) config: RustlsConfig,
    files: Arc<TlsFiles>,
    stamps: Arc<Mutex<Stamps>>,
}

type Stamps = Vec<Option<(SystemTime, u64)>>;

impl Tls {
    /// Reads `files`. Errors name the file that is unreadable, holds no certificate or key, or does not fit the other.
    pub fn open(files: TlsFiles) -> Result<Self, ServiceError> {
        let stamps = files.stamps();
        let config = RustlsConfig::from_config(Arc::new(files.read()?));
        Ok(Self { config, files: Arc::new(files), stamps: Arc::new(Mutex::new(stamps)) })
    }

    /// Reads the files again if one has changed; connections that are open keep what they have. Files that cannot be used leave the
    /// certificate as it was and are told in the log: whoever renews it may be in the middle of writing.
    pub fn reload(&self) {
        let now = self.files.stamps();
        {
            let Ok(mut seen) = self.stamps.lock() else { return };
            if *seen == now {
                return;
            }
            *seen = now;
        }
        match self.files.read() {
            Ok(config) => {
                self.config.reload_from_config(Arc::new(config));
                tracing::info!("Read the certificate `{}` again", self.files.certificate.display());
            }
            Err(error) => tracing::error!("The certificate stays as it was: {error}"),
        }
    }
}

impl TlsFiles {
    fn stamps(&self) -> Stamps {
        let stamp = |path: &Path| {
            let meta = std::fs::metadata(path).ok()?;
            Some((meta.modified().ok()?, meta.len()))
        };
        [Some(&self.certificate), Some(&self.key), self.client_ca.as_ref()]
            .into_iter()
            .flatten()
            .map(|path| stamp(path))
            .collect()
    }

    fn read(&self) -> Result<ServerConfig, ServiceError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| fail(&self.certificate, &error))?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = rustls::RootCertStore::empty();
                for certificate in certificates(path)? {
                    roots.add(certificate).map_err(|error| fail(path, &error))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                builder.with_client_cert_verifier(verifier.map_err(|error| fail(path, &error))?)
            }
        };
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|error| fail(&self.key, &error))?;
        let mut config = builder
            .with_single_cert(certificates(&self.certificate)?, key)
            .map_err(|error| fail(&self.certificate, &error))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ServiceError> {
    let found = CertificateDer::pem_file_iter(path).map_err(|error| fail(path, &error))?;
    let found = found.collect::<Result<Vec<_>, _>>().map_err(|error| fail(path, &error))?;
    if found.is_empty() { Err(fail(path, &"it holds no certificate")) } else { Ok(found) }
}

fn fail(path: &Path, reason: &dyn std::fmt::Display) -> ServiceError {
    ServiceError::Tls { path: path.to_owned(), reason: reason.to_string() }
}
