"""What both backbones are built from: attention, masks, rotary positions, activations, fake quantizers.

Shape letters in the whole package: B batch, L queries, S keys, H heads, K key/value heads, D head size, M model width,
V vocabulary.
"""
