//! Cross-origin access: players live on other sites than the edge (Fetch standard, CORS protocol).
//!
//! `*` without credentials is safe here: what a request may do hangs on its token or its session URL, never on a cookie.

use actix_web::HttpResponse;
use actix_web::http::header::{self, HeaderMap, HeaderName, HeaderValue};

const EXPOSED: &str = "Location, ETag, Link, Retry-After, Accept-Patch, WWW-Authenticate";
const HEADERS: &str = "Authorization, Content-Type, If-Match, traceparent";

/// Adds what every answer of an API needs to be readable from a page of another origin.
pub(crate) fn expose(headers: &mut HeaderMap) {
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_ORIGIN,
        HeaderValue::from_static("*"),
    );
    headers.insert(
        header::ACCESS_CONTROL_EXPOSE_HEADERS,
        HeaderValue::from_static(EXPOSED),
    );
}

/// Answers OPTIONS. Preflights carry no Authorization, so none is asked for. 200, as the WHEP draft has it.
pub(crate) fn options(allow: &'static str, accept_post: Option<&'static str>) -> HttpResponse {
    let mut response = HttpResponse::Ok();
    response
        .insert_header((header::ALLOW, allow))
        .insert_header((header::ACCESS_CONTROL_ALLOW_METHODS, allow))
        .insert_header((header::ACCESS_CONTROL_ALLOW_HEADERS, HEADERS))
        .insert_header((header::ACCESS_CONTROL_MAX_AGE, "86400"));
    if let Some(media_type) = accept_post {
        response.insert_header((HeaderName::from_static("accept-post"), media_type));
    }
    response.finish()
}
