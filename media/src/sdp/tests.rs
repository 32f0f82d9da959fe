//! Offers of real players against streams of every shape, and offers of nobody against the parser.

use bytes::Bytes;
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::codec::{aac, h264};
use crate::id::TrackId;
use crate::testkit;
use crate::track::{Configuration, StreamInfo, Track};

const CHROMIUM: &str = include_str!("testdata/chromium-156-datachannel.sdp");
const CHROMIUM_STEREO: &str = include_str!("testdata/chromium-156-stereo.sdp");
const FIREFOX: &str = include_str!("testdata/firefox-h264.sdp");

fn video(profile_level_id: [u8; 3], reordered: bool) -> Track {
    track(
        TrackId::SOURCE_VIDEO,
        Configuration::H264(h264::Configuration {
            avcc: Bytes::new(),
            sps: Vec::new(),
            pps: Vec::new(),
            profile_level_id,
            width: 1280,
            height: 720,
            max_reorder_frames: None,
        }),
        reordered,
    )
}

fn aac() -> Track {
    track(
        TrackId::SOURCE_AUDIO,
        Configuration::Aac(aac::Configuration {
            asc: Bytes::new(),
            object_type: 2,
            sample_rate_hz: 48_000,
            channels: 2,
            sbr: false,
            ps: false,
            frame_samples: 1024,
        }),
        false,
    )
}

fn opus() -> Track {
    testkit::opus_track()
}

fn track(id: TrackId, configuration: Configuration, reordered: bool) -> Track {
    Track {
        reordered,
        ..testkit::track(id, configuration)
    }
}

fn stream(tracks: Vec<Track>) -> StreamInfo {
    testkit::stream_info(1, tracks)
}

/// A High-profile stream with sound, as x264 and OBS make it.
fn usual() -> StreamInfo {
    stream(vec![video([0x64, 0x00, 0x1f], false), aac(), opus()])
}

fn local() -> Local {
    Local {
        ufrag: "serverFrag".into(),
        pwd: "serverPasswordOfThirtyCharacte".into(),
        fingerprint: std::array::from_fn(|i| u8::try_from(i).expect("below 32")),
        candidates: vec![
            Candidate::udp("192.0.2.7:8700".parse().expect("an address")),
            Candidate::udp("127.0.0.1:8700".parse().expect("an address")),
            Candidate::udp("[2001:db8::7]:8700".parse().expect("an address")),
            Candidate::tcp("192.0.2.7:8700".parse().expect("an address")),
        ],
    }
}

fn negotiate(offer: &str, stream: &StreamInfo) -> Result<Negotiation, Refusal> {
    let mut random = StdRng::seed_from_u64(7);
    Offer::parse(offer)
        .expect("a valid offer")
        .negotiate(stream, &mut random)
}

fn answer(offer: &str, stream: &StreamInfo) -> String {
    negotiate(offer, stream)
        .expect("accepted")
        .answer(&local())
        .replace("\r\n", "\n")
}

fn refusal(offer: &str, stream: &StreamInfo) -> Refusal {
    negotiate(offer, stream).expect_err("refused")
}

/// The answer's m-lines in short: media, port, payload types.
fn lines(answer: &str) -> Vec<&str> {
    answer
        .lines()
        .filter(|line| line.starts_with("m="))
        .collect()
}

#[test]
fn chromium_gets_this_answer() {
    insta::assert_snapshot!(answer(CHROMIUM, &usual()));
}

#[test]
fn firefox_gets_this_answer() {
    let stream = stream(vec![video([0x42, 0xc0, 0x1f], false), aac(), opus()]);
    insta::assert_snapshot!(answer(FIREFOX, &stream));
}

#[test]
fn chromium_is_negotiated_to_this() {
    insta::assert_debug_snapshot!(negotiate(CHROMIUM, &usual()).expect("accepted").negotiated);
}

