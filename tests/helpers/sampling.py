"""A part of the tests in which every value of every parameter is."""


def sampled(items):
    """The items that bring a value of a parameter that no earlier item of their test has."""
    kept, seen = set(), set()
    for item in items:
        if values_of(item) - seen:
            seen |= values_of(item)
            kept.add(item)
    return kept


def values_of(item):
    """(test, parameter, its value), and the test itself if it has no parameters."""
    test = item.nodeid.partition("[")[0]
    params = getattr(getattr(item, "callspec", None), "params", {})
    return {(test, name, repr(value)) for name, value in params.items()} or {(test,)}
