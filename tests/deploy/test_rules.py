"""Prometheus rules: each alert fires when it should and is silent when it should be, and has a section in the runbook.

The tables become promtool's unit tests. Series are promtool's notation, a value each minute: `0+60x30` rises by 60 for 30 minutes.
"""

import pathlib
import re
import subprocess
import tempfile
import unittest

import promql_parser
import yaml

from catalogue import Catalogue, selectors, whole_buckets
from chart import ROOT

RULES = ROOT / "deploy/prometheus/headwater.rules.yaml"
RUNBOOK = ROOT / "deploy/runbook.md"
HEADINGS = re.compile(r"(?m)^#+ (.+)$")

EDGE = 'instance="e1"'
ORIGIN = 'instance="o1"'
JOINS = "headwater_edge_joins_total"
LATENCY = "headwater_edge_latency_seconds"
JOIN = "headwater_edge_join_seconds"
MEMBER = 'instance="etcd-0",job="headwater-etcd"'
OTHERS_JOB = 'instance="p1",job="kubernetes-pods"'


def counter(name, labels, per_minute, minutes=100):
    return {f"{name}{{{labels}}}": f"0+{per_minute}x{minutes}"}


def joins(ok, failed, minutes=100):
    return counter(JOINS, EDGE + ',result="ok"', ok, minutes) | counter(JOINS, EDGE + ',result="overloaded"', failed, minutes)


def playing(moving, frozen, minutes=100):
    """Seconds of pictures that move and that stand still, each minute."""
    return counter("headwater_edge_player_played_seconds_total", EDGE, moving + frozen, minutes) | counter("headwater_edge_player_frozen_seconds_total", EDGE, frozen, minutes)


def histogram(name, labels, le, within, all_, minutes=100):
    return (counter(name + "_bucket", f'{labels},le="{le}"', within, minutes) | counter(name + "_bucket", labels + ',le="+Inf"', all_, minutes)
            | counter(name + "_count", labels, all_, minutes))


def builds(*nodes):
    return {f'headwater_build_info{{instance="{i}",role="{role}",version="{version}",commit="c"}}': "1x200" for i, role, version in nodes}


# The slow alerts look at three days: a value each quarter of an hour does, for 75 hours.
QUARTERS = 300
BY_QUARTERS = {"HeadwaterJoinsFailSlow", "HeadwaterJoinsSlowSlow", "HeadwaterFreezesSlow", "HeadwaterPicturesLateSlow"}

