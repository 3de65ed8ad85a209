//! Who we are to etcd, and who it is to us: users and passwords, certificates, and what is said when they do not fit.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use bwvisu_runner::error::{Error, ErrorKind};
use bwvisu_runner::store::Backend;
use bwvisu_runner::store::etcd::{Etcd, EtcdConfig, EtcdTls};

use crate::certificates;
use crate::contract::{check_all, put, value};
use crate::etcd::assert_down;
use crate::leads::leads;
use crate::server::{EtcdServer, Kind, etcd_is_there};

#[test]
fn user_and_password_are_used_and_complaints_say_what_to_mend() {
    if !etcd_is_there() {
        return;
    }
    let server = EtcdServer::start(Kind::ShortTokens);
    let with = |user: Option<(&str, &str)>| {
        let user = user.map(|(user, password)| (user.to_owned(), password.to_owned()));
        Etcd::connect(EtcdConfig { user, ..server.config() }).unwrap()
    };
    server.wait_for(&with(None));
    let complaint = |client: Etcd, says: &str| {
        let error = client.commit(&put("k", "v")).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
        assert!(error.message.contains(says), "{says}: {error}");
        assert!(!format!("{error:?}").contains("opensesame"), "{error:?}");
    };
    complaint(with(Some(("runner", "opensesame"))), "authentication is switched off");
    set_up_users(&server);
    complaint(with(None), "set etcd-user");
    complaint(with(Some(("runner", "opensesame-not"))), "check etcd-user and etcd-password");
    complaint(with(Some(("other", "opensesame"))), "readwrite on the prefix /bwvisu-runner/");
    // A role that may use our prefix, and no more, is enough for everything.
    let client = with(Some(("runner", "opensesame")));
    check_all(&client, &with(Some(("runner", "opensesame"))));
    assert!(leads(&client, "jobs-watch"));
    // The token has ended meanwhile: a new login is made by itself.
    thread::sleep(Duration::from_secs(3));
    assert!(leads(&client, "jobs-watch"));
    thread::sleep(Duration::from_secs(3));
    assert!(client.commit(&put("k", "v")).unwrap());
    // Users that change end all logins.
    server.ctl(Some("root:opensesame"), &["user", "add", "late:opensesame"]);
    assert_eq!(value(&client, "k").as_deref(), Some("v"));
    client.resign();
    assert!(leads(&with(Some(("runner", "opensesame"))), "jobs-watch"));
}

fn set_up_users(server: &EtcdServer) {
    let range = ["/bwvisu-runner/", "/bwvisu-runner0"];
    for arguments in [
        &["user", "add", "root:opensesame"][..],
        &["user", "grant-role", "root", "root"],
        &["role", "add", "runner"],
        &["role", "grant-permission", "runner", "readwrite", range[0], range[1]],
        &["user", "add", "runner:opensesame"],
        &["user", "grant-role", "runner", "runner"],
        &["user", "add", "other:opensesame"],
        &["auth", "enable"],
    ] {
        server.ctl(None, arguments);
    }
}

#[test]
fn a_server_that_forgot_our_login_is_logged_into_again() {
    if !etcd_is_there() {
        return;
    }
    let mut server = EtcdServer::start(Kind::Plain);
    server.wait_for(&server.client());
    set_up_users(&server);
    let user = Some(("runner".to_owned(), "opensesame".to_owned()));
    let client = Etcd::connect(EtcdConfig { user, ..server.config() }).unwrap();
    assert!(client.commit(&put("k", "v")).unwrap());
    server.kill();
    assert_down(&client, &[ErrorKind::Unavailable, ErrorKind::Unknown]);
    assert!(server.start_again());
    server.wait_for(&client);
    assert!(client.commit(&put("k", "v")).unwrap());
}

#[test]
fn a_password_that_is_changed_in_etcd_is_complained_of_and_works_again_when_changed_back() {
    if !etcd_is_there() {
        return;
    }
    let mut server = EtcdServer::start(Kind::Plain);
    server.wait_for(&server.client());
    set_up_users(&server);
    let user = Some(("runner".to_owned(), "opensesame".to_owned()));
    let client = Etcd::connect(EtcdConfig { user, ..server.config() }).unwrap();
    assert!(client.commit(&put("k", "v")).unwrap());
    server.ctl(Some("root:opensesame"), &["user", "delete", "runner"]);
    // The login may live on until it is asked for anew.
    server.kill();
    assert!(server.start_again());
    let begin = Instant::now();
    loop {
        let error = client.commit(&put("k", "v")).unwrap_err();
        if error.message.contains("check etcd-user and etcd-password") {
            break;
        }
        // The server begins to listen before it does all else.
        assert!(begin.elapsed() < Duration::from_secs(20), "{error}");
        thread::sleep(Duration::from_millis(100));
    }
    server.ctl(Some("root:opensesame"), &["user", "add", "runner:opensesame"]);
    server.ctl(Some("root:opensesame"), &["user", "grant-role", "runner", "runner"]);
    assert!(client.commit(&put("k", "v")).unwrap());
}

