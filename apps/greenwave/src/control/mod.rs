//! What processes of Greenwave say to each other: JSON, a line each, over private Unix sockets.

mod lines;
mod link;
mod protocol;
mod socket;

pub(crate) use lines::{Reader, send};
pub(crate) use link::{FromEdge, Question, Start, ToEdge};
pub(crate) use protocol::{AppStatus, Call, EdgeStatus, Purge, Reply, Request, Status, VERSION};
pub(crate) use socket::{Listener, Place, connect};
