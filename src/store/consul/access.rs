//! The way in: token, certificates and connections, made from the files that the settings name, and made again when those change.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::HeaderValue;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use tracing::{info, warn};

use super::super::StoreError;
use super::settings::{Identity, Settings, Token};

/// How long a connection may take to stand.
const CONNECT: Duration = Duration::from_millis(1_500);
/// A peer that says nothing is asked whether it is there after this long, then again three times this often.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));
/// How long an unused connection is kept. Consul keeps its end for longer.
const IDLE: Duration = Duration::from_secs(30);

/// Connections that share a certificate, and the token to show on them.
pub struct Access {
    /// For the header `X-Consul-Token`.
    pub token: Option<HeaderValue>,
    /// The connections.
    pub http: legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

/// What a file was when it was read; two that differ are two contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp(Option<(u64, u64, i64, i64)>);

/// The newest way in that worked out, and the state of the files when it was last tried.
#[derive(Default)]
pub struct Door(Mutex<(Vec<Stamp>, Option<Arc<Access>>)>);

impl Door {
    /// The way in as the files say now. Files that are wrong, perhaps because just now they are being replaced, leave the way as it is.
    pub fn access(&self, settings: &Settings) -> Result<Arc<Access>, StoreError> {
        let stamps: Vec<Stamp> = settings.files().map(Stamp::of).collect();
        let mut inside = self.0.lock();
        let (known, access) = &mut *inside;
        if let Some(access) = access.as_ref().filter(|_| *known == stamps) {
            return Ok(access.clone());
        }
        match (Access::open(settings), &access) {
            (Ok(fresh), None) => *access = Some(Arc::new(fresh)),
            (Ok(fresh), Some(_)) => {
                info!("the files for the store changed and were read again");
                *access = Some(Arc::new(fresh));
            }
            (Err(error), None) => return Err(error),
            (Err(error), Some(_)) => warn!("{error}; going on with what was read before"),
        }
        *known = stamps;
        access.clone().ok_or_else(|| wrong("store", Path::new(""), "no way in was made"))
    }
}

impl Stamp {
    fn of(path: &Path) -> Self {
        let stamp = |found: Metadata| (found.ino(), found.len(), found.mtime(), found.mtime_nsec());
        Self(std::fs::metadata(path).ok().map(stamp))
    }
}

impl Settings {
    /// Every file that is read.
    fn files(&self) -> impl Iterator<Item = &Path> {
        let token = self.token.iter().filter_map(|token| if let Token::File(path) = token { Some(path) } else { None });
        let identity = self.identity.iter().flat_map(|identity| [&identity.certificate, &identity.key]);
        token.chain(&self.ca).chain(identity).map(|path| path.as_path())
    }
}

impl Access {
    fn open(settings: &Settings) -> Result<Self, StoreError> {
        let token = settings.token.as_ref().map(header).transpose()?;
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls(settings)?).https_or_http().enable_http1().wrap_connector(tcp());
        let mut builder = legacy::Client::builder(TokioExecutor::new());
        builder.pool_timer(TokioTimer::new()).pool_idle_timeout(IDLE).pool_max_idle_per_host(8);
        Ok(Self { token, http: builder.build(connector) })
    }
}

fn tcp() -> HttpConnector {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT));
    tcp.set_keepalive(Some(KEEPALIVE.0));
    tcp.set_keepalive_interval(Some(KEEPALIVE.1));
    tcp.set_keepalive_retries(Some(3));
    tcp
}

fn header(token: &Token) -> Result<HeaderValue, StoreError> {
    let (text, path) = match token {
        Token::Text(text) => (text.clone(), Path::new("")),
        Token::File(path) => (read("store_token_file", path)?, path.as_path()),
    };
    let word = text.split_whitespace().next().filter(|word| word.bytes().all(|byte| byte.is_ascii_graphic()));
    let mut value =
        word.and_then(|word| HeaderValue::from_str(word).ok()).ok_or_else(|| wrong("store_token_file", path, "no token in it"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// What TLS has to know. Without https nobody asks it.
fn tls(settings: &Settings) -> Result<ClientConfig, StoreError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    for certificate in settings.ca.iter().map(|path| certificates("store_ca", path)).collect::<Result<Vec<_>, _>>()?.concat() {
        roots.add(certificate).map_err(|error| wrong("store_ca", settings.ca.as_deref().unwrap_or(Path::new("")), error))?;
    }
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| wrong("store", Path::new(""), error))?.with_root_certificates(roots);
    let Some(Identity { certificate, key }) = &settings.identity else { return Ok(builder.with_no_client_auth()) };
    let chain = certificates("store_cert", certificate)?;
    let secret = PrivateKeyDer::from_pem_slice(read("store_key", key)?.as_bytes()).map_err(|error| wrong("store_key", key, error))?;
    builder
        .with_client_auth_cert(chain, secret)
        .map_err(|error| wrong("store_cert", certificate, format!("with the key of store_key: {error}")))
}

fn certificates(name: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, StoreError> {
    let text = read(name, path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    let found = found.map_err(|error| wrong(name, path, error))?;
    if found.is_empty() { Err(wrong(name, path, "no certificate in it, as PEM")) } else { Ok(found) }
}

fn read(name: &'static str, path: &Path) -> Result<String, StoreError> {
    std::fs::read_to_string(path).map_err(|error| wrong(name, path, error))
}

fn wrong(name: &'static str, path: &Path, cause: impl std::fmt::Display) -> StoreError {
    StoreError::Setting { name, path: path.to_owned(), cause: cause.to_string() }
}
