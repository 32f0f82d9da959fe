//! The player's pages and files, embedded in the binary.

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};
use headwater_media::id::StreamName;

use super::error::Problem;

/// Everything a page needs comes from here; it may talk to other edges (that is where redirects and fail-over lead), and
/// be framed by nobody else's rules but the operator's proxy.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
                      connect-src *; media-src 'self' blob: mediastream:; base-uri 'none'; form-action 'self'";

/// A file under `/assets/`.
struct Asset {
    name: &'static str,
    content_type: &'static str,
    body: &'static str,
}

const ASSETS: [Asset; 7] = [
    Asset {
        name: "index.js",
        content_type: "text/javascript; charset=utf-8",
        body: include_str!("../../player/index.js"),
    },
    Asset {
        name: "player.js",
        content_type: "text/javascript; charset=utf-8",
        body: include_str!("../../player/player.js"),
    },
    Asset {
        name: "events.js",
        content_type: "text/javascript; charset=utf-8",
        body: include_str!("../../player/events.js"),
    },
    Asset {
        name: "quality.js",
        content_type: "text/javascript; charset=utf-8",
        body: include_str!("../../player/quality.js"),
    },
    Asset {
        name: "qoe.js",
        content_type: "text/javascript; charset=utf-8",
        body: include_str!("../../player/qoe.js"),
    },
    Asset {
        name: "style.css",
        content_type: "text/css; charset=utf-8",
        body: include_str!("../../player/style.css"),
    },
    Asset {
        name: "favicon.svg",
        content_type: "image/svg+xml",
        body: include_str!("../../player/favicon.svg"),
    },
];

/// `/`: what is live.
pub(super) async fn index() -> HttpResponse {
    page(include_str!("../../player/index.html"))
}

/// `/play/{app}/{stream}`. The page finds the name in its own URL; it is checked here so that a wrong one is a 404.
pub(super) async fn play(path: web::Path<(String, String)>) -> Result<HttpResponse, Problem> {
    let (app, stream) = path.into_inner();
    StreamName::new(&app, &stream).map_err(|error| Problem::not_found(error.to_string()))?;
    Ok(page(include_str!("../../player/play.html")))
}

/// `/assets/{name}`. Names don't change with the content, so browsers ask each time and mostly get a 304.
pub(super) async fn asset(
    request: HttpRequest,
    path: web::Path<String>,
) -> Result<HttpResponse, Problem> {
    let name = path.into_inner();
    let asset = ASSETS
        .iter()
        .find(|asset| asset.name == name)
        .ok_or_else(|| Problem::not_found("there is no such file"))?;
    let etag = etag(asset.body);
    let known = request
        .headers()
        .get_all(header::IF_NONE_MATCH)
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|tag| tag.trim().trim_start_matches("W/") == etag);
    let mut response = if known {
        HttpResponse::NotModified()
    } else {
        HttpResponse::Ok()
    };
    response
        .insert_header((header::ETAG, etag))
        .insert_header((header::CACHE_CONTROL, "no-cache"))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"));
    if known {
        return Ok(response.finish());
    }
    Ok(response.content_type(asset.content_type).body(asset.body))
}

fn page(body: &'static str) -> HttpResponse {
    HttpResponse::Ok()
        .content_type("text/html; charset=utf-8")
        .insert_header((header::CACHE_CONTROL, "no-cache"))
        .insert_header((header::CONTENT_SECURITY_POLICY, POLICY))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        // A token may stand in the page's URL.
        .insert_header((header::REFERRER_POLICY, "no-referrer"))
        .body(body)
}

/// Strong, and the same in every process of one build: the file's FNV-1a hash.
fn etag(body: &str) -> String {
    let hash = body.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("\"{hash:016x}\"")
}
