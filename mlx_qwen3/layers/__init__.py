"""Layers shared by both model families: attention, masks, rotary embeddings, activations.

Shape letters in the whole package: B batch, L queries, S keys, H heads, K key/value heads, D head size, M model width,
V vocabulary.
"""
