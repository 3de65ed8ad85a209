//! The proofs, one module per subject.
