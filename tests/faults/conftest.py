from tests.report.conftest import Fabricated, embedded, fabricate, tree

__all__ = ["Fabricated", "embedded", "fabricate", "tree"]
