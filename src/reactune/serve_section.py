"""The settings of the service: who answers, how, and how much at once.

The other sections are in `sections.py`.
"""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from reactune.sections import Section


class ServeConfig(Section):
    """The model server and the service in front of it."""

    runtime: Literal["llamacpp", "ollama"] = "llamacpp"
    """Which server answers: the embedded llama.cpp, or Ollama at `ollama_url`."""
    ollama_url: str = "http://127.0.0.1:11434"
    """Ollama's HTTP API."""
    timeout_seconds: float = Field(20.0, gt=0)
    """A challenger slower than this is answered by the champion."""
    champion_timeout_seconds: float = Field(20.0, gt=0)
    """A champion slower than this is answered by a stored tip, where there is one."""
    record_seconds: float = Field(3.0, gt=0)
    """A tip whose record the database has not confirmed by then is shown all the same, and counts
    for nobody."""
    temperature: float = Field(0.7, ge=0, le=2)
    """Sampling temperature of served tips."""
    top_p: float = Field(0.95, gt=0, le=1)
    """Nucleus of served tips."""
    max_tokens: int = Field(64, ge=8)
    """Length limit of a tip."""
    threads: int = Field(0, ge=0)
    """CPU threads of the embedded server; 0: all."""
    parallel: int = Field(4, ge=1)
    """Tips the embedded server writes at once."""
    host: str = "127.0.0.1"
    """Address the service listens on."""
    port: int = Field(8765, ge=0, le=65_535)
    """Port the service listens on."""
    workers: int = Field(1, ge=1, le=64)
    """Processes that answer; more than one need PostgreSQL."""
    auth: Literal["auto", "required", "off"] = "auto"
    """Whether requests need a key of `reactune keys`; `auto`: once one was made, and whenever the
    service listens beyond this machine."""
    requests_per_second: float = Field(1_000, gt=0)
    """Requests of one key that are answered, on average; what is over gets 429."""
    max_tips_waiting: int = Field(256, ge=1)
    """Requests for tips that may wait for one of the 64 that are answered at once; what is over
    gets 503 with Retry-After."""
    max_tip_chars: int = Field(600, ge=20)
    """A tip longer than this is not shown."""
    unsafe_texts: tuple[str, ...] = ()
    """Words and phrases that no tip may hold, upper or lower case."""
    good_tips: Mapping[str, tuple[str, ...]] = Field(default_factory=dict)
    """Kind of tip = tips of yours that are shown when no model gives one; `*` for every kind."""
