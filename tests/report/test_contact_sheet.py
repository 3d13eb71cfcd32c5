"""The contact sheet: what is not to be chosen is dimmed."""

import io

from PIL import Image
from support.painted_runs import make_run

from sp_rerank.report.contact_sheet import CAPTION, MARGIN, PAPER, THUMBNAIL, contact_sheet


def test_dropped_candidates_are_dimmed_as_in_the_gallery(tmp_path):
    def color(name, status):
        run = make_run(tmp_path / name, {"a": [None, 0.5]}, status=lambda index: ("ok", status)[index])
        sheet = Image.open(io.BytesIO(contact_sheet(run, [1], [], "a")))
        return sheet.getpixel((MARGIN + THUMBNAIL // 2, sheet.height - MARGIN - CAPTION - THUMBNAIL // 2 - 10))

    plain, dimmed = color("plain", "ok"), color("dropped", "dropped")
    assert plain == (37, 91, 53)
    assert all(p < d < paper for p, d, paper in zip(plain, dimmed, PAPER, strict=True))
