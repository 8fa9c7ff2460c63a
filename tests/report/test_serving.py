"""The port at which MLflow's pages are served."""

from __future__ import annotations

import pytest

from ditbench.faults import Fault
from ditbench.report.tracking import serving


def test_there_is_no_port_after_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "_answers", lambda port: port != 65534)
    assert serving._free_port(65530) == 65534
    with pytest.raises(Fault, match="port 65535, the last there is, is not free"):
        serving._free_port(65535)
    monkeypatch.setattr(serving, "_answers", lambda port: True)
    with pytest.raises(Fault, match="no port from 65530 to 65535 is free"):
        serving._free_port(65530)
    with pytest.raises(Fault, match="no port from 5000 to 5019 is free"):
        serving._free_port(5000)
