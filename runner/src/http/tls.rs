//! The certificate and key of a listener, read when the program starts and when it is told to look again.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, RootCertStore, ServerConfig};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// TLS 1.2 and 1.3 with the certificate chain in `certificate` and the private key in `key`, both PEM.
///
/// The provider of cryptography is named here, because a process-wide default could be somebody else's choice.
pub fn load(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>> {
    let chain = read_chain(certificate)?;
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| unreadable(key, "private key", &error))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::internal(format!("TLS cannot be set up: {error}")))?
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .map_err(|error| unfit(certificate, key, &error))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// What tells whether these files were changed.
pub fn digest(certificate: &Path, key: &Path) -> [u8; 32] {
    let mut both = Sha256::new();
    for path in [certificate, key] {
        // A file that cannot be read is `load`'s to complain about.
        both.update(Sha256::digest(fs::read(path).unwrap_or_default()));
    }
    both.finalize().into()
}

/// From when until when all certificates of the file are valid.
pub fn validity(path: &Path) -> Result<(Timestamp, Timestamp)> {
    let chain = read_chain(path)?;
    let unknown = || Error::bad_input(format!("{}: a certificate in it does not say until when it is valid", path.display()));
    let each: Option<Vec<_>> = chain.iter().map(validity_of).collect();
    let each = each.filter(|each| !each.is_empty()).ok_or_else(unknown)?;
    let (from, until): (Vec<_>, Vec<_>) = each.into_iter().unzip();
    from.into_iter().max().zip(until.into_iter().min()).ok_or_else(unknown)
}

/// The library tells these times only when it complains about them: it is asked about the first and the last moment of all.
fn validity_of(certificate: &CertificateDer<'_>) -> Option<(Timestamp, Timestamp)> {
    const FIRST: Duration = Duration::ZERO;
    const LAST: Duration = Duration::from_secs(253_402_300_799);
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone().into_owned()).ok()?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().ok()?;
    let name = ServerName::try_from("localhost").ok()?;
    let complaint =
        |moment: Duration| verifier.verify_server_cert(certificate, &[], &name, &[], UnixTime::since_unix_epoch(moment)).err();
    let time = |time: UnixTime| Timestamp::from_second(i64::try_from(time.as_secs()).ok()?).ok();
    let from = match complaint(FIRST) {
        Some(rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext { not_before, .. })) => time(not_before)?,
        _ => Timestamp::UNIX_EPOCH,
    };
    let until = match complaint(LAST) {
        Some(rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. })) => time(not_after)?,
        _ => Timestamp::MAX,
    };
    Some((from, until))
}

fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let chain = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, pem::Error>>)
        .map_err(|error| unreadable(path, "certificate", &error))?;
    if chain.is_empty() {
        return Err(unreadable(path, "certificate", &pem::Error::NoItemsFound));
    }
    Ok(chain)
}

fn unreadable(path: &Path, what: &str, error: &pem::Error) -> Error {
    let path = path.display();
    Error::bad_input(match error {
        pem::Error::Io(error) => format!("{path}: the {what} file cannot be read: {error}"),
        pem::Error::NoItemsFound => format!("{path}: there is no {what} in this file; it must be PEM, not DER or PKCS#12"),
        // Its text quotes lines of the file, which may be secret.
        _ => format!("{path}: the {what} in this file is damaged: it is not valid PEM"),
    })
}

fn unfit(certificate: &Path, key: &Path, error: &rustls::Error) -> Error {
    let (certificate, key) = (certificate.display(), key.display());
    Error::bad_input(match error {
        rustls::Error::InconsistentKeys(_) => {
            format!("{key}: this private key does not belong to the first certificate in {certificate}")
        }
        rustls::Error::InvalidCertificate(_) => format!("{certificate}: the first certificate is not valid: {error}"),
        _ => format!("{key}: this private key cannot be used with {certificate}: {error}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Files {
        folder: tempfile::TempDir,
    }

    impl Files {
        fn new() -> Self {
            let files = Self { folder: tempfile::tempdir().unwrap() };
            for name in ["one", "two"] {
                files.make(name);
            }
            files.write("empty", "");
            files.write("cut.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n");
            files.write("cut.key", "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n");
            files.write("junk.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
            files.write("junk.key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n");
            files
        }

        fn make(&self, name: &str) {
            let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
            self.write(&format!("{name}.pem"), &made.cert.pem());
            self.write(&format!("{name}.key"), &made.signing_key.serialize_pem());
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.folder.path().join(name), text).unwrap();
        }

        fn load(&self, certificate: &str, key: &str) -> Result<Arc<ServerConfig>> {
            load(&self.folder.path().join(certificate), &self.folder.path().join(key))
        }
    }

    #[test]
    fn a_matching_pair_is_loaded() {
        assert_eq!(Files::new().load("one.pem", "one.key").unwrap().alpn_protocols, [b"http/1.1".to_vec()]);
    }

    #[test]
    fn the_time_in_which_all_certificates_are_valid_is_known() {
        let files = Files::new();
        let write = |name: &str, years: [i32; 2]| {
            let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
            params.not_before = rcgen::date_time_ymd(years[0], 2, 3);
            params.not_after = rcgen::date_time_ymd(years[1], 4, 5);
            let pem = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem();
            files.write(name, &pem);
            pem
        };
        let chain = write("a.pem", [2020, 2030]) + &write("b.pem", [2021, 2040]);
        files.write("chain.pem", &chain);
        let words = |name: &str| {
            let (from, until) = validity(&files.folder.path().join(name)).unwrap();
            format!("{from} {until}")
        };
        assert_eq!(words("a.pem"), "2020-02-03T00:00:00Z 2030-04-05T00:00:00Z");
        assert_eq!(words("chain.pem"), "2021-02-03T00:00:00Z 2030-04-05T00:00:00Z");
        assert!(validity(&files.folder.path().join("empty")).is_err());
    }

    #[test]
    fn a_change_of_either_file_is_noticed() {
        let files = Files::new();
        let digest = |certificate, key| super::digest(&files.folder.path().join(certificate), &files.folder.path().join(key));
        assert_eq!(digest("one.pem", "one.key"), digest("one.pem", "one.key"));
        assert_ne!(digest("one.pem", "one.key"), digest("two.pem", "one.key"));
        assert_ne!(digest("one.pem", "one.key"), digest("one.pem", "two.key"));
    }

    #[test]
    fn what_is_wrong_is_named_with_the_file() {
        let files = Files::new();
        let cases = [
            ("none.pem", "one.key", "none.pem: the certificate file cannot be read"),
            ("one.pem", "none.key", "none.key: the private key file cannot be read"),
            ("empty", "one.key", "empty: there is no certificate in this file"),
            ("one.key", "one.key", "one.key: there is no certificate in this file"),
            ("one.pem", "one.pem", "one.pem: there is no private key in this file"),
            ("cut.pem", "one.key", "cut.pem: the certificate in this file is damaged"),
            ("one.pem", "cut.key", "cut.key: the private key in this file is damaged"),
            ("junk.pem", "one.key", "junk.pem: the first certificate is not valid"),
            ("one.pem", "junk.key", "junk.key: this private key cannot be used with"),
            ("one.pem", "two.key", "two.key: this private key does not belong to the first certificate in"),
        ];
        for (certificate, key, expected) in cases {
            let message = files.load(certificate, key).unwrap_err().message;
            assert!(message.contains(expected), "{certificate} with {key}: {message}");
            assert!(!message.contains("c2VjcmV0"), "a secret is shown: {message}");
        }
    }
}
