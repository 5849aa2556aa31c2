"""The picture of the schedules is drawn from the code and shows every kind and shape."""

import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

from megatron_cpt.config.schema import DecayShape, ScheduleSettings
from tools.schedules_picture import PANELS


def test_every_kind_and_shape_is_drawn(tmp_path: Path) -> None:
    drawn = [schedule for panel in PANELS.values() for schedule in panel.values()]
    assert {schedule.kind for schedule in drawn} == set(get_args(get_type_hints(ScheduleSettings)["kind"]))
    assert {schedule.decay_shape for schedule in drawn} >= set(get_args(DecayShape))
    output = tmp_path / "schedules.png"
    subprocess.run([sys.executable, "tools/schedules_picture.py", str(output)], check=True)
    assert output.read_bytes().startswith(b"\x89PNG")
