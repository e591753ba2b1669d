//! What can be done with the images of the pool.
#![allow(unused_qualifications, reason = "what utoipa writes for parameters has some")]

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use utoipa::IntoParams;

use super::error::{ApiError, BodyRefused, Conflict, ImageRefused, Refused};
use super::extract::{Image, JsonBody, Parameters};
use super::vms::None_;
use super::{Agent, TAG_IMAGES};
use crate::api::{PoolImage, PullImage};
use crate::spec::name::{ImageNameSchema, TenantName};

/// Whose image.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Whose {
    /// The tenant that it is of; the operator's own unless said otherwise.
    #[serde(default)]
    #[param(required = false)]
    tenant: TenantName,
}

/// The images in the pool.
#[utoipa::path(get, path = "/v1/images", operation_id = "list_images", tag = TAG_IMAGES,
    responses((status = 200, body = Vec<PoolImage>), Refused))]
pub async fn list(
    State(agent): State<Agent>,
    _: Parameters<None_>,
) -> Result<Json<Vec<PoolImage>>, ApiError> {
    Ok(Json(agent.blocking(|node| Ok(node.images())).await?))
}

/// Has an image in the pool, so that VMs find it there. Answers when it is.
#[utoipa::path(post, path = "/v1/images", operation_id = "pull_image", tag = TAG_IMAGES,
    request_body = PullImage,
    responses((status = 200, body = PoolImage), Refused, BodyRefused, Conflict, ImageRefused))]
pub async fn pull(
    State(agent): State<Agent>,
    _: Parameters<None_>,
    JsonBody(wish): JsonBody<PullImage>,
) -> Result<Json<PoolImage>, ApiError> {
    Ok(Json(agent.turn(move |node| node.pull(&wish)).await?))
}

/// Keeps an image in the pool whether or not any VM uses it.
#[utoipa::path(put, path = "/v1/images/{image}/pin", operation_id = "pin_image", tag = TAG_IMAGES,
    params(("image" = ImageNameSchema, Path, description = "Its name, of which each '/' is written %2F"), Whose),
    responses((status = 200, body = PoolImage), Refused, ImageRefused))]
pub async fn pin(
    State(agent): State<Agent>,
    Image(image): Image,
    Parameters(Whose { tenant }): Parameters<Whose>,
) -> Result<Json<PoolImage>, ApiError> {
    Ok(Json(agent.blocking(move |node| node.pin(&image, &tenant, true)).await?))
}

/// Lets an image be given up when nobody uses it and there is no room.
#[utoipa::path(delete, path = "/v1/images/{image}/pin", operation_id = "unpin_image",
    tag = TAG_IMAGES,
    params(("image" = ImageNameSchema, Path, description = "Its name, of which each '/' is written %2F"), Whose),
    responses((status = 200, body = PoolImage), Refused, ImageRefused))]
pub async fn unpin(
    State(agent): State<Agent>,
    Image(image): Image,
    Parameters(Whose { tenant }): Parameters<Whose>,
) -> Result<Json<PoolImage>, ApiError> {
    Ok(Json(agent.blocking(move |node| node.pin(&image, &tenant, false)).await?))
}

/// Gives an image up.
#[utoipa::path(delete, path = "/v1/images/{image}", operation_id = "drop_image", tag = TAG_IMAGES,
    params(("image" = ImageNameSchema, Path, description = "Its name, of which each '/' is written %2F"), Whose),
    responses((status = 204, description = "It is given up"), Refused, ImageRefused, Conflict))]
pub async fn drop(
    State(agent): State<Agent>,
    Image(image): Image,
    Parameters(Whose { tenant }): Parameters<Whose>,
) -> Result<StatusCode, ApiError> {
    agent.blocking(move |node| node.drop_image(&image, &tenant)).await?;
    Ok(StatusCode::NO_CONTENT)
}
