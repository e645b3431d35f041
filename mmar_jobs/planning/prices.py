"""The price list of a plan: TOML, an example in the package, a user's own beside it.

Not here: amounts (estimate.py).
"""

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from mmar_jobs.errors import SettingsError
from mmar_jobs.records import Record

Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Prices(Record):
    """Prices in `currency`: of a GPU hour, 10^9 bytes a month, a thousand requests."""

    label: str
    date: str
    currency: str
    gpu_hour: Price
    storage_gb_month: Price
    writes_per_1000: Price
    reads_per_1000: Price


def read_prices(path: Path | None) -> Prices:
    """The list in a file, or the package's example; SettingsError names what is wrong with it."""
    try:
        data = (
            path.read_text(encoding="utf-8")
            if path is not None
            else (files("mmar_jobs.planning") / "prices.toml").read_text(encoding="utf-8")
        )
        return Prices.model_validate(tomllib.loads(data))
    except OSError as error:
        raise SettingsError(f"--prices {path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise SettingsError(f"--prices {path}: {name}: {first['msg']}") from None
    except ValueError as error:
        raise SettingsError(f"--prices {path} is not TOML: {error}") from None
