# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
import sys

# As a process of its own: what is frozen stays so.
SHARED = """
import gc, os, sys
from types import ModuleType

def module(name, **content):
    made = sys.modules[name] = ModuleType(name)
    vars(made).update(content)
    return made

class SpinCondition:
    busy_loop_s = 1
    def wait(self, timeout_ms=None):
        self.waited = timeout_ms

class Platform:
    found = []
    def register_triton_kernel_overrides(self):
        self.found.append(1)

platform = Platform()
for name in ("vllm", "vllm.distributed", "vllm.distributed.device_communicators"):
    module(name, __path__=[])
module("vllm.distributed.device_communicators.shm_broadcast", SpinCondition=SpinCondition)
module("vllm.platforms", current_platform=platform)

from harness.shared_start import share

share(["fractions", "no_such_module"])
assert "fractions" in sys.modules
# What was imported is not looked through again, whoever unfreezes it.
frozen = gc.get_freeze_count()
assert frozen > 1000
gc.unfreeze()
assert gc.get_freeze_count() == frozen
# A fork looks for no kernels; it has them.
if os.fork() == 0:
    platform.register_triton_kernel_overrides()
    os._exit(len(platform.found))
assert os.waitstatus_to_exitcode(os.wait()[1]) == 1
# A reader sleeps for a moment and not longer, whatever it was told.
condition = SpinCondition()
for told, waited in ((None, 5), (1, 1), (1000, 5)):
    condition.wait(told)
    assert (condition.waited, condition.busy_loop_s) == (waited, 0), told
print("shared")
"""


def test_what_forks_would_do_anew_is_done_once() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHARED], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, "shared\n"), done.stderr


def test_without_vllm_only_the_heap_is_frozen() -> None:
    code = "import gc; from harness.shared_start import share; share(()); print(gc.get_freeze_count() > 1000)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
