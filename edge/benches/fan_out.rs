//! What a packet costs a shard, the kernel apart: `cargo bench -p headwater-edge --features testkit`.
//!
//! The real core with real SRTP sessions, from the batch to the outbox: header, extensions, copy, AES-128-GCM. Allocations are
//! counted, and the bench fails when there is one per packet.

#![expect(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a bench takes real time and prints what it took"
)]

use std::time::{Duration, Instant};

use headwater_edge::testkit::Crowd;

/// Packets in a round, more or less (count), and rounds, of which the fastest counts: the others were disturbed.
const ROUND_PACKETS: usize = 500_000;
const ROUNDS: usize = 5;

/// What a viewer gets in a second: 30 pictures of about nine packets, 50 of sound.
const PACKETS_PER_SECOND: usize = 330;

fn main() {
    let system = actix_rt::System::new();
    let allocated = system.block_on(async {
        println!("viewers      packets   ns/packet   allocations/packet");
        [1_u16, 100, 1000].map(measure).into_iter().sum::<u64>()
    });
    assert_eq!(allocated, 0, "the data plane allocates");
}

fn measure(viewers: u16) -> u64 {
    let mut crowd = Crowd::new(viewers);
    let seconds = (ROUND_PACKETS / usize::from(viewers) / PACKETS_PER_SECOND).clamp(1, 600);
    let (mut packets, mut allocations, mut best) = (0, 0, Duration::MAX);
    for _ in 0..ROUNDS {
        crowd.prepare(seconds);
        let mut took = Duration::ZERO;
        let counted = allocation_counter::measure(|| {
            let start = Instant::now();
            packets = crowd.send();
            took = start.elapsed();
        });
        best = best.min(took);
        allocations += counted.count_total;
    }
    let nanoseconds = best.as_secs_f64() * 1e9 / packets as f64;
    let per_packet = allocations as f64 / (packets * ROUNDS as u64) as f64;
    println!("{viewers:>7} {packets:>12} {nanoseconds:>11.0} {per_packet:>20.6}");
    allocations
}
