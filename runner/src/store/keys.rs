//! Where things are. Every key of a record names its cluster; job ids are counted for all clusters together.

/// The next job id.
pub const COUNTER: &str = "next-job-id";

pub fn jobs(cluster: &str) -> String {
    format!("clusters/{cluster}/jobs/")
}

pub fn job(cluster: &str, id: u64) -> String {
    format!("clusters/{cluster}/jobs/{id}")
}

pub fn all_finished(cluster: &str) -> String {
    format!("clusters/{cluster}/finished/")
}

pub fn finished(cluster: &str, id: u64) -> String {
    format!("clusters/{cluster}/finished/{id}")
}

pub fn grants(cluster: &str) -> String {
    format!("clusters/{cluster}/grants/")
}

pub fn grant(cluster: &str, job: u64) -> String {
    format!("clusters/{cluster}/grants/{job}")
}

pub fn load(cluster: &str, gateway: &str) -> String {
    format!("clusters/{cluster}/gateways/{gateway}/load")
}

pub fn blocks(cluster: &str, gateway: &str) -> String {
    format!("clusters/{cluster}/gateways/{gateway}/blocks/")
}

pub fn block(cluster: &str, gateway: &str, block: u16) -> String {
    format!("clusters/{cluster}/gateways/{gateway}/blocks/{block}")
}

pub fn bucket(cluster: &str, bucket: u16) -> String {
    format!("clusters/{cluster}/nodes/{bucket}")
}
