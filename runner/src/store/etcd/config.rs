//! Where etcd is, and how to prove to each other who one is.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use etcd_client::{Certificate, ConnectOptions, Identity, TlsOptions};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::error::{Error, Result};

/// Where distributions keep the certificates of public authorities, in one file.
const SYSTEM_AUTHORITIES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem"];

/// How to reach etcd.
#[derive(Clone)]
pub struct EtcdConfig {
    /// The members, as `http://host:port` or `https://host:port`.
    pub endpoints: Vec<String>,
    /// User and password, where etcd asks for them.
    pub user: Option<(String, String)>,
    /// TLS beyond the defaults, for `https` endpoints.
    pub tls: Option<EtcdTls>,
    /// How long a call may take in all.
    pub timeout: Duration,
}

/// TLS with etcd.
#[derive(Debug, Clone, Default)]
pub struct EtcdTls {
    /// The authority that signed etcd's certificates (PEM); without it, those that the system trusts.
    pub ca: Option<PathBuf>,
    /// Our own certificate and its key (PEM), where etcd asks for one.
    pub certificate: Option<(PathBuf, PathBuf)>,
}

impl EtcdConfig {
    /// How long a call may take, where nothing else is said.
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

    /// Which certificate is ours, in words, where TLS is spoken.
    pub(super) fn own_certificate(&self) -> Option<String> {
        let secure = self.endpoints.iter().any(|endpoint| endpoint.starts_with("https://"));
        let own = || match self.tls.as_ref().and_then(|tls| tls.certificate.as_ref()) {
            Some((certificate, key)) => format!("ours is {} with the key {}", certificate.display(), key.display()),
            None => "we have none: etcd-tls.certificate is not set".to_owned(),
        };
        secure.then(own)
    }

    /// The file with the authorities that sign etcd's certificates.
    pub(super) fn authorities(&self) -> Option<PathBuf> {
        let named = self.tls.as_ref().and_then(|tls| tls.ca.clone());
        named.or_else(|| SYSTEM_AUTHORITIES.iter().map(PathBuf::from).find(|path| path.exists()))
    }
}

impl fmt::Debug for EtcdConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdConfig")
            .field("endpoints", &self.endpoints)
            .field("user", &self.user.as_ref().map(|(user, _)| (user, "…")))
            .field("tls", &self.tls)
            .field("timeout", &self.timeout)
            .finish()
    }
}

/// Checks the endpoints and reads the files; everything but the user, who is only asked for when a server is.
pub(super) fn options(config: &EtcdConfig) -> Result<ConnectOptions> {
    if config.endpoints.is_empty() {
        return Err(Error::bad_input("no etcd server is named"));
    }
    let mut secure = 0;
    for endpoint in &config.endpoints {
        secure += usize::from(check_endpoint(endpoint)?);
    }
    let share = u32::try_from(config.endpoints.len()).unwrap_or(u32::MAX).saturating_add(1);
    let options = ConnectOptions::new()
        .with_connect_timeout(config.timeout / share)
        // A machine that vanished without a word: noticed by the next call. Not while idle, which etcd takes for an attack.
        .with_keep_alive(Duration::from_secs(10), config.timeout / share)
        .with_keep_alive_while_idle(false)
        .with_auto_token_refresh(true)
        // A member that was cut off from its peers says so at once, instead of keeping us waiting.
        .with_require_leader(true);
    match (secure, &config.tls) {
        (0, None) => Ok(options),
        (0, Some(_)) => Err(Error::bad_input("TLS for etcd is configured, but its endpoints begin with http://")),
        (some, _) if some < config.endpoints.len() => {
            Err(Error::bad_input("etcd endpoints are either all http:// or all https://"))
        }
        (_, tls) => Ok(options.with_tls(tls_options(tls.as_ref())?)),
    }
}

