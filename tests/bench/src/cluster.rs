//! What is measured: an origin with a publisher, and an edge, as separate processes.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use headwater_bench::clip::{Clip, Settings};
use headwater_bench::publisher::Publisher;
use headwater_bench::{http, ports};

use crate::load::Target;
use crate::process::Process;

const START_TIMEOUT: Duration = Duration::from_secs(20);

const APP: &str = "live";
const STREAM: &str = "bench";

/// Where everything runs.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// The `headwater` that is measured.
    pub(crate) binary: PathBuf,
    /// For logs and the clip.
    pub(crate) directory: PathBuf,
    /// The edge's and the floor's core, and everybody else's.
    pub(crate) server_core: usize,
    pub(crate) load_core: usize,
}

/// An origin with a stream.
pub(crate) struct Cluster {
    place: Place,
    origin: Process,
    publisher: Publisher,
    grpc: u16,
}

impl Cluster {
    /// Starts it, with the clip that is made when it isn't there yet.
    pub(crate) fn start(place: &Place) -> Result<Self> {
        let clip = place.directory.join("clip-720p30-1500k.flv");
        if !clip.exists() {
            eprintln!("making the clip, once: {}", clip.display());
        }
        let clip = Clip::make_once(&Settings::MEASURED, &clip)?;
        let [rtmp, grpc, admin] = [(); 3].map(|()| ports::free(1));
        let mut origin = Process::start(
            "origin",
            &place.binary,
            &arguments(
                "origin",
                &[("--rtmp", rtmp), ("--grpc", grpc), ("--admin", admin)],
            ),
            &[place.load_core],
            &place.directory,
        )?;
        wait_ready(&mut origin, admin)?;
        let publisher = Publisher::start(rtmp, APP, STREAM, clip).context("publishing")?;
        Ok(Self {
            place: place.clone(),
            origin,
            publisher,
            grpc,
        })
    }

    /// Fails if something that should run doesn't.
    pub(crate) fn check(&mut self) -> Result<()> {
        self.origin.check()?;
        anyhow::ensure!(self.publisher.running(), "the publisher ended");
        Ok(())
    }

    /// Starts an edge of this origin, with so many shards, on these cores.
    pub(crate) fn edge(&self, shards: usize, cores: &[usize]) -> Result<Edge> {
        let http = ports::free(1);
        let admin = ports::free(1);
        let media = ports::free(u16::try_from(shards)?);
        let mut arguments = arguments(
            "edge",
            &[("--http", http), ("--admin", admin), ("--media", media)],
        );
        let more = [
            ("--public-ip", "127.0.0.1".to_owned()),
            ("--shards", shards.to_string()),
            ("--origin", format!("http://127.0.0.1:{}", self.grpc)),
        ];
        arguments.extend(
            more.into_iter()
                .flat_map(|(flag, value)| [flag.to_owned(), value]),
        );
        let place = &self.place;
        let mut process =
            Process::start("edge", &place.binary, &arguments, cores, &place.directory)?;
        wait_ready(&mut process, admin)?;
        Ok(Edge {
            process,
            target: Target {
                port: http,
                stream: format!("{APP}/{STREAM}"),
            },
        })
    }
}

/// A running edge.
pub(crate) struct Edge {
    pub(crate) process: Process,
    pub(crate) target: Target,
}

fn arguments(role: &str, listeners: &[(&str, u16)]) -> Vec<String> {
    let listeners = listeners
        .iter()
        .flat_map(|(flag, port)| [(*flag).to_owned(), format!("127.0.0.1:{port}")]);
    std::iter::once(role.to_owned()).chain(listeners).collect()
}

fn wait_ready(process: &mut Process, admin: u16) -> Result<()> {
    process.wait_until(START_TIMEOUT, || {
        http::get(admin, "/readyz").is_some_and(|answer| answer.status == 200)
    })
}
