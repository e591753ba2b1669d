//! The node agent's API over HTTP/1.1: handlers, and the OpenAPI document that follows from them.
//!
//! Handlers run on two threads and never wait for a VM, a disk or the network of images: what does,
//! runs on threads of its own ([`Agent::blocking`]), of which there are not many; and VMs are created a few
//! at a time, so that those who stop VMs do not wait behind those who create them.

mod about;
mod connection;
mod console;
mod endpoints;
mod error;
mod extract;
mod hub;
mod images;
pub mod listen;
mod metrics;
mod moves;
pub mod options;
pub mod server;
pub mod trace;
mod usage;
mod vms;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::header;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use utoipa::OpenApi;
use utoipa::openapi::schema::AdditionalProperties;
use utoipa::openapi::{RefOr, Schema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use self::error::ApiError;
use self::hub::Hub;
use self::metrics::Metrics;
use self::usage::Sampler;
use super::Node;
use super::error::NodeError;

const TAG_VMS: &str = "VMs";
const TAG_IMAGES: &str = "Images";
const TAG_ENDPOINTS: &str = "Endpoints";
const TAG_NODE: &str = "Node";

/// VMs and images that are created and brought at a time; more wait.
const TURNS: usize = 32;
/// Threads of what waits for VMs and disks.
const THREADS: usize = 64;
/// Streams at a time: a connection each, for as long as their clients like.
const STREAMS: usize = 512;
/// How long any request that is not a stream may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// What handlers have.
#[derive(Debug, Clone)]
struct Agent(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    node: Node,
    hub: Hub,
    usage: Arc<Sampler>,
    metrics: Arc<Metrics>,
    turns: Semaphore,
    streams: Arc<Semaphore>,
    /// Whether the agent ends.
    ending: watch::Receiver<bool>,
}

impl std::ops::Deref for Agent {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl Agent {
    /// Does something that may wait, on a thread of its own.
    async fn blocking<R: Send + 'static>(
        &self,
        what: impl FnOnce(&Node) -> Result<R, NodeError> + Send + 'static,
    ) -> Result<R, ApiError> {
        let node = self.node.clone();
        let done = tokio::task::spawn_blocking(move || what(&node));
        match tokio::time::timeout(PATIENCE, done).await {
            Ok(Ok(done)) => Ok(done?),
            Ok(Err(error)) => Err(ApiError::new("internal", error.to_string())),
            Err(_) => {
                Err(ApiError::new("capacity", "this takes too long; it goes on all the same"))
            }
        }
    }

    /// The same of something that takes long, and of which few are to go on at a time.
    async fn turn<R: Send + 'static>(
        &self,
        what: impl FnOnce(&Node) -> Result<R, NodeError> + Send + 'static,
    ) -> Result<R, ApiError> {
        match tokio::time::timeout(PATIENCE, self.turns.acquire()).await {
            // It is never closed.
            Ok(turn) => {
                let _turn = turn.map_err(|error| ApiError::new("internal", error.to_string()))?;
                self.blocking(what).await
            }
            Err(_) => Err(ApiError::new("capacity", "too much is asked for at once; try again")),
        }
    }

    /// A place for a stream, for as long as it is held.
    fn stream(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        self.streams.clone().try_acquire_owned().map_err(|_| {
            ApiError::new("capacity", format!("there are {STREAMS} streams already; end one"))
        })
    }
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "vmm node",
        description = "The node agent of one host: boots VMs out of a pool of images. Errors are always an \
                       `ErrorBody`. No request waits for more than five minutes, but for streams."
    ),
    components(schemas(
        crate::api::ErrorBody,
        crate::api::NodeEvent,
        endpoints::ServiceSchema
    )),
    tags(
        (name = TAG_VMS, description = "VMs of the node"),
        (name = TAG_IMAGES, description = "The pool of images"),
        (name = TAG_ENDPOINTS, description = "Virtual endpoints: services that move between VMs"),
        (name = TAG_NODE, description = "The node itself"),
    )
)]
struct Document;

fn routes() -> OpenApiRouter<Agent> {
    let mut routes = handlers();
    close_alternatives(routes.get_openapi_mut());
    routes
}

/// Says of alternatives that they have no other fields than those named, as it is said of structs: they
/// are read so (`deny_unknown_fields`).
fn close_alternatives(document: &mut utoipa::openapi::OpenApi) {
    let schemas = document.components.as_mut().map(|components| &mut components.schemas);
    let Some(schemas) = schemas else { return };
    for name in ["DiskSpec", "EndpointAction", "FlowChange"] {
        let Some(RefOr::T(Schema::OneOf(alternatives))) = schemas.get_mut(name) else { continue };
        for alternative in &mut alternatives.items {
            if let RefOr::T(Schema::Object(object)) = alternative {
                let closed = AdditionalProperties::FreeForm(false);
                object.additional_properties = Some(Box::new(closed));
            }
        }
    }
}

fn handlers() -> OpenApiRouter<Agent> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(vms::list, vms::create))
        .routes(routes!(vms::inspect, vms::delete))
        .routes(routes!(vms::start))
        .routes(routes!(vms::stop))
        .routes(routes!(vms::wait))
        .routes(routes!(vms::timings))
        .routes(routes!(console::output, console::input))
        .routes(routes!(console::guest_events))
        .routes(routes!(images::list, images::pull))
        .routes(routes!(images::drop))
        .routes(routes!(images::pin, images::unpin))
        .routes(routes!(endpoints::list, endpoints::announce))
        .routes(routes!(endpoints::show))
        .routes(routes!(endpoints::act))
        .routes(routes!(endpoints::flows, endpoints::sync))
        .routes(routes!(about::info))
        .routes(routes!(about::drain, about::undrain))
        .routes(routes!(about::usage))
        .routes(routes!(about::health))
        .routes(routes!(about::events))
        .routes(routes!(about::openapi))
        .routes(routes!(about::metrics))
}

/// The OpenAPI document, as JSON.
pub fn document() -> String {
    let (_, document) = routes().split_for_parts();
    let mut text = document.to_pretty_json().unwrap_or_default();
    text.push('\n');
    text
}

fn router(agent: Agent) -> Router {
    let (router, _) = routes().split_for_parts();
    router
        .route("/v1/moves/orders", axum::routing::post(moves::order))
        .route("/v1/moves/{number}/state", axum::routing::post(moves::state))
        .fallback(error::not_found)
        .method_not_allowed_fallback(error::no_such_method)
        // Bodies have limits of their own.
        .layer(DefaultBodyLimit::disable())
        .layer(middleware::from_fn_with_state(agent.clone(), note))
        .with_state(agent)
}

/// Notes a request in the metrics and the log.
async fn note(State(agent): State<Agent>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let method = request.method().clone();
    let matched = request.extensions().get::<MatchedPath>().cloned();
    let path = request.uri().path().to_owned();
    let response = next.run(request).await;
    let (status, took) = (response.status().as_u16(), begun.elapsed());
    let route = matched.as_ref().map_or("none", MatchedPath::as_str);
    agent.metrics.request(method.as_str(), route, status, took);
    let ms = took.as_secs_f64() * 1e3;
    tracing::debug!(%method, path = %path.escape_debug(), status, ms, "request");
    response
}

/// Lines of JSON.
fn lines(body: Body) -> Response {
    ([(header::CONTENT_TYPE, "application/jsonl")], body).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The document of the repository is the one of the code.
    #[test]
    fn the_document_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");
        let checked_in = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            checked_in == document(),
            "docs/openapi.json is not that of the code: vmm node openapi > docs/openapi.json"
        );
    }
}
