"""Calibrate a BERT on sentences, pack it in 8 bits and save it: python examples/qdqbert_deploy.py FOLDER TEXTS OUT"""

import argparse
from pathlib import Path

import mlx.core as mx

from mlx_qwen3 import AutoTokenizer, QDQBertModel, calibrate

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("folder", help="BERT checkpoint: folder or Hub repository")
parser.add_argument("texts", type=Path, help="file with one sentence per line")
parser.add_argument("out", help="folder for the packed model")
parser.add_argument("--method", default="percentile", choices=["max", "percentile", "mse", "entropy"])
args = parser.parse_args()

tokenizer = AutoTokenizer.from_pretrained(args.folder)
lines = args.texts.read_text(encoding="utf-8").splitlines()
batches = [tokenizer(lines[i : i + 16], padding=True, return_tensors="mlx") for i in range(0, len(lines), 16)]

model = QDQBertModel.from_pretrained(args.folder)
model.disable_quantizers("")
plain = model(**batches[0]).pooler_output

model.enable_quantizers("")
calibrate(model, batches, method=args.method)
report = model.pack(bits=8)
model.save_pretrained(args.out)
tokenizer.save_pretrained(args.out)

packed = QDQBertModel.from_pretrained(args.out)(**batches[0]).pooler_output
cosine = (plain * packed).sum(axis=-1) / mx.linalg.norm(plain, axis=-1) / mx.linalg.norm(packed, axis=-1)
print(f"{len(report.packed)} layers packed, {len(report.left)} not packed; cosine to float {cosine.mean().item():.4f}")
