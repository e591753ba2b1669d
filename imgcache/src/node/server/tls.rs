//! TLS: certificates from files, read again when told so.

use std::sync::{Arc, Mutex};

use rustls::ServerConfig;

use super::config::TlsConfig;
use crate::parallel::lock;
pub use crate::tls::TlsError;
use crate::tls::load;

/// What a handshake goes by now.
#[derive(Debug)]
pub(super) struct Tls {
    files: TlsConfig,
    current: Mutex<Arc<ServerConfig>>,
}

impl Tls {
    /// Reads the files.
    pub fn open(files: TlsConfig) -> Result<Self, TlsError> {
        let current = Mutex::new(Arc::new(load(&files)?));
        Ok(Self { files, current })
    }

    /// Reads the files again. If anything is wrong with them it stays as it was.
    pub fn reload(&self) -> Result<(), TlsError> {
        let new = Arc::new(load(&self.files)?);
        *lock(&self.current) = new;
        Ok(())
    }

    /// For the next handshake.
    pub fn current(&self) -> Arc<ServerConfig> {
        lock(&self.current).clone()
    }
}
