"""The dense block's kernels in Triton, one tile of channels × pixels a program. `triton_block` calls them.

Rows are channels: a map of all images lies at `row * pitch`, its pixels as one flat axis of `values` = N·H·W numbers.
The 3×3 convolution is one matrix product a tap, over pixels moved by the tap's place; what lies beyond an image's edge
is read as zero, so the padding is there in effect and takes no memory. The 1×1 convolution is the case of one tap.

`reads` are the rows that a consumer reads, `mean` and `variance` of each row what `reads` points at (with RUNNING, as
in evaluation, of each channel that the consumer reads). Whatever the type of the maps, sums are in float32. No two
programs write to one address: sums over pixels are written a tile and added up by `merge_statistics`, `sum_norm`, or
torch, always in the same order, so that equal inputs give equal bits.
"""

import triton
import triton.language as tl

# --- parts -----------------------------------------------------------------------------------------------------------


@triton.jit
def _tile(values, PIXELS: tl.constexpr):
    """This program's pixels, and which of them there are."""
    p = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    return p, p < values


@triton.jit
def _neighbour(p, inside, down, right, height, width):
    """The pixels that lie (down, right) of p, and which of them are inside the image."""
    row, column = p // width % height + down, p % width + right
    return p + down * width + right, inside & (row >= 0) & (row < height) & (column >= 0) & (column < width)


@triton.jit
def _places(rows, p, pitch):
    return rows.to(tl.int64)[:, None] * pitch + p[None, :]


@triton.jit
def _load(x, places, there):
    return tl.load(x + places, mask=there, other=0.0).to(tl.float32)


@triton.jit
def _affine(reads, mean, variance, gamma, beta, c, channels, eps, RUNNING: tl.constexpr):
    """Rows, mean, 1/σ, γ and b of the channels c that a consumer reads: a·x + b with a = γ/σ, b = β − mean·a."""
    known = c < channels
    rows = tl.load(reads + c, mask=known, other=0)
    at = c if RUNNING else rows
    centre = tl.load(mean + at, mask=known, other=0.0).to(tl.float32)
    inverse = 1 / tl.sqrt(tl.load(variance + at, mask=known, other=1.0).to(tl.float32) + eps)
    scale = tl.load(gamma + c, mask=known, other=0.0).to(tl.float32)
    shift = tl.load(beta + c, mask=known, other=0.0).to(tl.float32) - centre * (scale * inverse)
    return rows, centre, inverse, scale, shift


@triton.jit
def _relu(x, factor, shift):
    """max(a·x + b, 0), where NaN stays NaN."""
    z = x * factor[:, None] + shift[:, None]
    return tl.where(z <= 0, 0.0, z)


@triton.jit
def _kept(mask, o, p, there, values, mask_scale):
    """Dropout's factor: 0, or 1 / (1 − rate)."""
    kept = tl.load(mask + _places(o, p, values), mask=there, other=0)
    return kept.to(tl.float32) * mask_scale


@triton.jit
def _made_gradient(
    y, dy, mean, variance, of_beta, of_gamma, mask, o, p, there, known, values, pitch, eps, mask_scale,
    MASKED: tl.constexpr,
):  # fmt: skip
    """The gradient of what a convolution made, zero where not `there`; of the maps all consumers have been added:

    (G − Σ γ·dβ / M − (y − mean)/σ · Σ γ·dγ / M)/σ, where dropout kept it.
    """
    centre = tl.load(mean + o, mask=known, other=0.0)
    inverse = 1 / tl.sqrt(tl.load(variance + o, mask=known, other=1.0) + eps)
    of_mean = tl.load(of_beta + o, mask=known, other=0.0) / values
    of_scale = tl.load(of_gamma + o, mask=known, other=0.0) * inverse / values
    places = _places(o, p, pitch)
    centred = _load(y, places, there) - centre[:, None]
    found = (_load(dy, places, there) - of_mean[:, None] - centred * of_scale[:, None]) * inverse[:, None]
    if MASKED:
        found *= _kept(mask, o, p, there, values, mask_scale)
    return tl.where(there, found, 0.0)


