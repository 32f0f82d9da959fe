//! The one place where refusals become HTTP: `application/problem+json` (RFC 9457) with a sentence for people.

use std::fmt;

use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderName, HeaderValue};
use actix_web::{HttpResponse, ResponseError};
use headwater_media::sdp::{FragmentError, OfferError, Refusal};
use headwater_node::problem::problem;
use rand::Rng;

use crate::registry::OpenError;
use crate::shard::{JoinError, RestartError};

/// After how long those who found the edge full may ask again (seconds): a second or two after it has room would do, but there may be
/// thousands.
const FULL_RETRY_SECONDS: std::ops::RangeInclusive<u16> = 4..=12;

/// A refused request. `kind` is the closed set of `urn:headwater:problem:<kind>` types and metric labels.
#[derive(Debug)]
pub(crate) struct Problem {
    pub(crate) status: StatusCode,
    pub(crate) kind: &'static str,
    title: &'static str,
    detail: String,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Problem {
    pub(crate) fn new(
        status: StatusCode,
        kind: &'static str,
        title: &'static str,
        detail: impl Into<String>,
    ) -> Self {
        Self {
            status,
            kind,
            title,
            detail: detail.into(),
            headers: Vec::new(),
        }
    }

    fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// Says after how many seconds another try makes sense.
    pub(crate) fn retry_after(self, seconds: u16) -> Self {
        self.with(header::RETRY_AFTER, seconds.into())
    }

    /// 404 for whatever can't name a stream, and for paths that are nothing here.
    pub(crate) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", "Not found", detail)
    }

    pub(crate) fn no_session() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "no-session",
            "No such session",
            "this session has ended or never was",
        )
    }

    /// 405 with what would have been allowed (RFC 9110 section 15.5.6).
    pub(crate) fn method(allow: &'static str) -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method",
            "Method not allowed",
            format!("this resource takes {allow}"),
        )
        .with(header::ALLOW, HeaderValue::from_static(allow))
    }

    pub(crate) fn media_type(wanted: &'static str) -> Self {
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "media-type",
            "Unsupported media type",
            format!("the body must be {wanted}"),
        )
    }

    pub(crate) fn too_large(bytes_max: usize) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too-large",
            "Body too large",
            format!("the body is longer than {bytes_max} bytes"),
        )
    }

    pub(crate) fn malformed(detail: impl Into<String>) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "malformed",
            "Malformed request",
            detail,
        )
    }

    /// 422: understood, and not possible for this stream.
    pub(crate) fn unprocessable(detail: impl Into<String>) -> Self {
        Self::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "unprocessable",
            "Not possible",
            detail,
        )
    }

    pub(crate) fn slow_body() -> Self {
        Self::new(
            StatusCode::REQUEST_TIMEOUT,
            "timeout",
            "Request timeout",
            "the body did not arrive in time",
        )
        .with(header::CONNECTION, HeaderValue::from_static("close"))
    }

    /// 401 asks for a token, and says so in the way of RFC 6750 section 3.
    pub(crate) fn unauthorized() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            "Authorization needed",
            "this edge wants a token: send it as Authorization: Bearer, or append ?token=… to the URL",
        )
        .with(
            header::WWW_AUTHENTICATE,
            HeaderValue::from_static("Bearer realm=\"headwater\""),
        )
    }

    /// 403: there is a token, and it is a wrong one.
    pub(crate) fn forbidden() -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "forbidden",
            "Forbidden",
            "this token gives no right to watch here",
        )
        .with(
            header::WWW_AUTHENTICATE,
            HeaderValue::from_static("Bearer realm=\"headwater\", error=\"invalid_token\""),
        )
    }

    pub(crate) fn too_many_requests() -> Self {
        Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "rate-limit",
            "Too many requests",
            "too many requests came from this address; wait a moment",
        )
        .retry_after(1)
    }

    /// Of players, on what they show: others are enough.
    pub(crate) fn too_many_reports() -> Self {
        Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "sampled",
            "Too many reports",
            "this edge has as many reports as it wants at the moment",
        )
        .retry_after(30)
    }

    pub(crate) fn draining() -> Self {
        // A connection that stays open would bring the next try here again.
        Self::unavailable("draining", "this edge is shutting down; try another one")
            .with(header::CONNECTION, HeaderValue::from_static("close"))
    }

    pub(crate) fn unavailable(kind: &'static str, detail: &str) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            kind,
            "Service unavailable",
            detail,
        )
        .retry_after(5)
    }

    /// 503: another edge would have to do it, and has too much to do.
    pub(crate) fn busy() -> Self {
        Self::unavailable("busy", "the edge that this is for has too many requests").retry_after(1)
    }

    /// 504: this edge is a gateway to the one that has the session, and that one doesn't answer. A player whose media has stopped, too, had better
    /// join again.
    pub(crate) fn edge_unreachable() -> Self {
        Self::new(
            StatusCode::GATEWAY_TIMEOUT,
            "edge-unreachable",
            "Edge unreachable",
            "the edge that has this session does not answer this one",
        )
    }

    /// 503 for whom there is no room. Those who are turned away together shouldn't all return together.
    fn full(kind: &'static str, detail: &str) -> Self {
        let mut problem = Self::unavailable(kind, detail);
        problem.headers.clear();
        problem.retry_after(rand::rng().random_range(FULL_RETRY_SECONDS))
    }

    pub(crate) fn not_live() -> Self {
        Self::new(
            StatusCode::CONFLICT,
            "not-live",
            "Stream not live",
            "nobody is publishing this stream now; try again in a moment",
        )
        .retry_after(2)
    }

    pub(crate) fn precondition_required() -> Self {
        Self::new(
            StatusCode::PRECONDITION_REQUIRED,
            "precondition-required",
            "Precondition required",
            "a PATCH needs If-Match: the session's ETag to trickle candidates, * to restart ICE",
        )
    }

    pub(crate) fn precondition_failed() -> Self {
        Self::new(
            StatusCode::PRECONDITION_FAILED,
            "precondition-failed",
            "Precondition failed",
            "If-Match names an ICE session that is over",
        )
    }
}

