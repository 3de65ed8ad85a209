//! How fast the stores are here: `cargo test --release --test store_contract figures -- --ignored --nocapture`.

use std::thread;
use std::time::{Duration, Instant};

use bwvisu_runner::store::Backend;
use bwvisu_runner::store::embedded::Embedded;

use crate::contract::put;
use crate::server::{EtcdServer, Kind, etcd_is_there};

#[test]
#[ignore = "takes half a minute and tells figures only"]
fn figures() {
    let folder = tempfile::tempdir().unwrap();
    tell("embedded", &Embedded::open(&folder.path().join("store")).unwrap());
    if etcd_is_there() {
        let server = EtcdServer::start(Kind::Plain);
        tell("etcd", &server.client());
    }
}

fn tell(name: &str, store: &dyn Backend) {
    for threads in [1, 32] {
        let puts = rate(threads, |thread, number| {
            assert!(store.commit(&put(&format!("{thread}/{number}"), [b'x'; 500])).unwrap());
        });
        let gets = rate(threads, |thread, _| {
            assert!(store.get(&[format!("{thread}/0")]).unwrap()[0].is_some());
        });
        println!("{name}, {threads} threads: {puts:.0} puts/s, {gets:.0} gets/s");
        assert!(puts > 1.0 && gets > 1.0);
    }
}

/// How often per second `job` is done by so many threads together.
fn rate(threads: usize, job: impl Fn(usize, usize) + Sync) -> f64 {
    let begin = Instant::now();
    let done: usize = thread::scope(|scope| {
        let count = |thread| {
            let job = &job;
            move || (0..).take_while(|_| begin.elapsed() < Duration::from_secs(4)).inspect(|&number| job(thread, number)).count()
        };
        let workers: Vec<_> = (0..threads).map(|thread| scope.spawn(count(thread))).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).sum()
    });
    done as f64 / begin.elapsed().as_secs_f64()
}
