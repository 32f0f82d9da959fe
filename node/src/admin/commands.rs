//! What the admin port is told to do: drain, and make viewers and publishers leave.
//!
//! A page that an operator has open elsewhere could ask for all this, too, so requests of pages are taken from our own only.

use std::net::{Ipv4Addr, Ipv6Addr};

use actix_web::body::BoxBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderMap};
use actix_web::middleware::Next;
use actix_web::{Error, HttpRequest, HttpResponse, web};
use headwater_media::id::{InvalidStreamName, StreamName};
use serde_json::json;
use tracing::info;

use super::{REPORT_DEADLINE, State, answer, problem, too_slow};
use crate::auth;

/// Why a command is not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Refusal {
    #[error("a page from elsewhere may not do this")]
    Elsewhere,
    #[error("this needs the node's token (auth.admin_token)")]
    NoToken,
    #[error(
        "this node isn't known by that name: ask by an IP address, as localhost, by a name without a dot or under .svc, .local or .internal, or by one of `admin.hosts`"
    )]
    UnknownHost,
    #[error("there is no viewer {0} on this node")]
    NoViewer(String),
    #[error("nobody publishes {0} to this node")]
    NoPublisher(StreamName),
    #[error(transparent)]
    Name(#[from] InvalidStreamName),
}

impl From<Refusal> for HttpResponse {
    fn from(refusal: Refusal) -> Self {
        let (status, kind) = match &refusal {
            Refusal::Elsewhere => (StatusCode::FORBIDDEN, "forbidden"),
            Refusal::NoToken => (StatusCode::UNAUTHORIZED, "unauthorized"),
            Refusal::UnknownHost => (StatusCode::FORBIDDEN, "unknown-host"),
            Refusal::NoViewer(_) => (StatusCode::NOT_FOUND, "no-viewer"),
            Refusal::NoPublisher(_) => (StatusCode::NOT_FOUND, "no-publisher"),
            Refusal::Name(_) => (StatusCode::BAD_REQUEST, "bad-request"),
        };
        let mut response = problem(status, kind, &refusal.to_string());
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(
                header::WWW_AUTHENTICATE,
                header::HeaderValue::from_static("Bearer"),
            );
        }
        response
    }
}

/// `POST /api/v1/drain`.
pub(super) async fn drain(request: HttpRequest, state: web::Data<State>) -> HttpResponse {
    if let Err(refusal) = admit(request.headers(), &state) {
        return refusal.into();
    }
    info!("asked to drain and stop");
    state.node.shutdown.cancel();
    answer(StatusCode::ACCEPTED, &json!({ "draining": true }))
}

/// `POST /api/v1/viewers/{id}/kick`.
pub(super) async fn kick_viewer(
    request: HttpRequest,
    path: web::Path<String>,
    state: web::Data<State>,
) -> HttpResponse {
    if let Err(refusal) = admit(request.headers(), &state) {
        return refusal.into();
    }
    let id = path.into_inner();
    let known = id.parse().ok().filter(|viewer| {
        let mut roles = state.roles.iter();
        roles.any(|role| role.kick_viewer(*viewer))
    });
    let Some(viewer) = known else {
        return Refusal::NoViewer(id).into();
    };
    info!(viewer, "a viewer was kicked");
    answer(StatusCode::OK, &json!({ "kicked": viewer }))
}

/// `POST /api/v1/streams/{app}/{stream}/kick`.
pub(super) async fn kick_publisher(
    request: HttpRequest,
    path: web::Path<(String, String)>,
    state: web::Data<State>,
) -> HttpResponse {
    if let Err(refusal) = admit(request.headers(), &state) {
        return refusal.into();
    }
    let name = match StreamName::new(&path.0, &path.1) {
        Ok(name) => name,
        Err(error) => return Refusal::from(error).into(),
    };
    let kick = async {
        for role in &state.roles {
            if role.kick_publisher(name.clone()).await {
                return true;
            }
        }
        false
    };
    match tokio::time::timeout(REPORT_DEADLINE, kick).await {
        Ok(true) => {
            info!(stream = %name, "a publisher was kicked");
            answer(StatusCode::OK, &json!({ "kicked": name.as_str() }))
        }
        Ok(false) => Refusal::NoPublisher(name).into(),
        Err(_) => too_slow(),
    }
}

/// Whether a request may change something: [`check`], and the node's token, if it has one.
fn admit(headers: &HeaderMap, state: &State) -> Result<(), Refusal> {
    check(headers, &state.hosts)?;
    let Some(token) = &state.token else {
        return Ok(());
    };
    let given = headers.get(header::AUTHORIZATION);
    let given = given.and_then(|value| auth::bearer(value.to_str().ok()?));
    if given.is_some_and(|given| token.matches(given)) {
        Ok(())
    } else {
        Err(Refusal::NoToken)
    }
}

