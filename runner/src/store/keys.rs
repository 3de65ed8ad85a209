//! Where things are. Every key of a record names its cluster; job ids are counted for all clusters together.

/// The next job id.
pub const COUNTER: &str = "next-job-id";

/// What tells this installation's jobs from those of others on the same scheduler.
pub const INSTALLATION: &str = "installation";

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

/// What was answered under an idempotency key, which strangers choose: hence its digest.
pub fn repeatable(cluster: &str, digest: &str) -> String {
    format!("clusters/{cluster}/keys/{digest}")
}

pub fn all_repeatable(cluster: &str) -> String {
    format!("clusters/{cluster}/keys/")
}

pub fn owner(cluster: &str, user: &str) -> String {
    format!("clusters/{cluster}/owners/{user}")
}

pub fn owners(cluster: &str) -> String {
    format!("clusters/{cluster}/owners/")
}

pub fn buckets(cluster: &str) -> String {
    format!("clusters/{cluster}/nodes/")
}

pub fn given_up(cluster: &str, job: u64) -> String {
    format!("clusters/{cluster}/given-up/{job}")
}

pub fn all_given_up(cluster: &str) -> String {
    format!("clusters/{cluster}/given-up/")
}

pub fn heard(cluster: &str) -> String {
    format!("clusters/{cluster}/heard")
}

pub fn closings(cluster: &str, gateway: &str) -> String {
    format!("clusters/{cluster}/gateways/{gateway}/closing/")
}

/// External ports belong to one job at a time, so the first one names it all.
pub fn closing(cluster: &str, gateway: &str, first_port: u16) -> String {
    format!("clusters/{cluster}/gateways/{gateway}/closing/{first_port}")
}

pub fn silent(cluster: &str, gateway: &str) -> String {
    format!("clusters/{cluster}/gateways/{gateway}/silent")
}

pub fn drain(cluster: &str, gateway: &str) -> String {
    format!("clusters/{cluster}/gateways/{gateway}/drain")
}

pub fn gateways(cluster: &str) -> String {
    format!("clusters/{cluster}/gateways/")
}

/// Traces that have not ended. Not below the gateways' keys: a gateway that is gone is not one that records still speak of.
pub fn open_traces(cluster: &str) -> String {
    format!("clusters/{cluster}/trail/open/")
}

/// External ports belong to one job at a time, so the first one names it all.
pub fn open_trace(cluster: &str, gateway: &str, first_port: u16) -> String {
    format!("clusters/{cluster}/trail/open/{gateway}/{first_port}")
}

pub fn past_traces_of(cluster: &str, day: &str) -> String {
    format!("clusters/{cluster}/trail/past/{day}/")
}

pub fn past_trace(cluster: &str, day: &str, gateway: &str, name: &str) -> String {
    format!("clusters/{cluster}/trail/past/{day}/{gateway}/{name}")
}

pub fn trail_begin(cluster: &str) -> String {
    format!("clusters/{cluster}/trail/since")
}
