//! A certificate of our own making, for installations that have none: made once and kept, so that front ends can pin it.

use crate::error::{Error, Result};
use crate::folder::{check_own, make_private};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use std::fs::OpenOptions;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The certificate's file in `folder`.
pub fn certificate_file(folder: &Path) -> PathBuf {
    folder.join("certificate.pem")
}

/// The certificate in `folder` and its key, made if they are not there. It names this host, `localhost`, and `address` if that is a certain one.
pub fn make_if_absent(folder: &Path, address: IpAddr) -> Result<(PathBuf, PathBuf)> {
    let (certificate, key) = (certificate_file(folder), folder.join("key.pem"));
    make_private(folder)?;
    check_own(folder)?;
    if !certificate.exists() {
        make(&certificate, &key, address)?;
        log::warn!("api: no api-tls is configured; front ends must trust {}", certificate.display());
    }
    Ok((certificate, key))
}

fn make(certificate: &Path, key: &Path, address: IpAddr) -> Result<()> {
    let failed = |e: rcgen::Error| Error::internal(format!("a certificate cannot be made: {e}"));
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    names.extend(host_name());
    if !address.is_unspecified() && !address.is_loopback() {
        names.push(address.to_string());
    }
    let mut params = CertificateParams::new(names).map_err(failed)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "bwvisu-runner");
    let pair = KeyPair::generate().map_err(failed)?;
    let made = params.self_signed(&pair).map_err(failed)?;
    // The key first: a certificate without its key would be taken for complete.
    write(key, &pair.serialize_pem(), 0o600)?;
    write(certificate, &made.pem(), 0o644)
}

fn host_name() -> Option<String> {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let valid = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b));
    valid.then_some(name)
}

fn write(path: &Path, text: &str, mode: u32) -> Result<()> {
    let failed = |e: std::io::Error| Error::unavailable(format!("{} cannot be written: {e}", path.display()));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path).map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)
}
