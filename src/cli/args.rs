//! Flags, and the configuration keys they set.
//!
//! Flags carry text only: the configuration reads and checks it, as it does for the file and the environment, so there is
//! one place that knows what an address is.

use std::fmt;
use std::path::PathBuf;

use clap::{Parser, Subcommand};
use headwater_node::config::Override;

use super::lab;
use crate::probe;

/// Headwater: live streams in by RTMP, out to browsers by WebRTC.
///
/// Without a command it runs everything in one process. Each flag sets a key of the configuration file, which has more of
/// them: see deploy/headwater.toml. Variables named HEADWATER_SECTION__KEY set keys, too (HEADWATER_RTMP__LISTEN for
/// rtmp.listen). Flags win over variables, variables over the file.
#[derive(Debug, Parser)]
#[command(name = "headwater", version = super::VERSION, args_conflicts_with_subcommands = true)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Args {
    #[command(subcommand)]
    pub(super) command: Option<Command>,
    #[command(flatten)]
    pub(super) standalone: StandaloneArgs,
}

const AFTER_HELP: &str = "\
Examples:
  headwater                                              everything in one process
  ffmpeg -re -i in.mp4 -c:v libx264 -tune zerolatency -bf 0 -g 60 -pix_fmt yuv420p -c:a aac -f flv rtmp://localhost/live/demo
  then open http://localhost:8080/play/live/demo

  headwater origin --id o1 --etcd http://etcd:2379 --advertise http://o1:7070
  headwater edge --id e1 --etcd http://etcd:2379 --public-ip 203.0.113.7
  headwater edge --origin http://o1:7070                 without etcd

  headwater probe http://localhost:8080/play/live/demo   watches as a viewer does and says if all is well";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Runs an origin and an edge in one process (the default)
    Standalone(Box<StandaloneArgs>),
    /// Takes publishers in and replicates their streams to edges
    Origin(Box<OriginArgs>),
    /// Serves viewers
    Edge(Box<EdgeArgs>),
    /// Watches a stream as a viewer does and says whether it is healthy
    Probe(probe::Args),
    /// Simulates viewers on bad links and compares how their renditions are chosen
    Lab(lab::Args),
}

/// What runs in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Standalone,
    Origin,
    Edge,
}