/// A hand-written offer as load generators make it: candidates before the credentials, three H.264 profiles with RTX each,
/// transport-wide feedback on request.
fn generated_offer(transport_cc: bool) -> String {
    let transport = "c=IN IP4 0.0.0.0\r\na=rtcp:9 IN IP4 0.0.0.0\r\n\
        a=candidate:1 1 udp 2130706431 127.0.0.1 40000 typ host\r\na=end-of-candidates\r\n\
        a=ice-ufrag:load1\r\na=ice-pwd:0123456789abcdefghijklmn\r\na=ice-options:trickle\r\n\
        a=fingerprint:sha-256 00:11:22:33:44:55:66:77:88:99:aa:bb:cc:dd:ee:ff:00:11:22:33:44:55:66:77:88:99:aa:bb:cc:dd:ee:ff\r\n\
        a=setup:actpass\r\na=recvonly\r\na=rtcp-mux\r\na=rtcp-rsize\r\n";
    let extension = if transport_cc {
        format!("a=extmap:4 {}\r\n", offer::uri::TRANSPORT_SEQUENCE)
    } else {
        String::new()
    };
    let mut text = format!(
        "v=0\r\no=- 1000000 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0 1\r\na=msid-semantic: WMS\r\n\
         m=audio 9 UDP/TLS/RTP/SAVPF 111\r\n{transport}a=mid:0\r\n{extension}a=rtpmap:111 opus/48000/2\r\n\
         a=fmtp:111 minptime=10;useinbandfec=1\r\n\
         m=video 9 UDP/TLS/RTP/SAVPF 102 103 104 105 106 107\r\n{transport}a=mid:1\r\n{extension}"
    );
    for (pt, profile) in [(102, "42e01f"), (104, "4d001f"), (106, "64001f")] {
        let feedback = if transport_cc {
            format!("a=rtcp-fb:{pt} transport-cc\r\n")
        } else {
            String::new()
        };
        text += &format!(
            "a=rtpmap:{pt} H264/90000\r\n{feedback}a=rtcp-fb:{pt} nack\r\na=rtcp-fb:{pt} nack pli\r\n\
             a=fmtp:{pt} level-asymmetry-allowed=1;packetization-mode=1;profile-level-id={profile}\r\n\
             a=rtpmap:{0} rtx/90000\r\na=fmtp:{0} apt={pt}\r\n",
            pt + 1
        );
    }
    text
}

#[test]
fn generated_offers_are_negotiated_too() {
    for transport_cc in [false, true] {
        let negotiation = negotiate(&generated_offer(transport_cc), &usual()).expect("accepted");
        let video = negotiation.negotiated.video.clone().expect("video");
        assert_eq!(
            (video.payload_type, video.rtx_payload_type),
            (106, Some(107))
        );
        assert_eq!(video.transport_cc, transport_cc);
        assert_eq!(video.extensions.transport_sequence.is_some(), transport_cc);
        assert!(video.nack && negotiation.negotiated.audio.is_some());
        let answer = negotiation.answer(&local());
        assert!(answer.contains("profile-level-id=64001f") && !answer.contains("ccm fir"));
    }
}

#[test]
fn the_nearest_profile_is_chosen_and_any_will_do() {
    let check = |profile: [u8; 3], pt: u8| {
        let stream = stream(vec![video(profile, false)]);
        let negotiation = negotiate(CHROMIUM, &stream).expect("accepted");
        let chosen = negotiation.negotiated.video.map(|media| media.payload_type);
        assert_eq!(chosen, Some(pt), "{profile:02x?}");
    };
    check([0x42, 0xc0, 0x1f], 108); // Constrained Baseline on 42e01f
    check([0x42, 0x00, 0x1f], 102); // Baseline on 42001f
    check([0x4d, 0x40, 0x28], 116); // Main on 4d001f
    check([0x64, 0x00, 0x33], 116); // High on the nearest that is offered
    check([0x6e, 0x00, 0x1f], 116);
    let only_baseline = CHROMIUM
        .replace("4d001f", "42001f")
        .replace("f4001f", "42001f")
        .replace("42e01f", "42001f");
    let negotiation = negotiate(&only_baseline, &usual()).expect("accepted");
    assert_eq!(
        negotiation.negotiated.video.map(|media| media.payload_type),
        Some(102)
    );
}

