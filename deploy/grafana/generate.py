#!/usr/bin/env python3
"""Writes the dashboards beside it; `--check` only says whether they are up to date. Change them here, not in Grafana.

A row is a title and its panels; a panel is (kind, title, unit, what it tells, queries), a query (PromQL, legend). `I` picks the namespaces and instances chosen at the top.
"""

import json
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
# Outside Kubernetes there is no namespace, which "All" takes, too.
I = 'namespace=~"$namespace",instance=~"$instance"'
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
FAILED = "full|egress|overloaded|no-upstream|too-many-streams|draining"


def rate(metric, labels="", by="", window="$__rate_interval"):
    selector = ",".join(part for part in (I, labels) if part)
    return f"sum{f' by ({by})' if by else ''} (rate({metric}{{{selector}}}[{window}]))"


def quantiles(metric, labels="", *, of=(0.5, 0.95, 0.99)):
    return [(f"histogram_quantile({q}, {rate(metric + '_bucket', labels, 'le')})", f"p{q * 100:g}") for q in of]


def joins_failed(window="$__rate_interval"):
    return (f'((sum(rate(headwater_edge_joins_total{{{I},result=~"{FAILED}"}}[{window}])) or vector(0))'
            f' + (sum(rate(headwater_edge_viewers_ended_total{{{I},reason=~"never_connected|handshake_failed"}}[{window}])) or vector(0)))'
            f' / sum(rate(headwater_edge_joins_total{{{I},result=~"ok|{FAILED}"}}[{window}]))')


LATE = "1 - " + rate("headwater_edge_latency_seconds_bucket", 'le="0.25"') + " / " + rate("headwater_edge_latency_seconds_count")
FROZEN = rate("headwater_edge_player_frozen_seconds_total") + " / " + rate("headwater_edge_player_played_seconds_total")

