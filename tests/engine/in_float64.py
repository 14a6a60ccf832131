"""mlx's fused functions compute in float32 whatever they are given. Here they are in plain operations, for float64."""

import mlx.core as mx


def rms_norm(x, weight, eps, **_):
    normed = x * mx.rsqrt(mx.square(x).mean(axis=-1, keepdims=True) + eps)
    return normed if weight is None else normed * weight


def layer_norm(x, weight, bias, eps, **_):
    centred = x - x.mean(axis=-1, keepdims=True)
    normed = centred * mx.rsqrt(mx.square(centred).mean(axis=-1, keepdims=True) + eps)
    normed = normed if weight is None else normed * weight
    return normed if bias is None else normed + bias


def rope(a, dims, *, traditional, base, scale, offset, freqs=None, **_):
    """(rows, …, tokens, size); `offset` a number or one for each row."""
    half = dims // 2
    if freqs is None:
        periods = base ** (mx.arange(half).astype(mx.float64) / half)
    else:
        periods = freqs.astype(mx.float64)
    steps = mx.arange(a.shape[-2]).astype(mx.float64)
    if isinstance(offset, mx.array) and offset.size > 1:
        steps = offset.astype(mx.float64).reshape(-1, *[1] * (a.ndim - 3), 1) + steps
    else:
        steps = steps + offset
    angles = (steps * scale)[..., None] / periods
    cos, sin = mx.cos(angles), mx.sin(angles)
    turned, rest = a[..., :dims], a[..., dims:]
    one, two = (turned[..., 0::2], turned[..., 1::2]) if traditional else (turned[..., :half], turned[..., half:])
    pair = one * cos - two * sin, one * sin + two * cos
    if traditional:
        turned = mx.stack(pair, axis=-1).reshape(turned.shape)
    else:
        turned = mx.concatenate(pair, axis=-1)
    return mx.concatenate([turned, rest], axis=-1)


def scaled_dot_product_attention(q, k, v, *, scale, mask=None, sinks=None, **_):
    """q (rows, heads, tokens, size); k and v may have fewer heads; mask "causal", bool or added."""
    rows, heads, tokens, _ = q.shape
    groups = k.shape[1]
    q = q.reshape(rows, groups, heads // groups, tokens, -1)
    scores = (q * scale) @ k[:, :, None].swapaxes(-1, -2)
    if isinstance(mask, str):
        keys = k.shape[2]
        mask = mx.arange(keys - tokens, keys)[:, None] >= mx.arange(keys)[None]
    if mask is not None:
        mask = mx.broadcast_to(mask, (rows, heads, tokens, k.shape[2])).reshape(scores.shape)
        scores = mx.where(mask, scores, -mx.inf) if mask.dtype == mx.bool_ else scores + mask
    if sinks is not None:
        sink = mx.broadcast_to(sinks.reshape(1, groups, heads // groups, 1, 1), (*scores.shape[:-1], 1))
        scores = mx.concatenate([sink.astype(scores.dtype), scores], axis=-1)
    weights = mx.softmax(scores, axis=-1)
    if sinks is not None:
        weights = weights[..., 1:]
    return (weights @ v[:, :, None]).reshape(rows, heads, tokens, -1)


def gather_mm(a, b, lhs_indices=None, rhs_indices=None, **_):
    assert lhs_indices is None
    return a @ b[rhs_indices]


def conv1d(x, weight, stride=1, padding=0, dilation=1, groups=1, **_):
    """x (rows, steps, inputs), weight (outputs, width, inputs of a group)."""
    assert stride == dilation == 1
    outputs, width, inputs = weight.shape
    x = mx.pad(x, [(0, 0), (padding, padding), (0, 0)])
    steps = x.shape[1] - width + 1
    windows = mx.stack([x[:, k : k + steps] for k in range(width)], axis=2)
    windows = windows.reshape(x.shape[0], steps, width, groups, 1, inputs)
    weight = weight.reshape(groups, outputs // groups, width, inputs).transpose(2, 0, 1, 3)
    return (windows * weight).sum(axis=(2, -1)).reshape(x.shape[0], steps, outputs)


def install(monkeypatch) -> None:
    """Take the fused functions' places for the length of a test."""
    for function in (rms_norm, layer_norm, rope, scaled_dot_product_attention):
        monkeypatch.setattr(mx.fast, function.__name__, function)
    for function in (gather_mm, conv1d):
        monkeypatch.setattr(mx, function.__name__, function)
