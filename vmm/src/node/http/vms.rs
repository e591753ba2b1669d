//! What can be done with VMs.
#![allow(unused_qualifications, reason = "what utoipa writes for parameters has some")]

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde::Deserialize;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, timeout_at};
use utoipa::IntoParams;

use super::error::{ApiError, BodyRefused, Conflict, ImageRefused, Refused, VmRefused};
use super::extract::{JsonBody, OptionalJson, Parameters, Vm};
use super::{Agent, TAG_VMS};
use crate::api::{CreateVm, Event, StopVm, Timings, VmInfo, VmState};
use crate::node::error::NodeError;

/// How long is waited for a VM unless said otherwise, in milliseconds.
const DEFAULT_WAIT_MS: u64 = 30_000;
/// How long is waited at most, in milliseconds.
const MAX_WAIT_MS: u64 = 600_000;

/// No parameters.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct None_ {}

/// All VMs that have not been deleted, by number.
#[utoipa::path(get, path = "/v1/vms", operation_id = "list_vms", tag = TAG_VMS,
    responses((status = 200, body = Vec<VmInfo>), Refused))]
pub async fn list(State(agent): State<Agent>, _: Parameters<None_>) -> Json<Vec<VmInfo>> {
    Json(agent.node.list())
}

/// Boots a VM. Answers when its process is started: its image is brought into the pool first, and VMs
/// that came before it are let go first. A client that goes away meanwhile changes nothing.
#[utoipa::path(post, path = "/v1/vms", operation_id = "create_vm", tag = TAG_VMS,
    request_body = CreateVm,
    responses(
        (status = 201, body = VmInfo, headers(("location" = String, description = "The VM's path"))),
        Refused, BodyRefused, Conflict, ImageRefused))]
pub async fn create(
    State(agent): State<Agent>,
    _: Parameters<None_>,
    JsonBody(wish): JsonBody<CreateVm>,
) -> Result<impl IntoResponse, ApiError> {
    wish.spec.check().map_err(|error| ApiError::new("invalid", error))?;
    let net = wish.spec.net.check();
    net.map_err(|error| ApiError::new("invalid", format!("'spec.net': {error}")))?;
    let vm = agent.turn(move |node| node.create(&wish)).await?;
    let location = [(header::LOCATION, format!("/v1/vms/{}", vm.name))];
    Ok((StatusCode::CREATED, location, Json(vm)))
}

/// What is known of a VM.
#[utoipa::path(get, path = "/v1/vms/{name}", operation_id = "inspect_vm", tag = TAG_VMS,
    params(("name" = crate::spec::name::VmName, Path, description = "Its name")),
    responses((status = 200, body = VmInfo), Refused, VmRefused))]
pub async fn inspect(
    State(agent): State<Agent>,
    Vm(name): Vm,
    _: Parameters<None_>,
) -> Result<Json<VmInfo>, ApiError> {
    Ok(Json(agent.node.inspect(&name)?))
}

/// Kills a VM, if it lives, and forgets it. Answers when it is gone.
#[utoipa::path(delete, path = "/v1/vms/{name}", operation_id = "delete_vm", tag = TAG_VMS,
    params(("name" = crate::spec::name::VmName, Path, description = "Its name")),
    responses((status = 204, description = "It is gone"), Refused, VmRefused, Conflict))]
pub async fn delete(
    State(agent): State<Agent>,
    Vm(name): Vm,
    _: Parameters<None_>,
) -> Result<StatusCode, ApiError> {
    agent.blocking(move |node| node.delete(&name)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Has a VM that is held begin.
#[utoipa::path(post, path = "/v1/vms/{name}/start", operation_id = "start_vm", tag = TAG_VMS,
    params(("name" = crate::spec::name::VmName, Path, description = "Its name")),
    responses((status = 200, body = VmInfo), Refused, VmRefused, Conflict))]
pub async fn start(
    State(agent): State<Agent>,
    Vm(name): Vm,
    _: Parameters<None_>,
) -> Result<Json<VmInfo>, ApiError> {
    Ok(Json(agent.blocking(move |node| node.start_vm(&name)).await?))
}