DASHBOARDS = {
    "headwater-overview": ("Headwater / Overview", [
        ("Now", [
            ("stat", "Viewers", "short", "WebRTC viewers of all edges, connecting ones included.", [(f"sum(headwater_edge_viewers{{{I}}})", "")]),
            ("stat", "Streams", "short", "Streams at origins, held ones included.", [(f"sum(headwater_origin_streams{{{I}}})", "")]),
            ("stat", "Edges", "short", "Edges that are scraped.", [(f"count(headwater_edge_load_ratio{{{I}}})", "")]),
            ("stat", "Origins", "short", "Origins that are scraped.", [(f'count(headwater_build_info{{{I},role=~"origin|standalone"}})', "")]),
            ("stat", "To viewers", "bps", "Bits per second to viewers, with UDP and IP headers.", [(f"8 * sum(headwater_edge_shard_egress_bytes_per_second{{{I}}})", "")]),
            ("stat", "Highest load", "percentunit", "Load of the fullest edge. At 100 % it refuses newcomers.", [(f"max(headwater_edge_load_ratio{{{I}}})", "")]),
            ("stat", "Joins that fail, 1 h", "percentunit", "Joins refused on our side, or accepted and never connected. The objective is 0.5 % by the month.", [(joins_failed("1h"), "")]),
            ("stat", "Pictures that stand still, 1 h", "percentunit", "Share of the time, as players report it. The objective is 0.5 % by the month.", [(FROZEN.replace("$__rate_interval", "1h"), "")]),
            ("stat", "Latency, p99", "s", "From a picture's last byte at the origin to the send call of a shard's last viewer.", quantiles("headwater_edge_latency_seconds", of=(0.99,))),
        ]),
        ("Load", [
            ("timeseries", "Viewers by edge", "short", "Where viewers are.", [(f"sum by (instance) (headwater_edge_viewers{{{I}}})", "{{instance}}")]),
            ("timeseries", "Load by edge", "percentunit", "What a newcomer meets: the load of the least loaded shard. From 100 % on joins are refused.", [(f"headwater_edge_load_ratio{{{I}}}", "{{instance}}")]),
            ("timeseries", "To viewers by edge", "bps", "Bits per second, with UDP and IP headers.", [(f"8 * sum by (instance) (headwater_edge_shard_egress_bytes_per_second{{{I}}})", "{{instance}}")]),
            ("timeseries", "From publishers by origin", "bps", "Payload bits per second.", [(f"8 * {rate('headwater_origin_ingest_bytes_total', by='instance')}", "{{instance}}")]),
        ]),
        ("Health", [
            ("timeseries", "Joins by result", "reqps", "WHEP offers, by result; `not-live` is somebody who asks for a stream that nobody publishes.", [(rate("headwater_edge_joins_total", by="result"), "{{result}}")]),
            ("timeseries", "Publishers by outcome", "reqps", "Publishers that came, by outcome.", [(rate("headwater_origin_publishes_total", by="outcome"), "{{outcome}}")]),
            ("timeseries", "Directory", "reqps", "Calls to etcd that fail. While they do, new publishers are refused.", [(rate("headwater_directory_failed_calls_total", by="instance"), "{{instance}}")]),
            ("timeseries", "Draining", "short", "Edges that send their viewers elsewhere before they stop.", [(f"headwater_draining{{{I}}}", "{{instance}}")]),
            ("timeseries", "Traces", "reqps", "Spans, by what became of them: none are without trace.otlp; `failed` and `queue_full` are lost, as while the collector is away.", [(rate("headwater_trace_spans_total", by="result"), "{{result}}")]),
            ("table", "What runs", "short", "Version and commit of each node.", [(f"max by (instance, role, version, commit) (headwater_build_info{{{I}}})", "")]),
        ]),
    ]),
    "headwater-viewers": ("Headwater / Viewer experience", [
        ("Joining", [
            ("timeseries", "Joins by result", "reqps", "WHEP offers, by result.", [(rate("headwater_edge_joins_total", by="result"), "{{result}}")]),
            ("timeseries", "Joins that fail", "percentunit", "Refused on our side, or accepted and never connected. The objective is 0.5 % by the month.", [(joins_failed(), "fail")]),
            ("timeseries", "Time to media", "s", "From the request to the first packet of media. The objective is 95 % within 1.5 s.", quantiles("headwater_edge_join_seconds", 'phase="first_media"')),
            ("timeseries", "Where it goes, p95", "s", "offer: it arrives; open: the stream comes from its origin; shard: the viewer is taken in; total: it is answered; first_media: its first packet left.", [(f"histogram_quantile(0.95, {rate('headwater_edge_join_seconds_bucket', by='le, phase')})", "{{phase}}")]),
            ("timeseries", "Sessions that end", "reqps", "By reason. never_connected and handshake_failed: no media path; expired: the viewer vanished.", [(rate("headwater_edge_viewers_ended_total", by="reason"), "{{reason}}")]),
            ("timeseries", "Viewers by transport", "short", "UDP, or TCP where a viewer's network lets no UDP through.", [(f"sum by (transport) (headwater_edge_viewers_by_transport{{{I}}})", "{{transport}}")]),
        ]),
        ("Latency", [
            ("timeseries", "From socket to socket", "s", "From a picture's last byte at the origin to the send call of a shard's last viewer. Links that hold pictures back are not in it.", quantiles("headwater_edge_latency_seconds")),
            ("timeseries", "By hop, mean", "s", "Stacked, they are the mean of the whole. ingest: at the origin; replicate: to the edge; queue: until a shard begins with it; wire: until its last viewer's send call.", [(f"{rate('headwater_edge_latency_hop_seconds_sum', by='hop')} / {rate('headwater_edge_latency_hop_seconds_count', by='hop')}", "{{hop}}")]),
            ("timeseries", "Later than 250 ms", "percentunit", "Share of pictures that took longer from socket to socket. The objective is 1 % by the month.", [(LATE, "late")]),
            ("timeseries", "Waiting for the pacer", "s", "How long a viewer's pictures waited because its link carries no more, until it was at the live edge again.", quantiles("headwater_edge_pacer_queue_seconds")),
            ("timeseries", "In the ladder", "s", "From a picture of the source to that of a lower rendition.", quantiles("headwater_origin_ladder_lag_seconds")),
        ]),
        ("As players report it", [
            ("timeseries", "Time that pictures stand still", "percentunit", "Of the time in which players were to show some. The objective is 0.5 % by the month.", [(FROZEN, "frozen")]),
            ("timeseries", "Freezes", "opm", "Per minute of playing.", [(f"60 * {rate('headwater_edge_player_freezes_total')} / {rate('headwater_edge_player_played_seconds_total')}", "freezes")]),
            ("timeseries", "First frame", "s", "From the player's request to its first frame on the screen.", quantiles("headwater_edge_player_first_frame_seconds")),
            ("timeseries", "From socket to screen", "s", "How old frames are when they are shown, since the origin had read them.", quantiles("headwater_edge_player_latency_seconds")),
            ("timeseries", "Reports", "reqps", "By result; `sampled` are more than an edge takes.", [(rate("headwater_edge_player_reports_total", by="result"), "{{result}}")]),
        ]),
        ("Links", [
            ("timeseries", "Round trip", "s", "To viewers, over all of them.", quantiles("headwater_edge_viewer_round_trip_seconds")),
            ("timeseries", "Loss", "percentunit", "Of packets on the way to viewers, as they report it, over all of them.", quantiles("headwater_edge_viewer_loss_ratio")),
            ("timeseries", "Estimate", "bps", "What viewers' links are thought to carry: half of them less, a tenth of them less.", [(f"8 * histogram_quantile({q}, {rate('headwater_edge_viewer_estimate_bytes_per_second_bucket', by='le')})", f"p{q * 100:g}") for q in (0.1, 0.5)]),
        ]),
        ("Picture", [
            ("timeseries", "Packets asked for again", "percentunit", "NACKs to packets sent: loss on viewers' links, repetitions included.", [(f"{rate('headwater_edge_packets_nacked_total')} / {rate('headwater_edge_packets_sent_total')}", "asked for"), (f"{rate('headwater_edge_packets_resent_total')} / {rate('headwater_edge_packets_sent_total')}", "sent again")]),
            ("timeseries", "NACKs that stay unanswered", "reqps", "Packets per second, by reason.", [(rate("headwater_edge_nacks_unanswered_total", by="reason"), "{{reason}}")]),
            ("timeseries", "Skips", "reqps", "Viewers, replicas and shards that lost pictures and go on at a keyframe, and sound that came too late to be sent.", [(rate("headwater_edge_skips_to_keyframe_total", by="place"), "{{place}}"), (rate("headwater_edge_late_sound_total"), "late sound")]),
            ("timeseries", "Keyframes asked for", "reqps", "Requests of players that can't decode, by how they were answered.", [(rate("headwater_edge_keyframes_resent_total", by="answer"), "{{answer}}")]),
            ("timeseries", "Rendition switches", "opm", "Per viewer and minute.", [(f"60 * {rate('headwater_edge_rendition_switches_total')} / sum(headwater_edge_viewers{{{I}}})", "switches")]),
            ("timeseries", "Time in renditions", "percentunit", "Share of viewers' time, by what they are sent; none: sound alone.", [(f"{rate('headwater_edge_viewed_seconds_total', by='rendition')} / scalar({rate('headwater_edge_viewed_seconds_total')})", "{{rendition}}")]),
            ("timeseries", "Probes", "reqps", "Tries whether a link carries a higher rendition.", [(rate("headwater_edge_probes_total"), "probes")]),
        ]),
    ]),
    "headwater-edge": ("Headwater / Edge", [
        ("Shards", [
            ("timeseries", "Load", "percentunit", "The largest of viewers and egress, each to its limit, and lateness. From 100 % on a shard takes nobody.", [(f"headwater_edge_shard_load_ratio{{{I}}}", "{{instance}} {{shard}}")]),
            ("timeseries", "Busy", "percentunit", "Share of time a shard's loop works. 90 % is full.", [(f"headwater_edge_shard_busy_ratio{{{I}}}", "{{instance}} {{shard}}")]),
            ("timeseries", "Lateness", "s", "How late pictures reach their last viewer. 50 ms is full.", [(f"headwater_edge_shard_lag_seconds{{{I}}}", "{{instance}} {{shard}}")]),
            ("timeseries", "Viewers", "short", "By shard, connecting ones included, and what an edge takes.", [(f"headwater_edge_viewers{{{I}}}", "{{instance}} {{shard}}"), (f"headwater_edge_viewers_max{{{I}}}", "{{instance}} at most")]),
            ("timeseries", "Egress", "bps", "Bits per second, with UDP and IP headers.", [(f"8 * headwater_edge_shard_egress_bytes_per_second{{{I}}}", "{{instance}} {{shard}}")]),
            ("heatmap", "Fan-out", "s", "How long pictures take from their first viewer to their last.", [(rate("headwater_edge_latency_hop_seconds_bucket", 'hop="wire"', by="le"), "{{le}}")]),
        ]),
        ("Sending", [
            ("timeseries", "Packets", "pps", "RTP packets sent for the first time, and again.", [(rate("headwater_edge_packets_sent_total", by="kind"), "{{kind}}"), (rate("headwater_edge_packets_resent_total"), "again"), (rate("headwater_edge_packets_resent_spare_total"), "again, spare")]),
            ("timeseries", "Packets per call", "short", "RTP packets to a call of sendmmsg: how well they are sent together.", [(f"{rate('headwater_edge_packets_sent_total')} / {rate('headwater_edge_send_calls_total')}", "packets")]),
            ("timeseries", "Not sent", "reqps", "Messages that the kernel didn't take, by reason, and pictures that a shard had no room for.", [(rate("headwater_edge_sends_dropped_total", by="reason"), "{{reason}}"), (rate("headwater_edge_batches_dropped_total"), "pictures")]),
            ("timeseries", "Bytes by kind", "Bps", "RTP, tags included, and what is sent again by RTX.", [(rate("headwater_edge_sent_bytes_total", by="kind"), "{{kind}}"), (rate("headwater_edge_resent_bytes_total"), "again")]),
            ("timeseries", "TCP", "Bps", "Bytes to viewers without UDP, framing included.", [(rate("headwater_edge_tcp_sent_bytes_total", by="instance"), "{{instance}}")]),
            ("timeseries", "TCP connections", "reqps", "To the media port, by what became of them; much of anything but `taken` is somebody scanning.", [(rate("headwater_edge_tcp_connections_total", by="outcome"), "{{outcome}}")]),
        ]),
        ("Receiving", [
            ("timeseries", "Feedback", "reqps", "RTCP from viewers, by kind.", [(rate("headwater_edge_feedback_total", by="kind"), "{{kind}}")]),
            ("timeseries", "Datagrams refused", "reqps", "Datagrams that nobody could use, by reason.", [(rate("headwater_edge_datagrams_refused_total", by="reason"), "{{reason}}")]),
            ("timeseries", "Handshakes", "reqps", "DTLS handshakes completed, by SRTP profile.", [(rate("headwater_edge_handshakes_total", by="profile"), "{{profile}}")]),
            ("timeseries", "HTTP", "reqps", "Requests, by route and class of status.", [(rate("headwater_edge_http_requests_total", by="route, status"), "{{route}} {{status}}")]),
            ("timeseries", "Requests for other edges", "reqps", "Handed to the edge that has the session, or has room, by result. `unreachable`: that edge has no `edge.grpc`, or its port is closed to others.", [(rate("headwater_edge_http_forwarded_total", by="result"), "{{result}}")]),
            ("timeseries", "Mailboxes full", "reqps", "Messages that an actor had no room for, by link.", [(rate("headwater_edge_mailboxes_full_total", by="link"), "{{link}}")]),
        ]),
        ("Upstream", [
            ("timeseries", "Streams replicated", "short", "Streams that an edge has.", [(f"headwater_edge_replicas{{{I}}}", "{{instance}}")]),
            ("timeseries", "Subscriptions", "reqps", "Attempts, by outcome.", [(rate("headwater_edge_upstream_attempts_total", by="outcome"), "{{outcome}}")]),
            ("timeseries", "Clocks", "s", "Of the upstream whose clock is furthest off: upstream less edge. Latencies are corrected by it, to within the error.", [(f"headwater_edge_upstream_clock_offset_seconds{{{I}}}", "{{instance}}"), (f"headwater_edge_upstream_clock_error_seconds{{{I}}}", "error at {{instance}}")]),
            ("timeseries", "Units missing or refused", "reqps", "Missing in what an upstream sent, or refused by a replica's full mailbox.", [(rate("headwater_edge_upstream_units_lost_total"), "missing"), (rate("headwater_edge_upstream_units_refused_total"), "refused")]),
        ]),
        ("Edges that feed edges", [
            ("timeseries", "Edges fed", "short", "Subscriptions of other edges, over all streams.", [(f"headwater_edge_subscribers{{{I}}}", "{{instance}}")]),
            ("timeseries", "Passed on", "bps", "Payload bits per second to other edges.", [(f"8 * {rate('headwater_edge_passed_on_bytes_total', by='instance')}", "{{instance}}")]),
            ("timeseries", "Sent on and refused", "reqps", "Edges that were sent to one that is fed here, and those that were refused.", [(rate("headwater_edge_redirects_total"), "sent on"), (rate("headwater_edge_subscribers_refused_total"), "refused")]),
            ("timeseries", "Upstreams by depth", "short", "Calls by which edges get streams, by how many nodes are between them and the publisher.", [(f"sum by (depth) (headwater_edge_upstreams_by_depth{{{I}}})", "{{depth}}")]),
            ("timeseries", "Upstreams lost and found", "reqps", "Streams that go on at another upstream.", [(rate("headwater_edge_reparented_total", by="to"), "at an {{to}}")]),
            ("timeseries", "Without an upstream", "s", "From the loss of one to the first unit of the next.", quantiles("headwater_edge_reparent_gap_seconds")),
        ]),
    ]),
    "headwater-origin": ("Headwater / Origin and directory", [
        ("Publishers", [
            ("timeseries", "Streams", "short", "By origin, held ones included.", [(f"headwater_origin_streams{{{I}}}", "{{instance}}")]),
            ("timeseries", "Publishers", "reqps", "That came, by outcome.", [(rate("headwater_origin_publishes_total", by="outcome"), "{{outcome}}")]),
            ("timeseries", "RTMP connections", "short", "Open ones.", [(f"headwater_origin_rtmp_connections{{{I}}}", "{{instance}}")]),
            ("timeseries", "RTMP connections that end", "reqps", "By who ended them and why, and those refused for their number.", [(rate("headwater_origin_rtmp_closes_total", by="reason"), "{{reason}}"), (rate("headwater_origin_rtmp_rejected_total", by="reason"), "refused: {{reason}}")]),
            ("timeseries", "Received", "bps", "Payload bits per second, by kind.", [(f"8 * {rate('headwater_origin_ingest_bytes_total', by='kind')}", "{{kind}}")]),
            ("timeseries", "Pictures and audio frames", "reqps", "Taken from publishers, by kind, and gaps in what they sent.", [(rate("headwater_origin_ingest_units_total", by="kind"), "{{kind}}"), (rate("headwater_origin_ingest_gaps_total", by="kind"), "gaps: {{kind}}")]),
            ("timeseries", "Keyframe interval", "s", "Between keyframes of publishers. Joining and switching wait for them; 1 to 2 s is best.", quantiles("headwater_origin_keyframe_interval_seconds")),
            ("timeseries", "Not taken", "reqps", "Access units that were not taken, by reason, and messages that could not be used.", [(rate("headwater_origin_units_dropped_total", by="reason"), "{{reason}}"), (rate("headwater_origin_rtmp_skipped_total", by="kind, reason"), "{{kind}}: {{reason}}")]),
        ]),
        ("Edges that subscribe", [
            ("timeseries", "Subscriptions", "short", "Of edges, over all streams.", [(f"headwater_origin_subscribers{{{I}}}", "{{instance}}")]),
            ("timeseries", "Replicated", "bps", "Payload bits per second to edges.", [(f"8 * {rate('headwater_origin_replicated_bytes_total', by='instance')}", "{{instance}}")]),
            ("timeseries", "Skips", "reqps", "Slow subscribers that went on at a keyframe, and the units they missed.", [(rate("headwater_origin_subscriber_skips_total"), "skips"), (rate("headwater_origin_units_skipped_total"), "units")]),
            ("timeseries", "Sent on and refused", "reqps", "Edges that were sent to one that has the stream, and those that were refused.", [(rate("headwater_origin_redirects_total"), "sent on"), (rate("headwater_origin_subscribers_refused_total"), "refused")]),
        ]),
        ("Transcoding", [
            ("timeseries", "ffmpeg", "short", "Children that make renditions.", [(f"headwater_origin_ladder_children{{{I}}}", "{{instance}}")]),
            ("timeseries", "Ladder's lag", "s", "From a picture of the source to that of a rendition.", quantiles("headwater_origin_ladder_lag_seconds")),
            ("timeseries", "Ladder's failures", "reqps", "Children that failed, by reason, and restarts.", [(rate("headwater_origin_ladder_failures_total", by="reason"), "{{reason}}"), (rate("headwater_origin_ladder_restarts_total"), "restarts")]),
            ("timeseries", "Pictures left out", "reqps", "On their way into or out of ffmpeg, by reason; `slow` is a lack of CPU.", [(rate("headwater_origin_ladder_units_dropped_total", by="reason"), "{{reason}}")]),
            ("timeseries", "Sound", "short", "AAC to Opus transcodes, by who decodes.", [(f"sum by (path) (headwater_origin_audio_transcodes{{{I}}})", "{{path}}")]),
            ("timeseries", "Sound's faults", "reqps", "Failures of decoders, units that became no sound, and streams whose sound was given up.", [(rate("headwater_origin_audio_failures_total", by="reason"), "{{reason}}"), (rate("headwater_origin_audio_units_dropped_total", by="reason"), "dropped: {{reason}}"), (rate("headwater_origin_audio_given_up_total"), "given up")]),
        ]),
        ("Directory", [
            ("timeseries", "Nodes that know the directory", "short", "1 once a node has seen etcd's first listing.", [(f"headwater_directory_synced{{{I}}}", "{{instance}}")]),
            ("timeseries", "Calls", "reqps", "To etcd, and those that fail, by reason.", [(rate("headwater_directory_calls_total"), "all"), (rate("headwater_directory_failed_calls_total", by="reason"), "{{reason}}")]),
            ("timeseries", "Leases and claims lost, watches reopened", "reqps", "Nodes that were away from etcd.", [(rate("headwater_directory_lost_leases_total"), "leases"), (rate("headwater_directory_lost_claims_total"), "claims"), (rate("headwater_directory_watch_reopened_total", by="reason"), "watch: {{reason}}")]),
            ("timeseries", "etcd: leader", "short", "1 for each member that has one.", [('etcd_server_has_leader{job=~"headwater-etcd|kubernetes-pods",namespace=~"$namespace"}', "{{instance}}")]),
            ("timeseries", "etcd: disk", "s", "How long writes wait for the disk, p99.", [('histogram_quantile(0.99, sum by (instance, le) (rate(etcd_disk_wal_fsync_duration_seconds_bucket{job=~"headwater-etcd|kubernetes-pods",namespace=~"$namespace"}[$__rate_interval])))', "{{instance}}")]),
            ("timeseries", "etcd: size", "bytes", "Of the database.", [('etcd_mvcc_db_total_size_in_bytes{job=~"headwater-etcd|kubernetes-pods",namespace=~"$namespace"}', "{{instance}}")]),
        ]),
    ]),
}

