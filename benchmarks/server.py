"""Compare the server with mlx_lm.server on the same random weights, and embeddings over HTTP with the pipeline.

python benchmarks/server.py --output server.json  # 0.6B; 1, 8 and 32 streams; on a GPU
python benchmarks/server.py --random tiny --streams 1 4 --tokens 32 --long 300 --texts 64  # quick test on a CPU

Rounds of the two implementations are interleaved.
"""

import argparse
import asyncio
import itertools
import json
import lzma
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mlx.core as mx

from mlx_qwen3 import Qwen3Config, Qwen3ForCausalLM
from mlx_qwen3.bench import this_machine
from mlx_qwen3.bench.random_models import SIZES
from mlx_qwen3.bundled import bundled_model_path

QWEN3_TOKENIZER = Path(__file__).parent.parent / "tests" / "data" / "qwen3_tokenizer"
VOCABULARY = 151664
"""Vocabulary size of the random model: the largest multiple of 16 for which Qwen3's tokenizer has all tokens."""

WORDS = "time year people way day man thing woman life child world school state family student".split()  # noqa: SIM905


def write_model(folder: Path, size: str) -> None:
    """Write a random checkpoint that both servers load."""
    fields = dict(SIZES[size])
    small = size in ("tiny", "small")
    source = bundled_model_path() if small else QWEN3_TOKENIZER
    fields["vocab_size"] = 8192 if small else VOCABULARY
    for name in ("tokenizer.json", "tokenizer_config.json"):
        packed = source / f"{name}.xz"
        if packed.exists():
            (folder / name).write_bytes(lzma.decompress(packed.read_bytes()))
        elif (source / name).exists():
            shutil.copy(source / name, folder / name)
    model = Qwen3ForCausalLM(Qwen3Config(**fields, eos_token_id=0))
    model.set_dtype(mx.float32 if small else mx.bfloat16)
    mx.eval(model.parameters())
    model.save_pretrained(folder)


def free_port() -> int:
    """Return a free port."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Served:
    """A server process."""

    def __init__(self, name: str, command: list[str], model: str):
        self.name, self.model, self.port = name, model, free_port()
        log = None if name == "mlx_qwen3" else subprocess.DEVNULL
        self.process = subprocess.Popen([*command, "--port", str(self.port)], stdout=subprocess.DEVNULL, stderr=log)
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise SystemExit(f"{name} exited with status {self.process.returncode}")
            try:
                asyncio.run(stream(self, "warm up", 2))
                return
            except (OSError, RuntimeError, asyncio.IncompleteReadError):
                time.sleep(0.5)
        raise SystemExit(f"{name} did not start within 300 s")

    def stop(self) -> None:
        """Terminate the process."""
        self.process.terminate()
        self.process.wait(30)


async def request(served: Served, path: str, body: dict) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send a request, and read the headers of the response."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port, limit=1 << 26)
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Connection: close\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
    await writer.drain()
    answer = await reader.readuntil(b"\r\n\r\n")
    if b" 200 " not in answer.split(b"\r\n", 1)[0]:
        raise RuntimeError(f"{served.name}: {answer[:100]!r} {(await reader.read(500))!r}")
    return reader, writer


async def stream(served: Served, prompt: str, tokens: int) -> list[float]:
    """Return the arrival time of each chunk of a streamed response, in seconds after the request."""
    body = {"model": served.model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True}
    start = time.perf_counter()
    reader, writer = await request(served, "/v1/completions", body)
    times: list[float] = []
    last = b""
    while piece := await reader.read(1 << 16):
        times.append(time.perf_counter() - start)
        last = (last + piece)[-64:]
        if b"[DONE]" in last:
            break
    writer.close()
    return times


def prompt_of(words: int, seed: float) -> str:
    """Return a random text, so that no server has its prefix in a cache."""
    return " ".join(random.Random(seed).choices(WORDS, k=words))


async def load(served: Served, streams: int, tokens: int, seed: int) -> tuple[float, float]:
    """Return the total tokens per second of all streams, and the median seconds to the first chunk."""
    draw = random.Random(seed)
    jobs = [(draw.randint(20, 400), draw.randint(tokens // 2, tokens)) for _ in range(streams)]
    start = time.perf_counter()
    found = await asyncio.gather(*(stream(served, prompt_of(words, draw.random()), count) for words, count in jobs))
    seconds = time.perf_counter() - start
    return sum(count for _, count in jobs) / seconds, statistics.median(times[0] for times in found)


async def gap(served: Served, words: int, tokens: int, seed: int) -> tuple[float, float]:
    """Return the largest and the median gap in seconds between chunks of a stream while a long prompt is processed."""
    running = asyncio.create_task(stream(served, prompt_of(30, seed), tokens))
    await asyncio.sleep(0.5)
    await stream(served, prompt_of(words, seed + 0.5), 2)
    times = await running
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    return max(gaps), statistics.median(gaps)


async def embed(served: Served, texts: list[str]) -> float:
    """Return texts per second over HTTP, with 64 texts per request and four concurrent requests."""
    room = asyncio.Semaphore(4)

    async def one(some: list[str]) -> None:
        async with room:
            reader, writer = await request(
                served, "/v1/embeddings", {"model": served.model, "input": some, "encoding_format": "base64"}
            )
            while await reader.read(1 << 20):
                pass
            writer.close()

    start = time.perf_counter()
    await asyncio.gather(*(one(texts[i : i + 64]) for i in range(0, len(texts), 64)))
    return len(texts) / (time.perf_counter() - start)


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--random", default="0.6B", choices=SIZES)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=256, help="maximum tokens per answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--long", type=int, default=3000, help="words of the long prompt, one token each")
    parser.add_argument("--texts", type=int, default=1024, help="number of texts to embed")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the figures as JSON")
    parser.add_argument("--alone", action="store_true", help="do not measure mlx_lm.server")
    args = parser.parse_args()
    machine = this_machine(mx.default_device())
    print(machine)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "random"
        folder.mkdir()
        write_model(folder, args.random)
        own = [sys.executable, "-m", "mlx_qwen3", "serve", "--model", str(folder)]
        servers = [Served("mlx_qwen3", own, "random")]
        if not args.alone:
            other = [sys.executable, "-m", "mlx_lm", "server", "--model", str(folder), "--log-level", "ERROR"]
            servers.append(Served("mlx_lm", other, str(folder)))
        try:
            figures = measure(args, servers)
            embeddings = measure_embeddings(args, servers[0], folder)
        finally:
            for served in servers:
                served.stop()
    print_ratios(figures)
    if args.output is not None:
        found = {"machine": str(machine), "size": args.random, "servers": figures, "embeddings": embeddings}
        args.output.write_text(json.dumps(found, indent=2) + "\n")


def print_ratios(figures: dict[str, dict]) -> None:
    """Print the ratios of this server's figures to those of mlx_lm.server, if both were measured."""
    if "mlx_lm" not in figures:
        return
    own, other = figures["mlx_qwen3"]["streams"], figures["mlx_lm"]["streams"]
    for streams, found in own.items():
        print(
            f"{streams} streams: {found['tokens_per_second'] / other[streams]['tokens_per_second']:.2f} x the tokens/s "
            f"of mlx_lm.server, {found['first_seconds'] / other[streams]['first_seconds']:.2f} x its time to the first"
        )


