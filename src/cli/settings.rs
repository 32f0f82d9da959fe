//! The configuration's schema, and what must hold across its sections; [`numbers`] and [`urls`] have what must hold for each key.

mod numbers;
mod urls;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::ensure;
use headwater_media::id::NodeId;
use headwater_node::admin;
use headwater_node::auth::Token;
use headwater_node::directory::{ClusterName, etcd};
use headwater_node::telemetry::LogConfig;
use headwater_node::trace;
use serde::Deserialize;

use super::args::Role;

/// The whole configuration: `deploy/headwater.toml` describes each key.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Settings {
    /// Name of this node, unique in its cluster. None: the role and the host's name.
    pub(super) id: Option<NodeId>,
    /// Name of the cluster; clusters share an etcd without seeing each other.
    pub(super) cluster: ClusterName,
    /// Threads that carry gRPC, etcd and RTMP (count); 0: one per core, at most 4.
    pub(super) io_threads: usize,
    /// How long stopping may take (seconds); what isn't done by then is left behind.
    pub(super) stop_seconds: u64,
    /// How long viewers have to go to other edges before that, in seconds.
    pub(super) drain_seconds: u64,
    /// How long the node goes on answering before that at least, in seconds.
    pub(super) drain_min_seconds: u64,
    /// `[log]`
    pub(super) log: LogConfig,
    /// `[trace]`
    pub(super) trace: trace::Config,
    /// `[admin]`
    pub(super) admin: admin::Config,
    /// `[directory]`
    pub(super) directory: Directory,
    /// `[auth]`
    pub(super) auth: Auth,
    /// `[origin]`
    pub(super) origin: headwater_origin::config::OriginConfig,
    /// `[rtmp]`
    pub(super) rtmp: headwater_origin::rtmp::Config,
    /// `[audio]`
    pub(super) audio: headwater_origin::audio::Config,
    /// `[ladder]`
    pub(super) ladder: headwater_origin::ladder::Config,
    /// `[edge]`
    pub(super) edge: headwater_edge::config::Config,
}

/// `[directory]`: where nodes and streams are found.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Directory {
    /// Client URLs of etcd's members, `http://host:port` or `https://host:port`.
    pub(super) etcd: Vec<String>,
    /// Certificates of the authorities that etcd's are checked against, a PEM file; for `https:`.
    pub(super) ca: Option<PathBuf>,
    /// This node's certificate for etcd, a PEM file.
    pub(super) cert: Option<PathBuf>,
    /// Its key, a PEM file.
    pub(super) key: Option<PathBuf>,
    /// Name at etcd, if it asks for one.
    pub(super) username: Option<String>,
    /// Password at etcd.
    pub(super) password: Option<Token>,
    /// Instead of etcd, for edges: gRPC URLs of the origins to ask, `http://host:port`.
    pub(super) origins: Vec<String>,
}

/// `[auth]`: static tokens.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Auth {
    /// What publishers must give. None: anyone may publish.
    pub(super) publish_token: Option<Token>,
    /// What viewers must give. None: anyone may watch.
    pub(super) play_token: Option<Token>,
    /// What those must give who command a node at its admin port. None: anyone who reaches it may.
    pub(super) admin_token: Option<Token>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            id: None,
            cluster: ClusterName::default(),
            io_threads: 0,
            stop_seconds: 10,
            drain_seconds: 30,
            drain_min_seconds: 0,
            log: LogConfig::default(),
            trace: trace::Config::default(),
            admin: admin::Config::default(),
            directory: Directory::default(),
            auth: Auth::default(),
            origin: Default::default(),
            rtmp: Default::default(),
            audio: Default::default(),
            ladder: Default::default(),
            edge: Default::default(),
        }
    }
}

impl Directory {
    /// How etcd is trusted, if it is reached by TLS.
    pub(super) fn tls(&self) -> Option<etcd::Tls> {
        let ca = self.ca.clone()?;
        let identity = self.cert.clone().zip(self.key.clone());
        Some(etcd::Tls { ca, identity })
    }