# Width and height by kind, of 24 columns.
SIZES = {"stat": (3, 4), "timeseries": (8, 8), "heatmap": (8, 8), "table": (8, 8)}


def panel(number, x, y, kind, title, unit, description, queries):
    width, height = SIZES[kind]
    defaults = {"unit": unit}
    if kind == "timeseries":
        defaults |= {"min": 0, "custom": {"lineWidth": 1, "fillOpacity": 10, "showPoints": "never"}}
    made = {
        "id": number, "type": kind, "title": title, "description": description, "datasource": SOURCE,
        "gridPos": {"x": x, "y": y, "w": width, "h": height}, "fieldConfig": {"defaults": defaults, "overrides": []},
        "targets": [{"refId": chr(ord("A") + n), "expr": query, "legendFormat": legend or "__auto", "datasource": SOURCE} for n, (query, legend) in enumerate(queries)],
    }
    if kind == "timeseries":
        made["options"] = {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}}
    if kind == "heatmap":
        made["options"] = {"calculate": False, "yAxis": {"unit": unit}}
        made["targets"][0]["format"] = "heatmap"
    if kind == "table":
        made["targets"][0] |= {"format": "table", "instant": True}
        made["transformations"] = [{"id": "organize", "options": {"excludeByName": {"Time": True, "Value": True}}}]
    return made