#[test]
fn stereo_is_echoed_when_asked_for() {
    let plain = answer(CHROMIUM, &usual());
    assert!(plain.contains("a=fmtp:111 minptime=10;useinbandfec=1\n"));
    let stereo = answer(CHROMIUM_STEREO, &usual());
    assert!(
        stereo.contains("a=fmtp:111 minptime=10;useinbandfec=1;stereo=1;sprop-stereo=1\n"),
        "{stereo}"
    );
}

#[test]
fn players_that_cannot_decode_the_video_are_told_why() {
    let without = CHROMIUM.replace("H264/90000", "H265/90000");
    let refusal = refusal(&without, &usual());
    assert_eq!(
        refusal.to_string(),
        "this stream's video is H.264, and the player can't receive it (it needs packetization-mode=1); \
         it offers VP8, VP9, H265, AV1"
    );
    let mode_0 = CHROMIUM.replace("packetization-mode=1", "packetization-mode=0");
    assert!(matches!(
        negotiate(&mode_0, &usual()),
        Err(Refusal::VideoCodec { .. })
    ));
    // A stream without video doesn't care.
    let sound = stream(vec![aac(), opus()]);
    assert!(negotiate(&without, &sound).is_ok());
}

#[test]
fn what_the_stream_lacks_is_rejected_by_port_0() {
    let sound = stream(vec![aac(), opus()]);
    let text = answer(CHROMIUM, &sound);
    let ports: Vec<_> = lines(&text)
        .iter()
        .filter_map(|line| line.split(' ').nth(1))
        .collect();
    assert_eq!(ports, ["9", "0", "0"]);
    assert!(text.contains("a=group:BUNDLE 0\n"));

    let picture = stream(vec![video([0x42, 0xe0, 0x1f], false)]);
    let text = answer(CHROMIUM, &picture);
    assert_eq!(lines(&text)[1], "m=video 9 UDP/TLS/RTP/SAVPF 108 109");
    assert!(text.contains("a=group:BUNDLE 1\n"));
    // The tagged section is now the video's, and it has the candidates.
    assert!(text.find("m=video") < text.find("a=candidate"));
}

#[test]
fn offers_for_one_kind_work() {
    let (session, sections) = split(CHROMIUM);
    for (kind, mid) in [(0, "0"), (1, "1")] {
        let bundle = format!("a=group:BUNDLE {mid}");
        let single = session.replace("a=group:BUNDLE 0 1 2", &bundle) + sections[kind];
        let text = answer(&single, &usual());
        assert_eq!(lines(&text).len(), 1);
        assert!(text.contains(&bundle));
        // A single section needs no group, and then gets none.
        let loose = session.replace("a=group:BUNDLE 0 1 2\r\n", "") + sections[kind];
        assert!(!answer(&loose, &usual()).contains("a=group"));
    }
    let video_only = session + sections[1];
    assert_eq!(
        refusal(&video_only, &stream(vec![opus()])),
        Refusal::NoSuchTrack { asked: "video" }
    );
}

#[test]
fn a_second_video_is_rejected() {
    let (session, sections) = split(CHROMIUM);
    let second = sections[1].replace("a=mid:1", "a=mid:3");
    let offer =
        session.replace("BUNDLE 0 1 2", "BUNDLE 0 1 3") + sections[0] + sections[1] + &second;
    let text = answer(&offer, &usual());
    assert!(lines(&text)[1].starts_with("m=video 9 "));
    assert!(lines(&text)[2].starts_with("m=video 0 "));
    assert!(text.contains("a=group:BUNDLE 0 1\n"));
}

