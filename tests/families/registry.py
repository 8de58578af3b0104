"""Every page of tests/families, and the variants they hold."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

import tests.families
from tests.families.common import Variant

#: What the pages share: modules of the folder that are no page.
SHARED = ("__main__", "common", "compare", "conformance", "discover", "examine", "registry", "table")

PAGES = tuple(module.name for module in pkgutil.iter_modules(tests.families.__path__) if module.name not in SHARED)


@cache
def page(name: str) -> tuple[Variant, ...]:
    """The variants of one page."""
    return importlib.import_module(f"tests.families.{name}").VARIANTS


@cache
def variants() -> dict[str, Variant]:
    """Name -> variant, of all pages."""
    found = [variant for name in PAGES for variant in page(name)]
    by_name = {variant.name: variant for variant in found}
    assert len(by_name) == len(found), "two variants have one name"
    return by_name
