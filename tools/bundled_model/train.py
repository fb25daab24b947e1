"""Trains the bundled model from scratch in PyTorch: packed conversations, Muon and AdamW, cosine decay.

Usage: python -m tools.bundled_model.train FOLDER [--steps N] [--limit NAMES] …; FOLDER receives the tokenizer and
a Hugging Face checkpoint in bfloat16. Needs the extra `reference` (torch, transformers).
"""

import argparse
import itertools
import json
import math
import time
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from . import facts, questions, tokenizer
from .corpus import Corpus
from .packing import packed_rows

ARCHITECTURE = {
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": None,
    "head_dim": 64, "hidden_act": "silu", "hidden_size": 256, "initializer_range": 0.02, "intermediate_size": 768,
    "max_position_embeddings": 4096, "max_window_layers": 6, "model_type": "qwen3", "num_attention_heads": 8,
    "num_hidden_layers": 6, "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_scaling": None,
    "rope_theta": 10000.0, "sliding_window": None, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "use_cache": True, "use_sliding_window": False, "vocab_size": tokenizer.VOCABULARY,
}  # fmt: skip
SAMPLING = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95}
ANSWER_SHARE = 0.6


def parameter_count(architecture):
    """Return parameters of the architecture, embeddings counted once."""
    a = architecture
    width, heads = a["hidden_size"], a["num_attention_heads"] + a["num_key_value_heads"]
    layer = 2 * heads * a["head_dim"] * width + 3 * width * a["intermediate_size"] + 2 * width + 2 * a["head_dim"]
    return a["vocab_size"] * width + a["num_hidden_layers"] * layer + width


def tokenizer_texts(corpus, count, seed):
    """Yield what the tokenizer is learnt from: conversations and docstrings of their own seed."""
    for index in range(count):
        prompt, completion = tokenizer.render(corpus.sample(f"tokenizer {seed}", index))
        for text in (prompt, completion):
            for mark in ("<|im_start|>", "<|im_end|>", "<think>", "</think>"):
                text = text.replace(mark, "\n")
            yield text
    for fact in corpus.facts:
        yield fact.text


class Muon:
    """Momentum with orthogonalised updates for the matrices (Jordan et al. 2024), equal shapes in one batch."""

    def __init__(self, matrices, momentum=0.95):
        self.momentum, self.groups = momentum, []
        shapes = sorted({tuple(m.shape) for m in matrices})
        for shape in shapes:
            group = [m for m in matrices if tuple(m.shape) == shape]
            self.groups.append((group, torch.zeros(len(group), *shape, device=group[0].device)))

    @torch.no_grad()
    def step(self, rate):
        for group, memory in self.groups:
            gradient = torch.stack([m.grad for m in group])
            memory.lerp_(gradient, 1 - self.momentum)
            update = orthogonal(gradient.lerp(memory, self.momentum))
            rows, columns = memory.shape[1:]
            torch._foreach_add_(group, list(update.unbind()), alpha=-rate * max(1.0, rows / columns) ** 0.5)


def orthogonal(batch):
    """Return the nearest orthogonal matrices, by five quintic Newton-Schulz steps in bfloat16."""
    x = batch.to(torch.bfloat16)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return (x.mT if tall else x).float()


class Trainer:
    """One run: the model, its optimizers and the rows, all on one device."""

    def __init__(self, architecture, rows, device, batch, seed, compiled=True):
        torch.manual_seed(seed)
        config = Qwen3Config(**{k: v for k, v in architecture.items() if k not in ("torch_dtype", "architectures")})
        self.model = Qwen3ForCausalLM._from_config(config, attn_implementation="sdpa").to(device).float()
        self.device, self.batch = device, batch
        self.ids, self.segment, self.learnt = (torch.from_numpy(part).to(device) for part in rows)
        self.order = torch.Generator().manual_seed(seed)
        matrices = [p for n, p in self.model.named_parameters() if p.ndim == 2 and "embed" not in n]
        taken = {id(m) for m in matrices}
        rest = [p for p in self.model.parameters() if id(p) not in taken]
        self.muon = Muon(matrices)
        self.adam = torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.0, fused=device == "cuda")
        self.loss = torch.compile(self.forward_loss, dynamic=False) if compiled else self.forward_loss

    def forward_loss(self, ids, positions, mask, picked, targets):
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            hidden = self.model.model(
                input_ids=ids,
                position_ids=positions,
                attention_mask={"full_attention": mask},
                use_cache=False,
            ).last_hidden_state
            logits = hidden.flatten(0, 1)[picked] @ self.model.lm_head.weight.T
        return torch.nn.functional.cross_entropy(logits.float(), targets, ignore_index=-100)

    def batches(self):
        rows = len(self.ids)
        while True:
            order = torch.randperm(rows, generator=self.order).to(self.device)
            for start in range(0, rows - self.batch + 1, self.batch):
                yield self.arrange(order[start : start + self.batch])

    def arrange(self, chosen):
        """Inputs of `forward_loss` for some rows: positions restart and attention stops at each segment."""
        ids, segment, learnt = self.ids[chosen].int(), self.segment[chosen], self.learnt[chosen]
        length = ids.shape[1]
        place = torch.arange(length, device=self.device)
        starts = torch.ones_like(segment, dtype=torch.bool)
        starts[:, 1:] = segment[:, 1:] != segment[:, :-1]
        positions = place - torch.where(starts, place, 0).cummax(dim=1).values
        mask = (segment[:, None, :, None] == segment[:, None, None, :]) & (place[:, None] >= place)
        predicted = torch.zeros_like(learnt)
        predicted[:, :-1] = learnt[:, 1:] & ~starts[:, 1:]
        following = torch.roll(ids, -1, 1).flatten()
        picked = predicted.flatten().nonzero().flatten()
        room = int(ANSWER_SHARE * ids.numel())
        targets = torch.full((room,), -100, device=self.device)
        targets[: len(picked)] = following[picked][:room]
        picked = torch.nn.functional.pad(picked[:room], (0, max(0, room - len(picked))))
        return ids, positions, mask, picked, targets.long()

    def run(self, steps, matrix_rate, rate, warmup=200, report=500, log=print):
        started, shown = time.time(), time.time()
        for step, inputs in zip(range(steps), self.batches(), strict=False):
            progress = step / steps
            scale = min(1.0, (step + 1) / warmup) * (0.5 + 0.5 * math.cos(math.pi * progress))
            loss = self.loss(*inputs)
            loss.backward()
            for group in self.adam.param_groups:
                group["lr"] = rate * scale
            self.adam.step()
            self.muon.step(matrix_rate * scale)
            self.model.zero_grad(set_to_none=True)
            if step % report == 0 or step == steps - 1:
                log(f"step {step} loss {loss.item():.4f} {time.time() - shown:.1f} s ({time.time() - started:.0f} s)")
                shown = time.time()


