"""Which training pays? Carries out the plan beside this file, or another, and keeps what it finds.

    python benchmarks/study.py --runs runs/study --json results/study_mnist1d.json --jobs 2 --threads 1
    python benchmarks/study.py --show results

It is ``exitwise study`` with a copy of the records; the second command shows the study.json of a folder.
docs/studies.md says what is compared, and how.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import exitwise as ew
from exitwise.storage.files import read_json
from exitwise.studying.records import STUDY


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path, nargs="?", default=Path(__file__).with_suffix(".yaml"))
    parser.add_argument("--runs", type=Path, default=Path("runs/study"))
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--threads", type=int, help="of each training")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--show", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    if options.show is not None:
        print(STUDY.read(options.show))
        return
    print(ew.study(options.plan, options.runs, jobs=options.jobs, threads=options.threads))
    if options.json is not None:
        options.json.write_text(json.dumps(read_json(STUDY.path(options.runs))) + "\n")  # half the size


if __name__ == "__main__":
    main()
