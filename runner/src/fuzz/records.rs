//! What lies in the store: records of this program, of other versions, and damaged ones.

use super::{Outcome, Target};
use crate::domain::grant::{Closing, Drain, GatewayBlock, Grant, NodeBucket, Silence};
use crate::domain::job::Job;
use crate::domain::ports::PortSet;
use crate::error::{ErrorKind, Result};
use crate::http::jobs::job_object;
use crate::jobs::JobView;
use crate::store::decode;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;

pub(super) const TARGET: Target = Target {
    name: "records",
    tokens: &[
        "\"version\":1,",
        "\"version\":2,",
        "\"version\":4294967295,",
        "\"state\":\"running\",",
        "\"state\":\"closing\",",
        "\"outcome\":\"failed\",",
        "\"services\":[],",
        "\"details\":{},",
        "\"token\":null,",
        "\"spans\":[{\"external\":50000,\"internal\":50000,\"count\":1}],",
        "\"count\":0",
        "\"count\":65535",
        "\"external\":65535",
        "\"finished-at\":\"2026-11-22T01:36:15Z\",",
        "{",
        "}",
        "[",
        "]",
        ",",
        "null",
    ],
    check,
};

fn check(input: &[u8]) -> Outcome {
    let read = [
        read::<Job>(input).map(|job| drop(job_object(&JobView { job, observed_at: None, stale: None }))),
        read::<Grant>(input).map(|grant| {
            assert_eq!(grant.services().len(), grant.ports() as usize, "{grant:?}");
            assert_eq!(grant.spans.is_empty(), grant.blocks().is_empty());
        }),
        read::<GatewayBlock>(input).map(|block| assert!(block.taken().count() >= block.forwardings.len())),
        read::<Closing>(input).map(|closing| assert!(closing.ports() as usize >= closing.blocks().len(), "{closing:?}")),
        read::<Silence>(input).map(drop),
        read::<Drain>(input).map(drop),
        read::<NodeBucket>(input).map(|bucket| {
            let nodes: Vec<String> = bucket.nodes.keys().cloned().collect();
            bucket.taken(&nodes, &mut PortSet::default());
        }),
    ];
    if read.iter().all(Result::is_err) {
        return Outcome::refused(read.into_iter().filter_map(Result::err).collect::<Vec<_>>().join("; "));
    }
    Outcome::accepted(format_args!("{:?}", read.map(|read| read.is_ok())))
}

/// What is read can be written, and is the same when it is read again.
fn read<T: DeserializeOwned + Serialize + PartialEq + Debug>(input: &[u8]) -> Result<T, String> {
    let record: T = decode("clusters/default/x", input).map_err(|error| {
        assert_eq!(error.kind, ErrorKind::Internal);
        assert!(error.message.starts_with("record clusters/default/x "), "the record is not named: {error}");
        error.message
    })?;
    let written = serde_json::to_vec(&record).expect("a record that can be written");
    assert_eq!(decode::<T>("again", &written).as_ref(), Ok(&record));
    Ok(record)
}
