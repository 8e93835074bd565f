# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The released vllm-ascend on an emulated NPU, with the plugin and without: what serves the right tokens.

`nox -s ascend` serves the embedded models beside the releases of `vllm_ascend_moe.releases` and compares tokens and
slots; `nox -s ascend -- rehearse` does it with anyone's map. *Emulated*: nothing here runs on an NPU.
"""
