//! The data plane allocates nothing per packet.

use super::crowd::Crowd;

/// Packets and allocations of four seconds.
fn measure(viewers: u16) -> (u64, u64) {
    let mut crowd = Crowd::new(viewers);
    crowd.prepare(4);
    let mut packets = 0;
    let counted = allocation_counter::measure(|| packets = crowd.send());
    (packets, counted.count_total)
}

#[actix_rt::test]
async fn fan_out_allocates_nothing_per_packet_and_viewer() {
    let (packets, allocations) = measure(20);
    assert!(packets > 20 * 4 * (30 + 50), "{packets} packets were sent");
    assert_eq!(allocations, 0, "for {packets} packets");
}
