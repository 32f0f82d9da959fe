//! The HTTP half of joining: POST the offer, DELETE the session (draft-ietf-wish-whep).

use std::time::Duration;

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, LOCATION, RETRY_AFTER};
use reqwest::{Client, Method, Response, StatusCode, Url};
use tokio::sync::mpsc;

use super::events;

/// For connecting and for each answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// An SDP answer has a few kB; more is not one.
const BODY_BYTES_MAX: usize = 256 * 1024;

/// The type of an edge's refusal that is over once it reaches the stream's origin, as a stream that isn't live yet is.
const NO_UPSTREAM: &str = "\"urn:headwater:problem:no-upstream\"";

/// Speaks WHEP to one endpoint.
#[derive(Debug, Clone)]
pub(super) struct Whep {
    client: Client,
    endpoint: Url,
    auth: Auth,
}

/// What requests are authorized by.
#[derive(Debug, Clone)]
pub(super) struct Auth {
    bearer: Option<String>,
}

/// The answer to an offer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) sdp: String,
    /// Where to DELETE the session.
    pub(super) session: Option<Url>,
    /// Where to subscribe to its events, if the server has some.
    pub(super) events: Option<Url>,
}

/// Why there is no answer. The texts are sentences for people.
#[derive(Debug, thiserror::Error)]
pub(super) enum WhepError {
    #[error("{0} is no URL of a WHEP endpoint or player page")]
    Url(String),
    #[error("the TLS or HTTP client cannot start: {0}")]
    Client(#[source] reqwest::Error),
    #[error("{endpoint} does not answer: {}", root_cause(.source))]
    Unreachable {
        endpoint: Url,
        #[source]
        source: reqwest::Error,
    },
    #[error("the stream is not live (409)")]
    NotLive { retry_after: Duration },
    #[error("the edge can't reach the stream's origin (503)")]
    NoUpstream { retry_after: Duration },
    #[error("the server refused with {status}{detail}")]
    Refused { status: StatusCode, detail: String },
    #[error("the answer of the server is no SDP: {0}")]
    NoSdp(String),
}

impl Auth {
    pub(super) fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Some(bearer) = &self.bearer
            && let Ok(mut value) =
                format!("Bearer {bearer}").parse::<reqwest::header::HeaderValue>()
        {
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        headers
    }
}

impl Whep {
    /// For `url`, a WHEP endpoint or a player page.
    pub(super) fn new(url: &str, bearer: Option<&str>) -> Result<Self, WhepError> {
        let mut bearer = bearer.map(str::to_owned);
        let mut endpoint = Url::parse(url).map_err(|_| WhepError::Url(url.to_owned()))?;
        if !matches!(endpoint.scheme(), "http" | "https") || endpoint.host().is_none() {
            return Err(WhepError::Url(url.to_owned()));
        }
        if let Some(name) = endpoint.path().strip_prefix("/play/") {
            let path = format!("/whep/{name}");
            bearer = bearer.or_else(|| page_token(&endpoint));
            endpoint.set_path(&path);
            endpoint.set_query(None);
            endpoint.set_fragment(None);
        }
        // reqwest is built without a provider of its own; a second installation is refused, which is fine.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .user_agent(concat!("headwater-probe/", env!("CARGO_PKG_VERSION")))
            .timeout(ANSWER_TIMEOUT)
            .build()
            .map_err(WhepError::Client)?;
        Ok(Self {
            client,
            endpoint,
            auth: Auth { bearer },
        })
    }

    /// The same for another endpoint.
    pub(super) fn at(&self, endpoint: Url) -> Self {
        Self {
            endpoint,
            ..self.clone()
        }
    }

    /// Sends the endpoints that the server asks to join instead.
    pub(super) fn listen(&self, events: Url, invitations: mpsc::Sender<Url>) {
        let (client, auth) = (self.client.clone(), self.auth.clone());
        tokio::spawn(events::listen(client, auth, events, invitations));
    }

    /// The endpoint.
    pub(super) fn endpoint(&self) -> &Url {
        &self.endpoint
    }

    /// Sends the offer.
    pub(super) async fn offer(&self, sdp: String) -> Result<Answer, WhepError> {
        let response = self
            .client
            .request(Method::POST, self.endpoint.clone())
            .headers(self.headers())
            .header(CONTENT_TYPE, "application/sdp")
            .body(sdp)
            .send()
            .await
            .map_err(|source| self.unreachable(source))?;
        let status = response.status();
        if status == StatusCode::CONFLICT {
            return Err(WhepError::NotLive {
                retry_after: retry_after(response.headers()),
            });
        }
        if status != StatusCode::CREATED && status != StatusCode::OK {
            let retry_after = retry_after(response.headers());
            let body = self.body(response).await.unwrap_or_default();
            if status == StatusCode::SERVICE_UNAVAILABLE && body.contains(NO_UPSTREAM) {
                return Err(WhepError::NoUpstream { retry_after });
            }
            let detail = problem(body);
            return Err(WhepError::Refused { status, detail });
        }
        let session = response
            .headers()
            .get(LOCATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|location| response.url().join(location).ok());
        let events = events::link(&response);
        let sdp = self.body(response).await?;
        if !sdp.starts_with("v=0") {
            return Err(WhepError::NoSdp(sdp.chars().take(80).collect()));
        }
        Ok(Answer {
            sdp,
            session,
            events,
        })
    }