    fn checked_tls(&self) -> anyhow::Result<()> {
        let secure = self.etcd.iter().filter(|url| url.starts_with("https:"));
        let (secure, all) = (secure.count(), self.etcd.len());
        ensure!(
            secure == 0 || secure == all,
            "directory.etcd: either all URLs are https, or none"
        );
        ensure!(
            (secure > 0) == self.ca.is_some(),
            "directory.ca is the file that https URLs of directory.etcd are checked against: give both or neither"
        );
        ensure!(
            self.cert.is_some() == self.key.is_some(),
            "directory.cert and directory.key go together"
        );
        ensure!(
            self.ca.is_some() || self.cert.is_none(),
            "directory.cert is for https URLs of directory.etcd"
        );
        Ok(())
    }
}

impl Settings {
    /// Checks what concerns more than one key, for the role that is to run.
    pub(super) fn checked(self, role: Role) -> anyhow::Result<Self> {
        self.log.parse_filter()?;
        self.trace.endpoint()?;
        let directory = &self.directory;
        match role {
            Role::Standalone => ensure!(
                directory.etcd.is_empty() && directory.origins.is_empty(),
                "a standalone node is its own directory: leave directory.etcd and directory.origins empty, or run \
                 `headwater origin` and `headwater edge`"
            ),
            // A file that it shares with edges may name it to them.
            Role::Origin => {}
            Role::Edge => ensure!(
                directory.etcd.is_empty() != directory.origins.is_empty(),
                "an edge needs to know where streams are: give either --etcd URL (directory.etcd) or --origin URL \
                 (directory.origins)"
            ),
        }
        directory.checked_tls()?;
        if let Some([min, max]) = self.edge.playout_delay_ms {
            ensure!(
                min <= max && max <= 40_950,
                "edge.playout_delay_ms is [at least, at most] in milliseconds, up to 40950: [{min}, {max}] is not"
            );
        }
        ensure!(
            self.edge.public_ip.is_empty() || self.edge.public_ip_from.is_none(),
            "edge.public_ip says the addresses, and edge.public_ip_from asks for them: give one of the two"
        );
        ensure!(
            directory.username.is_some() == directory.password.is_some(),
            "directory.username and directory.password go together"
        );
        ensure!(
            role == Role::Origin || self.edge.advertise.is_none() || self.edge.grpc.is_some(),
            "edge.advertise says where others reach edge.grpc: give both, or neither"
        );
        // An origin has nobody to wait for: it only answers on.
        ensure!(
            role == Role::Origin || self.drain_min_seconds <= self.drain_seconds,
            "drain_min_seconds is at most drain_seconds: {} is more than {}",
            self.drain_min_seconds,
            self.drain_seconds
        );
        self.ladder.check()?;
        numbers::check(&self)?;
        urls::check(&self)?;
        Ok(self)
    }

    /// Why edges on other machines won't reach this origin, if they won't. Not an error: a cluster on one machine is fine.
    pub(super) fn unreachable_origin(&self, role: Role) -> Option<String> {
        let origin = &self.origin;
        let shared = role == Role::Origin && !self.directory.etcd.is_empty();
        let problem = "this origin announces a loopback address to the cluster";
        (shared && origin.advertise.is_empty() && is_local(origin.grpc))
            .then(|| unreachable(problem, origin.grpc, "origin.advertise"))
    }

    /// The same for an edge that feeds others.
    pub(super) fn unreachable_edge(&self, role: Role) -> Option<String> {
        let edge = &self.edge;
        let grpc = edge.grpc.filter(|_| role == Role::Edge)?;
        let problem = "this edge tells others to be fed at a loopback address";
        (edge.advertise.is_none() && is_local(grpc))
            .then(|| unreachable(problem, grpc, "edge.advertise"))
    }

    /// How long stopping may take.
    pub(super) const fn stop_deadline(&self) -> Duration {
        Duration::from_secs(self.stop_seconds)
    }

