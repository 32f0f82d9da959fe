//! What the operator is told once the node runs: where to push to and what to open.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::VERSION;
use super::args::Role;

/// Where everything listens.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) role: Role,
    pub(super) id: String,
    pub(super) rtmp: Option<SocketAddr>,
    pub(super) grpc: Option<SocketAddr>,
    pub(super) http: Option<SocketAddr>,
    pub(super) media: Vec<SocketAddr>,
    pub(super) media_tcp: Option<SocketAddr>,
    pub(super) public_ip: Vec<IpAddr>,
    pub(super) public_url: Option<String>,
    pub(super) admin: SocketAddr,
    pub(super) directory: String,
}

impl Started {
    /// A few lines for a person.
    pub(super) fn text(&self) -> String {
        let mut text = format!("\nHeadwater {VERSION}: {} {} is up\n\n", self.role, self.id);
        let mut line = |what: &str, value: &str| {
            // Writing to a String can't fail.
            let _ = writeln!(text, "  {what:<10} {value}");
        };
        if let Some(rtmp) = self.rtmp {
            let base = format!("rtmp://{}/live", local(rtmp));
            line("push to", &format!("{base}/demo"));
            line(
                "",
                &format!(
                    "ffmpeg -re -i FILE -c:v libx264 -tune zerolatency -bf 0 -g 60 -pix_fmt yuv420p -c:a aac -f flv {base}/demo"
                ),
            );
            line("", &format!("OBS: server {base}, stream key demo"));
        }
        if let Some(http) = self.http {
            let base = match &self.public_url {
                Some(url) => url.trim_end_matches('/').to_owned(),
                None => format!("http://{}", local(http)),
            };
            line("open", &format!("{base}/play/live/demo"));
            line("", &format!("{base}/  lists what is live"));
        }
        if !self.media.is_empty() {
            let ports: Vec<_> = self
                .media
                .iter()
                .map(|addr| addr.port().to_string())
                .collect();
            let tcp = self
                .media_tcp
                .map(|addr| format!(" and TCP {}", addr.port()));
            let ips: Vec<_> = self.public_ip.iter().map(ToString::to_string).collect();
            line(
                "media",
                &format!(
                    "UDP {}{} at {}",
                    ports.join(", "),
                    tcp.unwrap_or_default(),
                    ips.join(", ")
                ),
            );
        }
        if let Some(grpc) = self.grpc {
            line("gRPC", &grpc.to_string());
        }
        line("directory", &self.directory);
        line(
            "admin",
            &format!(
                "http://{}/admin, /metrics, /readyz, /api/v1/streams",
                local(self.admin)
            ),
        );
        text
    }
}

/// An address that works from this machine: the unspecified one becomes loopback.
fn local(addr: SocketAddr) -> SocketAddr {
    let ip = match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, addr.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_says_where_to_push_and_what_to_open() {
        let text = Started {
            role: Role::Standalone,
            id: "s".into(),
            rtmp: Some(([0, 0, 0, 0], 1935).into()),
            grpc: None,
            http: Some(([0, 0, 0, 0], 8080).into()),
            media: vec![([0, 0, 0, 0], 8700).into(), ([0, 0, 0, 0], 8701).into()],
            media_tcp: Some(([0, 0, 0, 0], 8700).into()),
            public_ip: vec![[10, 0, 0, 1].into()],
            public_url: None,
            admin: ([0, 0, 0, 0], 9600).into(),
            directory: "in memory".into(),
        }
        .text();
        for part in [
            "rtmp://127.0.0.1:1935/live/demo",
            "http://127.0.0.1:8080/play/live/demo",
            "UDP 8700, 8701 and TCP 8700 at 10.0.0.1",
            "http://127.0.0.1:9600/admin, /metrics",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }
}
