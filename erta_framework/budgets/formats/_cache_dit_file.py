"""cache-dit's configuration file, which SGLang's diffusers backend takes as well."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from erta_framework.budgets.formats._cache_dit import CONFIG, STATIC, read_config
from erta_framework.budgets.formats._document import ScheduleDocument
from erta_framework.budgets.formats._format import ScheduleFormat, refuse_keys
from erta_framework.budgets.formats._reading import (
    check_facts,
    read_text,
    require_object,
    split_facts,
)
from erta_framework.budgets.formats._run_lengths import as_mask
from erta_framework.config import convert
from erta_framework.errors import InputError
from erta_framework.text import escape_line, show_value

SECTION = "cache_config"
BLOCKS = {"Fn_compute_blocks": "first_blocks", "Bn_compute_blocks": "last_blocks"}
"""Blocks that run at every step, and our settings for them."""


class CacheDitFile(ScheduleFormat):
    """The file that `cache_dit.load_configs` reads, and SGLang as `--cache-dit-config FILE`.

    It holds the fields of `DBCacheConfig` under `cache_config`. Beside the mask it says how many
    blocks run at every step, because cache-dit's own default of 8 may be all of them. Written is
    JSON, or YAML with the setting `style=yaml`; read is either.

    Source: `load_configs` of cache-dit 1.5.3, and "Cache-DiT Acceleration" in SGLang's
    documentation.
    """

    title = "cache-dit's configuration file, for load_configs and SGLang's --cache-dit-config"
    write_options = ("style", *BLOCKS.values())

    def read(
        self, path: Path, num_steps: int | None = None, options: Mapping[str, Any] | None = None
    ) -> ScheduleDocument:
        where = escape_line(path)
        data = parse_yaml(read_text(path), where)
        return self.parse(data, where, num_steps, self._check(options, (), "read"))

    def write(self, document: ScheduleDocument, options: Mapping[str, Any] | None = None) -> str:
        given = self._check(options, self.write_options, "write")
        found = self.settings(document, given)
        style: Any = Literal["json", "yaml"]
        if convert(given.get("style", "json"), style, "--write style") == "json":
            return json.dumps(found, indent=2) + "\n"
        # lists on one line, so that the mask does not fill a page
        text: str = yaml.safe_dump(found, sort_keys=False, default_flow_style=None, width=10**6)
        return text

    def parse(
        self, data: Any, where: str, num_steps: int | None, options: Mapping[str, Any]
    ) -> ScheduleDocument:
        found, facts = split_facts(require_object(data, where, self.title))
        refuse_keys(found, (SECTION,), where)
        if SECTION not in found:
            raise InputError(f"{where} has no {SECTION}; put the fields of DBCacheConfig there")
        place = f"{where}, {SECTION}"
        settings = require_object(found[SECTION], place, SECTION)
        refuse_keys(settings, ("cache_type", *BLOCKS, *CONFIG), place)
        if settings.get("cache_type", "DBCache") != "DBCache":
            raise InputError(
                f"{place}, cache_type is {show_value(settings['cache_type'])}; a mask of steps is "
                "read of DBCache"
            )
        # cache-dit's own default is another policy than that of the fields alone
        schedule = read_config(
            {"steps_computation_policy": "dynamic", **settings}, place, num_steps
        )
        check_facts(facts, schedule, where)
        return ScheduleDocument.of(schedule)

    def settings(self, document: ScheduleDocument, options: Mapping[str, Any]) -> Any:
        schedule = document.as_one(self.title)
        blocks = {
            field: convert(options.get(name, default), int, f"--write {name}")
            for (field, name), default in zip(BLOCKS.items(), (1, 0), strict=True)
        }
        if blocks["Fn_compute_blocks"] < 1 or blocks["Bn_compute_blocks"] < 0:
            raise InputError(
                f"{', '.join(f'{name} is {number}' for name, number in blocks.items())}; cache-dit "
                "runs at least 1 first block and 0 last ones"
            )
        mask = dict(zip(CONFIG, (as_mask(schedule), STATIC, schedule.num_steps), strict=True))
        # without cache_type: cache-dit 1.5.3 keeps it as text there, and then refuses it
        return {SECTION: {**blocks, **mask}}


def parse_yaml(text: str, where: str) -> Any:
    """The plain values of a YAML or JSON file without aliases.

    Raises:
        InputError: It is none, nested too deep, or refers to itself.
    """
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
            raise InputError(f"{where} has aliases (*name), which are not read; write values out")
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{where} is no YAML that is read here: {escape_line(error)}; write an object"
        ) from error