fn with_tls(server: &EtcdServer, tls: EtcdTls) -> Etcd {
    Etcd::connect(EtcdConfig { tls: Some(tls), ..server.config() }).unwrap()
}

/// What is said when a call cannot work.
fn complaint(server: &EtcdServer, tls: EtcdTls) -> Error {
    let error = with_tls(server, tls).get(&["k".to_owned()]).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains(&server.endpoint()), "names the server: {error}");
    println!("{error}");
    error
}

#[test]
fn tls_is_spoken_and_checked_on_both_sides() {
    if !etcd_is_there() {
        return;
    }
    let server = EtcdServer::start(Kind::MutualTls);
    let client = with_tls(&server, server.tls());
    server.wait_for(&client);
    assert!(client.commit(&put("k", "v")).unwrap());
    assert_eq!(value(&client, "k").as_deref(), Some("v"));
    // An expired one has had its second by now.
    let ours = |name: &str| EtcdTls { certificate: Some(server.certificate(name)), ..server.tls() };
    for (tls, says) in [
        (EtcdTls { certificate: None, ..server.tls() }, "etcd-tls.certificate is not set"),
        (ours("stranger"), "stranger.pem"),
        (ours("expired-client"), "expired-client.pem"),
        (EtcdTls { ca: Some(server.path("stranger.pem")), ..server.tls() }, "stranger.pem did not sign"),
        (EtcdTls { ca: None, ..server.tls() }, "ca-certificates.crt did not sign"),
    ] {
        let error = complaint(&server, tls);
        assert!(error.to_string().contains(says), "{says}: {error}");
    }
}

#[test]
fn a_servers_certificate_that_is_expired_or_anothers_is_refused_with_the_reason() {
    if !etcd_is_there() {
        return;
    }
    let (expired, other) = (EtcdServer::start(Kind::ExpiredTls), EtcdServer::start(Kind::OtherHostTls));
    thread::sleep(Duration::from_secs(1));
    for (server, says) in [(&expired, "has expired"), (&other, "for another host")] {
        let error = complaint(server, server.tls());
        assert!(error.message.contains(says), "{says}: {error}");
    }
}

#[test]
fn files_that_are_broken_are_named_at_the_start() {
    if !etcd_is_there() {
        return;
    }
    let server = EtcdServer::start(Kind::MutualTls);
    let broken = (server.path("client.pem"), server.path("client.csr"));
    let missing = (server.path("client.pem"), server.path("nothing.key"));
    let torn = server.path("torn.pem");
    fs::write(&torn, "-----BEGIN CERTIFICATE-----\nMIIB\n").unwrap();
    for (tls, says) in [
        (EtcdTls { certificate: Some(broken), ..server.tls() }, "client.csr"),
        (EtcdTls { certificate: Some(missing), ..server.tls() }, "nothing.key"),
        (EtcdTls { ca: Some(torn), ..server.tls() }, "torn.pem"),
    ] {
        let error = Etcd::connect(EtcdConfig { tls: Some(tls), ..server.config() }).err().unwrap();
        assert_eq!(error.kind, ErrorKind::BadInput, "{error}");
        assert!(error.to_string().contains(says), "{says}: {error}");
    }
}

/// The next connection uses it: nobody has to restart the program, or send it a signal.
#[test]
fn a_certificate_that_is_renewed_on_disk_is_used_from_the_next_connection_on() {
    if !etcd_is_there() {
        return;
    }
    let mut server = EtcdServer::start(Kind::MutualTls);
    certificates::sign(&server.path(""), "ours", "DNS:runner.example.org", 0);
    let client = with_tls(&server, EtcdTls { certificate: Some(server.certificate("ours")), ..server.tls() });
    thread::sleep(Duration::from_secs(1));
    assert!(client.get(&["k".to_owned()]).is_err(), "it has expired");
    fs::write(server.path("ours.key"), "").unwrap();
    let error = client.get(&["k".to_owned()]).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("ours.key"), "a file that is half renewed is named: {error}");
    certificates::sign(&server.path(""), "ours", "DNS:runner.example.org", 2);
    server.wait_for(&client);
    assert!(client.commit(&put("k", "v")).unwrap());
    // The server's own, too.
    certificates::sign(&server.path(""), "server", &format!("IP:{}", server.client_address().ip()), 2);
    server.kill();
    assert!(server.start_again());
    server.wait_for(&client);
    assert_eq!(value(&client, "k").as_deref(), Some("v"));
}
