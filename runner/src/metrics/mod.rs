//! What is counted and measured, for Prometheus. One set for the whole process.
//!
//! Labels have few values: listeners, routes (never paths), nodes, gateways and roles of the configuration, words of ours. No id, no user, no
//! address of a client is a label. What needs the store (jobs by state, ports per gateway) is set by the watchers, which read it anyway, and is
//! there only where they lead. So a scrape asks nobody.

mod process;

use prometheus::{
    Encoder, Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};
use std::collections::BTreeMap;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// From a look into the embedded store to a submission that tries every command node.
const SECONDS: [f64; 13] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];
/// Methods that have a label of their own.
const METHODS: [&str; 5] = ["GET", "HEAD", "POST", "PUT", "DELETE"];

/// The names of all metrics.
pub const NAMES: [&str; 30] = [
    "bwvisu_build_info",
    "bwvisu_gateway_closing",
    "bwvisu_gateway_drained",
    "bwvisu_gateway_ports_free",
    "bwvisu_gateway_ports_used",
    "bwvisu_gateway_rules",
    "bwvisu_gateway_silent",
    "bwvisu_http_connections",
    "bwvisu_http_connections_refused_total",
    "bwvisu_http_request_seconds",
    "bwvisu_http_requests_total",
    "bwvisu_jobs",
    "bwvisu_keyhole_grants_total",
    "bwvisu_keyhole_refusals_total",
    "bwvisu_leader",
    "bwvisu_log_lines_total",
    "bwvisu_ssh_call_seconds",
    "bwvisu_ssh_calls_total",
    "bwvisu_ssh_failures_total",
    "bwvisu_store_failures_total",
    "bwvisu_store_seconds",
    "bwvisu_submissions_in_flight",
    "bwvisu_watch_cycle_failures_total",
    "bwvisu_watch_cycle_seconds",
    "bwvisu_watch_last_good_cycle_age_seconds",
    "process_max_fds",
    "process_open_fds",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "process_threads",
];

/// All of them.
#[allow(missing_docs, reason = "each has its help where it is made, and a row in docs/operate.md")]
pub struct Metrics {
    registry: Registry,
    pub http_requests: IntCounterVec,
    pub http_seconds: HistogramVec,
    pub http_connections: IntGaugeVec,
    pub http_refused: IntCounterVec,
    pub jobs: IntGaugeVec,
    pub submissions: IntGauge,
    pub ports_used: IntGaugeVec,
    pub ports_free: IntGaugeVec,
    pub gateway_silent: IntGaugeVec,
    pub gateway_drained: IntGaugeVec,
    pub gateway_rules: IntGaugeVec,
    pub gateway_closing: IntGaugeVec,
    pub ssh_calls: IntCounterVec,
    pub ssh_failures: IntCounterVec,
    pub ssh_seconds: HistogramVec,
    pub keyhole_grants: IntCounter,
    pub keyhole_refusals: IntCounterVec,
    pub watch_seconds: HistogramVec,
    pub watch_failures: IntCounterVec,
    watch_age: GaugeVec,
    pub leader: IntGaugeVec,
    pub store_seconds: HistogramVec,
    pub store_failures: IntCounterVec,
    pub log_lines: IntCounterVec,
    process: process::Process,
    last_good: Mutex<BTreeMap<String, Instant>>,
}

/// The metrics of this process.
pub fn metrics() -> &'static Metrics {
    static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);
    &METRICS
}

/// Makes and registers them.
struct Maker(Registry);

#[allow(clippy::expect_used, reason = "names and labels are constants, and the first test of this module makes all of them")]
impl Maker {
    fn known<C: prometheus::core::Collector + Clone + 'static>(&self, made: prometheus::Result<C>) -> C {
        let made = made.expect("the name and the labels are valid");
        self.0.register(Box::new(made.clone())).expect("the name is given once");
        made
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.known(IntCounterVec::new(Opts::new(name, help), labels))
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.known(IntGaugeVec::new(Opts::new(name, help), labels))
    }

    fn histograms(&self, name: &str, help: &str, labels: &[&str]) -> HistogramVec {
        self.known(HistogramVec::new(HistogramOpts::new(name, help).buckets(SECONDS.to_vec()), labels))
    }

    fn gauge(&self, name: &str, help: &str) -> Gauge {
        self.known(Gauge::new(name, help))
    }
}

