//! A hybrid cache: in-process L1 over Redis L2, one load per key.
