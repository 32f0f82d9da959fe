//! Answers that say what is wrong: `application/problem+json` (RFC 9457) with types of ours.

use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use actix_web::http::header;
use serde_json::json;

/// An error answer. `kind` is of a closed set, and names the type `urn:headwater:problem:<kind>`; `title` says what that means, the status'
/// own words if nothing better does, and `detail` what it is about this time.
pub fn problem(status: StatusCode, kind: &str, title: Option<&str>, detail: &str) -> HttpResponse {
    let title = title.or_else(|| status.canonical_reason());
    let body = json!({
        "type": format!("urn:headwater:problem:{kind}"),
        "title": title.unwrap_or("Error"),
        "status": status.as_u16(),
        "detail": detail,
    });
    HttpResponse::build(status)
        .content_type("application/problem+json")
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .body(body.to_string())
}
