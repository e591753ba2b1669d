//! What is taken out of requests, each checked, with an [`ApiError`] that says what is wrong.

use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use endpoint::name::Name;
use imgcache::image::name::ImageName;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::error::ApiError;
use crate::spec::name::VmName;

/// The largest body, in bytes.
pub const MAX_BODY: usize = 256 << 10;
/// How long a body may take to come.
const BODY_PATIENCE: Duration = Duration::from_secs(10);

/// The VM that the path names.
#[derive(Debug)]
pub struct Vm(pub VmName);

/// The image that the path names.
#[derive(Debug)]
pub struct Image(pub ImageName);

/// The service that the path names.
#[derive(Debug)]
pub struct Service(pub Name);

/// The parameters behind the `?`.
#[derive(Debug)]
pub struct Parameters<T>(pub T);

/// A body of JSON.
#[derive(Debug)]
pub struct JsonBody<T>(pub T);

/// A body of JSON that may be left out.
#[derive(Debug)]
pub struct OptionalJson<T>(pub T);

/// A body of bytes.
#[derive(Debug)]
pub struct Raw(pub Bytes);

async fn name<T, S>(parts: &mut Parts, state: &S) -> Result<T, ApiError>
where
    T: FromStr<Err: Display>,
    S: Send + Sync,
{
    let path = Path::<String>::from_request_parts(parts, state).await;
    let Path(text) = path.map_err(|error| ApiError::bad(error.body_text()))?;
    text.parse().map_err(|error: T::Err| ApiError::bad(error.to_string()))
}

impl<S: Send + Sync> FromRequestParts<S> for Vm {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        name(parts, state).await.map(Self)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Image {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        name(parts, state).await.map(Self)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Service {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        name(parts, state).await.map(Self)
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Parameters<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Query(value) = Query::from_request_parts(parts, state)
            .await
            .map_err(|error| ApiError::bad(error.body_text()))?;
        Ok(Self(value))
    }
}

/// All of a body, within its limits.
async fn all(body: Body) -> Result<Bytes, ApiError> {
    match tokio::time::timeout(BODY_PATIENCE, to_bytes(body, MAX_BODY)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) if is_too_long(&error) => {
            let message = format!("the body is longer than {MAX_BODY} bytes");
            Err(ApiError::new("too_large", message))
        }
        Ok(Err(error)) => Err(ApiError::bad(format!("the body: {error}"))),
        Err(_) => Err(ApiError::new("slow", "the body did not come within 10 s")),
    }
}

fn is_too_long(error: &axum::Error) -> bool {
    let source = std::error::Error::source(error);
    source.is_some_and(<dyn std::error::Error>::is::<http_body_util::LengthLimitError>)
}

fn is_media_type(request: &Request, wanted: &str) -> bool {
    let given = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = given.map(|given| given.split(';').next().unwrap_or_default().trim());
    essence.is_some_and(|essence| essence.eq_ignore_ascii_case(wanted))
}

fn wrong_media_type(wanted: &str) -> ApiError {
    ApiError::new(
        "media_type",
        format!("the body is to be '{wanted}', and the header 'content-type' to say so"),
    )
}

/// Whether an error of serde's is of the shape that the document says, in which case it is worded by serde;
/// else it is of a text that is not what its own type says, such as a name or an address.
fn is_of_shape(message: &str) -> bool {
    let first =
        ["invalid type", "invalid value", "invalid length", "unknown", "missing", "duplicate"];
    first.iter().any(|words| message.starts_with(words))
}

/// Reads JSON; what is wrong with it is said with where in it that is.
fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let mut document = serde_json::from_slice(bytes)
        .map_err(|error| ApiError::bad(format!("the body: {error}")))?;
    whole_numbers(&mut document);
    serde_path_to_error::deserialize(document).map_err(|error| {
        let path = error.path().to_string();
        let at = if path == "." { "the body".to_owned() } else { format!("'{path}'") };
        let message = format!("{at}: {}", error.inner());
        let is_value = error.inner().is_data() && !is_of_shape(&error.inner().to_string());
        ApiError::new(if is_value { "invalid" } else { "bad_request" }, message)
    })
}

/// Makes integers of numbers such as 4.0: JSON Schema, in whose words the document is, does not tell them
/// apart (draft 2020-12, validation, section 6.1.1).
fn whole_numbers(value: &mut Value) {
    /// Up to here, floating point has every integer.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match value {
        Value::Number(number) if number.is_f64() => {
            let Some(float) = number.as_f64() else { return };
            if float.fract() == 0.0 && (0.0..EXACT).contains(&float) {
                let digits = format!("{float:.0}");
                *value = digits.parse::<u64>().map_or(Value::Null, Value::from);
            }
        }
        Value::Array(all) => all.iter_mut().for_each(whole_numbers),
        Value::Object(all) => all.values_mut().for_each(whole_numbers),
        _ => {}
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        if !is_media_type(&request, "application/json") {
            return Err(wrong_media_type("application/json"));
        }
        parse(&all(request.into_body()).await?).map(Self)
    }
}

impl<T: DeserializeOwned + Default, S: Send + Sync> FromRequest<S> for OptionalJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let json = is_media_type(&request, "application/json");
        let bytes = all(request.into_body()).await?;
        match (bytes.is_empty(), json) {
            (true, _) => Ok(Self(T::default())),
            (false, true) => parse(&bytes).map(Self),
            (false, false) => Err(wrong_media_type("application/json")),
        }
    }
}

impl<S: Send + Sync> FromRequest<S> for Raw {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        if !is_media_type(&request, "application/octet-stream") {
            return Err(wrong_media_type("application/octet-stream"));
        }
        all(request.into_body()).await.map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::CreateVm;

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        let bad = |text: &str| format!("{:?}", parse::<CreateVm>(text.as_bytes()).unwrap_err());
        assert!(bad(r#"{"spec":{"image":"a","cpus":"x"}}"#).contains("spec.cpus"));
        assert!(bad(r#"{"spec":{"image":"a"}} x"#).contains("trailing"));
        assert!(bad("nothing").contains("the body"));
        assert!(bad(r#"{"spec":{"image":"a","cpu":2}}"#).contains("bad_request"));
        // Of the right shape, and no name or address.
        assert!(bad(r#"{"spec":{"image":"../a"}}"#).contains("\"invalid\""));
        assert!(bad(r#"{"spec":{"image":"a","net":{"ip":"1.2.3"}}}"#).contains("\"invalid\""));
    }
}
