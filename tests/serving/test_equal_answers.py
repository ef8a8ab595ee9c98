"""The server's answers are the runner's, whoever was in the same batch and however the dial moves."""

import random
import threading
from collections import defaultdict

import numpy as np
import pytest

from exitwise import OnnxRunner
from exitwise.serving.service import Service
from flowers import pngs


@pytest.mark.parametrize("requests", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_answers_are_the_runner_s_while_the_dial_moves(requests, flowers_bundle):
    service = Service(flowers_bundle, threads=1, provider="cpu", max_batch=8, max_inside=10**6)
    live, runner = service.live, OnnxRunner(flowers_bundle, 1)
    pool = np.stack([runner.read_image(file) for file in pngs(200, seed=9)])
    budgets = [None, *(line.budget for line in runner.calibration.table)]
    asked, stop = [], threading.Event()

    def dial():
        turn = random.Random(1)
        while not stop.is_set():
            service.set_budget(turn.choice(budgets))
            stop.wait(0.001)

    def ask(seed):
        chance = random.Random(seed)
        for _ in range(requests // 4):
            places = [chance.randrange(len(pool)) for _ in range(chance.randint(1, 5))]
            own = chance.choice(budgets) if chance.random() < 0.2 else None
            _, futures = service.submit(live, live.enter({"images": pool[places]}), own)
            asked.append((places, futures))

    threads = [threading.Thread(target=dial), *(threading.Thread(target=ask, args=(seed,)) for seed in range(4))]
    for thread in threads:
        thread.start()
    for thread in threads[1:]:
        thread.join()
    stop.set()
    assert service.close(60)
    by_thresholds = defaultdict(list)
    for places, futures in asked:
        for place, future in zip(places, futures, strict=True):
            left = future.result(0)
            by_thresholds[left.thresholds].append((place, left))
    assert len(by_thresholds) > 5
    compared, close = 0, 0
    for thresholds, answers in by_thresholds.items():
        runner.thresholds = thresholds
        wanted = runner.by_stages(pool)
        near = np.zeros(len(pool), bool)
        for k, confidences in enumerate(np.moveaxis(_confidences(runner, pool), 1, 0)):
            if k < len(thresholds) and thresholds[k] is not None:
                near |= np.abs(confidences - thresholds[k]) < 1e-5
        for place, left in answers:
            if near[place]:
                close += 1
                continue
            compared += 1
            assert (left.exit, left.prediction) == (wanted.exit[place], wanted.prediction[place])
            assert left.confidence == pytest.approx(wanted.confidence[place], abs=1e-5)
            np.testing.assert_allclose(left.logits, wanted.logits[place], atol=1e-4)
    assert len(asked) == requests
    assert close < 0.05 * compared


def _confidences(runner, pool):
    return runner.calibration.policy.measure.read_all(runner.logits(pool))[0]
