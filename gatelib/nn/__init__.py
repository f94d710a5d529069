"""Torch modules: drop-ins where torch has the layer, and layers made from any `Spec`.
Imports lazy_loader, and once a name is used the module that holds it: `__init__.pyi` says which.
Must not import gatelib.reference, gatelib.lab or gatelib.data.
"""

from typing import Any

_NEEDS = "gatelib.nn needs PyTorch: pip install 'gatelib[torch]'"

try:
    import lazy_loader
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(_NEEDS, name=error.name) from error

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    try:
        return _load(name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ModuleNotFoundError(_NEEDS, name="torch") from error
