//! VMs' consoles, and what guests say of themselves.
#![allow(unused_qualifications, reason = "what utoipa writes for parameters has some")]

use std::io;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Deserialize;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};
use utoipa::IntoParams;

use super::error::{ApiError, BodyRefused, Conflict, Refused, VmRefused};
use super::extract::{Parameters, Raw, Vm};
use super::vms::None_;
use super::{Agent, TAG_VMS};
use crate::api::VmState;
use crate::node::error::NodeError;
use crate::spec::name::VmName;

/// What asks a VM's socket for its console.
const REQUEST: &[u8] = b"console\n";
/// The most that is typed at once, in bytes.
const MAX_INPUT: usize = 4096;
/// How long a VM may take to take what is typed.
const INPUT_PATIENCE: Duration = Duration::from_secs(5);
/// Bytes that are read at a time.
const PIECE: usize = 16 << 10;
/// How often a file is looked at for more.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Whether to stay for more.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Follow {
    /// Go on with what comes, until the VM ends.
    #[serde(default)]
    #[param(default = false)]
    pub follow: bool,
}

/// What a VM's console has printed: the first MiB of it; with `follow` the last 64 KiB of it, and then what
/// it prints, as it does. Who reads too slowly for the guest is cut off.
#[utoipa::path(get, path = "/v1/vms/{name}/console", operation_id = "vm_console", tag = TAG_VMS,
    params(("name" = VmName, Path, description = "Its name"), Follow),
    responses((status = 200, content_type = "application/octet-stream", body = Vec<u8>),
        Refused, VmRefused))]
pub async fn output(
    State(agent): State<Agent>,
    Vm(name): Vm,
    Parameters(Follow { follow }): Parameters<Follow>,
) -> Result<Response, ApiError> {
    let info = agent.node.inspect(&name)?;
    if follow && info.state != VmState::Ended {
        let place = agent.stream()?;
        let socket = agent.node.console_socket(&name)?;
        match connect(&socket).await {
            Ok(stream) => {
                let stay = stream::unfold((stream, place), |(mut stream, place)| async {
                    let piece = read(&mut stream).await?;
                    Some((Ok::<_, io::Error>(piece), (stream, place)))
                });
                return Ok(bytes(Body::from_stream(stay)));
            }
            // It has ended just now.
            Err(error) => tracing::debug!(vm = %name, "no console: {error}"),
        }
    }
    let file = agent.node.console_file(&name)?;
    Ok(bytes(whole(File::open(file).await.map_err(|error| unreadable(&name, error))?)))
}

async fn connect(path: &std::path::Path) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(path).await?;
    stream.write_all(REQUEST).await?;
    Ok(stream)
}

async fn read(stream: &mut (impl AsyncReadExt + Unpin)) -> Option<Bytes> {
    let mut piece = vec![0; PIECE];
    let count = stream.read(&mut piece).await.ok().filter(|count| *count > 0)?;
    piece.truncate(count);
    Some(piece.into())
}

fn whole(file: File) -> Body {
    Body::from_stream(stream::unfold(file, |mut file| async {
        Some((Ok::<_, io::Error>(read(&mut file).await?), file))
    }))
}

fn bytes(body: Body) -> Response {
    ([(header::CONTENT_TYPE, "application/octet-stream")], body).into_response()
}

fn unreadable(name: &VmName, source: io::Error) -> ApiError {
    // It was deleted meanwhile.
    if source.kind() == io::ErrorKind::NotFound {
        return NodeError::NoVm(name.clone()).into();
    }
    NodeError::system(format!("read a file of VM '{name}'"))(source).into()
}

/// Types at a VM's console, at most 4096 bytes. As at a terminal whose guest does not read, what is too much
/// is dropped.
#[utoipa::path(post, path = "/v1/vms/{name}/console", operation_id = "type_at_vm", tag = TAG_VMS,
    params(("name" = VmName, Path, description = "Its name")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 204, description = "It is typed"), Refused, BodyRefused, VmRefused, Conflict))]
pub async fn input(
    State(agent): State<Agent>,
    Vm(name): Vm,
    _: Parameters<None_>,
    Raw(keys): Raw,
) -> Result<StatusCode, ApiError> {
    if keys.len() > MAX_INPUT {
        let message = format!("at most {MAX_INPUT} bytes are typed at once");
        return Err(ApiError::new("too_large", message));
    }
    let state = agent.node.inspect(&name)?.state;
    if !matches!(state, VmState::Ready | VmState::Running) {
        return Err(NodeError::State { name, what: "typed at", state }.into());
    }
    let socket = agent.node.console_socket(&name)?;
    let typed = timeout(INPUT_PATIENCE, async {
        let mut stream = connect(&socket).await?;
        stream.write_all(&keys).await?;
        stream.shutdown().await?;
        // The VM closes when it has taken it; until then it shows its console.
        while read(&mut stream).await.is_some() {}
        Ok(())
    });
    match typed.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(()) => Ok(StatusCode::NO_CONTENT),
        Err(source) => {
            // That it has ended explains it.
            let state = agent.node.inspect(&name)?.state;
            if state == VmState::Ended {
                return Err(NodeError::State { name, what: "typed at", state }.into());
            }
            Err(ApiError::new("capacity", NodeError::Silent { name, source }.to_string()))
        }
    }
}

/// What a guest has said of itself (marks, ready, heartbeats, metrics, messages), a line of JSON each; with
/// `follow` also what it says from then on.
#[utoipa::path(get, path = "/v1/vms/{name}/events", operation_id = "vm_events", tag = TAG_VMS,
    params(("name" = VmName, Path, description = "Its name"), Follow),
    responses((status = 200, content_type = "application/jsonl", body = String), Refused, VmRefused))]
pub async fn guest_events(
    State(agent): State<Agent>,
    Vm(name): Vm,
    Parameters(Follow { follow }): Parameters<Follow>,
) -> Result<Response, ApiError> {
    let path = agent.node.guest_events(&name)?;
    let file = match File::open(path).await {
        Ok(file) => file,
        // Its process is not started yet.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            agent.node.inspect(&name)?;
            return Ok(super::lines(Body::empty()));
        }
        Err(error) => return Err(unreadable(&name, error)),
    };
    if !follow {
        return Ok(super::lines(whole(file)));
    }
    let place = agent.stream()?;
    let number = agent.node.inspect(&name)?.number;
    let more = stream::unfold((file, agent, place), move |(mut file, agent, place)| {
        let name = name.clone();
        async move {
            loop {
                // What it said last is there when it has ended.
                let info = agent.node.inspect(&name);
                if let Some(piece) = read(&mut file).await {
                    return Some((Ok::<_, io::Error>(piece), (file, agent, place)));
                }
                let lives = info.is_ok_and(|vm| vm.number == number && vm.state != VmState::Ended);
                if !lives {
                    return None;
                }
                sleep(LOOK_AGAIN).await;
            }
        }
    });
    Ok(super::lines(Body::from_stream(more)))
}