impl From<OfferError> for Problem {
    fn from(error: OfferError) -> Self {
        Self::malformed(error.to_string())
    }
}

impl From<FragmentError> for Problem {
    fn from(error: FragmentError) -> Self {
        Self::malformed(error.to_string())
    }
}

/// All 422: the request is understood, and waiting doesn't help. Not 406, which WHEP reserves for a counter-offer with an SDP
/// body; and not 409 for B-frames, because players take that as "not live" and poll on silently.
impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let (kind, title) = match refusal {
            Refusal::VideoCodec { .. } | Refusal::AudioCodec { .. } => ("codec", "No common codec"),
            Refusal::Reordered => ("b-frames", "Stream has B-frames"),
            Refusal::AudioProblem(_) => ("audio", "Audio can't be played"),
            Refusal::NoSuchTrack { .. } => ("no-track", "No such track"),
            _ => ("offer", "Offer can't be accepted"),
        };
        Self::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            kind,
            title,
            refusal.to_string(),
        )
    }
}

impl From<OpenError> for Problem {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::NotLive => Self::not_live(),
            OpenError::Unavailable => Self::unavailable(
                "no-upstream",
                "the origin of this stream does not answer; try again in a moment",
            ),
            OpenError::TooMany => Self::unavailable(
                "too-many-streams",
                "this edge has as many streams as it may; try another one",
            ),
        }
    }
}

impl From<RestartError> for Problem {
    fn from(error: RestartError) -> Self {
        match error {
            RestartError::Gone(_) => Self::no_session(),
            RestartError::Overloaded => JoinError::Overloaded.into(),
        }
    }
}

impl From<JoinError> for Problem {
    fn from(error: JoinError) -> Self {
        match error {
            JoinError::Stopping => Self::draining(),
            JoinError::StreamGone => Self::not_live(),
            JoinError::Reordered => Refusal::Reordered.into(),
            JoinError::Full => Self::full(
                "full",
                "this edge has as many viewers as it may; try again later or try another one",
            ),
            JoinError::Egress => Self::full(
                "egress",
                "this edge sends as much as it may; try again later or try another one",
            ),
            JoinError::Overloaded | JoinError::UfragTaken => Self::full(
                "overloaded",
                "this edge has as much work as it can do in time; try again later or try another one",
            ),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.title, self.detail)
    }
}

impl ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        self.status
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = problem(self.status, self.kind, Some(self.title), &self.detail);
        let headers = response.headers_mut();
        for (name, value) in &self.headers {
            headers.insert(name.clone(), value.clone());
        }
        response
    }
}
