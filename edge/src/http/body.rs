//! Reads a request's body: of the right type, not too long, and not drop by drop.

use std::time::Duration;

use actix_web::HttpRequest;
use actix_web::http::header;
use actix_web::web::Payload;
use futures_util::StreamExt as _;

use super::error::Problem;

/// The media type alone: parameters such as a charset don't matter to SDP.
pub(super) fn is_type(request: &HttpRequest, wanted: &str) -> bool {
    request
        .headers()
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .is_some_and(|essence| essence.trim().eq_ignore_ascii_case(wanted))
}

/// The body as text.
///
/// `timeout` bounds the whole body: actix-web's own request timeout ends with the head.
pub(super) async fn read_text(
    request: &HttpRequest,
    payload: Payload,
    bytes_max: usize,
    timeout: Duration,
) -> Result<String, Problem> {
    let announced = request
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.parse::<u64>().ok());
    if announced.is_some_and(|bytes| usize::try_from(bytes).map_or(true, |n| n > bytes_max)) {
        return Err(Problem::too_large(bytes_max));
    }
    let bytes = tokio::time::timeout(timeout, collect(payload, bytes_max))
        .await
        .map_err(|_| Problem::slow_body())??;
    String::from_utf8(bytes).map_err(|_| Problem::malformed("the body is no UTF-8 text"))
}

async fn collect(mut payload: Payload, bytes_max: usize) -> Result<Vec<u8>, Problem> {
    let mut body = Vec::new();
    while let Some(chunk) = payload.next().await {
        let chunk = chunk.map_err(|_| Problem::malformed("the body can't be read"))?;
        if body.len() + chunk.len() > bytes_max {
            return Err(Problem::too_large(bytes_max));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}
