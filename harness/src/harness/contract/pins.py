# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What the package index must give: hashes of the source distributions whose Python is compared, none of it run.

A source distribution is a third of a wheel of the same version, and every version has one.
"""

from __future__ import annotations

# Project and version → sha256 of the source distribution.
SOURCES = {
    ("vllm-ascend", "0.18.0"): "8df042cfaae06fab993bff5f38bb45097634c3f398b2cf74e068347abdddb344",
    ("vllm-ascend", "0.19.1rc1"): "1e1d27a5cc5775a8b5fc6c09fbae07fb3c5625e5622cdb13d14eb3e2a8837e23",
    ("vllm-ascend", "0.20.2rc1"): "8ebd5c5b2ef5009baae1c5ddee390a0fe2821ef31aa33312a0b491f5b5185797",
    ("vllm-ascend", "0.21.0rc1"): "9c0a2e432a2135f46c753c9f5f3718a95ef86872f041ad331028dadfced3e06c",
    ("vllm-ascend", "0.22.1rc1"): "8b2dc4585ec4f92332afa00dc301f5fbc669904366959a02dce81603a4351d56",
    ("vllm-ascend", "0.23.0"): "a58db76eaffcf328b13b315a0db3a57d381a8947d01057ddcefe4ad02372b242",
    ("vllm-ascend", "0.23.0.post1"): "a3b9f4a5dd7aa50c37e03d1f35937c4ae5aeacc49b734cac74d59ce5757738e1",
    ("vllm-ascend", "0.24.0rc1"): "56d2949177f3be1c76230cc048adbda5264c7a937ce8e42578ba6fc74d4909ca",
    ("vllm-ascend", "0.25.1rc1"): "63f1ade8ed4c42f1e78adb5f4afe91be7ae872636b08be89f9b069dd5946e0e4",
    ("vllm-ascend", "0.26.0rc1"): "647533d9ae77ae765c2c4b88eaa8f2cfcde56cc7621e393e3be63bfb7303d6b3",
    ("vllm-ascend", "0.27.1rc1"): "6fa8b357b624df4c8810c445da24082a9147009d8fe1db33eff815c8ab9805f0",
    ("vllm-ascend", "0.28.0rc1"): "bde8bf4207d225df86d8f3b7d9b2bd89ff5e5e56af0cbe4bf8b5b691b98bbe95",
    ("vllm-ascend", "0.29.0rc1"): "680f58f98b8a8a4d92380f77a5d3949107da6db0b7cfc17834898d32fdfcdfd1",
    ("vllm-ascend", "0.30.0rc1"): "62466241beb151652e95ae47f1d1f5cb7bf66367d6e5c14c74d6b72c0f026ebe",
    ("vllm-ascend", "0.30.0rc2"): "05cb51448c0cd174ea338b16ebbfc8e215f44b373ea2a0d65f1314523a01152f",
    ("vllm", "0.18.0"): "9a1bee091db8dbb4664a2a09cd9c61912e9912a44af1ce12b8593a231d05971c",
    ("vllm", "0.19.1"): "9fb88ce6b50991eba41d183584f65f51d7f6015d86a42cdabf79c1c8bd5d66fa",
    ("vllm", "0.20.2"): "58809377798c5335c6e2fe30092abda54d9200b5b8a717b3735a63f5daa0e383",
    ("vllm", "0.21.0"): "05ff89c3e926b88b77d7878e317a659ffba678afc21c1d48952037aa5457f058",
    ("vllm", "0.22.1"): "cd34902729f3767e3dfbb391956b2986bc638a54be9893e78bda9cc55669f15c",
    ("vllm", "0.23.0"): "760269db3d9611e12e524681df1bca0977d5d2f5fcb4481cc34d33efc4ae7ff5",
    ("vllm", "0.24.0"): "0862453adc1f3339f1a0c9dca1179c34d6ed6e118f87b6e5bddd120af614ac66",
    ("vllm", "0.25.1"): "ddbdec3f1c0f21afa70b7eb6ddf3faa29d26b1302ee4b5d5e00ec3af41b0c2e4",
    ("vllm", "0.26.0"): "23e9fa19d7e20ce7dcc1c074d41503e2116d23f19e688f5d5ea91b741f958502",
    ("vllm", "0.27.1"): "eec2d54d137ac1e59cb4c39226dfee1943eefc8f4788f5821d7300d6acbdb646",
    ("vllm", "0.28.0"): "ac96dd0ec5be9c13f2aa4bfb50498c4727110406f6e4980b58a4097e4d18634a",
    ("vllm", "0.29.0"): "c03feb07943ecae9e69e7dc424d7c5569ecf8d1292513aef2a4de67af381cd97",
    ("vllm", "0.30.0"): "5f8f4e890c042ffa1c3e103f81c35e2d96f60a0a175ac43a4adbae7006bef62b",
    ("vllm", "0.31.0"): "dde46f1efbe846e5bd0c5c4ec6ec71842c42254c7ff3d9bebb2a57028715d380",
    ("vllm", "0.32.0"): "d2c957d5eee3d0985012151315ddc62cbe0cd368fc96a5fc3510438d9dddf2ad",
    ("vllm", "0.33.0"): "f4c33c2503d52bb411146afa9618a4f48bed68912f617e6803ac8d76e4c74112",
}
