"""Conversations as rows of token ids: several to a row, each seeing only itself, with the learnt tokens marked."""

import os
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from itertools import pairwise
from multiprocessing import get_context

import numpy as np

from . import facts as facts_module
from .corpus import Corpus
from .tokenizer import render

DOCUMENT_SHARE = 0.03
OPEN_ROWS = 32


def encoded(tokenizer, corpus, seed, indices):
    """Yield (ids, length of the prompt) for the samples of a seed."""
    prompts, completions = [], []
    for index in indices:
        if index % 1000 < 1000 * DOCUMENT_SHARE:
            prompts.append("")
            completions.append(f"{corpus.document(seed, index)}<|endoftext|>")
        else:
            prompt, completion = render(corpus.sample(seed, index))
            prompts.append(prompt)
            completions.append(completion)
    pairs = zip(tokenizer.encode_batch(prompts), tokenizer.encode_batch(completions), strict=True)
    for prompt, completion in pairs:
        yield prompt.ids + completion.ids, len(prompt.ids)


def pack(samples, length):
    """Return rows (ids, segment, learnt) of shape (R, length): segments count from 1, 0 is padding.

    `learnt` marks the tokens to be predicted. A sample goes into the fullest of a few open rows that has room.
    """
    finished, rows = [], []
    for ids, prompt in samples:
        if len(ids) > length:
            continue
        fitting = [row for row in rows if len(row[0]) + len(ids) <= length]
        if not fitting:
            if len(rows) == OPEN_ROWS:
                fullest = max(rows, key=lambda row: len(row[0]))
                rows = [row for row in rows if row is not fullest]
                finished.append(fullest)
            rows.append(([], [], []))
            fitting = rows[-1:]
        row = max(fitting, key=lambda row: len(row[0]))
        segment = row[1][-1] + 1 if row[1] else 1
        row[0].extend(ids)
        row[1].extend([segment] * len(ids))
        row[2].extend([0] * prompt + [1] * (len(ids) - prompt))
    finished += rows
    ids, segment, learnt = (np.zeros((len(finished), length), kind) for kind in (np.int16, np.uint8, bool))
    for index, row in enumerate(finished):
        ids[index, : len(row[0])], segment[index, : len(row[0])], learnt[index, : len(row[0])] = row
    return ids, segment, learnt


@cache
def corpus_of(size, limit):
    return Corpus(facts_module.load(), size, limit)


def shard(arguments):
    """Return one worker's part of `packed_rows`."""
    from tokenizers import Tokenizer

    file, options, seed, start, stop, length = arguments
    corpus = corpus_of(*options)
    return pack(encoded(Tokenizer.from_file(file), corpus, seed, range(start, stop)), length)


def packed_rows(file, seed, count, length, options, workers=None, shards=64):
    """Return rows for samples 0 … count-1 of a seed, the same for any number of workers; `options` are `Corpus`'s."""
    edges = [count * k // shards for k in range(shards + 1)]
    parts = [(str(file), options, seed, a, b, length) for a, b in pairwise(edges)]
    workers = workers or os.cpu_count()
    if workers == 1:
        done = [shard(part) for part in parts]
    else:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            done = list(pool.map(shard, parts))
    return tuple(np.concatenate(column) for column in zip(*done, strict=True))
