//! Where answers come from, as those see it who stand before it.

use http::{Request, Response};

use super::answer::Refusal;
use super::body::{Body, RequestBody};

/// Gets an answer from upstream. Clones are the same source; the future stays on its thread and borrows nothing, so that
/// it may outlive the request that began it.
pub(crate) trait Fetch: Clone + 'static {
    /// Sends a request on and returns its answer, whose body is still to come.
    fn fetch(
        &self,
        request: Request<RequestBody>,
    ) -> impl Future<Output = Result<Response<Body>, Refusal>> + 'static;
}
