//! HTTPS: a certificate and its key, read from PEM files.
//!
//! Only HTTP/1.1 is offered, which is what the server speaks. Neither the key nor anything of it is printed.

use std::path::Path;
use std::sync::Arc;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::AppError;
use crate::config::TlsFiles;

/// Reads the files and checks that they belong together.
///
/// Errors: a file cannot be read or holds something else; they do not fit each other.
pub(super) fn open(files: &TlsFiles) -> Result<TlsAcceptor, AppError> {
    let TlsFiles { cert, key } = files;
    let certs = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| fault(cert, &in_words(e, "certificate")))?;
    if certs.is_empty() {
        return Err(fault(cert, "there is no certificate in it"));
    }
    let private_key =
        PrivateKeyDer::from_pem_file(key).map_err(|e| fault(key, &in_words(e, "private key")))?;
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(certs, private_key)
        .map_err(|e| {
            let problem = format!(
                "it cannot be used with the certificate in {}: {e}",
                cert.display()
            );
            fault(key, &problem)
        })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// What is wrong with a PEM file, without anything that stands in it.
fn in_words(error: pem::Error, wanted: &str) -> String {
    match error {
        pem::Error::Io(error) => error.to_string(),
        pem::Error::NoItemsFound => format!("there is no {wanted} in it"),
        _ => "it is not sound PEM".to_owned(),
    }
}

fn fault(file: &Path, problem: &str) -> AppError {
    AppError::Tls {
        file: file.display().to_string(),
        problem: problem.to_owned(),
    }
}