    /// Ends the session. Says whether the server knew it.
    pub(super) async fn delete(&self, session: Url) -> Result<bool, WhepError> {
        let response = self
            .client
            .request(Method::DELETE, session)
            .headers(self.headers())
            .send()
            .await
            .map_err(|source| self.unreachable(source))?;
        Ok(response.status().is_success())
    }

    fn headers(&self) -> HeaderMap {
        self.auth.headers()
    }
    async fn body(&self, mut response: Response) -> Result<String, WhepError> {
        let mut body = Vec::new();
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|source| self.unreachable(source))?
        {
            if body.len() + chunk.len() > BODY_BYTES_MAX {
                return Err(WhepError::NoSdp(format!("over {BODY_BYTES_MAX} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    fn unreachable(&self, source: reqwest::Error) -> WhepError {
        WhepError::Unreachable {
            endpoint: self.endpoint.clone(),
            source,
        }
    }
}

/// The token in a player page's address, where the page looks for it.
fn page_token(page: &Url) -> Option<String> {
    let mut fragment = page.clone();
    fragment.set_query(page.fragment());
    let token = |url: &Url| {
        let found = url.query_pairs().find(|(key, _)| key == "token");
        found.map(|(_, token)| token.into_owned())
    };
    token(&fragment).or_else(|| token(page))
}

/// The last of the causes is the one that says what happened ("connection refused").
fn root_cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

fn retry_after(headers: &HeaderMap) -> Duration {
    let seconds = headers
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(2))
        .clamp(Duration::from_millis(200), Duration::from_secs(30))
}

/// The sentence of a problem+json body (RFC 9457), after a colon; or the start of the text.
fn problem(body: String) -> String {
    let sentence = serde_json::from_str::<serde_json::Value>(&body)
        .ok()
        .and_then(|problem| {
            let field = |name| problem.get(name).and_then(|value| value.as_str());
            field("detail")
                .or_else(|| field("title"))
                .map(str::to_owned)
        })
        .unwrap_or(body);
    let sentence: String = sentence.trim().chars().take(400).collect();
    if sentence.is_empty() {
        sentence
    } else {
        format!(": {sentence}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn player_pages_name_their_endpoint() {
        for (url, expected) in [
            (
                "http://e:8080/play/live/demo",
                Some("http://e:8080/whep/live/demo"),
            ),
            (
                "http://e/play/live/demo?x=1#token=y",
                Some("http://e/whep/live/demo"),
            ),
            ("https://e/whep/live/demo", Some("https://e/whep/live/demo")),
            ("https://e/other/live", Some("https://e/other/live")),
            ("e:8080/whep/live/demo", None),
            ("rtmp://e/live/demo", None),
            ("", None),
        ] {
            let endpoint = Whep::new(url, None)
                .ok()
                .map(|whep| whep.endpoint.to_string());
            assert_eq!(endpoint.as_deref(), expected, "{url}");
        }
    }

    #[test]
    fn a_token_in_a_player_pages_address_is_given() {
        for (url, given, expected) in [
            ("http://e/play/live/demo", None, None),
            ("http://e/play/live/demo#token=a%2Bb", None, Some("a+b")),
            ("http://e/play/live/demo?token=y", None, Some("y")),
            ("http://e/play/live/demo?token=y#token=x", None, Some("x")),
            (
                "http://e/play/live/demo#token=x",
                Some("flag"),
                Some("flag"),
            ),
        ] {
            let whep = Whep::new(url, given).expect(url);
            assert_eq!(whep.auth.bearer.as_deref(), expected, "{url}");
            assert!(whep.endpoint.query().is_none() && whep.endpoint.fragment().is_none());
        }
    }

    #[test]
    fn problems_become_a_sentence() {
        for (body, expected) in [
            (
                r#"{"type":"x","title":"T","detail":"No B-frames."}"#,
                ": No B-frames.",
            ),
            (r#"{"title":"T"}"#, ": T"),
            ("plain", ": plain"),
            ("", ""),
        ] {
            assert_eq!(problem(body.to_owned()), expected);
        }
    }
}
