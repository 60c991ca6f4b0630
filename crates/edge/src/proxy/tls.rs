//! TLS towards clients, with certificates that are read again when their files change.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio_rustls::TlsAcceptor;

use super::TlsConfig;
use crate::Error;
use crate::telemetry::PROXY_TARGET;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The protocols offered, the preferred first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// What takes clients' handshakes.
pub(super) struct Tls {
    pub(super) acceptor: TlsAcceptor,
    config: TlsConfig,
    keys: Arc<Keys>,
}

#[derive(Debug)]
struct Keys(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Keys {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl Tls {
    /// Reads the files; `None` where none are named.
    pub(super) fn new(config: &TlsConfig) -> Result<Option<Self>, Error> {
        if config.certificate.as_os_str().is_empty() {
            return Ok(None);
        }
        let keys = Arc::new(Keys(ArcSwap::from_pointee(read(config)?)));
        let failed = |error: rustls::Error| Error::invalid_config("tls", format!("cannot be used: {error}"));
        let mut server = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(failed)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&keys) as Arc<dyn ResolvesServerCert>);
        server.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
        // Sessions are resumed by tickets that clients keep: threads share keys and no table behind a lock.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.ticketer = ring::Ticketer::new().map_err(failed)?;
        Ok(Some(Self { acceptor: TlsAcceptor::from(Arc::new(server)), config: config.clone(), keys }))
    }

    /// Looks for changes of the files for ever. A pair that cannot be used is reported, and the last good one stays.
    pub(super) async fn keep_fresh(&self) {
        let mut known = self.stamp().await;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let stamp = self.stamp().await;
            if stamp == known {
                continue;
            }
            known = stamp;
            match read(&self.config) {
                Ok(key) => {
                    self.keys.0.store(Arc::new(key));
                    tracing::info!(target: PROXY_TARGET, "certificate read again");
                }
                Err(error) => {
                    tracing::warn!(target: PROXY_TARGET, %error, "the new certificate is not used; the old one stays");
                }
            }
        }
    }

    /// What changes when the files do, also where a link is turned elsewhere.
    async fn stamp(&self) -> [Option<(u64, u64, i64, i64)>; 2] {
        let stamp = async |path: &Path| {
            let file = tokio::fs::metadata(path).await.ok()?;
            Some((file.ino(), file.size(), file.mtime(), file.mtime_nsec()))
        };
        [stamp(&self.config.certificate).await, stamp(&self.config.key).await]
    }
}

fn read(config: &TlsConfig) -> Result<CertifiedKey, Error> {
    let wrong = |key: &str, path: &Path, problem: &str| {
        Error::invalid_config(key, format!("cannot be used: {}: {problem}", path.display()))
    };
    let open = |key: &str, path: &Path| {
        std::fs::read(path).map_err(|error: io::Error| wrong(key, path, &error.to_string()))
    };
    let (certificate, key) = (&config.certificate, &config.key);
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&open("tls.certificate", certificate)?)
        .collect::<Result<_, _>>()
        .map_err(|error| wrong("tls.certificate", certificate, &error.to_string()))?;
    if chain.is_empty() {
        return Err(wrong("tls.certificate", certificate, "no certificate in it"));
    }
    let private = PrivateKeyDer::from_pem_slice(&open("tls.key", key)?)
        .map_err(|error| wrong("tls.key", key, &error.to_string()))?;
    CertifiedKey::from_der(chain, private, &ring::default_provider()).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => wrong("tls.key", key, "it does not belong to the certificate"),
        error => wrong("tls", certificate, &error.to_string()),
    })
}
