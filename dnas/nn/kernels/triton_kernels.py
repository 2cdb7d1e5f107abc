"""Kernels of the dense block in Triton. A program computes one tile of channels × pixels; `triton_block` launches them.

Rows are channels. The map of a channel starts at `row * pitch` and holds the pixels of all images as one flat axis of
`values` = N·H·W numbers. A 3×3 convolution is one matrix product per tap, over pixels shifted by the offset of the tap.
Pixels beyond the edge of an image are read as zeros, so the padding takes no memory. A 1×1 convolution has a single
tap.

`reads` holds the rows that a consumer reads. `mean` and `variance` are indexed by row, or with RUNNING (in evaluation)
by the consumer's channel. Sums are in float32 for every type of maps. No two programs write to the same address. Sums
over pixels are written per tile and added by `merge_statistics`, `sum_norm` or torch, always in the same order, so that
equal inputs produce equal bits.
"""

import triton
import triton.language as tl

# --- parts -----------------------------------------------------------------------------------------------------------


@triton.jit
def _tile(values, PIXELS: tl.constexpr):
    """Return this program's pixels, and a mask of those that exist."""
    p = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    return p, p < values


@triton.jit
def _neighbour(p, inside, down, right, height, width):
    """Return the pixels at offset (down, right) from p, and a mask of those inside the image."""
    row, column = p // width % height + down, p % width + right
    return p + down * width + right, inside & (row >= 0) & (row < height) & (column >= 0) & (column < width)


@triton.jit
def _places(rows, p, pitch):
    return rows.to(tl.int64)[:, None] * pitch + p[None, :]


@triton.jit
def _load(x, places, valid):
    return tl.load(x + places, mask=valid, other=0.0).to(tl.float32)


@triton.jit
def _affine(reads, mean, variance, gamma, beta, c, channels, eps, RUNNING: tl.constexpr):
    """Return rows, mean, 1/σ, γ and b of the channels c of a consumer, for a·x + b with a = γ/σ, b = β − mean·a."""
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
    """Return max(a·x + b, 0), and NaN for NaN."""
    z = x * factor[:, None] + shift[:, None]
    return tl.where(z <= 0, 0.0, z)


@triton.jit
def _kept(mask, o, p, valid, values, mask_scale):
    """Return the factor of dropout: 0, or 1 / (1 − rate)."""
    kept = tl.load(mask + _places(o, p, values), mask=valid, other=0)
    return kept.to(tl.float32) * mask_scale


@triton.jit
def _output_gradient(
    y, dy, mean, variance, of_beta, of_gamma, mask, o, p, valid, known, values, pitch, eps, mask_scale,
    MASKED: tl.constexpr,
):  # fmt: skip
    """Return the gradient of a convolution's output, after all consumers of its maps have been added.

    It is (G − Σ γ·dβ / M − (y − mean)/σ · Σ γ·dγ / M)/σ where dropout kept the value, and zero outside of `valid`.
    """
    centre = tl.load(mean + o, mask=known, other=0.0)
    inverse = 1 / tl.sqrt(tl.load(variance + o, mask=known, other=1.0) + eps)
    of_mean = tl.load(of_beta + o, mask=known, other=0.0) / values
    of_scale = tl.load(of_gamma + o, mask=known, other=0.0) * inverse / values
    places = _places(o, p, pitch)
    centred = _load(y, places, valid) - centre[:, None]
    gradient = (_load(dy, places, valid) - of_mean[:, None] - centred * of_scale[:, None]) * inverse[:, None]
    if MASKED:
        gradient *= _kept(mask, o, p, valid, values, mask_scale)
    return tl.where(valid, gradient, 0.0)


@triton.jit
def _finish_consumer(
    dz, x, rows, centre, inverse, scale, shift, g, tile_dz, tile_dzx, c, p, valid, channels, pitch, ADD: tl.constexpr,
):  # fmt: skip
    """Finish the backward pass of a consumer, given the gradient dz of the input of its convolution.

    Masks dz, adds γ·dz to the gradient of the rows, and writes Σ dz and Σ dz·(x − mean) of this tile.
    """
    places = _places(rows, p, pitch)
    value = _load(x, places, valid)
    z = value * (scale * inverse)[:, None] + shift[:, None]
    dz = tl.where((z <= 0) | (valid == 0), 0.0, dz)
    scaled = scale[:, None] * dz
    if ADD:
        scaled += tl.load(g + places, mask=valid, other=0.0)
    tl.store(g + places, scaled, mask=valid)
    at = c * tl.num_programs(0) + tl.program_id(0)
    tl.store(tile_dz + at, tl.sum(dz, 1), mask=c < channels)
    tl.store(tile_dzx + at, tl.sum(dz * (value - centre[:, None]), 1), mask=c < channels)


