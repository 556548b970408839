"""What the workers say to the driver, in whatever order they end."""

from __future__ import annotations

from ray_jobs.board import Board


def test_a_failure_is_not_forgotten_when_others_end_after_it():
    board = Board(0, True)
    board.ended({"status": "stopped", "step": 5})
    board.ended({"status": "failed", "step": -1, "reason": "the disk is full"})
    board.ended({"status": "finished", "step": 9})
    assert board.collect().outcome == {"status": "failed", "step": -1, "reason": "the disk is full"}
    assert board.new_attempt() == 0
