"""What a service says of itself, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from exitwise.serving.service import Service

SECONDS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5, 10, 30)


class Metrics(Collector):
    """Counts requests, and reads the rest off the service when it is asked.

    Args:
        service: it is of.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self.registry = CollectorRegistry()
        self.responses = Counter("exitwise_responses", "Responses", ["status"], registry=self.registry)
        self.seconds = Histogram(
            "exitwise_request_seconds", "Time to answer a request", buckets=SECONDS, registry=self.registry
        )
        self.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Return what the service has done; since the last reload, of what is said by stage."""
        live = self._service.live
        scheduler, monitor = live.scheduler, live.monitor
        counts = scheduler.counts
        queue = GaugeMetricFamily("exitwise_queue_samples", "Samples that wait before a stage", labels=["stage"])
        stages = {
            "batches": "Batches that a stage ran",
            "samples": "Samples in a stage's batches",
            "seconds": "Seconds in a stage",
            "left": "Samples that left at a stage's exit",
            "failures": "Times that a stage failed or hung",
        }
        families = {
            name: CounterMetricFamily(f"exitwise_stage_{name}", text, labels=["stage"]) for name, text in stages.items()
        }
        fill = GaugeMetricFamily(
            "exitwise_batch_fill", "Mean share of max_batch in a stage's batches", labels=["stage"]
        )
        for k, (count, waiting) in enumerate(zip(counts, scheduler.waiting(), strict=True)):
            stage = [str(k + 1)]
            queue.add_metric(stage, waiting)
            fill.add_metric(stage, count.samples / max(count.batches, 1) / scheduler.max_batch)
            for name, family in families.items():
                family.add_metric(stage, getattr(count, name))
        yield from (queue, fill, *families.values())
        gauges = {
            "inside_samples": ("Samples inside", scheduler.inside),
            "inside_limit": ("Samples that may be inside", scheduler.max_inside),
            "budget": ("Dialled share of the full network's MACs; NaN: as calibrated", self._service.budget),
            "mean_macs": ("Multiply-accumulates per sample", monitor.mean_macs),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(f"exitwise_{name}", text, float("nan") if value is None else value)
        totals = {
            "refused_samples": ("Samples that found no place", scheduler.refused),
            "late_samples": ("Samples whose deadline passed", scheduler.late),
            "lost_samples": ("Samples not answered for a stage that failed, hung or was killed", scheduler.lost),
            "drift_warnings": ("Times that inputs differed from the calibration's", len(monitor.warned)),
        }
        for name, (text, value) in totals.items():
            yield CounterMetricFamily(f"exitwise_{name}", text, value)
        reloads = CounterMetricFamily("exitwise_reloads", "Reloads of the bundle", labels=["outcome"])
        for outcome, number in self._service.reloads.items():
            reloads.add_metric([outcome], number)
        yield reloads
