//! Where each route's time goes: requests and queries per route, Prometheus export, a live dashboard.
