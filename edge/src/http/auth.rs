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

/// `token=…` as it stands in the URL of who may watch by it: URLs that such a player is given carry it too, since it sends no header there either.
pub(super) fn carried<'a>(wanted: Option<&Token>, request: &'a HttpRequest) -> Option<&'a str> {
    wanted.filter(|_| in_header(request).is_none())?;
    let mut pairs = request.query_string().split('&');
    pairs.find(|pair| pair.starts_with("token="))
}

/// Passes if no token is wanted, or the right one is presented. A header wins over the URL.
pub(super) fn check(wanted: Option<&Token>, request: &HttpRequest) -> Result<(), Problem> {
    let Some(wanted) = wanted else {
        return Ok(());
    };
    let in_url = || {
        actix_web::web::Query::<Query>::from_query(request.query_string())
            .ok()
            .and_then(|query| query.into_inner().token)
    };
    let presented = match in_header(request) {
        Some(token) => Some(token.to_owned()),
        None => in_url(),
    };
    match presented {
        None => Err(Problem::unauthorized()),
        Some(token) if wanted.matches(&token) => Ok(()),
        Some(_) => Err(Problem::forbidden()),
    }
}

fn in_header(request: &HttpRequest) -> Option<&str> {
    let value = request.headers().get(header::AUTHORIZATION)?;
    bearer(value.to_str().ok()?)
}
