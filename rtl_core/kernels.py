"""What softmaxes do with logits, as loops over rows compiled by numba: for a processor only.

A step of the study's recipe holds a million logits, and each pass of torch over them costs about as much as the
product that made them. Here a row of them is read once, stays in the first cache while all is done that is to be
done, and is written once. Other devices take the plain expressions (criteria.py, softmax.py), which say the same.
"""

import math

import numba
import numpy as np
from numba.core import types
from numba.extending import intrinsic, overload

LN2 = np.float32(math.log(2))
# How much more probable than the own word the drawn ones may be together, until the largest of them is looked for;
# from there no exponent is below LEAST_EXPONENT. So no share is below 2^-126: such numbers cost a hundred times more.
FAR = np.float32(2**24)
LEAST_EXPONENT = np.float32(-100)
# Sums may be taken in any order, so that many numbers are added at a time; what is no number stays none. It takes a
# second in each process: numba's cache on disk has no lock against two that write, and wants a place it may write to.
FREE = {"reassoc", "contract", "arcp", "nsz"}
compiled = numba.njit(nogil=True, error_model="numpy", fastmath=FREE)


@compiled
def softmax_rows(logits, bias, hidden, weight, of_bias):
    """Turns logits into shares of each row's softmax over S drawn words and one of its own, in place.

    Logits and biases are in base 2. `bias` and `weight` are of the own words first, whose logits are missing, then
    of the drawn ones. `of_bias` is filled with the gradient of the biases: the own words' shares less 1, then the
    drawn words', summed over rows. Returns the sum of -log(share of the own word).
    Shapes: logits (N, S), float32 or the bits of bf16; bias, of_bias (N + S,); hidden (N, D); weight (N + S, D).
    """
    n, nats = len(logits), 0.0
    numbers, of_drawn, own_bias, bias = np.empty(logits.shape[1], np.float32), of_bias[n:], bias[:n], bias[n:]
    for i in range(n):
        row, hidden_row, own_row, own = logits[i], hidden[i], weight[i], np.float32(0)
        for d in range(len(hidden_row)):
            own += hidden_row[d] * own_row[d]
        own = origin = own / LN2 + own_bias[i]
        total = _exponentials(row, bias, origin, numbers)
        if not total < FAR:  # once more from the largest logit
            for j in range(len(row)):
                origin = max(origin, _value(row[j]) + bias[j])
            total = _exponentials(row, bias, origin, numbers)
        mine = _exp2(_at_least(LEAST_EXPONENT, own - origin))
        total += mine
        nats += (origin + np.log2(total) - own) * LN2
        of_bias[i] = mine / total - 1
        scale = np.float32(1) / total
        for j in range(len(row)):
            numbers[j] *= scale
            _put(row, j, numbers[j])
        for j in range(len(row)):
            of_drawn[j] += numbers[j]
    return nats


@compiled
def _exponentials(row, bias, origin, numbers):
    """Fills `numbers` with 2^(logit + bias - origin) of a row of logits, and returns their sum."""
    total = np.float32(0)
    for j in range(len(row)):
        numbers[j] = _exp2(_at_least(LEAST_EXPONENT, _value(row[j]) + bias[j] - origin))
    for j in range(len(row)):
        total += numbers[j]
    return total


@compiled
def add_exponentials(logits, bias, total):
    """Adds each row's sum of 2^(logit + bias) to `total`; over 1e38 where one is too large for float32.

    Shapes: logits (n, m), float32 or the bits of bf16; bias (m,); total (n,).
    """
    for i in range(len(logits)):
        row, of_row = logits[i], np.float32(0)
        for j in range(len(row)):
            of_row += _exp2(_value(row[j]) + bias[j])
        total[i] += of_row


@numba.njit(inline="always")
def _at_least(least, x):
    """The larger number; NaN if x is."""
    return least if x < least else x


@numba.njit(inline="always")
def _exp2(x):
    """2^x in float32, to 3 units in the last place; a polynomial, so that the processor does many at a time."""
    x = _at_least(np.float32(-126), x)
    x = np.float32(127) if x > np.float32(127) else x  # over 1e38, so that who sums sees it
    whole = np.floor(x)
    part = x - whole
    p = np.float32(1.8775767e-3)
    p = p * part + np.float32(8.9893397e-3)
    p = p * part + np.float32(5.5826318e-2)
    p = p * part + np.float32(2.4015361e-1)
    p = p * part + np.float32(6.9315308e-1)
    p = p * part + np.float32(9.9999994e-1)
    return p * _float32_of((np.int32(whole) + np.int32(127)) << np.int32(23))


def _cast(to, source):
    """Returns the function that takes the bits of one type of 32 bits for those of another."""

    def typed(context, value):
        def build(context, builder, signature, arguments):
            return builder.bitcast(arguments[0], context.get_value_type(to))

        return to(source), build

    return intrinsic(typed)


_float32_of, _int32_of = _cast(types.float32, types.int32), _cast(types.int32, types.float32)


def _value(x):
    """The number behind float32, or behind the bits of bf16, which are the upper half of a float32."""


@overload(_value, inline="always")
def _value_of(x):
    if x == types.uint16:
        return lambda x: _float32_of(np.int32(np.uint32(x) << np.uint32(16)))
    return lambda x: x


def _put(to, j, value):
    """Writes a float32 to an array of float32, or of the bits of bf16, rounded to the nearest."""


@overload(_put, inline="always")
def _put_of(to, j, value):
    def rounded(to, j, value):
        bits = _int32_of(value)
        to[j] = np.uint16((bits + np.int32(0x7FFF) + ((bits >> np.int32(16)) & np.int32(1))) >> np.int32(16))

    def plain(to, j, value):
        to[j] = value

    return rounded if to.dtype == types.uint16 else plain
