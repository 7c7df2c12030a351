//! The check of a server's certificate, which remembers what it refused.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};

use super::{Error, Thumbprint, Trust};

/// Debian's and others' bundle of CAs.
const SYSTEM: &str = "/etc/ssl/certs/ca-certificates.crt";

/// A certificate that was refused.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// Why.
    pub why: String,
    pub sha256: Thumbprint,
    pub sha1: Thumbprint,
}

#[derive(Debug)]
enum Check {
    Signed(Arc<WebPkiServerVerifier>),
    Pinned(Thumbprint),
}

/// Checks certificates.
#[derive(Debug)]
pub struct Verifier {
    check: Check,
    provider: Arc<CryptoProvider>,
    refused: Mutex<Option<Refusal>>,
}

impl Verifier {
    /// What was refused last.
    pub fn refusal(&self) -> Option<Refusal> {
        self.refused
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    fn refuse(&self, certificate: &CertificateDer<'_>, why: String) {
        let refusal = Refusal {
            why,
            sha256: Thumbprint::sha256(certificate),
            sha1: Thumbprint::sha1(certificate),
        };
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(refusal);
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match &self.check {
            Check::Signed(inner) => inner
                .verify_server_cert(certificate, intermediates, name, ocsp, now)
                .inspect_err(|error| self.refuse(certificate, error.to_string())),
            Check::Pinned(thumbprint) if thumbprint.is_of(certificate) => {
                Ok(ServerCertVerified::assertion())
            }
            Check::Pinned(thumbprint) => {
                self.refuse(certificate, format!("the thumbprint given is {thumbprint}"));
                let error = CertificateError::ApplicationVerificationFailure;
                Err(rustls::Error::InvalidCertificate(error))
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// The verifier for `trust`, and a configuration that uses it.
pub fn configure(trust: &Trust) -> Result<(Arc<Verifier>, Arc<ClientConfig>), Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let check = match trust {
        Trust::Thumbprint(thumbprint) => Check::Pinned(*thumbprint),
        Trust::Ca(path) => Check::Signed(signed(path, &provider)?),
        Trust::System => Check::Signed(signed(Path::new(SYSTEM), &provider)?),
    };
    let verifier = Arc::new(Verifier {
        check,
        provider: provider.clone(),
        refused: Mutex::default(),
    });
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::Ca {
            path: SYSTEM.into(),
            source: error.into(),
        })?
        .dangerous()
        .with_custom_certificate_verifier(verifier.clone())
        .with_no_client_auth();
    Ok((verifier, Arc::new(config)))
}

fn signed(path: &Path, provider: &Arc<CryptoProvider>) -> Result<Arc<WebPkiServerVerifier>, Error> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error::Ca {
        path: path.to_owned(),
        source,
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| failed(error.into()))? {
        let certificate = certificate.map_err(|error| failed(error.into()))?;
        // A bundle may hold old certificates that are of no use.
        if let Err(error) = roots.add(certificate) {
            tracing::debug!(path = %path.display(), %error, "a CA certificate is not used");
        }
    }
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|error| failed(error.into()))
}
