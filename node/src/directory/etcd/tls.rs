//! TLS to etcd: whom to trust, and who this node is.

use std::io;
use std::path::{Path, PathBuf};

use etcd_client::{Certificate, Identity, TlsOptions};

/// The files of TLS, PEM. They are read for each new connection, so that certificates may be renewed while nodes run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// Certificates of the authorities that etcd's are checked against.
    pub ca: PathBuf,
    /// This node's certificate and its key, if etcd asks for one.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// If one can't be read; the text names it.
    pub async fn read(&self) -> io::Result<TlsOptions> {
        let mut options =
            TlsOptions::new().ca_certificate(Certificate::from_pem(read(&self.ca).await?));
        if let Some((certificate, key)) = &self.identity {
            let identity = Identity::from_pem(read(certificate).await?, read(key).await?);
            options = options.identity(identity);
        }
        Ok(options)
    }
}

async fn read(path: &Path) -> io::Result<Vec<u8>> {
    let text = tokio::fs::read(path).await;
    text.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}
