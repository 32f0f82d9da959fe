//! Who may watch: one static token, or everybody (RFC 6750; the token may stand in the URL for players that can't set headers).

use actix_web::HttpRequest;
use actix_web::http::header;
use headwater_node::auth::{Token, bearer};
use serde::Deserialize;

use super::error::Problem;

#[derive(Deserialize)]
struct Query {
    token: Option<String>,
}

/// Passes if no token is wanted, or the right one is presented. A header wins over the URL.
pub(super) fn check(wanted: Option<&Token>, request: &HttpRequest) -> Result<(), Problem> {
    let Some(wanted) = wanted else {
        return Ok(());
    };
    let in_header = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(bearer);
    let in_url = || {
        actix_web::web::Query::<Query>::from_query(request.query_string())
            .ok()
            .and_then(|query| query.into_inner().token)
    };
    let presented = match in_header {
        Some(token) => Some(token.to_owned()),
        None => in_url(),
    };
    match presented {
        None => Err(Problem::unauthorized()),
        Some(token) if wanted.matches(&token) => Ok(()),
        Some(_) => Err(Problem::forbidden()),
    }
}
