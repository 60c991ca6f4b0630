//! `traceparent`, passed on or begun (W3C Trace Context).
