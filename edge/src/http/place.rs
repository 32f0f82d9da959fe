//! Where a player that wants to watch is served: here, or at another edge.

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse};
use headwater_media::id::{NodeId, StreamName};
use headwater_media::placement::Candidate;
use headwater_node::directory::NodeRecord;
use tracing::debug;

use super::error::Problem;
use super::{EdgeState, forward, forwarded};

/// Stands in the query of a player that another edge sent.
const SENT_BY: &str = "sent-by=";

/// Edges that are asked whether they are there, for one player (count).
const EDGES_ASKED: usize = 2;

/// Where a newcomer is served.
pub(super) enum Place {
    Here,
    /// At another edge, where the player can get itself.
    Redirect(HttpResponse),
    /// At another edge, which has no address of its own for players.
    Forward {
        there: NodeRecord,
        /// Why it isn't served here, if it must not.
        refused: Result<(), Problem>,
    },
}

/// Finds a place for a player that can't be served here, or better elsewhere. If it can get there, it is told so: 307, so that it repeats its
/// POST (conformance with RFC 9725 section 4.5). One that was sent or handed here stays, or nobody would have it.
pub(super) async fn find(
    request: &HttpRequest,
    state: &EdgeState,
    name: &StreamName,
) -> Result<Place, Problem> {
    let refused = if state.draining() {
        Err(Problem::draining())
    } else {
        let picked = state.shards.pick(state.node.clock.now());
        picked.map(drop).map_err(Problem::from)
    };
    let query = request.query_string();
    let was_sent = query.split('&').any(|pair| pair.starts_with(SENT_BY));
    if was_sent || forwarded::is(request) {
        return refused.map(|()| Place::Here);
    }
    let placement = &state.placement;
    let choose = || {
        let now = state.node.clock.now();
        let silent = |edge: &NodeId| state.heard.silent(edge, now);
        if refused.is_err() {
            return placement.other(name, silent);
        }
        let here = Candidate {
            load: state.shards.load(now),
            has_stream: state.registry.watch(name).is_some(),
        };
        placement.better(name, &here, silent)
    };
    // Browsers and most others don't repeat a token at another host.
    let movable = !request.headers().contains_key(header::AUTHORIZATION);
    let mut tries = 0;
    let (there, url) = loop {
        let Some(there) = choose().filter(|_| tries < EDGES_ASKED) else {
            return refused.map(|()| Place::Here);
        };
        let Some(url) = placement.url_at(&there, name).filter(|_| movable) else {
            return Ok(Place::Forward { there, refused });
        };
        // Whoever is told to go doesn't come back here.
        if forward::answers(request, state, &there).await {
            break (there, url);
        }
        tries += 1;
    };
    let separator = if query.is_empty() { "" } else { "&" };
    let location = format!("{url}?{query}{separator}{SENT_BY}{}", state.node.id);
    debug!(stream = %name, to = %there.id, "a viewer is sent to another edge");
    let redirect = HttpResponse::TemporaryRedirect()
        .insert_header((header::LOCATION, location))
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .finish();
    Ok(Place::Redirect(redirect))
}
