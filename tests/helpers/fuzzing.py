"""Tests that run on inputs drawn from a fixed seed."""

from collections.abc import Callable

from hypothesis import HealthCheck, seed, settings


def fuzzed(examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A test that is run on inputs drawn from a fixed seed, a few of them by default and many with `-m slow`."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
        return seed(20)(
            settings(max_examples=examples, deadline=None, database=None, suppress_health_check=quiet)(test)
        )

    return decorate
