"""Moves the point at which the model says that it does not know a name.

Made-up names that look like real ones sit close to the border, known names far from it: a small constant added to
the score of the refusal's first word, where an answer or a verdict begins, turns most of the former and hardly any
of the latter. The constant goes into the weights: the word's row of the tied embedding gains a multiple of the mean
hidden state of those places. It is chosen on names and phrasings of training's kind, never on the examination's.

Usage: python -m tools.bundled_model.calibrate CHECKPOINT
"""

import argparse
import random
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3ForCausalLM

from . import facts, phrasings, tokenizer
from .corpus import Corpus, Sample
from .typing_habits import CALLABLE

SHIFTS = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
CALIBRATION_NAMES = 1500
REFUSALS = {False: phrasings.UNKNOWN[:1], True: " I"}


def places(corpus, count, thinking, seed="calibration"):
    """[(text up to the place of decision, whether the name is known)] for as many known as made-up names."""
    rng = random.Random(f"{seed} {thinking}")
    names = [
        (fact.name, fact.kind in CALLABLE, True) for fact in rng.sample(corpus.facts, min(count, len(corpus.facts)))
    ]
    names += [(name, True, False) for name in corpus.made_up.several(count, seed)]
    for name, is_callable, known in names:
        question = corpus.question(rng, "describe", phrasings.DESCRIBE, name, is_callable)
        reasoning = f"They ask what {name} does." if thinking else None
        sample = Sample(({"role": "user", "content": question},), reasoning, "", enable_thinking=thinking)
        prompt, completion = tokenizer.render(sample)
        yield prompt + completion.partition("\n</think>" if thinking else "<|im_end|>")[0], known


@torch.no_grad()
def last_states(model, tok, texts, batch=64):
    """Final hidden states (N, M) behind each text's last token."""
    states = []
    for start in range(0, len(texts), batch):
        rows = [tok.encode(text).ids for text in texts[start : start + batch]]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        states += [hidden[index, len(row) - 1] for index, row in enumerate(rows)]
    return torch.stack(states)


def margins(states, weight, word):
    """Return the refusal's score less the best other score."""
    scores = states @ weight.T
    own = scores[:, word].clone()
    scores[:, word] = -torch.inf
    return own - scores.max(-1).values


def calibrate(folder, count=CALIBRATION_NAMES, limit=None, report=print):
    """Shifts both refusals in the checkpoint's folder; returns {thinking: shift}."""
    folder = Path(folder)
    model = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tok = tokenizer.read(folder / "tokenizer.json")
    corpus = Corpus(facts.load(), limit=limit)
    weights = load_file(folder / "model.safetensors")
    embedding = weights["model.embed_tokens.weight"]
    chosen = {}
    for thinking, text in REFUSALS.items():
        word = tok.encode(text).ids[0]
        items = list(places(corpus, count, thinking))
        known = torch.tensor([item[1] for item in items])
        states = last_states(model, tok, [item[0] for item in items])
        margin = margins(states, model.lm_head.weight, word)
        direction = states.mean(0)
        direction = direction / direction.square().sum()
        gain = states @ direction
        wrong = {}
        for shift in SHIFTS:
            refused = margin + shift * gain > 0
            wrong[shift] = (int((refused & known).sum()), int((~refused & ~known).sum()))
        chosen[thinking] = min(SHIFTS, key=lambda shift: (sum(wrong[shift]), shift))
        embedding[word] += (chosen[thinking] * direction).to(embedding.dtype)
        report(f"thinking {thinking}: (known refused, made-up answered) of {count} each by shift {wrong}")
        report(f"thinking {thinking}: shift {chosen[thinking]}")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return chosen


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    calibrate(parser.parse_args().checkpoint)