@triton.jit
def _take_in(
    dz, x, rows, centre, inverse, scale, shift, g, tile_dz, tile_dzx, c, p, there, channels, pitch, ADD: tl.constexpr,
):  # fmt: skip
    """A consumer's last step, from dz of what its convolution reads: masks it, adds γ·dz to the gradient of the rows,
    and writes this tile's Σ dz and Σ dz·(x − mean)."""
    places = _places(rows, p, pitch)
    value = _load(x, places, there)
    z = value * (scale * inverse)[:, None] + shift[:, None]
    dz = tl.where((z <= 0) | (there == 0), 0.0, dz)
    given = scale[:, None] * dz
    if ADD:
        given += tl.load(g + places, mask=there, other=0.0)
    tl.store(g + places, given, mask=there)
    at = c * tl.num_programs(0) + tl.program_id(0)
    tl.store(tile_dz + at, tl.sum(dz, 1), mask=c < channels)
    tl.store(tile_dzx + at, tl.sum(dz * (value - centre[:, None]), 1), mask=c < channels)


# --- a layer ---------------------------------------------------------------------------------------------------------


@triton.jit
def convolve(
    x, reads, mean, variance, gamma, beta, weight, mask, out, tile_mean, tile_square,
    channels, outs, values, pitch, height, width, of_out, of_in, of_tap, eps, mask_scale,
    TAPS: tl.constexpr, MASKED: tl.constexpr, MEASURED: tl.constexpr, RUNNING: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, OUTS: tl.constexpr,
):  # fmt: skip
    """out = the convolution of max(a·x + b, 0), after dropout; of each row of it this tile's mean and Σ (· − mean)²."""
    p, inside = _tile(values, PIXELS)
    o = tl.program_id(1) * OUTS + tl.arange(0, OUTS)
    made = tl.zeros((OUTS, PIXELS), tl.float32)
    for tap in tl.range(TAPS):
        at, here = p, inside
        if TAPS == 9:
            at, here = _neighbour(p, inside, tap // 3 - 1, tap % 3 - 1, height, width)
        for first in tl.range(0, channels, CHANNELS):
            c = first + tl.arange(0, CHANNELS)
            rows, _, inverse, scale, shift = _affine(
                reads, mean, variance, gamma, beta, c, channels, eps, RUNNING
            )  # fmt: skip
            there = (c < channels)[:, None] & here[None, :]
            z = tl.where(there, _relu(_load(x, _places(rows, at, pitch), there), scale * inverse, shift), 0.0)
            w = tl.load(
                weight + o[:, None] * of_out + c[None, :] * of_in + tap * of_tap,
                mask=(o < outs)[:, None] & (c < channels)[None, :], other=0.0,
            )  # fmt: skip
            kind = x.dtype.element_ty
            made = tl.dot(w.to(kind), z.to(kind), made, input_precision="tf32x3")
    there = (o < outs)[:, None] & inside[None, :]
    if MASKED:
        made *= _kept(mask, o, p, there, values, mask_scale)
    rounded = made.to(out.dtype.element_ty)
    tl.store(out + _places(o, p, pitch), rounded, mask=there)
    if MEASURED:
        made = tl.where(there, rounded.to(tl.float32), 0.0)
        centre = tl.sum(made, 1) / tl.minimum(PIXELS, values - tl.program_id(0) * PIXELS)
        centred = tl.where(there, made - centre[:, None], 0.0)
        at = o * tl.num_programs(0) + tl.program_id(0)
        tl.store(tile_mean + at, centre, mask=o < outs)
        tl.store(tile_square + at, tl.sum(centred * centred, 1), mask=o < outs)


@triton.jit
def convolve_backward_input(
    y, dy, y_mean, y_variance, of_beta, of_gamma, mask, weight,
    x, reads, mean, variance, gamma, beta, g, tile_dz, tile_dzx,
    channels, outs, values, pitch, height, width, of_out, of_in, of_tap, eps, mask_scale,
    TAPS: tl.constexpr, MASKED: tl.constexpr, ADD: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, OUTS: tl.constexpr,
):  # fmt: skip
    """From the gradient of what `convolve` made: γ·dz into g (added to it with ADD), this tile's Σ dz and
    Σ dz·(x − mean)."""
    p, inside = _tile(values, PIXELS)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    dz = tl.zeros((CHANNELS, PIXELS), tl.float32)
    for tap in tl.range(TAPS):
        at, here = p, inside
        if TAPS == 9:  # the pixels that read this one through the tap
            at, here = _neighbour(p, inside, 1 - tap // 3, 1 - tap % 3, height, width)
        for first in tl.range(0, outs, OUTS):
            o = first + tl.arange(0, OUTS)
            there = (o < outs)[:, None] & here[None, :]
            made = _made_gradient(
                y, dy, y_mean, y_variance, of_beta, of_gamma, mask, o, at, there, o < outs, values, pitch, eps,
                mask_scale, MASKED,
            )  # fmt: skip
            w = tl.load(
                weight + o[None, :] * of_out + c[:, None] * of_in + tap * of_tap,
                mask=(o < outs)[None, :] & (c < channels)[:, None], other=0.0,
            )  # fmt: skip
            kind = x.dtype.element_ty
            dz = tl.dot(w.to(kind), made.to(kind), dz, input_precision="tf32x3")
    rows, centre, inverse, scale, shift = _affine(reads, mean, variance, gamma, beta, c, channels, eps, False)
    there = (c < channels)[:, None] & inside[None, :]
    _take_in(dz, x, rows, centre, inverse, scale, shift, g, tile_dz, tile_dzx, c, p, there, channels, pitch, ADD)


@triton.jit
def convolve_backward_weight(
    y, dy, y_mean, y_variance, of_beta, of_gamma, mask,
    x, reads, mean, variance, gamma, beta, split_dw,
    channels, outs, values, pitch, height, width, pixels_a_split, eps, mask_scale,
    TAPS: tl.constexpr, MASKED: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, OUTS: tl.constexpr,
):  # fmt: skip
    """dW [outs, taps, channels] of this split's pixels, at its place in split_dw."""
    split, tap = tl.program_id(0), tl.program_id(2)
    across = tl.cdiv(channels, CHANNELS)
    o = tl.program_id(1) // across * OUTS + tl.arange(0, OUTS)
    c = tl.program_id(1) % across * CHANNELS + tl.arange(0, CHANNELS)
    rows, _, inverse, scale, shift = _affine(reads, mean, variance, gamma, beta, c, channels, eps, False)
    dw = tl.zeros((OUTS, CHANNELS), tl.float32)
    for first in tl.range(split * pixels_a_split, tl.minimum(values, (split + 1) * pixels_a_split), PIXELS):
        p = first + tl.arange(0, PIXELS)
        at, here = p, p < values
        if TAPS == 9:
            at, here = _neighbour(p, p < values, tap // 3 - 1, tap % 3 - 1, height, width)
        there = (o < outs)[:, None] & (p < values)[None, :]
        made = _made_gradient(
            y, dy, y_mean, y_variance, of_beta, of_gamma, mask, o, p, there, o < outs, values, pitch, eps, mask_scale,
            MASKED,
        )  # fmt: skip
        there = (c < channels)[:, None] & here[None, :]
        z = tl.where(there, _relu(_load(x, _places(rows, at, pitch), there), scale * inverse, shift), 0.0)
        kind = x.dtype.element_ty
        dw = tl.dot(made.to(kind), tl.trans(z.to(kind)), dw, input_precision="tf32x3")
    at = ((split * outs + o)[:, None] * TAPS + tap) * channels + c[None, :]
    tl.store(split_dw + at, dw, mask=(o < outs)[:, None] & (c < channels)[None, :])


# --- what follows the block ------------------------------------------------------------------------------------------


@triton.jit
def end(
    x, reads, mean, variance, gamma, beta, out,
    channels, out_values, pitch, height, width, rows_out, columns_out, down, right, eps,
    RUNNING: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """out [channels, N, rows_out, columns_out]: the means of max(a·x + b, 0) over windows of down × right pixels."""
    q, inside = _tile(out_values, PIXELS)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    rows, _, inverse, scale, shift = _affine(reads, mean, variance, gamma, beta, c, channels, eps, RUNNING)
    there = (c < channels)[:, None] & inside[None, :]
    image, row, column = q // (rows_out * columns_out), q // columns_out % rows_out, q % columns_out
    first = (image * height + row * down) * width + column * right
    total = tl.zeros((CHANNELS, PIXELS), tl.float32)
    for step in tl.range(down * right):
        at = first + step // right * width + step % right
        total += _relu(_load(x, _places(rows, at, pitch), there), scale * inverse, shift)
    tl.store(out + _places(c, q, out_values), (total / (down * right)).to(out.dtype.element_ty), mask=there)


@triton.jit
def end_backward(
    gradient, x, reads, mean, variance, gamma, beta, g, tile_dz, tile_dzx,
    channels, values, out_values, pitch, height, width, rows_out, columns_out, down, right, eps,
    ADD: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """From the gradient of what `end` made: as `convolve_backward_input`."""
    p, inside = _tile(values, PIXELS)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    rows, centre, inverse, scale, shift = _affine(reads, mean, variance, gamma, beta, c, channels, eps, False)
    image, row, column = p // (height * width), p // width % height // down, p % width // right
    q = (image * rows_out + row) * columns_out + column
    there = (c < channels)[:, None] & inside[None, :]
    read = there & ((row < rows_out) & (column < columns_out))[None, :]
    dz = _load(gradient, _places(c, q, out_values), read) / (down * right)
    _take_in(dz, x, rows, centre, inverse, scale, shift, g, tile_dz, tile_dzx, c, p, there, channels, pitch, ADD)


@triton.jit
def input_gradient(
    x, g, mean, variance, of_beta, of_gamma, dx, channels, values, pitch, eps,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """dx [channels, values] of the block's input, of which all consumers have been added to g."""
    p, inside = _tile(values, PIXELS)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    there = (c < channels)[:, None] & inside[None, :]
    found = _made_gradient(
        x, g, mean, variance, of_beta, of_gamma, x, c, p, there, c < channels, values, pitch, eps, 1.0, False
    )
    tl.store(dx + _places(c, p, values), found.to(dx.dtype.element_ty), mask=there)


# --- sums over tiles -------------------------------------------------------------------------------------------------


@triton.jit
def merge_statistics(tile_mean, tile_square, mean, variance, tiles, values, PIXELS: tl.constexpr, TILES: tl.constexpr):
    """Mean and biased variance of a row from its tiles' means and sums of squares: nothing large is subtracted."""
    row = tl.program_id(0)
    total = tl.zeros((TILES,), tl.float32)
    for first in tl.range(0, tiles, TILES):
        t = first + tl.arange(0, TILES)
        count = tl.maximum(0, tl.minimum(PIXELS, values - t * PIXELS))
        total += count * tl.load(tile_mean + row * tiles + t, mask=t < tiles, other=0.0)
    centre = tl.sum(total, 0) / values
    square = tl.zeros((TILES,), tl.float32)
    for first in tl.range(0, tiles, TILES):
        t = first + tl.arange(0, TILES)
        count = tl.maximum(0, tl.minimum(PIXELS, values - t * PIXELS))
        away = tl.load(tile_mean + row * tiles + t, mask=t < tiles, other=0.0) - centre
        square += tl.load(tile_square + row * tiles + t, mask=t < tiles, other=0.0) + count * away * away
    tl.store(mean + row, centre)
    tl.store(variance + row, tl.sum(square, 0) / values)


@triton.jit
def sum_norm(
    tile_dz, tile_dzx, reads, variance, gamma, of_beta, of_gamma, dgamma, dbeta, tiles, eps, TILES: tl.constexpr
):
    """dγ and dβ of a channel from its tiles' Σ dz and Σ dz·(x − mean); adds γ·dβ and γ·dγ to its row's sums."""
    c = tl.program_id(0)
    total, products = tl.zeros((TILES,), tl.float32), tl.zeros((TILES,), tl.float32)
    for first in tl.range(0, tiles, TILES):
        t = first + tl.arange(0, TILES)
        total += tl.load(tile_dz + c * tiles + t, mask=t < tiles, other=0.0)
        products += tl.load(tile_dzx + c * tiles + t, mask=t < tiles, other=0.0)
    row = tl.load(reads + c)
    of_shift = tl.sum(total, 0)
    of_scale = tl.sum(products, 0) / tl.sqrt(tl.load(variance + row) + eps)
    scale = tl.load(gamma + c).to(tl.float32)
    tl.store(of_beta + row, tl.load(of_beta + row) + scale * of_shift)
    tl.store(of_gamma + row, tl.load(of_gamma + row) + scale * of_scale)
    tl.store(dgamma + c, of_scale.to(dgamma.dtype.element_ty))
    tl.store(dbeta + c, of_shift.to(dbeta.dtype.element_ty))