# --- layers ---------------------------------------------------------------------------------------------------------


@triton.jit
def convolve(
    x, reads, mean, variance, gamma, beta, weight, mask, out, tile_mean, tile_square,
    channels, outs, values, pitch, height, width, of_out, of_in, of_tap, eps, mask_scale,
    TAPS: tl.constexpr, MASKED: tl.constexpr, MEASURED: tl.constexpr, RUNNING: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, OUTS: tl.constexpr,
):  # fmt: skip
    """Write the convolution of max(a·x + b, 0), after dropout, and the mean and Σ (· − mean)² of each row's tile."""
    p, inside = _tile(values, PIXELS)
    o = tl.program_id(1) * OUTS + tl.arange(0, OUTS)
    product = tl.zeros((OUTS, PIXELS), tl.float32)
    for tap in tl.range(TAPS):
        at, inside_image = p, inside
        if TAPS == 9:
            at, inside_image = _neighbour(p, inside, tap // 3 - 1, tap % 3 - 1, height, width)
        for first in tl.range(0, channels, CHANNELS):
            c = first + tl.arange(0, CHANNELS)
            rows, _, inverse, scale, shift = _affine(
                reads, mean, variance, gamma, beta, c, channels, eps, RUNNING
            )  # fmt: skip
            valid = (c < channels)[:, None] & inside_image[None, :]
            z = tl.where(valid, _relu(_load(x, _places(rows, at, pitch), valid), scale * inverse, shift), 0.0)
            w = tl.load(
                weight + o[:, None] * of_out + c[None, :] * of_in + tap * of_tap,
                mask=(o < outs)[:, None] & (c < channels)[None, :], other=0.0,
            )  # fmt: skip
            kind = x.dtype.element_ty
            product = tl.dot(w.to(kind), z.to(kind), product, input_precision="tf32x3")
    valid = (o < outs)[:, None] & inside[None, :]
    if MASKED:
        product *= _kept(mask, o, p, valid, values, mask_scale)
    rounded = product.to(out.dtype.element_ty)
    tl.store(out + _places(o, p, pitch), rounded, mask=valid)
    if MEASURED:
        product = tl.where(valid, rounded.to(tl.float32), 0.0)
        centre = tl.sum(product, 1) / tl.minimum(PIXELS, values - tl.program_id(0) * PIXELS)
        centred = tl.where(valid, product - centre[:, None], 0.0)
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
    """Compute the gradient of the input of `convolve`.

    Writes γ·dz to g, or adds it with ADD, and writes Σ dz and Σ dz·(x − mean) of this tile.
    """
    p, inside = _tile(values, PIXELS)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    dz = tl.zeros((CHANNELS, PIXELS), tl.float32)
    for tap in tl.range(TAPS):
        at, inside_image = p, inside
        if TAPS == 9:  # pixels whose outputs use this pixel through the tap
            at, inside_image = _neighbour(p, inside, 1 - tap // 3, 1 - tap % 3, height, width)
        for first in tl.range(0, outs, OUTS):
            o = first + tl.arange(0, OUTS)
            valid = (o < outs)[:, None] & inside_image[None, :]
            dout = _output_gradient(
                y, dy, y_mean, y_variance, of_beta, of_gamma, mask, o, at, valid, o < outs, values, pitch, eps,
                mask_scale, MASKED,
            )  # fmt: skip
            w = tl.load(
                weight + o[None, :] * of_out + c[:, None] * of_in + tap * of_tap,
                mask=(o < outs)[None, :] & (c < channels)[:, None], other=0.0,
            )  # fmt: skip
            kind = x.dtype.element_ty
            dz = tl.dot(w.to(kind), dout.to(kind), dz, input_precision="tf32x3")
    rows, centre, inverse, scale, shift = _affine(reads, mean, variance, gamma, beta, c, channels, eps, False)
    valid = (c < channels)[:, None] & inside[None, :]
    _finish_consumer(
        dz, x, rows, centre, inverse, scale, shift, g, tile_dz, tile_dzx, c, p, valid, channels, pitch, ADD
    )


@triton.jit
def convolve_backward_weight(
    y, dy, y_mean, y_variance, of_beta, of_gamma, mask,
    x, reads, mean, variance, gamma, beta, split_dw,
    channels, outs, values, pitch, height, width, pixels_per_split, eps, mask_scale,
    TAPS: tl.constexpr, MASKED: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, OUTS: tl.constexpr,
):  # fmt: skip
    """Write dW [outs, taps, channels] over the pixels of this split to split_dw."""
    split, tap = tl.program_id(0), tl.program_id(2)
    across = tl.cdiv(channels, CHANNELS)
    o = tl.program_id(1) // across * OUTS + tl.arange(0, OUTS)
    c = tl.program_id(1) % across * CHANNELS + tl.arange(0, CHANNELS)
    rows, _, inverse, scale, shift = _affine(reads, mean, variance, gamma, beta, c, channels, eps, False)
    dw = tl.zeros((OUTS, CHANNELS), tl.float32)
    for first in tl.range(split * pixels_per_split, tl.minimum(values, (split + 1) * pixels_per_split), PIXELS):
        p = first + tl.arange(0, PIXELS)
        at, inside_image = p, p < values
        if TAPS == 9:
            at, inside_image = _neighbour(p, p < values, tap // 3 - 1, tap % 3 - 1, height, width)
        valid = (o < outs)[:, None] & (p < values)[None, :]
        dout = _output_gradient(
            y, dy, y_mean, y_variance, of_beta, of_gamma, mask, o, p, valid, o < outs, values, pitch, eps, mask_scale,
            MASKED,
        )  # fmt: skip
        valid = (c < channels)[:, None] & inside_image[None, :]
        z = tl.where(valid, _relu(_load(x, _places(rows, at, pitch), valid), scale * inverse, shift), 0.0)
        kind = x.dtype.element_ty
        dw = tl.dot(dout.to(kind), tl.trans(z.to(kind)), dw, input_precision="tf32x3")
    at = ((split * outs + o)[:, None] * TAPS + tap) * channels + c[None, :]
    tl.store(split_dw + at, dw, mask=(o < outs)[:, None] & (c < channels)[None, :])


# --- end of the block ------------------------------------------------------------------------------------------


@triton.jit
def end(
    x, reads, mean, variance, gamma, beta, out,
    channels, out_values, pitch, height, width, rows_out, columns_out, down, right, eps,
    RUNNING: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Write the means of max(a·x + b, 0) over windows of down × right pixels to out [channels, N, rows, columns]."""
    q, inside = _tile(out_values, PIXELS)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    rows, _, inverse, scale, shift = _affine(reads, mean, variance, gamma, beta, c, channels, eps, RUNNING)
    valid = (c < channels)[:, None] & inside[None, :]
    image, row, column = q // (rows_out * columns_out), q // columns_out % rows_out, q % columns_out
    first = (image * height + row * down) * width + column * right
    total = tl.zeros((CHANNELS, PIXELS), tl.float32)
    for step in tl.range(down * right):
        at = first + step // right * width + step % right
        total += _relu(_load(x, _places(rows, at, pitch), valid), scale * inverse, shift)
    tl.store(out + _places(c, q, out_values), (total / (down * right)).to(out.dtype.element_ty), mask=valid)


@triton.jit
def end_backward(
    gradient, x, reads, mean, variance, gamma, beta, g, tile_dz, tile_dzx,
    channels, values, out_values, pitch, height, width, rows_out, columns_out, down, right, eps,
    ADD: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of the input of `end`, with the outputs of `convolve_backward_input`."""
    p, inside = _tile(values, PIXELS)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    rows, centre, inverse, scale, shift = _affine(reads, mean, variance, gamma, beta, c, channels, eps, False)
    image, row, column = p // (height * width), p // width % height // down, p % width // right
    q = (image * rows_out + row) * columns_out + column
    valid = (c < channels)[:, None] & inside[None, :]
    read = valid & ((row < rows_out) & (column < columns_out))[None, :]
    dz = _load(gradient, _places(c, q, out_values), read) / (down * right)
    _finish_consumer(
        dz, x, rows, centre, inverse, scale, shift, g, tile_dz, tile_dzx, c, p, valid, channels, pitch, ADD
    )


@triton.jit
def input_gradient(
    x, g, mean, variance, of_beta, of_gamma, dx, channels, values, pitch, eps,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Write dx [channels, values] of the block's input, after all consumers have been added to g."""
    p, inside = _tile(values, PIXELS)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    valid = (c < channels)[:, None] & inside[None, :]
    gradient = _output_gradient(
        x, g, mean, variance, of_beta, of_gamma, x, c, p, valid, c < channels, values, pitch, eps, 1.0, False
    )
    tl.store(dx + _places(c, p, values), gradient.to(dx.dtype.element_ty), mask=valid)


# --- sums over tiles -------------------------------------------------------------------------------------------------


@triton.jit
def merge_statistics(tile_mean, tile_square, mean, variance, tiles, values, PIXELS: tl.constexpr, TILES: tl.constexpr):
    """Merge the means and sums of squares of tiles into mean and biased variance of a row, without cancellation."""
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
    """Compute dγ and dβ of a channel from the sums of its tiles, and add γ·dβ and γ·dγ to the sums of its row."""
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