/// Whether the endpoint is `https`.
fn check_endpoint(endpoint: &str) -> Result<bool> {
    let (secure, address) = match (endpoint.strip_prefix("http://"), endpoint.strip_prefix("https://")) {
        (Some(address), _) => (false, address),
        (_, Some(address)) => (true, address),
        _ => (false, ""),
    };
    let good = address.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && !host.contains(['/', '@', ' ', '?', '#']) && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    if good { Ok(secure) } else { Err(Error::bad_input(format!("the etcd endpoint {endpoint:?} is not http(s)://host:port"))) }
}

fn tls_options(tls: Option<&EtcdTls>) -> Result<TlsOptions> {
    let ca = match tls.and_then(|tls| tls.ca.as_deref()) {
        Some(path) => path,
        None => SYSTEM_AUTHORITIES
            .iter()
            .map(Path::new)
            .find(|path| path.exists())
            .ok_or_else(|| Error::bad_input("no authority for etcd's certificates is named, and this system names none"))?,
    };
    let options = TlsOptions::new().ca_certificate(Certificate::from_pem(read_chain(ca, "authority's certificate")?));
    match tls.and_then(|tls| tls.certificate.as_ref()) {
        Some((certificate, key)) => {
            Ok(options.identity(Identity::from_pem(read_chain(certificate, "certificate")?, read_key(key)?)))
        }
        None => Ok(options),
    }
}

/// What is wrong in a file is said with its name: the library that uses it knows none.
fn read_chain(path: &Path, what: &str) -> Result<Vec<u8>> {
    let text = fs::read(path).map_err(|error| unreadable(path, what, &error))?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match chain.map_err(|error| unreadable(path, what, &error))?.is_empty() {
        true => Err(unreadable(path, what, &"there is no certificate in it")),
        false => Ok(text),
    }
}

fn read_key(path: &Path) -> Result<Vec<u8>> {
    let what = "certificate's key";
    let text = fs::read(path).map_err(|error| unreadable(path, what, &error))?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| unreadable(path, what, &error))?;
    Ok(text)
}

fn unreadable(path: &Path, what: &str, error: &dyn fmt::Display) -> Error {
    Error::bad_input(format!("cannot read the {what} for etcd, {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(endpoints: &[&str]) -> EtcdConfig {
        let endpoints = endpoints.iter().map(|&endpoint| endpoint.to_owned()).collect();
        EtcdConfig { endpoints, user: None, tls: None, timeout: EtcdConfig::DEFAULT_TIMEOUT }
    }

    #[test]
    fn endpoints_are_checked_and_named_when_they_are_wrong() {
        for good in ["http://127.0.0.1:2379", "http://[::1]:2379", "http://etcd0.cluster:1"] {
            assert!(options(&config(&[good])).is_ok(), "{good}");
        }
        for bad in
            ["127.0.0.1:2379", "http://", "http://host", "http://host:0", "http://host:x", "http://u:p@host:1", "http://h:1/x"]
        {
            let error = options(&config(&[bad])).unwrap_err();
            assert!(error.message.contains(bad), "{bad}: {error}");
        }
        assert!(options(&config(&[])).is_err());
        assert!(options(&config(&["http://a:1", "https://b:1"])).is_err());
    }

    #[test]
    fn tls_needs_https_and_files_that_are_there() {
        let mut plain = config(&["http://a:1"]);
        plain.tls = Some(EtcdTls::default());
        assert!(options(&plain).unwrap_err().message.contains("http://"));
        let mut missing = config(&["https://a:1"]);
        missing.tls = Some(EtcdTls { ca: Some("/nowhere/ca.pem".into()), certificate: None });
        assert!(options(&missing).unwrap_err().message.contains("/nowhere/ca.pem"));
    }

    #[test]
    fn the_password_is_not_printed() {
        let mut config = config(&["http://a:1"]);
        config.user = Some(("runner".to_owned(), "opensesame".to_owned()));
        let printed = format!("{config:?}");
        assert!(printed.contains("runner") && !printed.contains("opensesame"), "{printed}");
    }
}
