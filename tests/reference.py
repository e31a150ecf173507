"""Slow, obvious float64 NumPy: what the library's kernels are compared with. It never imports the package.

A block is a dict: {"A": (N, T, d_in), "D": (N, C, T, d_out), "bias": bool, "scale": float} for a weight,
{"I": (N, T) of int, "V": int, "D": (N, C, T, d), "scale": float} for a table of V rows that is looked up,
{"G": (N, C, p), "scale": float} for explicit rows.
"""

from __future__ import annotations

import numpy as np


def expand(block, root_preconditioner=()):
    """The block's Jacobian, (N, C, parameters), written out one outer product at a time."""
    if "G" in block:
        jacobian = np.asarray(block["G"], np.float64)
        if root_preconditioner:
            jacobian = jacobian * root_preconditioner[0]
        return np.sqrt(block["scale"]) * jacobian
    if "I" in block:
        return np.sqrt(block["scale"]) * expand_lookups(block, *root_preconditioner)
    a, d = np.asarray(block["A"], np.float64), np.asarray(block["D"], np.float64)
    n, c, positions, _ = d.shape
    rows = []
    for i in range(n):
        for j in range(c):
            weight = sum(np.outer(d[i, j, t], a[i, t]) for t in range(positions))
            bias = sum(d[i, j, t] for t in range(positions))
            if root_preconditioner:
                weight = weight * root_preconditioner[0]
                bias = bias * root_preconditioner[1] if block["bias"] else bias
            rows.append(np.concatenate([weight.ravel(), bias if block["bias"] else np.empty(0)]))
    return np.sqrt(block["scale"]) * np.array(rows).reshape(n, c, -1)


def expand_lookups(block, root_preconditioner=1.0):
    """The gradients by a table (V, d), one looked-up row at a time."""
    d = np.asarray(block["D"], np.float64)
    n, c, positions, width = d.shape
    rows = np.zeros((n, c, block["V"], width))
    for i in range(n):
        for j in range(c):
            for t in range(positions):
                rows[i, j, block["I"][i, t]] += d[i, j, t]
    return (rows * root_preconditioner).reshape(n, c, -1)


def jacobian(blocks, root_preconditioner=None):
    """All gradients, (N, C, P)."""
    roots = root_preconditioner or {}
    return np.concatenate([expand(block, roots.get(name, ())) for name, block in blocks.items()], axis=-1)


def ntk(j1, j2, outputs="full"):
    """The kernel of two Jacobians (N, C, P) in the shape that `outputs` names."""
    full = np.einsum("ncp,mep->nmce", j1, j2)
    num_outputs = j1.shape[1]
    if num_outputs == 1:
        return full[:, :, 0, 0]
    return {
        "full": full,
        "trace": np.einsum("nmcc->nm", full),
        "mean_trace": np.einsum("nmcc->nm", full) / num_outputs,
        "diagonal": np.einsum("nmcc->cnm", full),
        "sum_logits": full.sum(axis=(2, 3)),
    }[outputs]


def as_matrix(kernel):
    """A full kernel (N1, N2, C, C) as the matrix with example-major rows."""
    if kernel.ndim == 2:
        return kernel
    n1, n2, c, _ = kernel.shape
    return kernel.transpose(0, 2, 1, 3).reshape(n1 * c, n2 * c)


def entry_scale(j1, j2, outputs):
    """sqrt(K_ii K_jj) for every entry: the yardstick of the accuracy promise."""
    num_outputs = j1.shape[1]
    norm1, norm2 = np.sqrt(np.square(j1).sum(-1)), np.sqrt(np.square(j2).sum(-1))
    full = np.einsum("nc,me->nmce", norm1, norm2)
    if num_outputs == 1:
        return full[:, :, 0, 0]
    if outputs == "full":
        return full
    if outputs == "diagonal":
        return np.einsum("nmcc->cnm", full)
    divisor = num_outputs if outputs == "mean_trace" else 1
    j1, j2 = (j.sum(1, keepdims=True) if outputs == "sum_logits" else j for j in (j1, j2))
    # The sum of logits may cancel: its rounding is that of the gradients that were added up.
    total1, total2 = (
        (norm1.sum(-1), norm2.sum(-1))
        if outputs == "sum_logits"
        else (
            np.sqrt(np.square(j1).sum((1, 2))),
            np.sqrt(np.square(j2).sum((1, 2))),
        )
    )
    return np.outer(total1, total2) / divisor


