"""The commands of the command line, in the order of its help. Each is imported when it is called."""

from __future__ import annotations

from exitwise.catalogue.entry import Entry
from exitwise.catalogue.lookup import by_name

COMMANDS = by_name(
    Entry(
        "demo",
        "Train `uniform` and `meta-weighted` on bundled digits, calibrate both, and compare them: under 3 minutes.",
        "exitwise.cli.demo:demo",
    ),
    Entry(
        "doctor",
        "Check a data set and this machine before training, and say what to mend.",
        "exitwise.cli.doctor:doctor",
    ),
    Entry(
        "advise",
        "Say what to try on some images within a limit, exits or not, before anything is trained.",
        "exitwise.cli.advise:advise",
    ),
    Entry(
        "train",
        "Train a network with exits. The same command continues an interrupted run.",
        "exitwise.cli.train:train",
    ),
    Entry(
        "cascade",
        "Make one run of several trained ones, cheap to dear: what the first is sure of, the next never sees.",
        "exitwise.cli.cascade:cascade",
    ),
    Entry(
        "calibrate",
        "Find exit thresholds for a budget or an accuracy on held-out images, and store them in the run.",
        "exitwise.cli.calibrate:calibrate",
    ),
    Entry(
        "evaluate",
        "Measure a run on its test images: the calibrated policy, every exit alone, and a range of budgets.",
        "exitwise.cli.evaluate:evaluate",
    ),
    Entry(
        "predict",
        "Classify images or texts with a calibrated run or an exported bundle, each as deep as it needs.",
        "exitwise.cli.predict:predict",
    ),
    Entry(
        "export",
        "Write a calibrated run for another runtime: files that run without torch.",
        "exitwise.cli.export:export",
    ),
    Entry(
        "push",
        "Send a calibrated and evaluated run to Hugging Face's hub, with a model card.",
        "exitwise.cli.push:push",
    ),
    Entry(
        "serve",
        "Answer requests over HTTP by an exported bundle, batching anew before each stage what has not left.",
        "exitwise.cli.serve:serve",
    ),
    Entry(
        "bench",
        "Time a run on this machine: in full, leaving early, cut at one exit, and others beside it; say what to use.",
        "exitwise.cli.bench:bench",
    ),
    Entry(
        "study",
        "Compare trainings over seeds and recipes at equal updates and equal time, and say which one pays.",
        "exitwise.cli.study:study",
    ),
    Entry(
        "report",
        "Show runs in one HTML file, which opens offline: what budgets give, which images leave where, and more.",
        "exitwise.cli.report:report",
    ),
    Entry(
        "models",
        "List the networks with the cost of leaving at each exit; or show where exits can go on a backbone.",
        "exitwise.cli.models:models",
    ),
    Entry(
        "methods",
        "List what training methods are made of, with options: one choice on each axis.",
        "exitwise.cli.methods:methods",
    ),
    Entry("recipes", "List the recipes, or print one's settings as YAML.", "exitwise.cli.recipes:recipes"),
)
