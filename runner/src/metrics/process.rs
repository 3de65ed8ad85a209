//! What the kernel says of this process, under the names that every exporter uses.

use super::Maker;
use prometheus::Gauge;
use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

pub(super) struct Process {
    resident: Gauge,
    open_files: Gauge,
    most_files: Gauge,
    threads: Gauge,
}

impl Process {
    pub(super) fn new(make: &Maker) -> Self {
        let started = make.gauge("process_start_time_seconds", "Start time of the process since unix epoch in seconds.");
        started.set(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64());
        Self {
            resident: make.gauge("process_resident_memory_bytes", "Resident memory size in bytes."),
            open_files: make.gauge("process_open_fds", "Number of open file descriptors."),
            most_files: make.gauge("process_max_fds", "Maximum number of open file descriptors."),
            threads: make.gauge("process_threads", "Number of OS threads in the process."),
        }
    }

    /// What cannot be read stays as it was.
    pub(super) fn look(&self) {
        let page = rustix::param::page_size() as f64;
        let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
        if let Some(pages) = statm.split(' ').nth(1).and_then(|pages| pages.parse::<f64>().ok()) {
            self.resident.set(pages * page);
        }
        let entries = |folder: &str| fs::read_dir(folder).map(|entries| entries.count() as f64);
        entries("/proc/self/fd").into_iter().for_each(|count| self.open_files.set(count));
        entries("/proc/self/task").into_iter().for_each(|count| self.threads.set(count));
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        limit.into_iter().for_each(|limit| self.most_files.set(limit as f64));
    }
}