def statistics(kernel, targets=None, other=None):
    """Sums over a kernel in float64."""
    k = np.asarray(kernel, np.float64)
    result = {
        "squared_norm": np.square(k).sum(),
        "trace": np.trace(k) if k.shape[0] == k.shape[1] else np.nan,
        "row_sums": k.sum(1),
        "column_sums": k.sum(0),
    }
    if targets is not None:
        y = np.asarray(targets, np.float64).reshape(k.shape[0], -1)
        result["quadratic_forms"] = np.array([column @ k @ column for column in y.T])
    if other is not None:
        k2 = np.asarray(other, np.float64)
        result["inner_product"] = (k * k2).sum()
        result["other_squared_norm"] = np.square(k2).sum()
        result["other_row_sums"] = k2.sum(1)
        result["other_column_sums"] = k2.sum(0)
    return result


def convolution(images, weight, stride, padding):
    """The cross-correlation of images (N, C, H, W) with a weight (C_out, C, kh, kw), place by place."""
    (down, right), (above, left) = stride, padding
    _, _, kh, kw = weight.shape
    padded = np.pad(images, ((0, 0), (0, 0), (above, above), (left, left)))
    rows, columns = (padded.shape[2] - kh) // down + 1, (padded.shape[3] - kw) // right + 1
    out = np.empty((len(images), len(weight), rows, columns))
    for i in range(rows):
        for j in range(columns):
            seen = padded[:, :, i * down : i * down + kh, j * right : j * right + kw]
            out[:, :, i, j] = np.einsum("ncij,ocij->no", seen, weight)
    return out


def average_pool(images, size, stride):
    """The means over the windows of (N, C, H, W) that lie inside."""
    (kh, kw), (down, right) = size, stride
    rows, columns = (images.shape[2] - kh) // down + 1, (images.shape[3] - kw) // right + 1
    out = np.empty((*images.shape[:2], rows, columns))
    for i in range(rows):
        for j in range(columns):
            out[:, :, i, j] = images[:, :, i * down : i * down + kh, j * right : j * right + kw].mean((2, 3))
    return out


def cnn_pre_activations(layers, applied, images, phi):
    """The pre-activations, and last the outputs, of a network whose layers are described by dicts.

    `applied` lists (weight, bias or None) of the layers with weights, multiplied with their multipliers.
    """
    h, remaining, result = images, list(applied), []
    for layer in layers:
        if layer["kind"] == "flatten":
            h = h.reshape(len(h), -1)
        elif layer["kind"] == "global_average_pool":
            h = h.mean((2, 3))
        elif layer["kind"] == "average_pool":
            h = average_pool(h, layer["size"], layer["stride"])
        else:
            weight, bias = remaining.pop(0)
            if layer["kind"] == "dense":
                z = h @ weight.T + (0 if bias is None else bias)
            else:
                z = convolution(h, weight, layer["stride"], layer["padding"])
                z = z + (0 if bias is None else bias[:, None, None])
            result.append(z)
            h = phi(z) if remaining else z
    return [*result, h]


def residual_outputs(layers, applied, images, phi):
    """The outputs of a network whose layers, residual blocks among them, are described by dicts.

    `applied` lists (weight, bias or None) of the layers with weights, multiplied with their multipliers, those of a
    block before its shortcut's.
    """
    remaining = list(applied)

    def plain(layer, h):
        if layer["kind"] == "flatten":
            return h.reshape(len(h), -1)
        if layer["kind"] == "global_average_pool":
            return h.mean((2, 3))
        if layer["kind"] == "average_pool":
            return average_pool(h, layer["size"], layer["stride"])
        weight, bias = remaining.pop(0)
        if layer["kind"] == "dense":
            return h @ weight.T + (0 if bias is None else bias)
        return convolution(h, weight, layer["stride"], layer["padding"]) + (0 if bias is None else bias[:, None, None])

    def chain(layers, z, awaits_phi):
        for i, layer in enumerate(layers):
            if layer["kind"] == "residual":
                branch = chain(layer["layers"], z, awaits_phi)
                z = branch + (z if layer["shortcut"] is None else plain(layer["shortcut"], z))
            else:
                z = plain(layer, phi(z) if awaits_phi else z)
            rest = {other["kind"] for other in layers[i + 1 :]}
            weights = {"conv", "dense", "residual"}
            awaits_phi = layer["kind"] in weights and bool(rest & weights)
        return z

    return chain(layers, images, False)
