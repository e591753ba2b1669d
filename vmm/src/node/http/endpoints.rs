//! What can be done with virtual endpoints, and with the flows of the node's switches.
#![allow(unused_qualifications, reason = "what utoipa writes for parameters has some")]

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde::Deserialize;
use utoipa::{IntoParams, IntoResponses, ToSchema};

use super::error::{ApiError, BodyRefused, Conflict, Refused};
use super::extract::{JsonBody, Parameters, Service};
use super::vms::None_;
use super::{Agent, TAG_ENDPOINTS};
use crate::api::ErrorBody;
use crate::api::endpoint::{
    AnnounceEndpoint, EndpointAction, EndpointDone, EndpointInfo, FlowChange, FlowInfo,
};
use crate::node::Node;
use crate::node::endpoints::{EndpointError, Endpoints};
use crate::node::error::NodeError;

/// The name of a service, as the document has it.
#[derive(Debug, ToSchema)]
#[schema(
    max_length = 255,
    pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?([.][a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?){0,7}$",
    example = "web"
)]
pub struct ServiceSchema(#[expect(dead_code, reason = "it describes")] String);

/// Which endpoints.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Services {
    /// Those of this service, or of all that a pattern such as kv.* stands for.
    #[param(required = false)]
    service: Option<String>,
}

/// What a request of an endpoint may get besides, for the document.
#[derive(Debug, IntoResponses)]
#[expect(dead_code, reason = "it describes responses")]
pub enum EndpointRefused {
    /// Nobody has announced the service, or there is no VM that may serve it.
    #[response(status = 404)]
    NotFound(ErrorBody),
    /// What is asked for has the right shape, but cannot be: a text that names no service, range or VM, or
    /// something that this VM may not have.
    #[response(status = 422)]
    Invalid(ErrorBody),
}

/// A move that went back has a kind of its own: who asked may want to ask again.
fn kind(error: &EndpointError) -> &'static str {
    match error {
        EndpointError::Aborted(_) => "aborted",
        error => error.kind(),
    }
}

/// Asks the node's endpoints on a thread of its own; of what takes as long as a move does, few go on at a time.
async fn ask<R: Send + 'static>(
    agent: &Agent,
    is_long: bool,
    what: impl FnOnce(&Endpoints) -> Result<R, EndpointError> + Send + 'static,
) -> Result<R, ApiError> {
    let what = move |node: &Node| match what(node.endpoints()) {
        // The kind is told apart here.
        Err(error) if kind(&error) != error.kind() => Ok(Err(error)),
        done => Ok(Ok(done.map_err(NodeError::from)?)),
    };
    let done = if is_long { agent.turn(what).await? } else { agent.blocking(what).await? };
    done.map_err(|error| ApiError::new(kind(&error), error.to_string()))
}

/// The virtual endpoints that are known: of the whole directory, not of this node alone.
#[utoipa::path(get, path = "/v1/endpoints", operation_id = "list_endpoints", tag = TAG_ENDPOINTS,
    params(Services),
    responses((status = 200, body = Vec<EndpointInfo>), Refused, EndpointRefused))]
pub async fn list(
    State(agent): State<Agent>,
    Parameters(Services { service }): Parameters<Services>,
) -> Result<Json<Vec<EndpointInfo>>, ApiError> {
    Ok(Json(ask(&agent, false, move |all| all.list(service.as_deref())).await?))
}

/// The ranges of one service.
#[utoipa::path(get, path = "/v1/endpoints/{service}", operation_id = "show_endpoint",
    tag = TAG_ENDPOINTS,
    params(("service" = ServiceSchema, Path, description = "Its name")),
    responses((status = 200, body = Vec<EndpointInfo>), Refused, EndpointRefused))]
pub async fn show(
    State(agent): State<Agent>,
    Service(service): Service,
    _: Parameters<None_>,
) -> Result<Json<Vec<EndpointInfo>>, ApiError> {
    let ask_for = move |all: &Endpoints| {
        let found = all.list(Some(service.as_str()))?;
        if found.is_empty() {
            return Err(EndpointError::NoService(service.to_string()));
        }
        Ok(found)
    };
    Ok(Json(ask(&agent, false, ask_for).await?))
}

/// Makes identifiers known as those of a VM of this node. Said again, it changes nothing.
#[utoipa::path(post, path = "/v1/endpoints", operation_id = "announce_endpoint",
    tag = TAG_ENDPOINTS, request_body = AnnounceEndpoint,
    responses(
        (status = 201, body = EndpointInfo, headers(("location" = String, description = "The service's path"))),
        Refused, BodyRefused, Conflict, EndpointRefused))]
pub async fn announce(
    State(agent): State<Agent>,
    _: Parameters<None_>,
    JsonBody(wish): JsonBody<AnnounceEndpoint>,
) -> Result<impl IntoResponse, ApiError> {
    let made = ask(&agent, false, move |all| all.announce(&wish)).await?;
    let location = [(header::LOCATION, format!("/v1/endpoints/{}", made.service))];
    Ok((StatusCode::CREATED, location, Json(made)))
}

/// Does something with identifiers of a service. A move is answered when it has ended; if it has gone back, the
/// endpoint is where it was, and the kind of the error is `aborted`.
#[utoipa::path(post, path = "/v1/endpoints/{service}/actions", operation_id = "act_on_endpoint",
    tag = TAG_ENDPOINTS, request_body = EndpointAction,
    params(("service" = ServiceSchema, Path, description = "Its name")),
    responses((status = 200, body = EndpointDone), Refused, BodyRefused, Conflict, EndpointRefused))]
pub async fn act(
    State(agent): State<Agent>,
    Service(service): Service,
    _: Parameters<None_>,
    JsonBody(action): JsonBody<EndpointAction>,
) -> Result<Json<EndpointDone>, ApiError> {
    let is_move =
        matches!(action, EndpointAction::Move { .. } | EndpointAction::Split { to: Some(_), .. });
    Ok(Json(ask(&agent, is_move, move |all| all.act(service.as_str(), &action)).await?))
}

/// Where the node's switches lead frames to identifiers.
#[utoipa::path(get, path = "/v1/flows", operation_id = "list_flows", tag = TAG_ENDPOINTS,
    responses((status = 200, body = Vec<FlowInfo>), Refused))]
pub async fn flows(
    State(agent): State<Agent>,
    _: Parameters<None_>,
) -> Result<Json<Vec<FlowInfo>>, ApiError> {
    Ok(Json(ask(&agent, false, |endpoints| Ok(endpoints.flows())).await?))
}

/// Changes flows, all or none: if one cannot be changed, the error names it and none is.
#[utoipa::path(post, path = "/v1/flows", operation_id = "sync_flows", tag = TAG_ENDPOINTS,
    request_body = Vec<FlowChange>,
    responses((status = 200, body = Vec<FlowInfo>), Refused, BodyRefused, Conflict, EndpointRefused))]
pub async fn sync(
    State(agent): State<Agent>,
    _: Parameters<None_>,
    JsonBody(changes): JsonBody<Vec<FlowChange>>,
) -> Result<Json<Vec<FlowInfo>>, ApiError> {
    Ok(Json(ask(&agent, false, move |all| all.sync(&changes)).await?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_move_that_went_back_is_told_from_what_was_not_found() {
        assert_eq!(kind(&EndpointError::Aborted("no answer".into())), "aborted");
        assert_eq!(kind(&EndpointError::NoService("web".into())), "not_found");
        assert_eq!(ApiError::new("aborted", "x").into_response().status(), StatusCode::CONFLICT);
    }
}