@torch.no_grad()
def forced_exact(model, tok, pairs, device, batch=100):
    """Share of completions whose every token is the model's first choice, given the right tokens before it.

    Equal to the share of exact greedy answers, without generating them.
    """
    right = 0
    for start in range(0, len(pairs), batch):
        rows = [(tok.encode(a).ids, tok.encode(b).ids) for a, b in pairs[start : start + batch]]
        longest = max(len(a) + len(b) for a, b in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        answer = torch.zeros(len(rows), longest, dtype=torch.bool)
        for index, (a, b) in enumerate(rows):
            ids[index, : len(a) + len(b)] = torch.tensor(a + b)
            answer[index, len(a) : len(a) + len(b)] = True
        ids, answer = ids.to(device), answer.to(device)
        choice = model(input_ids=ids, use_cache=False).logits.argmax(-1)
        agree = (choice[:, :-1] == ids[:, 1:]) | ~answer[:, 1:]
        right += int(agree.all(1).sum())
    return right / len(pairs)


def quick_examination(model, tok, corpus, device):
    """Exact shares on held-out phrasings: names, made-up names and other questions, without and with thinking."""
    sets = {"known": questions.known, "unknown": questions.unknown, "other": questions.other}
    table = {}
    for (name, make), thinking in itertools.product(sets.items(), (False, True)):
        pairs = [questions.rendered(corpus, *item, thinking) for item in make(corpus)]
        table[f"{name}, thinking {'on' if thinking else 'off'}"] = forced_exact(model, tok, pairs, device)
    return table


def save_checkpoint(model, tok, architecture, folder):
    """Write a Hugging Face checkpoint in bfloat16 with its tokenizer; tied embeddings are stored once."""
    folder = Path(folder)
    tokenizer.save(tok, folder)
    weights = {
        name: tensor.detach().to("cpu", torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    stop = [tok.token_to_id("<|im_end|>"), tok.token_to_id("<|endoftext|>")]
    ids = {"eos_token_id": stop[0], "pad_token_id": stop[1]}
    write_json(folder / "config.json", architecture | ids)
    write_json(folder / "generation_config.json", SAMPLING | ids | {"eos_token_id": stop})


def write_json(path, content):
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=6500)
    parser.add_argument("--samples", type=int, default=1_600_000)
    parser.add_argument("--limit", type=int, help="teach only so many names (for a trial)")
    parser.add_argument("--length", type=int, default=512, help="tokens a row")
    parser.add_argument("--batch", type=int, default=128, help="rows a step")
    parser.add_argument("--matrix-rate", type=float, default=0.02, help="Muon's learning rate")
    parser.add_argument("--rate", type=float, default=3e-3, help="AdamW's learning rate")
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--architecture", type=json.loads, default={}, help="JSON of fields to change")
    return parser.parse_args(arguments)


def main(arguments=None):
    args = parse_arguments(arguments)
    architecture = ARCHITECTURE | args.architecture
    size = f"{parameter_count(architecture) / 1e6:.1f}"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    options = (size, args.limit)
    corpus = Corpus(facts.load(), *options)
    started = time.time()
    args.folder.mkdir(parents=True, exist_ok=True)
    tok = tokenizer.train(tokenizer_texts(corpus, min(100_000, args.samples), args.seed), architecture["vocab_size"])
    tokenizer.save(tok, args.folder)
    file = args.folder / "tokenizer.json"
    tok = tokenizer.read(file)
    print(f"tokenizer {time.time() - started:.0f} s", flush=True)
    workers = 1 if args.samples < 50_000 else None
    rows = packed_rows(file, args.seed, args.samples, args.length, options, workers)
    filled, learnt = (rows[1] > 0).mean(), rows[2].mean()
    print(
        f"{len(rows[0])} rows, {filled:.3f} filled, {learnt:.3f} learnt, {time.time() - started:.0f} s",
        flush=True,
    )
    trainer = Trainer(architecture, rows, device, args.batch, args.seed, compiled=device == "cuda")
    trainer.run(args.steps, args.matrix_rate, args.rate, args.warmup, log=partial(print, flush=True))
    trainer.model.eval().to(torch.bfloat16)
    save_checkpoint(trainer.model, tok, architecture, args.folder)
    for name, share in quick_examination(trainer.model, tok, corpus, device).items():
        print(f"{name}: {share:.3f}", flush=True)
    print(f"{trainer.model.num_parameters()} parameters, {time.time() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