/// Whether a request may change something: one that no page sent, or one of our own page.
///
/// Browsers say of every POST which page it comes from (`Origin`). That this is the host it goes to isn't enough: any page's name may be
/// made to point here once the page is loaded. So the host has to be an address, which nobody else's page can have, or a name that is
/// known to be ours.
fn check(headers: &HeaderMap, hosts: &[String]) -> Result<(), Refusal> {
    let text = |name| {
        headers
            .get(name)
            .map(|value| value.to_str().unwrap_or_default())
    };
    let (origin, site) = (text("origin"), text("sec-fetch-site"));
    if origin.is_none() && site.is_none() {
        return Ok(());
    }
    let page = origin
        .and_then(|origin| Some(origin.split_once("://")?.1))
        .filter(|_| site.is_none_or(|site| site == "same-origin"))
        .zip(text("host"))
        .filter(|(page, host)| page.eq_ignore_ascii_case(host));
    let (_, host) = page.ok_or(Refusal::Elsewhere)?;
    if is_own(host, hosts) {
        Ok(())
    } else {
        Err(Refusal::UnknownHost)
    }
}

/// Lets a request for the API through if it names this node as its own page does. Otherwise a page from elsewhere could read it, by having its
/// name point here: to the browser the answers are the page's own then.
pub(super) async fn known_by_name(
    request: ServiceRequest,
    next: Next<BoxBody>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let host = request.headers().get(header::HOST);
    let host = host.map(|host| host.to_str().unwrap_or_default());
    let state = request.app_data::<web::Data<State>>();
    let hosts = state.map_or(&[][..], |state| &state.hosts);
    if host.is_some_and(|host| !is_own(host, hosts)) {
        return Ok(request.into_response(HttpResponse::from(Refusal::UnknownHost)));
    }
    next.call(request).await
}

/// Nobody can have a name under these: they are for use within a network (RFC 6762, ICANN's reservation of `internal`), the first in Kubernetes.
const PRIVATE: [&str; 3] = [".svc", ".local", ".internal"];

/// `host`, with or without a port, is an address, or a name that is ours. Names without a dot are known in this network only.
fn is_own(host: &str, names: &[String]) -> bool {
    if let Some(rest) = host.strip_prefix('[') {
        let address = rest.split_once(']').map_or("", |(address, _)| address);
        return address.parse::<Ipv6Addr>().is_ok();
    }
    let name = host.split_once(':').map_or(host, |(name, _)| name);
    let name = name.to_ascii_lowercase();
    name.parse::<Ipv4Addr>().is_ok()
        || !name.contains('.')
        || PRIVATE.iter().any(|suffix| name.ends_with(suffix))
        || names.iter().any(|own| name.eq_ignore_ascii_case(own))
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::{HeaderName, HeaderValue};

    use super::*;

    #[test]
    fn only_what_is_no_page_or_our_own_may_change_something() {
        use Refusal::{Elsewhere, UnknownHost};
        let own = ["admin.example".to_owned()];
        for (host, origin, site, expected) in [
            ("n:9600", None, None, Ok(())),
            ("10.0.0.7:9600", Some("http://10.0.0.7:9600"), None, Ok(())),
            (
                "127.0.0.1",
                Some("http://127.0.0.1"),
                Some("same-origin"),
                Ok(()),
            ),
            (
                "[::1]:9600",
                Some("http://[::1]:9600"),
                Some("same-origin"),
                Ok(()),
            ),
            (
                "localhost:1",
                Some("http://LOCALHOST:1"),
                Some("same-origin"),
                Ok(()),
            ),
            (
                "admin.example",
                Some("https://admin.example"),
                Some("same-origin"),
                Ok(()),
            ),
            ("o1:9600", Some("http://o1:9600"), None, Ok(())),
            (
                "o1.ns.svc:9600",
                Some("http://o1.ns.svc:9600"),
                None,
                Ok(()),
            ),
            (
                "o1.ns.svc.cluster.LOCAL",
                Some("http://o1.ns.svc.cluster.local"),
                None,
                Ok(()),
            ),
            // Another page, another port of the same host, no page that could be named, no origin at all.
            (
                "10.0.0.7:9600",
                Some("https://evil.example"),
                Some("cross-site"),
                Err(Elsewhere),
            ),
            (
                "10.0.0.7:9600",
                Some("http://10.0.0.7:80"),
                None,
                Err(Elsewhere),
            ),
            (
                "localhost:9600",
                Some("http://localhost:9600"),
                Some("same-site"),
                Err(Elsewhere),
            ),
            ("localhost:9600", Some("null"), None, Err(Elsewhere)),
            ("localhost:9600", None, Some("same-origin"), Err(Elsewhere)),
            ("localhost:9600", None, Some("none"), Err(Elsewhere)),
            // Its name points here now.
            (
                "evil.example:9600",
                Some("http://evil.example:9600"),
                None,
                Err(UnknownHost),
            ),
            (
                "o1.svc.evil.example",
                Some("http://o1.svc.evil.example"),
                None,
                Err(UnknownHost),
            ),
            (
                "10.0.0.7.evil.example",
                Some("http://10.0.0.7.evil.example"),
                None,
                Err(UnknownHost),
            ),
            (
                "[evil]:9600",
                Some("http://[evil]:9600"),
                None,
                Err(UnknownHost),
            ),
        ] {
            let mut headers = HeaderMap::new();
            let mut put = |name: &'static str, value: Option<&'static str>| {
                if let Some(value) = value {
                    headers.insert(
                        HeaderName::from_static(name),
                        HeaderValue::from_static(value),
                    );
                }
            };
            put("host", Some(host));
            put("origin", origin);
            put("sec-fetch-site", site);
            assert_eq!(
                check(&headers, &own),
                expected,
                "{host} {origin:?} {site:?}"
            );
        }
    }
}
