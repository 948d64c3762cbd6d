"""`requested_rewrite`, as ROME's files spell an edit; MQuAKE's do too."""

from __future__ import annotations

from meg_editor.data.loaders.records import Record
from meg_editor.requests.request import EditRequest


def read_rewrite(rewrite: Record) -> tuple[EditRequest, str]:
    """The edit and the answer before it."""
    subject, template = rewrite.text("subject"), rewrite.text("prompt")
    new, true = (rewrite.record(name).text("str") for name in ("target_new", "target_true"))
    if template.count("{}") != 1:
        raise rewrite.error("prompt", "a template with one {}", template)
    return EditRequest(template.replace("{}", subject), new, subject), true
