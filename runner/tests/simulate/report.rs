//! What the play came to, in a table and in target/simulate/results.json.

use crate::Centre;
use serde_json::json;
use std::time::Duration;

/// How long things took.
#[derive(Default)]
pub struct Times {
    pub submit: Vec<Duration>,
    pub grant: Vec<Duration>,
    pub available: Vec<Duration>,
    pub jobs_watch: Vec<Duration>,
    pub keyhole_watch: Vec<Duration>,
}

pub struct Stage {
    pub rate: u32,
    pub seconds: f64,
    pub started: u64,
    pub failed: u64,
    pub times: Times,
    /// Of this process and etcd, in processors.
    pub cpu: [f64; 2],
    pub memory_mib: f64,
    /// etcd's database: as it compares it with its quota, and without the room in it that is free again. All stages add to it.
    pub database_mib: [f64; 2],
}

pub struct Report {
    centre: serde_json::Value,
    rows: Vec<serde_json::Value>,
}

/// A stage was followed when so much of what was offered was started.
const FOLLOWED: f64 = 0.95;

impl Report {
    pub fn new(centre: &Centre) -> Self {
        println!(
            "starts/s  followed  failed  submit ms     grant ms      available ms  jobs-watch ms keyhole-watch   CPU  etcd   MiB  database in use"
        );
        println!("offered     started         p50    p99    p50    p99    p50    p99    p50    max    p50    max");
        let centre = json!({
            "running-jobs": centre.jobs, "gateways": centre.gateways, "runners": centre.runners,
            "jobs-seconds": centre.jobs_interval.as_secs(),
        });
        Self { centre, rows: Vec::new() }
    }

    pub fn add(&mut self, mut stage: Stage) {
        let achieved = stage.started as f64 / stage.seconds;
        let times = &mut stage.times;
        let pairs = [
            (quantile(&mut times.submit, 0.5), quantile(&mut times.submit, 0.99)),
            (quantile(&mut times.grant, 0.5), quantile(&mut times.grant, 0.99)),
            (quantile(&mut times.available, 0.5), quantile(&mut times.available, 0.99)),
            (quantile(&mut times.jobs_watch, 0.5), quantile(&mut times.jobs_watch, 1.0)),
            (quantile(&mut times.keyhole_watch, 0.5), quantile(&mut times.keyhole_watch, 1.0)),
        ];
        let followed = achieved >= FOLLOWED * f64::from(stage.rate) && stage.failed == 0;
        let cells: String = pairs.iter().map(|(low, high)| format!("{low:7.0}{high:7.0}")).collect();
        println!(
            "{:7}  {:7.1} {} {:6}{cells} {:5.2} {:5.2} {:5.0} {:9.0} {:6.0}",
            stage.rate,
            achieved,
            if followed { "yes" } else { "NO " },
            stage.failed,
            stage.cpu[0],
            stage.cpu[1],
            stage.memory_mib,
            stage.database_mib[0],
            stage.database_mib[1]
        );
        let names = ["submit", "grant", "available", "jobs-watch", "keyhole-watch"];
        let times: serde_json::Map<_, _> =
            names.iter().zip(pairs).map(|(name, (low, high))| ((*name).to_owned(), json!([low, high]))).collect();
        self.rows.push(json!({
            "offered": stage.rate, "started": achieved, "followed": followed, "failed": stage.failed, "milliseconds": times,
            "cpu": stage.cpu[0], "etcd-cpu": stage.cpu[1], "memory-mib": stage.memory_mib,
            "database-mib": stage.database_mib,
        }));
    }

    pub fn write(&self) {
        let folder =
            std::env::var("CARGO_TARGET_DIR").unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../target").into());
        let path = std::path::Path::new(&folder).join("simulate/results.json");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let all = json!({"centre": self.centre, "stages": self.rows});
        std::fs::write(&path, serde_json::to_string_pretty(&all).unwrap()).unwrap();
        println!("{}", path.display());
    }
}

/// In milliseconds; 0 where nothing was measured.
fn quantile(times: &mut [Duration], part: f64) -> f64 {
    times.sort_unstable();
    let at = ((times.len() as f64 * part) as usize).min(times.len().saturating_sub(1));
    times.get(at).map_or(0.0, |time| time.as_secs_f64() * 1000.0)
}
