//! Certificates of a test's own, made with openssl.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

/// An authority `ca` with certificates for the server and a client, some of them wrong; and a `stranger`, an authority which signed
/// nothing.
pub fn make(folder: &Path, address: Ipv4Addr) {
    for authority in ["ca", "stranger"] {
        let (subject, key, pem) = (format!("/CN={authority}"), format!("{authority}.key"), format!("{authority}.pem"));
        let new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
        let constraints = ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign"];
        openssl(folder, &[&new[..], &["-subj", &subject, "-keyout", &key, "-out", &pem], &constraints[..]].concat());
    }
    let own = format!("IP:{address}");
    sign(folder, "server", &own, 2);
    sign(folder, "client", &own, 2);
    sign(folder, "expired-server", &own, 0);
    sign(folder, "expired-client", &own, 0);
    sign(folder, "other-host", "DNS:elsewhere.example.org", 2);
}

/// A certificate `name` of the authority's; one of 0 days has expired in a second.
pub fn sign(folder: &Path, name: &str, subject_alternative: &str, days: u32) {
    let file = |kind: &str| format!("{name}.{kind}");
    let extensions = format!("subjectAltName={subject_alternative}\nextendedKeyUsage=serverAuth,clientAuth\n");
    fs::write(folder.join(file("extensions")), extensions).unwrap();
    let (subject, days) = (format!("/CN={name}"), days.to_string());
    let new = ["req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    openssl(folder, &[&new[..], &["-subj", &subject, "-keyout", &file("key"), "-out", &file("csr")]].concat());
    let sign = ["x509", "-req", "-days", &days, "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"];
    openssl(folder, &[&sign[..], &["-extfile", &file("extensions"), "-in", &file("csr"), "-out", &file("pem")]].concat());
}

fn openssl(folder: &Path, arguments: &[&str]) {
    let output = Command::new("openssl").current_dir(folder).args(arguments).output().unwrap();
    assert!(output.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}
