"""The last steps that all kinds of conversion share."""

from __future__ import annotations

from edgetok.converter.card import html as card
from edgetok.converter.card.report import Report
from edgetok.converter.write.workspace import Workspace
from edgetok.errors import OutputError
from edgetok.formats.manifest import Exporter, write_manifest


def finish_artefact(workspace: Workspace, report: Report, *, exporter: Exporter) -> None:
    """Write report and manifest, and put the artefact in its place.

    Raises:
        OutputError: a file could not be written; what was there before is unchanged.
    """
    try:
        report.write(workspace.artefact)
        page = card.page(report)
        (workspace.artefact / card.CARD_FILE).write_text(page, encoding="utf-8")
        write_manifest(workspace.artefact, exporter=exporter)
    except OSError as error:
        raise OutputError(f"{workspace.artefact}: not written: {error.strerror}") from error
    workspace.publish()