/// Tells a VM to end; one that does not within five seconds is killed. Answers at once.
#[utoipa::path(post, path = "/v1/vms/{name}/stop", operation_id = "stop_vm", tag = TAG_VMS,
    params(("name" = crate::spec::name::VmName, Path, description = "Its name")),
    request_body = Option<StopVm>,
    responses((status = 200, body = VmInfo), Refused, BodyRefused, VmRefused, Conflict))]
pub async fn stop(
    State(agent): State<Agent>,
    Vm(name): Vm,
    _: Parameters<None_>,
    OptionalJson(how): OptionalJson<Option<StopVm>>,
) -> Result<Json<VmInfo>, ApiError> {
    let how = how.unwrap_or_default();
    Ok(Json(agent.blocking(move |node| node.stop(&name, how)).await?))
}

/// What to wait for.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct WaitParameters {
    /// The state that it is to have come to, ended unless said otherwise; a later one will do as well.
    #[serde(default = "ended")]
    #[param(required = false)]
    state: VmState,
    /// How long to wait, in milliseconds.
    #[serde(default = "default_wait")]
    #[param(minimum = 0, maximum = 600_000, default = 30_000)]
    timeout_ms: u64,
}

fn ended() -> VmState {
    VmState::Ended
}

fn default_wait() -> u64 {
    DEFAULT_WAIT_MS
}

/// Waits until a VM is at least in a state; 409 if it is not in time.
#[utoipa::path(get, path = "/v1/vms/{name}/wait", operation_id = "wait_vm", tag = TAG_VMS,
    params(("name" = crate::spec::name::VmName, Path, description = "Its name"), WaitParameters),
    responses((status = 200, body = VmInfo), Refused, VmRefused, Conflict))]
pub async fn wait(
    State(agent): State<Agent>,
    Vm(name): Vm,
    Parameters(wish): Parameters<WaitParameters>,
) -> Result<Json<VmInfo>, ApiError> {
    if wish.timeout_ms > MAX_WAIT_MS {
        return Err(ApiError::bad(format!("timeout_ms: at most {MAX_WAIT_MS}")));
    }
    let patience = Duration::from_millis(wish.timeout_ms);
    let deadline = Instant::now() + patience;
    let mut events = agent.hub.subscribe();
    loop {
        let info = agent.node.inspect(&name)?;
        if info.state >= wish.state {
            return Ok(Json(info));
        }
        // Only what happens to this one is worth another look.
        loop {
            match timeout_at(deadline, events.recv()).await {
                Ok(Ok(told)) => match &told.event {
                    Event::Vm { number, .. } | Event::Deleted { number, .. }
                        if *number == info.number =>
                    {
                        break;
                    }
                    Event::Lost { .. } => break,
                    _ => {}
                },
                Ok(Err(RecvError::Lagged(_))) => break,
                Ok(Err(RecvError::Closed)) | Err(_) => {
                    let (state, wanted, seconds) = (info.state, wish.state, patience.as_secs_f64());
                    return Err(NodeError::Slow { name, state, wanted, seconds }.into());
                }
            }
        }
    }
}

/// How a VM's boot went, phase by phase.
#[utoipa::path(get, path = "/v1/vms/{name}/timings", operation_id = "vm_timings", tag = TAG_VMS,
    params(("name" = crate::spec::name::VmName, Path, description = "Its name")),
    responses((status = 200, body = Timings), Refused, VmRefused))]
pub async fn timings(
    State(agent): State<Agent>,
    Vm(name): Vm,
    _: Parameters<None_>,
) -> Result<Json<Timings>, ApiError> {
    let timings = move |node: &crate::node::Node| {
        let VmInfo { phases, ready_ms, .. } = node.inspect(&name)?;
        Ok(Timings { phases, ready_ms, report: node.report(&name)? })
    };
    Ok(Json(agent.blocking(timings).await?))
}