impl Metrics {
    fn new() -> Self {
        let make = Maker(Registry::new());
        let build = make.gauges("bwvisu_build_info", "Always 1; the label names the version of the program.", &["version"]);
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let gateway: &[&str] = &["cluster", "gateway"];
        let made = Self {
            http_requests: make.counters(
                "bwvisu_http_requests_total",
                "Requests that were answered, also by a refusal.",
                &["listener", "method", "route", "status"],
            ),
            http_seconds: make.histograms(
                "bwvisu_http_request_seconds",
                "From the last byte of a request to the last byte of its answer; requests that were taken up alone.",
                &["listener", "route"],
            ),
            http_connections: make.gauges("bwvisu_http_connections", "Open connections.", &["listener"]),
            http_refused: make.counters(
                "bwvisu_http_connections_refused_total",
                "Connections that were turned away because there was no room for them.",
                &["listener"],
            ),
            jobs: make.gauges("bwvisu_jobs", "Jobs that are not finished; where jobs-watch leads.", &["cluster", "state"]),
            submissions: make.known(IntGauge::new("bwvisu_submissions_in_flight", "Submissions that are under way.")),
            ports_used: make.gauges(
                "bwvisu_gateway_ports_used",
                "External ports that are taken; where keyhole-watch leads.",
                gateway,
            ),
            ports_free: make.gauges(
                "bwvisu_gateway_ports_free",
                "External ports that are free; where keyhole-watch leads.",
                gateway,
            ),
            gateway_silent: make.gauges(
                "bwvisu_gateway_silent",
                "1 while the gateway does not answer; where keyhole-watch leads.",
                gateway,
            ),
            gateway_drained: make.gauges(
                "bwvisu_gateway_drained",
                "1 while nothing new goes there; where keyhole-watch leads.",
                gateway,
            ),
            gateway_rules: make.gauges(
                "bwvisu_gateway_rules",
                "Forwardings that are installed; where keyhole-watch leads.",
                gateway,
            ),
            gateway_closing: make.gauges(
                "bwvisu_gateway_closing",
                "External ports of ended jobs whose forwardings are still to be removed; where keyhole-watch leads.",
                gateway,
            ),
            ssh_calls: make.counters("bwvisu_ssh_calls_total", "Commands on other machines.", &["node"]),
            ssh_failures: make.counters(
                "bwvisu_ssh_failures_total",
                "Commands that did not reach the machine, or whose answer was lost.",
                &["node"],
            ),
            ssh_seconds: make.histograms("bwvisu_ssh_call_seconds", "How long commands on other machines took.", &["node"]),
            keyhole_grants: make
                .known(IntCounter::new("bwvisu_keyhole_grants_total", "Jobs' requests that got ports for the first time.")),
            keyhole_refusals: make.counters("bwvisu_keyhole_refusals_total", "Requests that keyhole refused.", &["reason"]),
            watch_seconds: make.histograms("bwvisu_watch_cycle_seconds", "How long the cycles of a watcher took.", &["role"]),
            watch_failures: make.counters("bwvisu_watch_cycle_failures_total", "Cycles of a watcher that failed.", &["role"]),
            watch_age: make.known(GaugeVec::new(
                Opts::new("bwvisu_watch_last_good_cycle_age_seconds", "Since the last good cycle of a watcher, where it leads."),
                &["role"],
            )),
            leader: make.gauges("bwvisu_leader", "1 where this program leads the watcher, 0 where it waits for that.", &["role"]),
            store_seconds: make.histograms("bwvisu_store_seconds", "How long calls of the database took.", &["verb"]),
            store_failures: make.counters("bwvisu_store_failures_total", "Calls of the database that failed.", &["verb"]),
            log_lines: make.counters("bwvisu_log_lines_total", "Lines that were written to the log.", &["level"]),
            process: process::Process::new(&make),
            last_good: Mutex::default(),
            registry: make.0,
        };
        made.begin();
        made
    }

