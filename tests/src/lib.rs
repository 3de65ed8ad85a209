//! Harness of the proofs on the bed.
