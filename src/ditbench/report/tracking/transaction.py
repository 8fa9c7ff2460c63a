"""Writes a whole run of MLflow's in one transaction of its database.

MLflow commits after each of its calls, asks for the run anew in each, and waits for the disk every time; a run takes
several. In one transaction it is faster, and whoever reads the store meanwhile sees a run whole or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient


@contextmanager
def one_transaction(client: MlflowClient) -> Iterator[None]:
    """All that the client writes within is committed at the end, or none of it; a server decides for itself.

    The registry of models has a connection of its own, which would wait for this one for ever: call it outside.
    """
    store: Any = client._tracking_client.store
    begin = getattr(store, "ManagedSessionMaker", None)
    if begin is None:
        yield
        return
    with begin(read_only=False) as session:

        @contextmanager
        def the_same(read_only: bool = True) -> Iterator[Any]:
            yield session
            session.flush()

        store.ManagedSessionMaker = the_same
        # Metrics are committed at once, to learn whether one was there before; what is flushed is checked as well.
        session.commit = session.flush
        try:
            yield
        finally:
            store.ManagedSessionMaker = begin
            del session.commit
