//! A certificate for 127.0.0.1, and the authority that signs it and nothing else.

use std::path::Path;

use crate::{Program, server::run};

pub(crate) const AUTHORITY: &str = "authority.pem";
pub(crate) const CERTIFICATE: &str = "certificate.pem";
pub(crate) const KEY: &str = "key.pem";

const REQUEST: [&str; 9] =
    ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];

pub(crate) fn make(folder: &Path) {
    let openssl = |arguments: &[&str]| run(folder, Program::Openssl, &[&REQUEST, arguments].concat());
    openssl(&["-subj", "/CN=tests", "-keyout", "authority.key", "-out", AUTHORITY]);
    openssl(&[
        "-subj",
        "/CN=127.0.0.1",
        "-addext",
        "subjectAltName=IP:127.0.0.1,DNS:localhost",
        "-addext",
        "basicConstraints=critical,CA:FALSE",
        "-CA",
        AUTHORITY,
        "-CAkey",
        "authority.key",
        "-keyout",
        KEY,
        "-out",
        CERTIFICATE,
    ]);
}
