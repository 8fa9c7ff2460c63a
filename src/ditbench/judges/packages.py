"""Packages that a judge calls and ditbench does not depend on: whether they are there, and what to say if not."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ditbench.faults import Fault


@dataclass(frozen=True)
class Package:
    """A package by the name that it is imported by, and how a person gets it."""

    name: str
    how: str

    @property
    def there(self) -> bool:
        """Whether it is installed; nothing is imported."""
        return importlib.util.find_spec(self.name) is not None

    def need(self, judge: str) -> Any:
        """The package, imported; a Fault that says how to get it where it is not installed, or what it lacks."""
        if not self.there:
            raise Fault(
                f"judge {judge} calls the package {self.name}, which is not installed; get it with `{self.how}`, or "
                f"leave {judge} out of `judges`"
            )
        with calling(judge, self):
            return importlib.import_module(self.name)


@contextmanager
def calling(judge: str, package: Package) -> Iterator[None]:
    """Within the context, whatever goes wrong is told as what the package said."""
    try:
        yield
    except Fault:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise Fault(f"judge {judge}: the package {package.name} says: {lines[0]}") from error