# alert: (series that fire it, series that don't, minute to look at, labels it has, its value as the summary has it)
ALERTS = {
    "HeadwaterJoinsFailFast": (joins(90, 10), joins(995, 5), 90, {}, "10%"),
    "HeadwaterJoinsFailSlow": (joins(98, 2, QUARTERS), joins(998, 2, QUARTERS), QUARTERS - 5, {}, "2%"),
    "HeadwaterJoinsSlowFast": (joins(100, 0) | histogram(JOIN, EDGE + ',phase="first_media"', "1.5", 20, 100), joins(100, 0) | histogram(JOIN, EDGE + ',phase="first_media"', "1.5", 90, 100), 90, {}, "80%"),
    "HeadwaterJoinsSlowSlow": (histogram(JOIN, EDGE + ',phase="first_media"', "1.5", 90, 100, QUARTERS), histogram(JOIN, EDGE + ',phase="first_media"', "1.5", 99, 100, QUARTERS), QUARTERS - 5, {}, "10%"),
    "HeadwaterPicturesLateFast": (histogram(LATENCY, EDGE, "0.25", 80, 100), histogram(LATENCY, EDGE, "0.25", 99, 100), 90, {}, "20%"),
    "HeadwaterPicturesLateSlow": (histogram(LATENCY, EDGE, "0.25", 95, 100, QUARTERS), histogram(LATENCY, EDGE, "0.25", 996, 1000, QUARTERS), QUARTERS - 5, {}, "5%"),
    "HeadwaterFreezesFast": (playing(90, 10), playing(995, 5), 90, {}, "10%"),
    "HeadwaterFreezesSlow": (playing(98, 2, QUARTERS), playing(998, 2, QUARTERS), QUARTERS - 5, {}, "2%"),
    # Under a job that has others, too: one of ours was once seen with its metrics.
    "HeadwaterNodeDown": (
        {f"up{{{OTHERS_JOB}}}": "1x5 0x50", f'headwater_build_info{{{OTHERS_JOB},role="edge"}}': "1x5 _x50"},
        {'up{job="headwater",instance="e1"}': "1x100", f"up{{{OTHERS_JOB}}}": "0x100"}, 20, {"job": "kubernetes-pods", "instance": "p1"}, ""),
    "HeadwaterNoOrigin": (builds(("e1", "edge", "1")), builds(("o1", "origin", "1")), 20, {}, ""),
    "HeadwaterNoEdge": (builds(("o1", "origin", "1")), builds(("s1", "standalone", "1")), 20, {}, ""),
    "HeadwaterPanics": ({f"headwater_panics_total{{{EDGE}}}": "0x10 1x20"}, {f"headwater_panics_total{{{EDGE}}}": "3x30"}, 15, {"instance": "e1"}, ""),
    "HeadwaterVersionsDiffer": (builds(("e1", "edge", "1"), ("e2", "edge", "2")), builds(("e1", "edge", "1"), ("o1", "origin", "1")), 150, {}, "2"),
    "HeadwaterRolloutStuck": (
        {f'kube_deployment_{what}{{namespace="media",deployment="live-headwater-edge"}}': f"{n}x60" for what, n in (("spec_replicas", 3), ("status_replicas_available", 2), ("status_replicas_updated", 1))},
        {f'kube_deployment_{what}{{namespace="media",deployment="live-headwater-edge"}}': n for what, n in (("spec_replicas", "9x60"), ("status_replicas_available", "8x60"), ("status_replicas_updated", "0x9 1x9 2x9 3x9 4x9 5x9"))},
        40, {"namespace": "media", "deployment": "live-headwater-edge", "workload": "live-headwater-edge"}, "1"),
    "HeadwaterEdgeLoadHigh": ({f"headwater_edge_load_ratio{{{EDGE}}}": "0.9x60"}, {f"headwater_edge_load_ratio{{{EDGE}}}": "0.7x60"}, 20, {"instance": "e1"}, "90%"),
    "HeadwaterJoinsRefused": (counter(JOINS, EDGE + ',result="full"', 60), counter(JOINS, EDGE + ',result="not-live"', 60), 20, {"result": "full"}, "1"),
    "HeadwaterShardLate": ({f'headwater_edge_shard_lag_seconds{{{EDGE},shard="1"}}': "0.08x60"}, {f'headwater_edge_shard_lag_seconds{{{EDGE},shard="1"}}': "0.01x60"}, 20, {"instance": "e1", "shard": "1"}, "80ms"),
    "HeadwaterWorkDropped": (counter("headwater_edge_batches_dropped_total", EDGE, 6), counter("headwater_edge_batches_dropped_total", EDGE, 0), 20, {"instance": "e1"}, ""),
    "HeadwaterMailboxesFull": (counter("headwater_edge_mailboxes_full_total", EDGE + ',link="shard"', 120), counter("headwater_edge_mailboxes_full_total", EDGE + ',link="shard"', 6), 20, {"instance": "e1", "link": "shard"}, ""),
    "HeadwaterSendsDropped": (
        counter("headwater_edge_sends_dropped_total", EDGE + ',reason="full"', 50) | counter("headwater_edge_send_calls_total", EDGE, 1000),
        counter("headwater_edge_sends_dropped_total", EDGE + ',reason="tcp"', 50) | counter("headwater_edge_send_calls_total", EDGE, 1000), 30, {"instance": "e1", "reason": "full"}, ""),
    "HeadwaterViewersCantConnect": (
        counter("headwater_edge_viewers_ended_total", EDGE + ',reason="never_connected"', 30) | counter("headwater_edge_viewers_joined_total", EDGE, 60),
        counter("headwater_edge_viewers_ended_total", EDGE + ',reason="closed"', 30) | counter("headwater_edge_viewers_joined_total", EDGE, 60), 50, {"instance": "e1"}, "50%"),
    "HeadwaterLossHigh": (
        counter("headwater_edge_packets_nacked_total", EDGE, 100) | counter("headwater_edge_packets_sent_total", EDGE + ',kind="video"', 1000),
        counter("headwater_edge_packets_nacked_total", EDGE, 20) | counter("headwater_edge_packets_sent_total", EDGE + ',kind="video"', 1000), 40, {"instance": "e1"}, "10%"),
    "HeadwaterTcpMany": (
        {f'headwater_edge_viewers_by_transport{{{EDGE},shard="0",transport="{t}"}}': f"{n}x60" for t, n in (("tcp", 75), ("udp", 25))},
        {f'headwater_edge_viewers_by_transport{{{EDGE},shard="0",transport="{t}"}}': f"{n}x60" for t, n in (("tcp", 9), ("udp", 1))}, 40, {"instance": "e1"}, "75%"),
    "HeadwaterUpstreamFails": (counter("headwater_edge_upstream_attempts_total", EDGE + ',outcome="failed"', 3), counter("headwater_edge_upstream_attempts_total", EDGE + ',outcome="ended"', 30), 30, {"instance": "e1"}, ""),
    "HeadwaterUnitsMissing": (counter("headwater_edge_upstream_units_lost_total", EDGE, 120), counter("headwater_edge_upstream_units_lost_total", EDGE, 6), 30, {"instance": "e1"}, ""),
    "HeadwaterPublishersRefused": (counter("headwater_origin_publishes_total", ORIGIN + ',outcome="directory_unavailable"', 6), counter("headwater_origin_publishes_total", ORIGIN + ',outcome="busy"', 6), 30, {"outcome": "directory_unavailable"}, ""),
    "HeadwaterRtmpConnectionsRefused": (counter("headwater_origin_rtmp_rejected_total", ORIGIN + ',reason="per_ip"', 60), counter("headwater_origin_rtmp_rejected_total", ORIGIN + ',reason="per_ip"', 1), 30, {"instance": "o1", "reason": "per_ip"}, ""),
    "HeadwaterUnitsDropped": (counter("headwater_origin_units_dropped_total", ORIGIN + ',reason="overflow"', 120), counter("headwater_origin_units_dropped_total", ORIGIN + ',reason="no_source"', 120), 30, {"instance": "o1"}, ""),
    "HeadwaterSubscribersSkip": (counter("headwater_origin_subscriber_skips_total", ORIGIN, 60), counter("headwater_origin_subscriber_skips_total", ORIGIN, 1), 30, {"instance": "o1"}, ""),
    "HeadwaterSoundGivenUp": ({f"headwater_origin_audio_given_up_total{{{ORIGIN}}}": "0x10 1x20"}, {f"headwater_origin_audio_given_up_total{{{ORIGIN}}}": "1x40"}, 20, {"instance": "o1"}, ""),
    "HeadwaterLadderFails": (counter("headwater_origin_ladder_failures_total", ORIGIN + ',reason="exited"', 1), {f'headwater_origin_ladder_failures_total{{{ORIGIN},reason="exited"}}': "0x20 1x40"}, 30, {"instance": "o1", "reason": "exited"}, ""),
    "HeadwaterLadderSlow": (counter("headwater_origin_ladder_units_dropped_total", ORIGIN + ',reason="slow"', 120), counter("headwater_origin_ladder_units_dropped_total", ORIGIN + ',reason="late"', 120), 30, {"instance": "o1"}, ""),
    "HeadwaterLadderLate": (
        histogram("headwater_origin_ladder_lag_seconds", ORIGIN, "0.5", 0, 100) | counter("headwater_origin_ladder_lag_seconds_bucket", ORIGIN + ',le="1"', 100),
        histogram("headwater_origin_ladder_lag_seconds", ORIGIN, "0.05", 100, 100), 30, {"instance": "o1"}, "975ms"),
    "HeadwaterDirectoryUnsynced": ({f"headwater_directory_synced{{{EDGE}}}": "0x30"}, {f"headwater_directory_synced{{{EDGE}}}": "1x30"}, 20, {"instance": "e1"}, ""),
    "HeadwaterDirectoryFails": (counter("headwater_directory_failed_calls_total", EDGE + ',reason="silent"', 30), counter("headwater_directory_failed_calls_total", EDGE + ',reason="silent"', 1), 30, {"instance": "e1"}, ""),
    "HeadwaterLeasesLost": ({f"headwater_directory_lost_leases_total{{{ORIGIN}}}": "0x10 1x20"}, {f"headwater_directory_lost_leases_total{{{ORIGIN}}}": "2x40"}, 20, {"instance": "o1"}, ""),
    "HeadwaterRecordsUnreadable": ({f"headwater_directory_unreadable_records_total{{{EDGE}}}": "0x10 1x20"}, {f"headwater_directory_unreadable_records_total{{{EDGE}}}": "1x40"}, 20, {"instance": "e1"}, ""),
    "HeadwaterEtcdMemberDown": (
        {f"up{{{OTHERS_JOB}}}": "1x5 0x50", f"etcd_server_has_leader{{{OTHERS_JOB}}}": "1x5 _x50"}, {f"up{{{MEMBER}}}": "1x30", f"up{{{OTHERS_JOB}}}": "0x100"},
        20, {"job": "kubernetes-pods", "instance": "p1"}, ""),
    "HeadwaterEtcdNoLeader": ({f"etcd_server_has_leader{{{MEMBER}}}": "0x30"}, {f"etcd_server_has_leader{{{MEMBER}}}": "1x30"}, 20, {"job": "headwater-etcd", "instance": "etcd-0"}, ""),
    "HeadwaterEtcdDiskSlow": (
        histogram("etcd_disk_wal_fsync_duration_seconds", MEMBER, "1", 0, 100) | counter("etcd_disk_wal_fsync_duration_seconds_bucket", MEMBER + ',le="2"', 100),
        histogram("etcd_disk_wal_fsync_duration_seconds", MEMBER, "0.1", 100, 100), 30, {"instance": "etcd-0"}, "1.99s"),
    "HeadwaterEtcdFull": (
        {f"etcd_mvcc_db_total_size_in_bytes{{{MEMBER}}}": "900x30", f"etcd_server_quota_backend_bytes{{{MEMBER}}}": "1000x30"},
        {f"etcd_mvcc_db_total_size_in_bytes{{{MEMBER}}}": "90x30", f"etcd_server_quota_backend_bytes{{{MEMBER}}}": "1000x30"}, 20, {"job": "headwater-etcd", "instance": "etcd-0"}, "90%"),
}


