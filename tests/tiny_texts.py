"""A tiny network of texts with its tokenizer in a folder, and a table of texts of two classes."""

import csv
import random

import pytest
import torch

WORDS = {
    "cheap": ["money", "win", "prize", "click", "now", "free"],
    "kind": ["thanks", "lunch", "report", "monday", "team", "garden"],
}
COMMON = ["the", "a", "of", "to", "we", "you", "is", "are", "and", "on"]


def tiny_network(folder, kind="bert", positions=64):
    """Write a network of texts and its tokenizer, as transformers saves them."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = [*special, *COMMON, *WORDS["cheap"], *WORDS["kind"]]
    made = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=positions, **names).save_pretrained(
        folder
    )
    sizes = {"vocab_size": len(words), "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        kind, **sizes, intermediate_size=32, max_position_embeddings=positions, pad_token_id=0
    )
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return folder


def texts_of(count, seed=0):
    """Texts and labels; a text has 3 to 12 words, of which some tell its class."""
    draw = random.Random(seed)
    made = []
    while len(made) < count:
        label = ("cheap", "kind")[len(made) % 2]
        words = draw.choices(COMMON + WORDS[label], k=draw.randint(3, 12))
        if not {" ".join(words)} & {text for text, _ in made}:
            made.append((" ".join(words), label))
    return made


def table(path, rows, header=("text", "label")):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path