#[test]
fn players_must_receive() {
    assert!(negotiate(&CHROMIUM.replace("a=recvonly", "a=sendrecv"), &usual()).is_ok());
    assert!(negotiate(&CHROMIUM.replace("a=recvonly\r\n", ""), &usual()).is_ok());
    for direction in ["a=sendonly", "a=inactive"] {
        let offer = CHROMIUM.replace("a=recvonly", direction);
        assert_eq!(refusal(&offer, &usual()), Refusal::Direction);
    }
}

#[test]
fn the_transport_must_be_shared() {
    let unbundled = CHROMIUM.replace("a=group:BUNDLE 0 1 2\r\n", "");
    assert_eq!(refusal(&unbundled, &usual()), Refusal::Unbundled);
    let unmuxed = CHROMIUM.replace("a=rtcp-mux\r\n", "");
    assert_eq!(refusal(&unmuxed, &usual()), Refusal::Unmuxed);
}

#[test]
fn b_frames_are_refused_only_to_who_asks_for_video() {
    let reordered = stream(vec![video([0x64, 0, 0x1f], true), aac(), opus()]);
    assert_eq!(refusal(CHROMIUM, &reordered), Refusal::Reordered);
    let (session, sections) = split(CHROMIUM);
    assert!(negotiate(&(session + sections[0]), &reordered).is_ok());
}

#[test]
fn audio_that_is_being_made_gets_its_section() {
    let soon = stream(vec![video([0x42, 0xe0, 0x1f], false), aac()]);
    let negotiation = negotiate(CHROMIUM, &soon).expect("accepted");
    assert!(negotiation.negotiated.audio.is_some());

    let mut broken = soon;
    broken.audio_problem = Some("ffmpeg is not installed on the origin".into());
    let negotiation = negotiate(CHROMIUM, &broken).expect("accepted");
    assert!(negotiation.negotiated.audio.is_none() && negotiation.negotiated.video.is_some());
    let (session, sections) = split(CHROMIUM);
    let refusal = refusal(&(session + sections[0]), &broken);
    assert!(
        refusal
            .to_string()
            .ends_with("ffmpeg is not installed on the origin")
    );
}

#[test]
fn both_tracks_have_one_name_and_distinct_sources() {
    let text = answer(CHROMIUM, &usual());
    let mut cnames: Vec<_> = text
        .lines()
        .filter_map(|line| line.split_once(" cname:"))
        .map(|(_, cname)| cname)
        .collect();
    assert_eq!(cnames.len(), 3); // video, its RTX, audio
    cnames.dedup();
    assert_eq!(cnames.len(), 1);
    let mut sources: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("a=ssrc:"))
        .filter_map(|line| line.split(' ').next())
        .collect();
    sources.sort_unstable();
    sources.dedup();
    assert_eq!(sources.len(), 3);
}

#[test]
fn feedback_and_extensions_are_echoed_only_if_offered() {
    let bare: String = CHROMIUM
        .lines()
        .filter(|line| !line.starts_with("a=rtcp-fb") && !line.starts_with("a=extmap"))
        .filter(|line| !line.contains("apt="))
        .map(|line| format!("{line}\r\n"))
        .collect();
    let text = answer(&bare, &usual());
    for absent in ["a=rtcp-fb", "a=extmap", "ssrc-group", "apt="] {
        assert!(!text.contains(absent), "{absent}");
    }
    // Transport-wide feedback needs both its extension and its feedback line.
    let no_feedback = CHROMIUM.replace(" transport-cc\r\n", " x-none\r\n");
    assert!(!answer(&no_feedback, &usual()).contains("transport-wide-cc"));
    let wildcard = CHROMIUM
        .replace("a=rtcp-fb:116 nack\r\n", "")
        .replace("a=rtcp-fb:116 transport-cc", "a=rtcp-fb:* nack");
    assert!(answer(&wildcard, &usual()).contains("a=rtcp-fb:116 nack\n"));
}

