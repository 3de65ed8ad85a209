//! Records that the bench puts into etcd, in the form that they have there: where a row needs more jobs than this machine could start.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bwvisu_tests::Bed;
use bwvisu_tests::gateway::records;
use serde_json::{Value, json};

const PREFIX: &str = "/bwvisu-runner/clusters/default/";
/// etcd takes 128 operations at once.
const AT_ONCE: usize = 100;

/// Puts records, by their keys behind the cluster's prefix.
pub fn put(bed: &Bed, records: &[(String, Value)]) {
    let operation = |(key, value): &(String, Value)| json!({"requestPut": {"key": STANDARD.encode(format!("{PREFIX}{key}")), "value": STANDARD.encode(value.to_string())}});
    transactions(bed, &records.iter().map(operation).collect::<Vec<_>>());
}

/// Deletes records by their keys.
pub fn delete(bed: &Bed, keys: &[String]) {
    let operation = |key: &String| json!({"requestDeleteRange": {"key": STANDARD.encode(format!("{PREFIX}{key}"))}});
    transactions(bed, &keys.iter().map(operation).collect::<Vec<_>>());
}

fn transactions(bed: &Bed, operations: &[Value]) {
    bed.at("runner", || {
        let agent: ureq::Agent = ureq::Agent::config_builder().proxy(None).build().into();
        for some in operations.chunks(AT_ONCE) {
            let answer = agent.post("http://127.0.0.1:2379/v3/kv/txn").send_json(json!({"success": some}));
            let answer: Value = answer.expect("etcd answers").body_mut().read_json().expect("JSON");
            assert_eq!(answer["succeeded"], true, "{answer}");
        }
    });
}

/// Deletes all records whose keys begin so.
pub fn delete_all(bed: &Bed, prefix: &str) {
    bed.sh("runner", &format!("ETCDCTL_API=3 etcdctl del --prefix {PREFIX}{prefix} >/dev/null"));
}

/// The records whose keys begin so, by their keys behind the cluster's prefix.
pub fn read(bed: &Bed, prefix: &str) -> Vec<(String, Value)> {
    let text = records(bed, prefix);
    let lines: Vec<&str> = text.lines().collect();
    lines.chunks(2).map(|pair| (pair[0].trim_start_matches(PREFIX).to_owned(), serde_json::from_str(pair[1]).unwrap())).collect()
}

/// A real job's record made that of another job.
pub fn job_like(real: &Value, id: u64, scheduler_job_id: &str, node: &str) -> (String, Value) {
    let mut job = real.clone();
    let name = name_like(real, id);
    job["id"] = id.into();
    job["name"] = name.into();
    job["scheduler-job-id"] = scheduler_job_id.into();
    job["token"] = format!("{id:064x}").into();
    job["log"] = format!("/srv/home/alice/bwvisu-job-{id}.out").into();
    if !node.is_empty() {
        job["details"]["NodeList"] = node.into();
    }
    (format!("jobs/{id}"), job)
}

/// The name that such a job has in the scheduler: the installation's digits are the real one's.
pub fn name_like(real: &Value, id: u64) -> String {
    let digits = real["name"].as_str().unwrap().rsplit('-').next().unwrap();
    format!("bwvisu-{id}-{}{id:08x}", &digits[..4])
}

/// One port of a job on a gateway, the same number inside and outside.
#[derive(Debug, Clone)]
pub struct Forward {
    /// The job.
    pub job: u64,
    /// The port.
    pub port: u16,
    /// The compute node.
    pub node: String,
}

/// The grants of these jobs and the gateway's ledger, as the verbs would have written them.
pub fn granted(bed: &Bed, gateway: &str, forwards: &[Forward]) -> Vec<(String, Value)> {
    let (address, external) = (bed.ip(gateway).to_string(), bed.external(gateway).to_string());
    let span = |forward: &Forward| json!({"count": 1, "external": forward.port, "internal": forward.port});
    let mut found = vec![(
        format!("gateways/{address}/load"),
        json!({"cluster": "default", "gateway": address, "ports": forwards.len(), "version": 2}),
    )];
    let mut blocks: std::collections::BTreeMap<u16, Vec<Value>> = std::collections::BTreeMap::new();
    let mut jobs: std::collections::BTreeMap<u64, Vec<&Forward>> = std::collections::BTreeMap::new();
    for forward in forwards {
        let forwarding =
            json!({"closing": false, "job": forward.job, "span": span(forward), "target": format!("{}-ib0", forward.node)});
        blocks.entry(forward.port / 100).or_default().push(forwarding);
        jobs.entry(forward.job).or_default().push(forward);
    }
    for (block, forwardings) in blocks {
        let record = json!({"block": block, "cluster": "default", "forwardings": forwardings, "gateway": address, "version": 2});
        found.push((format!("gateways/{address}/blocks/{block}"), record));
    }
    for (job, ports) in jobs {
        let spans: Vec<Value> = ports.iter().map(|forward| span(forward)).collect();
        let grant = json!({
            "attempt": 0, "cluster": "default", "confirmed": true, "external-ip": external, "gateway": address, "granted-at": "2026-01-01T00:00:00Z",
            "job": job, "nodes": [ports[0].node], "nonce": format!("{job:032x}"), "run": 0, "spans": spans, "state": "active",
            "target": format!("{}-ib0", ports[0].node), "version": 2,
        });
        found.push((format!("grants/{job}"), grant));
    }
    found
}
