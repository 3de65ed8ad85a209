//! Harness of the proofs on the bed (`tests/bed`): a cluster of real parts in network namespaces.
//!
//! * [`bed`]: commands on its hosts, connections from its hosts, faults;
//! * [`runner`]: a real `bwvisu-runner serve` on its host `runner`, to be killed and started again;
//! * [`member`]: a member of an etcd of several;
//! * [`api`]: a front end outside; [`keyhole`]: a keyhole-client played by hand;
//! * [`broken`]: things on a host that are broken for a while; [`slurm`]: what Slurm has;
//! * [`gateway`] and [`wait`]: what is installed on a gateway, and waiting within a bounded time;
//! * [`books`]: store, Slurm and gateways compared; [`effects`]: the names of all points at which the runner can be told to die;
//! * [`stage`]: a scenario in which it does, and is started again;
//! * [`ward`]: `doctor`, and what it says of something that is broken;
//! * [`docs`]: the documents, followed word by word.
//!
//! `BWVISU_DIST` names the install folder under test (`dist/` in the repository without it), and the `BED_…` variables the
//! bed, as for `tests/bed`. A bed that is not up is a failure, never a skip.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends where something is not as it should be")]

pub mod api;
pub mod bed;
pub mod books;
pub mod broken;
pub mod docs;
pub mod effects;
pub mod gateway;
pub mod keyhole;
pub mod member;
pub mod runner;
pub mod slurm;
pub mod stage;
pub mod wait;
pub mod ward;

pub use api::{Api, Reply};
pub use bed::Bed;
pub use broken::Broken;
pub use runner::{Runner, Setup};
pub use stage::Stage;
pub use wait::until;
pub use ward::Ward;
