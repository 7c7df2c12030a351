//! TLS, with client certificates.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio_rustls::TlsAcceptor;

use crate::serve::ServeError;

/// The files `--tlscacert`, `--tlscert` and `--tlskey` name, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificates of those who sign clients' certificates.
    pub authority: PathBuf,
    /// The endpoint's own certificate and its chain.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

fn failed(what: &'static str, path: &Path) -> impl Fn(String) -> ServeError {
    let path = path.to_owned();
    move |why| ServeError::Tls {
        what,
        path: path.clone(),
        why,
    }
}

fn certificates(
    what: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, ServeError> {
    let failed = failed(what, path);
    let read = CertificateDer::pem_file_iter(path).map_err(|error| failed(error.to_string()))?;
    let found = read
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| failed(error.to_string()))?;
    if found.is_empty() {
        return Err(failed("no certificate in it".to_owned()));
    }
    Ok(found)
}

impl TlsFiles {
    /// Reads them. Who connects has to show a certificate that the authority signed.
    ///
    /// # Errors
    /// [`ServeError::Tls`], with the file.
    pub(crate) fn acceptor(&self) -> Result<TlsAcceptor, ServeError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let of_authority = failed("certificate authority", &self.authority);
        let mut roots = RootCertStore::empty();
        for certificate in certificates("certificate authority", &self.authority)? {
            roots
                .add(certificate)
                .map_err(|error| of_authority(error.to_string()))?;
        }
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                .build()
                .map_err(|error| of_authority(error.to_string()))?;
        let of_key = failed("key", &self.key);
        let key =
            PrivateKeyDer::from_pem_file(&self.key).map_err(|error| of_key(error.to_string()))?;
        let of_certificate = failed("certificate", &self.certificate);
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| of_certificate(error.to_string()))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(certificates("certificate", &self.certificate)?, key)
            .map_err(|error| of_certificate(error.to_string()))?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}
