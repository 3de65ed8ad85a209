//! How fast it is: `cargo test --release --test http_guard -- --ignored --nocapture figures`.

use std::thread;
use std::time::{Duration, Instant};

use bwvisu_runner::http::guard::Limits;

use crate::world::World;

const CLIENTS: usize = 8;
const TIME: Duration = Duration::from_secs(3);

#[test]
#[ignore = "it takes the machine for itself; run it when you want to know"]
fn requests_and_connections_per_second() {
    for (kind, world) in ["plain", "TLS"].iter().zip(World::both(&Limits::default())) {
        let mut clients: Vec<_> = (0..CLIENTS).map(|_| world.connect()).collect();
        let kept = thread::scope(|scope| {
            let counts: Vec<_> = clients.iter_mut().map(|client| scope.spawn(|| count(|| client.get("/hello").status))).collect();
            counts.into_iter().map(|count| count.join().unwrap()).sum::<usize>()
        });
        let fresh = thread::scope(|scope| {
            let counts: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(|| count(|| world.get("/hello").status))).collect();
            counts.into_iter().map(|count| count.join().unwrap()).sum::<usize>()
        });
        let per_second = |count: usize| count as u64 / TIME.as_secs();
        eprintln!("{kind}: {} requests/s on {CLIENTS} connections; {} new connections/s", per_second(kept), per_second(fresh));
        assert!(kept > 0 && fresh > 0);
    }
}

fn count(mut get: impl FnMut() -> u16) -> usize {
    let start = Instant::now();
    let mut count = 0;
    while start.elapsed() < TIME {
        assert_eq!(get(), 200);
        count += 1;
    }
    count
}
