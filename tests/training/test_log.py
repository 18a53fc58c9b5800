import time

import torch

from maskedclip.training.log import Window


def test_window__time_without_steps_does_not_count() -> None:
    window = Window()
    window.add({"loss": torch.tensor(1.0)}, 8, torch.tensor(1.0))
    paused = time.monotonic()
    time.sleep(0.3)
    window.pause(time.monotonic() - paused)
    assert 0 <= window.seconds < 0.25