    /// How long the node goes on answering at least, and how long viewers have to go elsewhere.
    pub(super) const fn drain_time(&self) -> (Duration, Duration) {
        (
            Duration::from_secs(self.drain_min_seconds),
            Duration::from_secs(self.drain_seconds),
        )
    }

    /// The node's name: given, or made of the role and the host's name.
    pub(super) fn node_id(&self, role: Role) -> NodeId {
        if let Some(id) = &self.id {
            return id.clone();
        }
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let clean: String = host
            .trim()
            .chars()
            .filter(|c| c.is_ascii_alphanumeric() || "._-".contains(*c))
            .take(48)
            .collect();
        let whole = format!("{role}-{clean}");
        whole
            .trim_end_matches('-')
            .parse()
            .expect("role names and the characters kept make an id")
    }
}

/// What listens there is announced with an address of this machine alone.
fn is_local(listen: SocketAddr) -> bool {
    listen.ip().is_unspecified() || listen.ip().is_loopback()
}

fn unreachable(problem: &str, grpc: SocketAddr, key: &str) -> String {
    format!(
        "{problem}, since its gRPC listens on {grpc}: give --advertise http://HOST:PORT ({key}), or edges on other \
         machines won't reach it"
    )
}

#[cfg(test)]
mod tests {
    use headwater_node::config::{self, Layers};

    use super::*;

    const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/headwater.toml");

