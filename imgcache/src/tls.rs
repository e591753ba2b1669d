//! TLS as a server speaks it: certificates from files.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};

/// Files with what a server needs, all PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsConfig {
    /// The certificate and those that lead to its authority.
    pub certificates: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Authorities of client certificates, which are then required.
    pub client_authorities: Option<PathBuf>,
}

/// Why certificates or keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file that cannot be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A file that is not PEM, or without what is wanted.
    #[error("{path} has no {what}: {source}", path = path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
        /// The reason.
        source: pem::Error,
    },
    /// Certificates and keys that cannot be used, or not together.
    #[error("{path}: {source}", path = path.display())]
    Unusable {
        /// The file with the certificates.
        path: PathBuf,
        /// The reason.
        source: rustls::Error,
    },
    /// Authorities that cannot be used.
    #[error("{path}: {source}", path = path.display())]
    Authorities {
        /// The file with them.
        path: PathBuf,
        /// The reason.
        source: VerifierBuilderError,
    },
}

fn pem(path: &Path, what: &'static str, source: pem::Error) -> TlsError {
    let path = path.to_owned();
    match source {
        pem::Error::Io(source) => TlsError::Read { path, source },
        source => TlsError::Pem { path, what, source },
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |source| pem(path, "certificate", source);
    let all: Vec<_> = CertificateDer::pem_file_iter(path)
        .map_err(wrong)?
        .collect::<Result<_, _>>()
        .map_err(wrong)?;
    if all.is_empty() { Err(wrong(pem::Error::NoItemsFound)) } else { Ok(all) }
}

/// Reads the files.
///
/// # Errors
/// One that cannot be read, or used.
pub fn load(files: &TlsConfig) -> Result<ServerConfig, TlsError> {
    let chain = certificates(&files.certificates)?;
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|source| pem(&files.key, "private key", source))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let unusable = |source| TlsError::Unusable { path: files.certificates.clone(), source };
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(unusable)?;
    let builder = match &files.client_authorities {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots
                    .add(certificate)
                    .map_err(|source| TlsError::Unusable { path: path.clone(), source })?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|source| TlsError::Authorities { path: path.clone(), source })?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    builder.with_single_cert(chain, key).map_err(unusable)
}