#[test]
fn each_player_may_ask_again_and_gets_copies_from_a_source_of_their_own() {
    let baseline = stream(vec![video([0x42, 0xc0, 0x1f], false), aac(), opus()]);
    for (offer, stream, opus) in [(CHROMIUM, usual(), 111), (FIREFOX, baseline, 109)] {
        let negotiation = negotiate(offer, &stream).expect("accepted");
        let video = negotiation.negotiated.video.clone().expect("video");
        let (pt, rtx) = (video.payload_type, video.rtx_payload_type.expect("RTX"));
        let text = negotiation.answer(&local());
        for line in [
            format!("a=rtcp-fb:{pt} nack"),
            format!("a=rtcp-fb:{pt} nack pli"),
            format!("a=rtcp-fb:{pt} ccm fir"),
            format!("a=rtcp-fb:{pt} transport-cc"),
            format!("a=rtpmap:{rtx} rtx/90000"),
            format!("a=fmtp:{rtx} apt={pt}"),
            format!("a=ssrc-group:FID {} {}", video.ssrc, video.rtx_ssrc),
        ] {
            assert!(text.contains(&format!("{line}\r\n")), "{line}\n{text}");
        }
        assert_ne!(video.ssrc, video.rtx_ssrc);
        let parameters = |pt: u8| {
            let head = format!("a=fmtp:{pt} ");
            let found = text.lines().find_map(|line| line.strip_prefix(&head));
            found.expect("parameters").split(';').collect::<Vec<_>>()
        };
        // One profile is agreed on, in the one mode that we speak, and sound may carry its own repairs.
        assert!(parameters(pt).contains(&"packetization-mode=1"));
        let profile = |parameter: &&&str| parameter.starts_with("profile-level-id=");
        assert_eq!(parameters(pt).iter().filter(profile).count(), 1);
        assert!(parameters(opus).contains(&"useinbandfec=1"));
    }
}

#[test]
fn offers_without_what_a_connection_needs_are_refused() {
    let check = |from: &str, to: &str, part: &str| {
        let error = Offer::parse(&CHROMIUM.replace(from, to)).expect_err("refused");
        assert!(error.to_string().contains(part), "{error}");
    };
    check("a=ice-ufrag:bb1V\r\n", "", "no ice-ufrag");
    check("a=ice-ufrag:bb1V", "a=ice-ufrag:b", "ICE user");
    check("a=ice-pwd:", "a=ice-pwd:<>", "ICE user or password");
    check("sha-256 45", "sha-1 45", "fingerprint");
    check("sha-256 45:", "sha-256 ", "fingerprint");
    check("setup:actpass", "setup:passive", "a=setup");
    check("a=mid:0", "a=mid:a long one", "a=mid");
    check("v=0", "v=1", "no valid SDP: it is wrong at \"1\"");
    check("t=0 0", "x=0 0", "no valid SDP: it is wrong at");
    check("s=-", "s=\u{0}", "control characters");
    for nothing in [
        "",
        "v=0",
        "hello",
        "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\n",
    ] {
        assert!(Offer::parse(nothing).is_err(), "{nothing:?}");
    }
}

#[test]
fn every_count_is_bounded() {
    assert_eq!(
        Offer::parse(&"a".repeat(OFFER_BYTES_MAX + 1)),
        Err(OfferError::TooLong)
    );
    let (session, sections) = split(CHROMIUM);
    let many = session.clone() + &"m=audio 9 X 0\r\n".repeat(17);
    assert_eq!(Offer::parse(&many), Err(OfferError::TooMany("m-sections")));
    let many = session + sections[0] + &"a=x\r\n".repeat(5000);
    assert_eq!(Offer::parse(&many), Err(OfferError::TooMany("attributes")));
}

