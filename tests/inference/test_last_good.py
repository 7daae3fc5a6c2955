"""Which models replace the one in use."""

from __future__ import annotations

from pathlib import Path

from federation.inference.last_good import LAST_GOOD_FILE, LastGood, kept_reason


def judge(
    folder: Path, round_number: int, accuracy: float | None, *, run: str = "r", num_images: int = 1000, has_model: bool = True
) -> str:
    """Have a new process judge a model."""
    last_good = LastGood(folder)
    reason = last_good.judge(run=run, round_number=round_number, accuracy=accuracy, num_images=num_images, has_model=has_model)
    last_good.save()
    return reason


def test_what_loses_more_than_twenty_points_against_the_best_is_kept_out(tmp_path: Path) -> None:
    assert judge(tmp_path, 1, 0.5) == ""
    assert judge(tmp_path, 2, 0.9) == ""
    assert judge(tmp_path, 3, 0.75) == ""
    reason = judge(tmp_path, 4, 0.6)
    assert "60.0 %" in reason
    assert "the model of round 3 stays in use" in reason
    assert kept_reason(tmp_path) == reason
    assert judge(tmp_path, 5, 0.71) == ""
    assert kept_reason(tmp_path) == ""


def test_few_images_allow_more_loss(tmp_path: Path) -> None:
    assert judge(tmp_path, 1, 0.9, num_images=9) == ""
    assert judge(tmp_path, 2, 0.6, num_images=9) == ""
    assert judge(tmp_path, 3, 0.5, num_images=9) != ""


def test_another_run_no_images_or_no_model_at_all_replace_any(tmp_path: Path) -> None:
    assert judge(tmp_path, 9, 0.9) == ""
    assert judge(tmp_path, 10, None) == ""
    assert judge(tmp_path, 10, 0.1, has_model=False) == ""
    assert judge(tmp_path, 1, 0.1, run="next") == ""


def test_damaged_file_is_judged_anew(tmp_path: Path) -> None:
    judge(tmp_path, 1, 0.9)
    (tmp_path / LAST_GOOD_FILE).write_bytes(b"{")
    assert kept_reason(tmp_path) == ""
    assert judge(tmp_path, 2, 0.1) == ""
