"""Products with packed weights dequantize them first where that is faster, and give the same results."""

import mlx.core as mx
import pytest

from mlx_qwen3.distributed.layers import SummedQuantizedLinear
from mlx_qwen3.layers import packed_products
from mlx_qwen3.layers.devices import DEFAULTS, using
from mlx_qwen3.layers.packed_products import packed_product, unpacks_first


@pytest.mark.parametrize(
    ("kind", "rows", "width", "dtype", "first"),
    [
        ("cuda", 512, 2560, mx.bfloat16, True),
        ("cuda", 512, 1024, mx.bfloat16, False),
        ("cuda", 1024, 1024, mx.float16, True),
        ("cuda", 4096, 4096, mx.float32, False),
        ("cpu", 2, 64, mx.bfloat16, True),
        ("cpu", 1, 4096, mx.bfloat16, False),
        ("cpu", 512, 2560, mx.float32, False),
        ("metal", 4096, 4096, mx.bfloat16, False),
    ],
)
def test_each_device_has_its_threshold(monkeypatch, kind, rows, width, dtype, first):
    monkeypatch.setattr(packed_products, "variants", lambda: DEFAULTS[kind])
    assert unpacks_first(rows, width, dtype) is first


@pytest.mark.parametrize("shape", [(6, 64), (2, 3, 64)])
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_rows_of_all_batches_count(monkeypatch, shape, dtype):
    x = mx.random.normal(shape, key=mx.random.key(0)).astype(dtype)
    dense = mx.random.normal((32, 64), key=mx.random.key(1)).astype(dtype)
    packed = mx.quantize(dense, 32, 4)
    exact = x.astype(mx.float32) @ mx.dequantize(*packed, 32, 4, dtype=mx.float32).T
    calls, dequantize = [], mx.dequantize

    def watched(*args, **options):
        calls.append(args[0].shape)
        return dequantize(*args, **options)

    monkeypatch.setattr(mx, "dequantize", watched)
    for work, count in ((0, 0), (6 * 32 + 1, 0), (6 * 32, 1)):
        calls.clear()
        with using(unpacked_work=work):
            got = packed_product(x, *packed, 32, 4, "affine")
        assert (got.dtype, got.shape, len(calls)) == (dtype, (*shape[:-1], 32), count)
        assert mx.linalg.norm(got.astype(mx.float32) - exact) < 0.02 * mx.linalg.norm(exact)


def test_a_sharded_layer_dequantizes_first_as_well():
    layer = SummedQuantizedLinear(64, 32, bias=True, group_size=32, bits=4)
    layer.set_dtype(mx.bfloat16)
    layer._group = mx.distributed.init()
    x = mx.random.normal((5, 64), key=mx.random.key(0)).astype(mx.bfloat16)
    with using(unpacked_work=0):
        want = layer(x)
    with using(unpacked_work=1):
        got = layer(x)
    assert got.dtype == want.dtype
    assert mx.allclose(got.astype(mx.float32), want.astype(mx.float32), rtol=0.03, atol=0.03)
