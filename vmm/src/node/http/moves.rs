//! What the agents of two hosts say to each other while an endpoint moves between them.
//!
//! It is not in the document: nobody but an agent of the same version speaks it, by the same right as all else, a
//! client certificate.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::Deserialize;

use super::Agent;
use super::error::ApiError;
use super::extract::{JsonBody, Parameters, Raw};
use crate::node::endpoints::{Order, Outcome};
use crate::node::error::NodeError;

/// Which piece of a state.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Piece {
    /// Its first byte.
    at: u64,
}

/// Has something done for a move to this node.
pub async fn order(
    State(agent): State<Agent>,
    JsonBody(order): JsonBody<Order>,
) -> Result<Json<Outcome>, ApiError> {
    let done = agent.blocking(move |node| Ok(node.endpoints().carry_out_order(&order)));
    Ok(Json(done.await?))
}

/// Takes a piece of a state for a VM of this node.
pub async fn state(
    State(agent): State<Agent>,
    Path(number): Path<String>,
    Parameters(Piece { at }): Parameters<Piece>,
    Raw(bytes): Raw,
) -> Result<StatusCode, ApiError> {
    let number = number.parse();
    let number: u64 = number.map_err(|_| ApiError::bad("the number of a move is one"))?;
    let done = agent.blocking(move |node| {
        node.endpoints().state_came(number, at, &bytes).map_err(NodeError::from)
    });
    done.await?;
    Ok(StatusCode::NO_CONTENT)
}