    fn load(path: &std::path::Path) -> Settings {
        let layers = Layers {
            file: Some(path.to_owned()),
            ..Layers::default()
        };
        config::load(&layers).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn the_sample_file_says_the_defaults() {
        let sample = load(SAMPLE.as_ref());
        assert_eq!(
            format!("{sample:#?}"),
            format!("{:#?}", Settings::default())
        );
    }

    #[test]
    fn the_sample_file_describes_every_key() {
        let text = std::fs::read_to_string(SAMPLE).expect("the sample");
        let mut section = String::new();
        let mut described = Vec::new();
        let mut comment_before = false;
        for line in text.lines() {
            let commented = line.strip_prefix("# ").filter(|rest| is_assignment(rest));
            if let Some(name) = line
                .strip_prefix('[')
                .and_then(|rest| rest.strip_suffix(']'))
            {
                section = format!("{}.", name.trim_matches(['[', ']']));
            } else if is_assignment(line) || commented.is_some() {
                let key = commented
                    .unwrap_or(line)
                    .split('=')
                    .next()
                    .unwrap_or_default()
                    .trim();
                assert!(comment_before, "{section}{key} has no comment");
                described.push(format!("{section}{key}"));
            }
            comment_before = line.starts_with('#');
        }
        described.sort();
        assert_eq!(described, config::keys::<Settings>());
    }

    #[test]
    fn what_the_sample_file_comments_out_is_valid_too() {
        let text = std::fs::read_to_string(SAMPLE).expect("the sample");
        let uncommented: Vec<_> = text
            .lines()
            .map(|line| {
                line.strip_prefix("# ")
                    .filter(|rest| is_assignment(rest))
                    .unwrap_or(line)
            })
            .collect();
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("all.toml");
        std::fs::write(&path, uncommented.join("\n")).expect("written");
        load(&path);
    }

    /// `key = value` at the start of the line, with a key of small letters.
    fn is_assignment(line: &str) -> bool {
        line.split_once(" = ").is_some_and(|(key, _)| {
            !key.is_empty() && key.chars().all(|c| c.is_ascii_lowercase() || c == '_')
        })
    }

    #[test]
    fn each_role_has_the_directory_it_needs() {
        let with = |etcd: &[&str], origins: &[&str]| Settings {
            directory: Directory {
                etcd: etcd.iter().map(ToString::to_string).collect(),
                origins: origins.iter().map(ToString::to_string).collect(),
                ..Directory::default()
            },
            ..Settings::default()
        };
        let etcd = &["http://e:2379"][..];
        assert!(with(&[], &[]).checked(Role::Standalone).is_ok());
        assert!(with(etcd, &[]).checked(Role::Standalone).is_err());
        assert!(with(&[], &[]).checked(Role::Origin).is_ok());
        let shared = with(&[], &["http://o1:7070"]);
        assert!(shared.checked(Role::Origin).is_ok(), "edges' file, too");
        assert!(with(etcd, &[]).checked(Role::Edge).is_ok());
        assert!(with(&[], etcd).checked(Role::Edge).is_ok());
        let error = with(&[], &[])
            .checked(Role::Edge)
            .expect_err("no directory");
        assert!(error.to_string().contains("--origin URL"), "{error}");
        assert!(with(etcd, etcd).checked(Role::Edge).is_err());
        assert!(with(&["e:2379"], &[]).checked(Role::Edge).is_err());
    }

    #[test]
    fn an_edge_says_where_it_is_reached_only_if_it_listens() {
        let mut settings = Settings::default();
        settings.directory.etcd = vec!["http://e:2379".to_owned()];
        settings.edge.advertise = Some("http://e1:7071".to_owned());
        assert!(settings.clone().checked(Role::Origin).is_ok());
        let told = settings.clone().checked(Role::Edge).expect_err("no grpc");
        assert!(told.to_string().starts_with("edge.advertise"), "{told}");
        settings.edge.grpc = Some(([0, 0, 0, 0], 7071).into());
        assert!(settings.checked(Role::Edge).is_ok());
    }

    #[test]
    fn https_and_the_files_for_it_go_together() {
        let with = |urls: &[&str], files: [Option<&str>; 3]| {
            let [ca, cert, key] = files.map(|file| file.map(PathBuf::from));
            let directory = Directory {
                etcd: urls.iter().map(ToString::to_string).collect(),
                ca,
                cert,
                key,
                ..Directory::default()
            };
            let settings = Settings {
                directory,
                ..Settings::default()
            };
            settings.checked(Role::Origin)
        };
        let (plain, secure) = ("http://e:2379", "https://e:2379");
        assert!(with(&[plain], [None; 3]).is_ok());
        assert!(with(&[secure], [Some("ca"), None, None]).is_ok());
        let all = [Some("ca"), Some("cert"), Some("key")];
        let settings = with(&[secure, secure], all).expect("complete");
        let tls = settings.directory.tls().expect("for https");
        assert_eq!(tls.identity, Some(("cert".into(), "key".into())));
        assert!(with(&[secure, plain], all).is_err());
        assert!(with(&[plain], all).is_err());
        assert!(with(&[secure], [None; 3]).is_err());
        assert!(with(&[secure], [Some("ca"), Some("cert"), None]).is_err());
        assert!(with(&[], [None, Some("cert"), Some("key")]).is_err());
    }

    #[test]
    fn draining_takes_no_longer_than_it_may() {
        let settings = Settings {
            drain_min_seconds: 31,
            ..Settings::default()
        };
        assert!(settings.clone().checked(Role::Origin).is_ok());
        assert!(settings.checked(Role::Standalone).is_err());
    }

    #[test]
    fn an_origin_in_a_cluster_is_told_to_advertise() {
        let mut settings = Settings::default();
        assert!(settings.unreachable_origin(Role::Origin).is_none());
        settings.directory.etcd = vec!["http://e:2379".to_owned()];
        let told = settings
            .unreachable_origin(Role::Origin)
            .expect("a problem");
        assert!(told.contains("--advertise"), "{told}");
        assert!(settings.unreachable_origin(Role::Edge).is_none());
        settings.origin.advertise = "http://o1:7070".to_owned();
        assert!(settings.unreachable_origin(Role::Origin).is_none());
    }

    #[test]
    fn a_node_without_an_id_is_named_after_its_role_and_host() {
        let id = Settings::default().node_id(Role::Edge);
        assert!(id.as_str().starts_with("edge"), "{id}");
    }
}