def rules():
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def alerts():
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def unit_tests(names, minutes):
    """The tables as promtool's tests, with a value each so many minutes."""
    for name in sorted(names):
        fires, silent, step, labels, value = ALERTS[name]
        rule = alerts()[name]

        def text(template):
            filled = re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda m: labels[m[1]], template)
            return re.sub(r"\{\{ \$value[^}]*\}\}", value, filled)

        # What the description has besides is the same value in another form.
        annotations = {key: text(template) for key, template in rule["annotations"].items()}
        expected = {"exp_labels": {**labels, "severity": rule["labels"]["severity"]}, "exp_annotations": annotations}
        for series, found in ((fires, [expected]), (silent, [])):
            yield {
                "interval": f"{minutes}m",
                "input_series": [{"series": s, "values": v} for s, v in series.items()],
                "alert_rule_test": [{"eval_time": f"{step * minutes}m", "alertname": name, "exp_alerts": found}],
            }


class Rules(unittest.TestCase):
    def promtool(self, *arguments):
        done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_prometheus_takes_them(self):
        self.promtool("check", "rules", str(RULES))
        self.promtool("check", "config", "--syntax-only", str(ROOT / "deploy/prometheus/prometheus.yaml"))

    def test_each_alert_fires_and_is_silent(self):
        self.assertEqual(set(ALERTS), set(alerts()), "every alert is in the table above")
        # promtool evaluates all rules it has for each test: those of one group at a time are ten times faster.
        groups = yaml.safe_load(RULES.read_text())["groups"]
        recordings = groups[:1]
        for group in groups[1:]:
            needed = recordings + [group] if group["name"] == "headwater-slo-alerts" else [group]
            names = {rule["alert"] for rule in group["rules"]}
            for minutes, tested in ((1, names - BY_QUARTERS), (15, names & BY_QUARTERS)):
                with self.subTest(group=group["name"], minutes=minutes), tempfile.TemporaryDirectory() as directory:
                    rules_file, file = pathlib.Path(directory) / "rules.yaml", pathlib.Path(directory) / "alerts.test.yaml"
                    rules_file.write_text(yaml.safe_dump({"groups": needed}))
                    # Without an order promtool takes any, and what was recorded a quarter of an hour ago is stale.
                    tests = {"rule_files": [str(rules_file)], "evaluation_interval": f"{minutes}m", "group_eval_order": [g["name"] for g in needed],
                             "tests": list(unit_tests(tested, minutes))}
                    file.write_text(yaml.safe_dump(tests))
                    self.promtool("test", "rules", str(file))

    def test_metrics_and_labels_exist(self):
        catalogue = Catalogue()
        recorded = {rule["record"] for rule in rules() if "record" in rule}
        for rule in rules():
            name = rule.get("alert") or rule["record"]
            for metric, labels in selectors(rule["expr"]):
                if metric == "up" or metric.startswith(("etcd_", "kube_")):
                    continue
                if metric in recorded:
                    continue
                with self.subTest(rule=name, metric=metric):
                    self.assertEqual(catalogue.faults(metric, labels), [])

    def test_buckets_are_found_by_prometheus_2_and_3(self):
        self.assertEqual(whole_buckets(promql_parser.parse('sum(rate(a_bucket{le="1"}[5m])) / sum(rate(a_bucket{le="1.5"}[5m]))')), ["1"])
        for rule in rules():
            self.assertEqual(whole_buckets(promql_parser.parse(rule["expr"])), [], rule.get("alert") or rule["record"])

    def test_each_alert_has_a_section_in_the_runbook(self):
        # GitHub's anchors: lower case, spaces become dashes.
        anchors = {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in HEADINGS.findall(RUNBOOK.read_text())}
        urls = {name: rule["annotations"]["runbook_url"] for name, rule in alerts().items()}
        missing = [name for name, url in urls.items() if url.split("#")[1] not in anchors]
        self.assertEqual(missing, [])
        # A section for an alert that is gone misleads.
        self.assertEqual([a for a in anchors if a.startswith("headwater") and a not in {u.split("#")[1] for u in urls.values()}], [])


if __name__ == "__main__":
    unittest.main()
