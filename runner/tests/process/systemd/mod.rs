//! Under a service manager: it is told what the program does, and keeps the program's sockets while one program ends and the next one
//! starts.

mod load;
mod manager;

use crate::caused::freeze;
use crate::world::{Bench, free_port, until};
use load::{Client, Load};
use manager::{Manager, serve_with};
use rustix::process::Pid;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;

/// A bench whose addresses stay the same.
fn settled() -> Bench {
    let mut bench = Bench::plain();
    for key in ["api-listen", "keyhole-listen"] {
        bench.set(key, format!("127.0.0.1:{}", free_port()));
    }
    bench
}

#[test]
fn the_manager_is_told_when_it_serves_reloads_lives_and_ends() {
    let mut bench = settled();
    let manager = Manager::of(&mut bench);
    bench.environment.push(("WATCHDOG_USEC".into(), "600000".into()));
    let served = bench.serve();
    manager.hears("READY=1", 0);
    assert_eq!(manager.keeps(), [("api".to_owned(), 1), ("keyhole".to_owned(), 1)]);
    manager.hears("WATCHDOG=1", 3);
    let ready = manager.words().into_iter().find(|said| said.starts_with("READY=1")).unwrap();
    assert_eq!(ready, format!("READY=1 STATUS=api on {}, keyhole on {}", served.address, served.listening("keyhole").unwrap()));
    served.reload();
    manager.hears("RELOADING=1 MONOTONIC_USEC=", 0);
    manager.hears("READY=1", 1);
    served.signal("-TERM");
    manager.hears("STOPPING=1", 0);
    assert_eq!(served.wait().0, Some(0));
}

#[test]
fn a_program_that_is_frozen_feeds_no_watchdog() {
    let mut bench = settled();
    let manager = Manager::of(&mut bench);
    bench.environment.push(("WATCHDOG_USEC".into(), "300000".into()));
    let served = bench.serve();
    manager.hears("WATCHDOG=1", 2);
    freeze(Pid::from_raw(served.pid() as i32).unwrap());
    // What it said before is still to be read.
    thread::sleep(Duration::from_secs(1));
    let before = manager.words().len();
    thread::sleep(Duration::from_millis(600));
    assert_eq!(manager.words().len(), before);
    served.signal("-CONT");
    manager.hears("WATCHDOG=1", before);
}

#[test]
fn who_connects_while_no_program_runs_waits_in_the_kept_socket_and_is_answered_by_the_next() {
    let mut bench = settled();
    let manager = Manager::of(&mut bench);
    let served = bench.serve();
    manager.hears("READY=1", 0);
    let address = served.address.clone();
    assert_eq!(served.terminate().0, Some(0));
    // Asked before there is anybody to answer.
    let mut waiting: Vec<Client> = (0..20).map(|_| Client::connect(&address)).collect();
    waiting.iter_mut().for_each(|client| client.ask("/jobs"));
    let served = manager.serve(&bench);
    assert!(served.log().contains("api: goes on with the socket that systemd kept (api)"), "{}", served.log());
    for client in &mut waiting {
        assert_eq!(client.hear().unwrap().status, 200);
    }
    manager.hears("READY=1", 1);
    assert_eq!(manager.keeps(), [("api".to_owned(), 1), ("keyhole".to_owned(), 1)], "what is kept is not kept twice");
}

#[test]
fn restarts_under_load_lose_no_request() {
    let mut bench = settled();
    let manager = Manager::of(&mut bench);
    let mut served = bench.serve();
    manager.hears("READY=1", 0);
    let load = Load::start(&served.address);
    for _ in 0..4 {
        let before = load.answered();
        until("the load is heavy", || (load.answered() > before + 300).then_some(()), || load.story());
        let (code, time) = served.terminate();
        assert_eq!(code, Some(0));
        // Well below what requests in flight would get.
        assert!(time < Duration::from_secs(15), "{time:?}");
        served = manager.serve(&bench);
    }
    let (answered, lost) = load.end();
    println!("{answered} requests in four restarts, on kept and on new connections");
    assert_eq!(lost, Vec::<String>::new(), "of {answered}");
}

#[test]
fn a_kept_socket_that_is_bound_elsewhere_is_let_go() {
    let mut bench = settled();
    let manager = Manager::of(&mut bench);
    let served = bench.serve();
    manager.hears("READY=1", 0);
    let before = served.address.clone();
    assert_eq!(served.terminate().0, Some(0));
    bench.set("api-listen", format!("127.0.0.1:{}", free_port()));
    let served = manager.serve(&bench);
    manager.hears("FDSTOREREMOVE=1 FDNAME=api", 0);
    manager.hears("READY=1", 1);
    assert_ne!(served.address, before);
    assert_eq!(served.get("/jobs").status, 200);
    assert_eq!(manager.keeps(), [("api".to_owned(), 1), ("keyhole".to_owned(), 1)]);
    let refused = || std::net::TcpStream::connect(&before).err();
    until("nobody listens there any more", refused, || served.log());
}

#[test]
fn an_address_that_the_kept_socket_covers_is_waited_for_until_that_is_closed() {
    let mut bench = settled();
    let port = free_port();
    bench.set("api-listen", format!("0.0.0.0:{port}"));
    let manager = Manager::of(&mut bench);
    let served = bench.serve();
    manager.hears("READY=1", 0);
    assert_eq!(served.terminate().0, Some(0));
    // A proxy stands before it from now on.
    bench.set("api-listen", format!("127.0.0.1:{port}"));
    let served = manager.serve(&bench);
    assert_eq!((served.address.as_str(), served.get("/jobs").status), (&*format!("127.0.0.1:{port}"), 200));
}

#[test]
fn parts_that_do_not_run_any_more_leave_no_socket_behind() {
    let mut bench = settled();
    let manager = Manager::of(&mut bench);
    let opened = ["api", "keyhole"].map(|name| (name, bench.config[format!("{name}-listen")].as_str().unwrap()));
    let opened = opened.map(|(name, address)| (name.to_owned(), OwnedFd::from(TcpListener::bind(address).unwrap())));
    let served = serve_with(&bench, opened.into(), &["--only", "keyhole,jobs-watch,keyhole-watch"]);
    manager.hears("FDSTOREREMOVE=1 FDNAME=api", 0);
    manager.hears("READY=1", 0);
    assert!(!manager.words().iter().any(|said| said == "FDSTOREREMOVE=1 FDNAME=keyhole"), "{:?}", manager.words());
    assert!(served.listening("keyhole").is_some());
}

#[test]
fn sockets_of_a_socket_unit_are_known_by_their_address_and_stay_the_units() {
    let mut bench = settled();
    let manager = Manager::of(&mut bench);
    let opened = ["api-listen", "keyhole-listen"].map(|key| TcpListener::bind(bench.config[key].as_str().unwrap()).unwrap());
    // The name that systemd gives where the unit gives none.
    let opened = opened.map(|listener| ("bwvisu-runner.socket".to_owned(), OwnedFd::from(listener)));
    let served = serve_with(&bench, opened.into(), &[]);
    assert_eq!(served.get("/jobs").status, 200);
    assert_eq!(served.address, bench.config["api-listen"].as_str().unwrap());
    assert_eq!(manager.keeps(), [], "systemd has them already");
}

#[test]
fn what_is_no_listening_socket_is_named_and_left_aside() {
    let bench = settled();
    let file = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    let served = serve_with(&bench, vec![("api".to_owned(), file)], &[]);
    assert!(served.log().contains("systemd handed over \"api\", which is no listening socket"), "{}", served.log());
    assert_eq!(served.get("/jobs").status, 200);
}
