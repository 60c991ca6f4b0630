//! Which group of upstreams a request goes to.
