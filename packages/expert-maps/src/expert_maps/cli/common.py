# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What every subcommand needs, by the names under which they import it; each stands where it belongs."""

from __future__ import annotations

from expert_maps.cli.options import AllowDuplicatesOption, AllowUnevenOption, JsonOption, OutputOption
from expert_maps.cli.options import MapArgument as FileArgument
from expert_maps.cli.output import print_json
from expert_maps.cli.reading import as_input, read_map
from expert_maps.cli.usage import BAD_INPUT, CHECK_FAILED, OK, bad_input

__all__ = [
    "BAD_INPUT",
    "CHECK_FAILED",
    "OK",
    "AllowDuplicatesOption",
    "AllowUnevenOption",
    "FileArgument",
    "JsonOption",
    "OutputOption",
    "as_input",
    "bad_input",
    "print_json",
    "read_map",
]
