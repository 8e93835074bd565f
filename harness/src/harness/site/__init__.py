# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The site: mkdocs.yml says what is on it, `hook` where its pages come from."""