    /// What may never happen is shown with 0 from the beginning, so that its first time is a change.
    fn begin(&self) {
        ["get", "scan", "commit", "lead"].iter().for_each(|verb| drop(self.store_failures.with_label_values(&[*verb])));
        ["warn", "error"].iter().for_each(|level| drop(self.log_lines.with_label_values(&[*level])));
    }

    /// A request was answered; `took` if it was taken up.
    pub fn request(&self, (listener, method, route): (&str, &str, &'static str), status: u16, took: Option<Duration>) {
        let method = if METHODS.contains(&method) { method } else { "other" };
        self.http_requests.with_label_values(&[listener, method, route, &status.to_string()]).inc();
        if let Some(took) = took {
            self.http_seconds.with_label_values(&[listener, route]).observe(took.as_secs_f64());
        }
    }

    /// A command was run on another machine.
    pub fn ssh(&self, node: &str, took: Duration, failed: bool) {
        self.ssh_calls.with_label_values(&[node]).inc();
        self.ssh_failures.with_label_values(&[node]).inc_by(failed.into());
        self.ssh_seconds.with_label_values(&[node]).observe(took.as_secs_f64());
    }

    /// The database was called.
    pub fn store(&self, verb: &str, took: Duration, failed: bool) {
        self.store_seconds.with_label_values(&[verb]).observe(took.as_secs_f64());
        self.store_failures.with_label_values(&[verb]).inc_by(failed.into());
    }

    /// A cycle of a watcher has ended.
    pub fn cycle(&self, role: &str, took: Duration, good: bool) {
        self.watch_seconds.with_label_values(&[role]).observe(took.as_secs_f64());
        self.watch_failures.with_label_values(&[role]).inc_by((!good).into());
        if good {
            self.last_good().insert(role.to_owned(), Instant::now());
        }
    }

    /// Whether this program leads a watcher. From the moment that it begins to, the age of its last good cycle counts; what it has shown of the
    /// cluster goes when it does not lead any more, since another program shows it then.
    pub fn leads(&self, role: &str, leads: bool) {
        self.leader.with_label_values(&[role]).set(leads.into());
        if leads {
            self.last_good().entry(role.to_owned()).or_insert_with(Instant::now);
            return;
        }
        self.last_good().remove(role);
        // It is not there if it was never shown.
        let _ = self.watch_age.remove_label_values(&[role]);
        if role.starts_with("jobs-watch") {
            self.jobs.reset();
        } else {
            self.of_gateways().iter().for_each(|family| family.reset());
        }
    }

    /// What is shown of each gateway.
    pub fn of_gateways(&self) -> [&IntGaugeVec; 6] {
        [
            &self.ports_used,
            &self.ports_free,
            &self.gateway_silent,
            &self.gateway_drained,
            &self.gateway_rules,
            &self.gateway_closing,
        ]
    }

    /// A gateway is not configured any more.
    pub fn forget_gateway(&self, cluster: &str, gateway: &str) {
        // Some of them may never have been shown.
        self.of_gateways().iter().for_each(|family| drop(family.remove_label_values(&[cluster, gateway])));
    }

    /// All of them as Prometheus reads them.
    pub fn text(&self) -> String {
        self.process.look();
        for (role, at) in self.last_good().iter() {
            self.watch_age.with_label_values(&[role]).set(at.elapsed().as_secs_f64());
        }
        let mut text = Vec::new();
        // It fails where a metric has no name.
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            log::error!("metrics: they cannot be written: {error}");
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    fn last_good(&self) -> MutexGuard<'_, BTreeMap<String, Instant>> {
        self.last_good.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The kind of text that [`Metrics::text`] is.
pub const TEXT: &str = prometheus::TEXT_FORMAT;

/// Counts something that is there until this is dropped.
pub struct Present(IntGauge);

impl Present {
    /// One more.
    pub fn new(gauge: IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