impl Role {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Standalone => "standalone",
            Self::Origin => "origin",
            Self::Edge => "edge",
        }
    }

    /// What the role changes in the defaults.
    pub(super) fn defaults(self) -> Vec<Override> {
        match self {
            // Origin and edge of a standalone node talk over loopback, at a port that is nobody else's business; and the
            // browser is often on the same machine.
            Self::Standalone => vec![
                set("origin.grpc", "standalone", "127.0.0.1:0".to_owned()),
                // It has no access control, and nobody else has to reach a laptop's.
                set("admin.listen", "standalone", "127.0.0.1:9600".to_owned()),
                Override {
                    key: "edge.loopback".to_owned(),
                    value: true.into(),
                    from: "standalone".to_owned(),
                },
            ],
            Self::Origin | Self::Edge => Vec::new(),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Flags of every role.
#[derive(Debug, clap::Args)]
pub(super) struct Shared {
    /// Configuration file (TOML); every key is described in deploy/headwater.toml
    #[arg(long, value_name = "FILE", env = "HEADWATER_CONFIG")]
    pub(super) config: Option<PathBuf>,
    /// Checks the configuration and exits
    #[arg(long)]
    pub(super) check_config: bool,
    /// Name of this node, unique in its cluster [default: the role and the host's name]
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// Name of the cluster; clusters share an etcd without seeing each other [default: default]
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
    /// Where health, metrics and the API for operators listen [default: 0.0.0.0:9600, of a standalone node
    /// 127.0.0.1:9600]
    #[arg(long, value_name = "ADDR")]
    admin: Option<String>,
    /// What is logged: a level, or a filter such as info,headwater_edge=debug [default:
    /// info,actix_server=warn]
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
    /// How the log is written: text or json [default: text]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
}

impl Shared {
    fn overrides(&self) -> Vec<Override> {
        [
            one("id", "--id", self.id.as_ref()),
            one("cluster", "--cluster", self.cluster.as_ref()),
            one("admin.listen", "--admin", self.admin.as_ref()),
            one("log.filter", "--log", self.log.as_ref()),
            one("log.format", "--log-format", self.log_format.as_ref()),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// Flags about publishers.
#[derive(Debug, clap::Args)]
struct Ingest {
    /// Where RTMP listens [default: 0.0.0.0:1935]
    #[arg(long, value_name = "ADDR")]
    rtmp: Option<String>,
    /// Token that publishers must give; prefer HEADWATER_AUTH__PUBLISH_TOKEN, which `ps` doesn't show
    #[arg(long, value_name = "TOKEN")]
    publish_token: Option<String>,
}

impl Ingest {
    fn overrides(&self) -> Vec<Override> {
        let token = self.publish_token.as_ref();
        [
            one("rtmp.listen", "--rtmp", self.rtmp.as_ref()),
            one("auth.publish_token", "--publish-token", token),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// Flags about viewers.
#[derive(Debug, clap::Args)]
struct Delivery {
    /// Where HTTP listens: WHEP, player, API [default: 0.0.0.0:8080]
    #[arg(long, value_name = "ADDR")]
    http: Option<String>,
    /// Where media (UDP) listens; shard i uses the port + i [default: 0.0.0.0:8700]
    #[arg(long, value_name = "ADDR")]
    media: Option<String>,
    /// Where media over TCP listens, for viewers without UDP: an address, `same` as --media, or `off` [default: same]
    #[arg(long, value_name = "ADDR")]
    media_tcp: Option<String>,
    /// Address that viewers reach the media ports at; repeatable [default: the addresses of the interfaces]
    #[arg(long, value_name = "IP")]
    public_ip: Vec<String>,
    /// Media threads, each with its own port [default: one per core]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    shards: Option<u16>,
    /// Where viewers reach the HTTP port, if it isn't where they asked: `http://host:port` or `https://host`
    #[arg(long, value_name = "URL")]
    public_url: Option<String>,
    /// Bearer token that viewers must give; prefer HEADWATER_AUTH__PLAY_TOKEN, which `ps` doesn't show
    #[arg(long, value_name = "TOKEN", alias = "bearer")]
    play_token: Option<String>,
}

impl Delivery {
    fn overrides(&self) -> Vec<Override> {
        let shards = self.shards.map(|shards| Override {
            key: "edge.shards".to_owned(),
            value: i64::from(shards).into(),
            from: "--shards".to_owned(),
        });
        [
            one("edge.http", "--http", self.http.as_ref()),
            one("edge.media", "--media", self.media.as_ref()),
            one("edge.media_tcp", "--media-tcp", self.media_tcp.as_ref()),
            many("edge.public_ip", "--public-ip", &self.public_ip),
            shards,
            one("edge.public_url", "--public-url", self.public_url.as_ref()),
            one("auth.play_token", "--play-token", self.play_token.as_ref()),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// Runs an origin and an edge in one process.
#[derive(Debug, clap::Args)]
pub(super) struct StandaloneArgs {
    #[command(flatten)]
    pub(super) shared: Shared,
    #[command(flatten)]
    ingest: Ingest,
    #[command(flatten)]
    delivery: Delivery,
}

impl StandaloneArgs {
    pub(super) fn overrides(&self) -> Vec<Override> {
        let mut all = self.shared.overrides();
        all.extend(self.ingest.overrides());
        all.extend(self.delivery.overrides());
        all
    }
}

/// Takes publishers in and replicates their streams to edges.
#[derive(Debug, clap::Args)]
pub(super) struct OriginArgs {
    #[command(flatten)]
    pub(super) shared: Shared,
    #[command(flatten)]
    ingest: Ingest,
    /// Where gRPC listens for edges [default: 0.0.0.0:7070]
    #[arg(long, value_name = "ADDR")]
    grpc: Option<String>,
    /// Where edges reach that gRPC: http://host:port [default: the bound address]
    #[arg(long, value_name = "URL")]
    advertise: Option<String>,
    /// Member of the etcd cluster that is the directory; repeatable. Without it, edges name this origin with --origin
    #[arg(long, value_name = "URL")]
    etcd: Vec<String>,
}

impl OriginArgs {
    pub(super) fn overrides(&self) -> Vec<Override> {
        let mut all = self.shared.overrides();
        all.extend(self.ingest.overrides());
        let own = [
            one("origin.grpc", "--grpc", self.grpc.as_ref()),
            one("origin.advertise", "--advertise", self.advertise.as_ref()),
            many("directory.etcd", "--etcd", &self.etcd),
        ];
        all.extend(own.into_iter().flatten());
        all
    }
}

/// Serves viewers.
#[derive(Debug, clap::Args)]
pub(super) struct EdgeArgs {
    #[command(flatten)]
    pub(super) shared: Shared,
    #[command(flatten)]
    delivery: Delivery,
    /// Where gRPC listens for other edges, to pass streams on to them; without it this edge passes nothing on
    #[arg(long, value_name = "ADDR")]
    grpc: Option<String>,
    /// Where other nodes reach that gRPC, http://host:port
    #[arg(long, value_name = "URL")]
    advertise: Option<String>,
    /// Member of the etcd cluster that is the directory; repeatable
    #[arg(long, value_name = "URL", conflicts_with = "origin")]
    etcd: Vec<String>,
    /// gRPC of an origin to ask, without etcd: http://host:port; repeatable
    #[arg(long, value_name = "URL")]
    origin: Vec<String>,
}

impl EdgeArgs {
    pub(super) fn overrides(&self) -> Vec<Override> {
        let mut all = self.shared.overrides();
        all.extend(self.delivery.overrides());
        let own = [
            one("edge.grpc", "--grpc", self.grpc.as_ref()),
            one("edge.advertise", "--advertise", self.advertise.as_ref()),
            many("directory.etcd", "--etcd", &self.etcd),
            many("directory.origins", "--origin", &self.origin),
        ];
        all.extend(own.into_iter().flatten());
        // A flag for the one kind of directory overrides the other kind in the file.
        let other = if self.etcd.is_empty() {
            "directory.etcd"
        } else {
            "directory.origins"
        };
        if !self.etcd.is_empty() || !self.origin.is_empty() {
            all.push(Override {
                key: other.to_owned(),
                value: Vec::<String>::new().into(),
                from: "--etcd or --origin".to_owned(),
            });
        }
        all
    }
}

fn set(key: &str, flag: &str, text: String) -> Override {
    Override {
        key: key.to_owned(),
        value: text.into(),
        from: flag.to_owned(),
    }
}

fn one(key: &str, flag: &str, text: Option<&String>) -> Option<Override> {
    text.map(|text| set(key, flag, text.clone()))
}

fn many(key: &str, flag: &str, texts: &[String]) -> Option<Override> {
    (!texts.is_empty()).then(|| Override {
        key: key.to_owned(),
        value: texts.to_vec().into(),
        from: flag.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn flags_set_their_keys_with_and_without_the_command() {
        for words in [
            &[
                "headwater",
                "--rtmp",
                "127.0.0.1:1",
                "--public-ip",
                "10.0.0.1",
                "--public-ip",
                "10.0.0.2",
            ][..],
            &[
                "headwater",
                "standalone",
                "--rtmp",
                "127.0.0.1:1",
                "--public-ip",
                "10.0.0.1",
                "--public-ip",
                "10.0.0.2",
            ][..],
        ] {
            let args = Args::try_parse_from(words).expect("parses");
            let all = match args.command {
                Some(Command::Standalone(flags)) => flags.overrides(),
                None => args.standalone.overrides(),
                other => panic!("{other:?}"),
            };
            let keys: Vec<_> = all
                .iter()
                .map(|o| (o.key.as_str(), o.from.as_str()))
                .collect();
            assert_eq!(
                keys,
                [("rtmp.listen", "--rtmp"), ("edge.public_ip", "--public-ip")]
            );
        }
    }

    #[test]
    fn a_number_below_zero_is_a_number_and_no_flag() {
        let refused = Args::try_parse_from(["headwater", "edge", "--shards", "-1"]);
        let told = refused.expect_err("no count").to_string();
        assert!(told.contains("-1 is not in 0..=65535"), "{told}");
    }

    #[test]
    fn an_edge_has_one_directory() {
        let both = [
            "headwater",
            "edge",
            "--etcd",
            "http://e:1",
            "--origin",
            "http://o:1",
        ];
        assert!(Args::try_parse_from(both).is_err());
        let args =
            Args::try_parse_from(["headwater", "edge", "--origin", "http://o:1"]).expect("parses");
        let Some(Command::Edge(flags)) = args.command else {
            panic!("an edge");
        };
        let keys: Vec<_> = flags.overrides().into_iter().map(|o| o.key).collect();
        assert_eq!(keys, ["directory.origins", "directory.etcd"]);
    }
}
