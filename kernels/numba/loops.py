"""Loops of one operation that several families have."""

from .compiler import elementwise


@elementwise
def subtract(a, b, result):
    for i in range(result.size):
        result[i] = a[i] - b[i]
