//! Names of servers, looked up again and again.
