//! Bounds what retries may add to the load (Finagle's retry budget).
