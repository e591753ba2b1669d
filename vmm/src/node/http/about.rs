//! The node itself: what it is, what happens on it, what it uses.

use std::io;
use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use tokio::sync::broadcast::error::RecvError;

use super::console::Follow;
use super::error::{ApiError, Refused};
use super::extract::Parameters;
use super::vms::None_;
use super::{Agent, TAG_NODE, connection};
use crate::api::{Event, Health, HealthStatus, NodeEvent, NodeInfo, NodeUsage};
use crate::node::clock::now_ms;

/// The media type of `OpenMetrics` 1.0.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the node is and has.
#[utoipa::path(get, path = "/v1/node", operation_id = "node_info", tag = TAG_NODE,
    responses((status = 200, body = NodeInfo), Refused))]
pub async fn info(
    State(agent): State<Agent>,
    _: Parameters<None_>,
) -> Result<Json<NodeInfo>, ApiError> {
    Ok(Json(agent.blocking(|node| Ok(node.info())).await?))
}

/// What the agent and its VMs use of memory and processors, as it was at most a second ago.
#[utoipa::path(get, path = "/v1/usage", operation_id = "node_usage", tag = TAG_NODE,
    responses((status = 200, body = NodeUsage), Refused))]
pub async fn usage(
    State(agent): State<Agent>,
    _: Parameters<None_>,
) -> Result<Json<NodeUsage>, ApiError> {
    let usage = agent.usage.clone();
    let usage = agent.blocking(move |node| Ok(usage.look(node))).await?;
    Ok(Json(Arc::unwrap_or_clone(usage)))
}

/// Takes no new VMs from now on. Those that are there live on.
#[utoipa::path(post, path = "/v1/node/drain", operation_id = "drain_node", tag = TAG_NODE,
    responses((status = 200, body = NodeInfo), Refused))]
pub async fn drain(
    State(agent): State<Agent>,
    _: Parameters<None_>,
) -> Result<Json<NodeInfo>, ApiError> {
    set_draining(agent, true).await
}

/// Takes new VMs again.
#[utoipa::path(delete, path = "/v1/node/drain", operation_id = "undrain_node", tag = TAG_NODE,
    responses((status = 200, body = NodeInfo), Refused))]
pub async fn undrain(
    State(agent): State<Agent>,
    _: Parameters<None_>,
) -> Result<Json<NodeInfo>, ApiError> {
    set_draining(agent, false).await
}

async fn set_draining(agent: Agent, on: bool) -> Result<Json<NodeInfo>, ApiError> {
    let info = agent.blocking(move |node| {
        node.drain(on);
        Ok(node.info())
    });
    Ok(Json(info.await?))
}

/// Whether the agent is well, and takes new VMs.
#[utoipa::path(get, path = "/v1/health", operation_id = "health", tag = TAG_NODE,
    responses((status = 200, body = Health), Refused))]
pub async fn health(
    State(agent): State<Agent>,
    _: Parameters<None_>,
) -> Result<Json<Health>, ApiError> {
    let info = agent.blocking(|node| Ok(node.info())).await?;
    let status = if info.draining { HealthStatus::Draining } else { HealthStatus::Ok };
    Ok(Json(Health { status, problems: info.problems }))
}

/// What happened last on the node, a line of JSON each, the oldest first; with `follow` what happens from
/// now on instead, as it does. Each line is a `NodeEvent`.
#[utoipa::path(get, path = "/v1/events", operation_id = "node_events", tag = TAG_NODE,
    params(Follow),
    responses((status = 200, content_type = "application/jsonl", body = String), Refused))]
pub async fn events(
    State(agent): State<Agent>,
    Parameters(Follow { follow }): Parameters<Follow>,
) -> Result<Response, ApiError> {
    if !follow {
        return Ok(super::lines(Body::from(agent.hub.recent())));
    }
    let place = agent.stream()?;
    let events = agent.hub.subscribe();
    let ending = agent.ending.clone();
    let stay = stream::unfold((events, place, ending), |(mut events, place, mut ending)| async {
        let line = tokio::select! {
            told = events.recv() => match told {
                Ok(told) => told.line.clone(),
                Err(RecvError::Lagged(events)) => lost(events),
                Err(RecvError::Closed) => return None,
            },
            () = connection::ended(&mut ending) => return None,
        };
        Some((Ok::<_, io::Error>(line), (events, place, ending)))
    });
    Ok(super::lines(Body::from_stream(stay)))
}

fn lost(events: u64) -> Bytes {
    let event = NodeEvent { at_ms: now_ms(), event: Event::Lost { events } };
    let mut line = serde_json::to_vec(&event).unwrap_or_default();
    line.push(b'\n');
    line.into()
}

/// Metrics for Prometheus, in the format of `OpenMetrics`.
#[utoipa::path(get, path = "/metrics", operation_id = "metrics", tag = TAG_NODE,
    responses((status = 200, content_type = "application/openmetrics-text", body = String), Refused))]
pub async fn metrics(
    State(agent): State<Agent>,
    _: Parameters<None_>,
) -> Result<Response, ApiError> {
    let (usage, metrics) = (agent.usage.clone(), agent.metrics.clone());
    let text = agent.blocking(move |node| {
        let text = metrics.encode(node.info(), usage.look(node), node.endpoints().counts());
        Ok(text.unwrap_or_default())
    });
    Ok(([(header::CONTENT_TYPE, OPEN_METRICS)], text.await?).into_response())
}

/// This API as an OpenAPI document.
#[utoipa::path(get, path = "/v1/openapi.json", operation_id = "openapi", tag = TAG_NODE,
    responses((status = 200, body = Object), Refused))]
pub async fn openapi(_: Parameters<None_>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], super::document()).into_response()
}
