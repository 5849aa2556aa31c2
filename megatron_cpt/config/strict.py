"""What every section of the configuration asks of its keys."""

from pydantic import ConfigDict

# Without `extra="forbid"` pydantic drops unknown keys of a dataclass in silence.
STRICT = ConfigDict(extra="forbid")
