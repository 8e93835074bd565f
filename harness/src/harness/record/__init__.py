# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What a run leaves behind, one form for all of them: accuracy, performance, planner, ops, serving, maps.

Start here:

- `schema`: `RunRecord`, versioned, and its `Provenance`.
- `provenance`: `describe` says on what, with what and under which settings a run was made.
- `history`: `append` to a file of records and `read` it; nothing that stands there is ever replaced.
- `steps`: where a history took a step; `python -m harness.record FILE --metric NAME` shows both.
- `older`: records of before there was one form.
- `tables`: `Sheet` for the terminal and for pages, and the template of a page.

None of it imports torch.
"""
