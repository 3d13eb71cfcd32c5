"""The contact sheet: what is not to be chosen is dimmed."""

import io
import json

import pytest
from PIL import Image
from support.painted_runs import make_run

from sp_rerank.report.contact_sheet import CAPTION, MARGIN, PAPER, THUMBNAIL, contact_sheet, subtitle
from sp_rerank.run.folder import RunDir


def test_dropped_candidates_are_dimmed_as_in_the_gallery(tmp_path):
    def color(name, status):
        run = make_run(tmp_path / name, {"a": [None, 0.5]}, status=lambda index: ("ok", status)[index])
        sheet = Image.open(io.BytesIO(contact_sheet(run, [1], [], "a")))
        return sheet.getpixel((MARGIN + THUMBNAIL // 2, sheet.height - MARGIN - CAPTION - THUMBNAIL // 2 - 10))

    plain, dimmed = color("plain", "ok"), color("dropped", "dropped")
    assert plain == (37, 91, 53)
    assert all(p < d < paper for p, d, paper in zip(plain, dimmed, PAPER, strict=True))


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        ((), "1 candidates by mini, 2 steps of DPMSolverMultistep, guidance 7.5, ranked by a"),
        (("model",), "1 candidates, 2 steps of DPMSolverMultistep, guidance 7.5, ranked by a"),
        (("scheduler",), "1 candidates by mini, 2 steps, guidance 7.5, ranked by a"),
        (("guidance_scale",), "1 candidates by mini, 2 steps of DPMSolverMultistep, ranked by a"),
        (("model", "scheduler", "guidance_scale", "steps"), "1 candidates, ranked by a"),
    ],
)
def test_the_subtitle_leaves_out_what_an_older_run_does_not_hold(tmp_path, missing, expected):
    config = {"model": "mini", "steps": 2, "scheduler": "DPMSolverMultistepScheduler", "guidance_scale": 7.5}
    run = make_run(tmp_path / "run", {"a@1f": [0.5]}, **config)
    file = run.path / "run.json"
    held = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({key: value for key, value in held.items() if key not in missing}), encoding="utf-8")
    read = RunDir.read(run.path)
    assert subtitle(read, "a@1f") == expected
    assert contact_sheet(read, [0], [0], "a@1f").startswith(b"\x89PNG")
