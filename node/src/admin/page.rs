//! The page for operators at `/admin`, embedded in the binary. It reads the API that everybody else reads.

use actix_web::HttpResponse;
use actix_web::http::header;

/// All it needs comes from this port, nothing in it is run that isn't a file of ours, and nobody may frame it: a click on it does things.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Paths, types and contents of its files.
pub(super) const FILES: [(&str, &str, &str); 4] = [
    (
        "/admin",
        "text/html; charset=utf-8",
        include_str!("../../ui/admin.html"),
    ),
    (
        "/admin/admin.js",
        "text/javascript; charset=utf-8",
        include_str!("../../ui/admin.js"),
    ),
    (
        "/admin/admin.css",
        "text/css; charset=utf-8",
        include_str!("../../ui/admin.css"),
    ),
    (
        "/admin/icon.svg",
        "image/svg+xml",
        include_str!("../../ui/icon.svg"),
    ),
];

/// One of them.
pub(super) fn file(content_type: &'static str, body: &'static str) -> HttpResponse {
    HttpResponse::Ok()
        .content_type(content_type)
        // A node of another version may answer at this address next.
        .insert_header((header::CACHE_CONTROL, "no-cache"))
        .insert_header((header::CONTENT_SECURITY_POLICY, POLICY))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .insert_header((header::X_FRAME_OPTIONS, "DENY"))
        .insert_header((header::REFERRER_POLICY, "no-referrer"))
        .body(body)
}