def measure(args: argparse.Namespace, servers: list[Served]) -> dict[str, dict]:
    """Print and return the figures of each server, from interleaved rounds after one warm-up round."""
    single: dict[str, float] = {}
    figures: dict[str, dict] = {served.name: {"streams": {}} for served in servers}
    for streams in args.streams:
        found: dict[str, list[tuple[float, float]]] = {served.name: [] for served in servers}
        for turn in range(args.rounds + 1):
            for served in servers:
                result = asyncio.run(load(served, streams, args.tokens, 1000 * streams + turn))
                if turn:
                    found[served.name].append(result)
        for name, results in found.items():
            speed = statistics.median(speed for speed, _ in results)
            first = statistics.median(first for _, first in results)
            single.setdefault(name, speed)
            figures[name]["streams"][streams] = {"tokens_per_second": speed, "first_seconds": first}
            times = f", {speed / single[name]:.1f} x one stream" if streams > args.streams[0] else ""
            print(f"{name:10} {streams:3} streams: {speed:8.1f} tokens/s{times}, first after {first * 1000:.0f} ms")
    for served in servers:
        results = [asyncio.run(gap(served, args.long, args.tokens * 2, turn)) for turn in range(args.rounds)]
        longest, usual = max(most for most, _ in results), statistics.median(usual for _, usual in results)
        figures[served.name]["gap"] = {"largest_seconds": longest, "median_seconds": usual, "prompt_words": args.long}
        print(
            f"{served.name:10} a prompt of {args.long} tokens arrives: largest gap {longest * 1000:.0f} ms, "
            f"median {usual * 1000:.1f} ms"
        )
    return figures


def measure_embeddings(args: argparse.Namespace, served: Served, folder: Path) -> dict[str, float]:
    """Print and return texts per second over HTTP and with the pipeline, from interleaved rounds."""
    from mlx_qwen3.tasks import Embedding

    task = Embedding(folder)
    rates: tuple[list[float], list[float]] = ([], [])
    for turn in range(args.rounds + 1):
        texts = [prompt_of(random.Random(i).randint(5, 120), turn * 10_000 + i) for i in range(args.texts)]
        over_http = asyncio.run(embed(served, texts))
        start = time.perf_counter()
        task(texts)
        direct = len(texts) / (time.perf_counter() - start)
        if turn:
            rates[0].append(over_http)
            rates[1].append(direct)
    over_http, direct = (statistics.median(found) for found in rates)
    print(
        f"embeddings: {over_http:.0f} texts/s over HTTP, {direct:.0f} texts/s with the pipeline, "
        f"{over_http / direct:.2f} x"
    )
    return {"over_http": over_http, "pipeline": direct}


if __name__ == "__main__":
    main()