/// A seeded mutator over real offers: whatever comes in, parsing and negotiating end without a panic, and what is accepted
/// can be answered by SDP that can be read back.
#[test]
fn mutated_offers_never_panic() {
    const OFFERS: u64 = 20_000;
    let seeds = [CHROMIUM, CHROMIUM_STEREO, FIREFOX];
    let streams = [
        usual(),
        stream(vec![aac()]),
        stream(vec![opus()]),
        stream(vec![video([0, 0, 0], true)]),
        stream(Vec::new()),
    ];
    let (mut accepted, mut refused, mut malformed) = (0_u32, 0_u32, 0_u32);
    for seed in 0..OFFERS {
        let mut random = StdRng::seed_from_u64(seed);
        let base = seeds[random.random_range(0..seeds.len())];
        let text = mutate(base, &mut random);
        let stream = &streams[random.random_range(0..streams.len())];
        match Offer::parse(&text).map(|offer| offer.negotiate(stream, &mut random)) {
            Ok(Ok(negotiation)) => {
                accepted += 1;
                let answer = negotiation.answer(&local());
                assert_eq!(
                    answer.matches("\r\nm=").count(),
                    text.lines()
                        .filter(|line| line.trim_start().starts_with("m="))
                        .count(),
                    "seed {seed}"
                );
            }
            Ok(Err(_)) => refused += 1,
            Err(_) => malformed += 1,
        }
    }
    // The mutator must reach all three ends, or it tests nothing.
    assert!(
        accepted > 1000 && refused > 1000 && malformed > 1000,
        "{accepted} {refused} {malformed}"
    );
}

fn mutate(base: &str, random: &mut StdRng) -> String {
    let mut lines: Vec<String> = base.lines().map(str::to_owned).collect();
    for _ in 0..random.random_range(1..6) {
        let at = random.random_range(0..lines.len());
        let other = random.random_range(0..lines.len());
        match random.random_range(0..9) {
            0 => drop(lines.remove(at)),
            1 => lines.insert(at, lines[other].clone()),
            2 => lines.swap(at, other),
            3 => {
                let keep = random.random_range(0..=lines[at].len());
                lines[at] = lines[at].chars().take(keep).collect();
            }
            4 => {
                let number = random.random::<u64>().to_string();
                lines[at] = lines[at].replacen(char::is_numeric, &number, 1);
            }
            5 => lines[at].insert(0, random.random::<char>()),
            6 => {
                let position = random.random_range(0..=lines[at].chars().count());
                let (head, tail): (String, String) = (
                    lines[at].chars().take(position).collect(),
                    lines[at].chars().skip(position).collect(),
                );
                lines[at] = format!("{head}{}{tail}", random.random::<char>());
            }
            7 => lines[at] = lines[at].replace([':', ' ', '/'], ""),
            _ => lines[at] = format!("{} {}", lines[at], lines[other]),
        }
        if lines.is_empty() {
            break;
        }
    }
    let end = if random.random_bool(0.1) {
        "\n"
    } else {
        "\r\n"
    };
    let mut text = lines.join(end);
    text.push_str(end);
    if random.random_bool(0.05) {
        let keep = random.random_range(0..text.len());
        text = text.chars().take(keep).collect();
    }
    text
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in "(?s).{0,400}") {
        let _ = Offer::parse(&text);
        let _ = Fragment::parse(&text);
    }

    #[test]
    fn arbitrary_attributes_never_panic(lines in proptest::collection::vec("a=(rtpmap|fmtp|rtcp-fb|extmap|fingerprint|mid|setup|candidate|ice-ufrag|ice-pwd|group|ssrc):[ -~]{0,40}", 0..40)) {
        let (session, sections) = split(CHROMIUM);
        let text = session + sections[0] + &lines.join("\r\n") + "\r\n" + sections[1] + &lines.join("\r\n");
        if let Ok(offer) = Offer::parse(&text) {
            let _ = offer.negotiate(&usual(), &mut StdRng::seed_from_u64(1)).map(|n| n.answer(&local()));
        }
        let _ = Fragment::parse(&lines.join("\n"));
    }
}

/// The session part, and the sections.
fn split(offer: &str) -> (String, Vec<&str>) {
    let mut starts: Vec<_> = offer.match_indices("m=").map(|(at, _)| at).collect();
    let session = offer[..starts[0]].to_owned();
    starts.push(offer.len());
    let sections = starts.windows(2).map(|w| &offer[w[0]..w[1]]).collect();
    (session, sections)
}