def dashboard(uid, title, rows):
    panels, y = [], 0
    for row, contents in rows:
        panels.append({"id": len(panels) + 1, "type": "row", "title": row, "collapsed": False, "gridPos": {"x": 0, "y": y, "w": 24, "h": 1}, "panels": []})
        x, y, tallest = 0, y + 1, 0
        for content in contents:
            width, height = SIZES[content[0]]
            if x + width > 24:
                x, y, tallest = 0, y + tallest, 0
            panels.append(panel(len(panels) + 1, x, y, *content))
            x, tallest = x + width, max(tallest, height)
        y += tallest
    chosen = [{"type": "query", "name": name, "label": label, "datasource": SOURCE, "query": {"query": f"label_values({of}, {name})", "refId": name},
               "refresh": 2, "multi": True, "includeAll": True, "allValue": ".*", "current": {"text": "All", "value": "$__all"}}
              for name, label, of in (("namespace", "Namespace", "headwater_build_info"), ("instance", "Node", 'headwater_build_info{namespace=~"$namespace"}'))]
    return {
        "uid": uid, "title": title, "tags": ["headwater"], "schemaVersion": 39, "version": 1, "editable": False, "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"}, "timezone": "browser", "graphTooltip": 1,
        "links": [{"type": "dashboards", "tags": ["headwater"], "title": "Headwater", "asDropdown": True, "keepTime": True, "includeVars": True}],
        "templating": {"list": [{"type": "datasource", "name": "datasource", "label": "Prometheus", "query": "prometheus", "current": {}}, *chosen]},
        "panels": panels,
    }


def main():
    stale = []
    for uid, (title, rows) in DASHBOARDS.items():
        path = HERE / f"{uid}.json"
        text = json.dumps(dashboard(uid, title, rows), indent=1) + "\n"
        if not path.exists() or path.read_text() != text:
            stale.append(path)
            if "--check" not in sys.argv[1:]:
                path.write_text(text)
    if stale and "--check" in sys.argv[1:]:
        sys.exit(f"run deploy/grafana/generate.py: {', '.join(path.name for path in stale)} are out of date")


if __name__ == "__main__":
    main()
