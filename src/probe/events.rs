//! Whether the server asks its viewers to go elsewhere: its events, by the WHEP extension for them.

use std::time::Duration;

use reqwest::header::{ACCEPT, CONTENT_TYPE, LOCATION};
use reqwest::{Client, Method, Response, Url};
use tokio::sync::mpsc;

use super::whep::Auth;

const RELATION: &str = "urn:ietf:params:whep:ext:core:server-sent-events";
/// An event that is longer makes no sense here.
const EVENT_BYTES_MAX: usize = 16 * 1024;
/// When the stream of events ended, or there is none yet.
const AGAIN: Duration = Duration::from_secs(2);

/// Where to subscribe, if the answer says (RFC 8288).
pub(super) fn link(response: &Response) -> Option<Url> {
    let links = response.headers().get_all(reqwest::header::LINK);
    let links = links.iter().filter_map(|link| link.to_str().ok());
    let target = links
        .flat_map(|links| links.split(", <"))
        .find_map(|link| {
            let (target, parameters) = link.trim_start_matches('<').split_once('>')?;
            parameters.contains(RELATION).then_some(target)
        })?;
    response.url().join(target).ok()
}

/// Sends each endpoint that the server asks to join instead, until `invitations` is dropped.
pub(super) async fn listen(client: Client, auth: Auth, url: Url, invitations: mpsc::Sender<Url>) {
    loop {
        let over = tokio::select! {
            over = subscribe(&client, &auth, &url, &invitations) => over,
            () = invitations.closed() => return,
        };
        if let Err(error) = over {
            tracing::debug!(%error, "no events");
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn subscribe(
    client: &Client,
    auth: &Auth,
    url: &Url,
    invitations: &mpsc::Sender<Url>,
) -> Result<(), reqwest::Error> {
    let created = client
        .request(Method::POST, url.clone())
        .headers(auth.headers())
        .header(CONTENT_TYPE, "application/json")
        .body("[\"reconnect\"]")
        .send()
        .await?
        .error_for_status()?;
    let location = created
        .headers()
        .get(LOCATION)
        .and_then(|location| created.url().join(location.to_str().ok()?).ok());
    let Some(location) = location else {
        return Ok(());
    };
    let mut events = client
        .request(Method::GET, location)
        .headers(auth.headers())
        .header(ACCEPT, "text/event-stream")
        // It lasts as long as the session.
        .timeout(Duration::from_secs(24 * 3600))
        .send()
        .await?
        .error_for_status()?;
    let mut text = String::new();
    while let Some(chunk) = events.chunk().await? {
        text.push_str(&String::from_utf8_lossy(&chunk));
        while let Some((event, rest)) = text.split_once("\n\n") {
            if let Some(there) = invitation(event)
                && let Ok(there) = events.url().join(&there)
            {
                // One that waits is enough.
                let _ = invitations.try_send(there);
            }
            text = rest.to_owned();
        }
        if text.len() > EVENT_BYTES_MAX {
            return Ok(());
        }
    }
    Ok(())
}

/// The URL of a `reconnect` event.
fn invitation(event: &str) -> Option<String> {
    let field = |name: &str| {
        let mut lines = event.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    };
    if field("event")? != "reconnect" {
        return None;
    }
    let data: serde_json::Value = serde_json::from_str(field("data")?).ok()?;
    Some(data.get("url")?.as_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invitation_is_a_reconnect_with_a_url() {
        let event = "event: reconnect\ndata: {\"url\":\"/whep/live/a\"}";
        assert_eq!(invitation(event).as_deref(), Some("/whep/live/a"));
        for other in [
            "event: active\ndata: {}",
            "event: reconnect\ndata: {}",
            "event: reconnect\ndata: x",
            ":",
            "",
        ] {
            assert_eq!(invitation(other), None, "{other}");
        }
    }
}
