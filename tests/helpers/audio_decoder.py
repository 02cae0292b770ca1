"""What stands for the decoder of `datasets` where torchcodec is not installed."""

from types import SimpleNamespace

import torch


class Decoder:
    """Has the interface of the decoder that `datasets` gives where torchcodec is installed."""

    def __init__(self, samples: torch.Tensor, sample_rate: int):
        self.samples = samples
        self.sample_rate = sample_rate

    def get_all_samples(self) -> SimpleNamespace:
        return SimpleNamespace(data=self.samples, sample_rate=self.sample_rate)
