"""ml_collections' ConfigDict, with a type that lets its fields be used.

Its own annotations give every field the union of all types a field may have, so that a
type checker refuses `config.optim.lr * 2`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:

    class ConfigDict(dict[str, Any]):
        """A dictionary whose entries are attributes too."""

        def __getattr__(self, name: str) -> Any: ...
        def __setattr__(self, name: str, value: Any) -> None: ...
        def to_dict(self) -> dict[str, Any]:
            """Returns a plain dictionary, nested as this one."""
            ...

else:
    from ml_collections import ConfigDict

__all__ = ["ConfigDict"]
