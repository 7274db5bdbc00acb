"""The base of every configuration table; apart from config.py, so that sections can be files of their own."""

from pydantic import BaseModel, ConfigDict


class StrictModel(BaseModel):
    """Frozen model that refuses unknown keys and values out of range."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)
