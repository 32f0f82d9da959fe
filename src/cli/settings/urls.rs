//! What URLs and addresses may be: one that can't work is refused before anything waits for it.

use anyhow::{Context, bail, ensure};
use headwater_edge::http::IceServer;
use tonic::transport::Uri;

use super::Settings;

/// # Errors
/// At the first that can't work; the text names its key.
pub(super) fn check(settings: &Settings) -> anyhow::Result<()> {
    let (directory, origin, edge) = (&settings.directory, &settings.origin, &settings.edge);
    for url in &directory.etcd {
        let user = "give the name as directory.username and the password as directory.password";
        url_of(url, &["http", "https"], user).context("directory.etcd")?;
    }
    for url in &directory.origins {
        grpc(url).context("directory.origins")?;
    }
    if !origin.advertise.is_empty() {
        grpc(&origin.advertise).context("origin.advertise")?;
    }
    if let Some(url) = &edge.advertise {
        grpc(url).context("edge.advertise")?;
    }
    if let Some(url) = &edge.public_url {
        url_of(url, &["http", "https"], NO_USER).context("edge.public_url")?;
    }
    if !settings.rtmp.reconnect_url.is_empty() {
        url_of(&settings.rtmp.reconnect_url, &["rtmp", "rtmps"], NO_USER)
            .context("rtmp.reconnect_url")?;
    }
    for ip in &edge.public_ip {
        ensure!(
            !ip.is_unspecified() && !ip.is_multicast(),
            "edge.public_ip: viewers can't reach {ip}: give an address of this machine, or what is translated to it"
        );
    }
    for server in &edge.ice_servers {
        ice_server(server).context("edge.ice_servers")?;
    }
    for name in &settings.admin.hosts {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        ensure!(
            !name.is_empty() && name.chars().all(plain),
            "admin.hosts: {name:?} is no name such as admin.example.org, without https:// and port"
        );
    }
    Ok(())
}

const NO_USER: &str = "leave both away";

/// A URL between nodes, which speak gRPC without TLS.
fn grpc(url: &str) -> anyhow::Result<()> {
    let uri = url_of(url, &["http"], NO_USER)?;
    ensure!(
        uri.port().is_some(),
        "{url:?} names no port: gRPC listens on 7070 at an origin, and at an edge where edge.grpc says"
    );
    Ok(())
}

/// Reads `scheme://host[:port]`.
fn url_of(url: &str, schemes: &[&str], user: &str) -> anyhow::Result<Uri> {
    let Some((scheme, rest)) = url.split_once("://") else {
        bail!(
            "{url:?} is no URL such as {}://host:port",
            schemes.join("://host:port or ")
        );
    };
    ensure!(
        schemes.contains(&scheme),
        "{url:?} must start with {}",
        schemes.join(":// or ") + "://"
    );
    let uri: Uri = match url.parse() {
        Ok(uri) => uri,
        Err(error) => bail!("{url:?} is no URL: {error}"),
    };
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    // Passwords don't belong into logs.
    ensure!(
        !authority.contains('@'),
        "the URL has a name or password in it: {user}"
    );
    let host = uri.host().unwrap_or_default();
    ensure!(!host.is_empty(), "{url:?} names no host");
    ensure!(
        authority == host || uri.port_u16().is_some_and(|port| port > 0),
        "{url:?}: a port is 1 to 65535"
    );
    ensure!(
        rest.trim_end_matches('/') == authority,
        "{url:?} must end after the port"
    );
    Ok(uri)
}

/// RFC 7064 and 7065: no `//`, and TURN wants a name and a password of whoever uses it.
fn ice_server(server: &IceServer) -> anyhow::Result<()> {
    let IceServer {
        url,
        username,
        credential,
    } = server;
    let (scheme, rest) = url.split_once(':').unwrap_or_default();
    ensure!(
        matches!(scheme, "stun" | "stuns" | "turn" | "turns")
            && !rest.is_empty()
            && !rest.starts_with(['/', ':', '?']),
        "{url:?} is none of stun:HOST:PORT, turn:HOST:PORT?transport=udp, turns:HOST:PORT"
    );
    ensure!(
        !scheme.starts_with("turn") || (username.is_some() && credential.is_some()),
        "{url:?} needs a username and a credential"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: &[&str] = &["http", "https"];

    fn told(result: anyhow::Result<impl std::fmt::Debug>) -> String {
        format!("{:#}", result.expect_err("refused"))
    }

    #[test]
    fn urls_are_a_scheme_a_host_and_a_port() {
        for good in [
            "http://h:1",
            "https://h",
            "http://[::1]:7070/",
            "http://o-1.x:7070",
        ] {
            url_of(good, BOTH, NO_USER).expect(good);
        }
        for bad in [
            "h:1",
            "ftp://h",
            "http://",
            "http://:1",
            "http://h:1/path",
            "http://h:1?x",
            "http://o1:99999",
            "http://o1:0",
            "http://o1:",
            "http://o 1:70",
        ] {
            assert!(url_of(bad, BOTH, NO_USER).is_err(), "{bad}");
        }
        let user = told(url_of("http://u:p@e:2379", BOTH, "use directory.username"));
        assert!(user.contains("use directory.username"), "{user}");
    }

    #[test]
    fn between_nodes_urls_are_without_tls_and_with_a_port() {
        grpc("http://o1:7070").expect("valid");
        assert!(told(grpc("https://o1:7070")).contains("must start with http://"));
        assert!(told(grpc("http://o1")).contains("names no port"));
    }

    #[test]
    fn what_cannot_work_is_refused_with_its_key() {
        type Mistake = (&'static str, fn(&mut Settings));
        let wrong: [Mistake; 9] = [
            ("directory.etcd", |s| {
                s.directory.etcd = vec!["http://u:p@e:2379".into()];
            }),
            ("directory.origins", |s| {
                s.directory.origins = vec!["https://o1:7070".into()];
            }),
            ("origin.advertise", |s| {
                s.origin.advertise = "http://o1".into();
            }),
            ("edge.advertise", |s| {
                s.edge.advertise = Some("http://e1".into());
            }),
            ("edge.public_url", |s| {
                s.edge.public_url = Some("live.example.com".into());
            }),
            ("edge.public_ip", |s| {
                s.edge.public_ip = vec![[0, 0, 0, 0].into()];
            }),
            ("edge.public_ip", |s| {
                s.edge.public_ip = vec![[224, 0, 0, 1].into()];
            }),
            ("admin.hosts", |s| {
                s.admin.hosts = vec!["https://a.example.org".into()];
            }),
            ("rtmp.reconnect_url", |s| {
                s.rtmp.reconnect_url = "http://o1:1935".into();
            }),
        ];
        for (key, change) in wrong {
            let mut settings = Settings::default();
            change(&mut settings);
            let told = told(check(&settings));
            assert!(told.starts_with(key), "{told}");
        }
    }

    #[test]
    fn players_are_told_of_servers_that_they_can_use() {
        let server = |url: &str, user: Option<&str>| {
            ice_server(&IceServer {
                url: url.to_owned(),
                username: user.map(str::to_owned),
                credential: user.map(|_| "secret".parse().expect("a token")),
            })
        };
        server("stun:stun.example.com", None).expect("valid");
        server("turns:t.example.com:5349", Some("u")).expect("valid");
        server("turn:t.example.com:3478?transport=udp", Some("u")).expect("valid");
        assert!(server("turn:t.example.com", None).is_err());
        assert!(server("http://x", None).is_err());
        assert!(server("stun://x", None).is_err());
        assert!(server("stun:", None).is_err());
    }
}
