"""How BEATs' attention takes its gated bias: the choices for one layer, with the same result.

python benchmarks/attention_mask.py --patches 1496
"""

import argparse

import torch
from torch.nn.functional import scaled_dot_product_attention
from turns import Case, run_benchmark


HEADS, HEAD_DIM = 12, 64  # of BEATs base
ALL = slice(None)


class Attention:
    """Random queries, keys and values `(1, heads, patches, head_dim)`, a gate for each query, and a bias."""

    def __init__(self, patches: int):
        torch.manual_seed(0)
        self.query, self.key, self.value = torch.randn(3, 1, HEADS, patches, HEAD_DIM)
        self.gate = torch.rand(1, HEADS, patches, 1)
        by_distance = torch.randn(HEADS, 2 * patches - 1)
        self.bias = by_distance.unfold(1, patches, 1).flip(1)
        self.padding = torch.zeros(1, 1, 1, patches)
        self.buffer = torch.empty(1, HEADS, patches, patches)

    def mask(self, rows: slice = ALL, heads: slice = ALL, out: torch.Tensor | None = None) -> torch.Tensor:
        return torch.addcmul(self.padding, self.gate[:, heads, rows], self.bias[heads, rows], out=out)

    def attend(self, mask: torch.Tensor | None) -> torch.Tensor:
        return scaled_dot_product_attention(self.query, self.key, self.value, mask)

    def by_head(self) -> torch.Tensor:
        parts = []
        for head in range(HEADS):
            own = slice(head, head + 1)
            query, key, value = self.query[:, own], self.key[:, own], self.value[:, own]
            parts.append(scaled_dot_product_attention(query, key, value, self.mask(heads=own)))
        return torch.cat(parts, dim=1)

    def by_rows(self, count: int) -> torch.Tensor:
        parts = []
        for start in range(0, self.query.shape[2], count):
            rows = slice(start, start + count)
            parts.append(scaled_dot_product_attention(self.query[:, :, rows], self.key, self.value, self.mask(rows)))
        return torch.cat(parts, dim=2)

    def plain(self) -> torch.Tensor:
        scores = torch.matmul(self.query, self.key.transpose(2, 3)) * HEAD_DIM**-0.5
        return torch.matmul(torch.softmax(scores + self.mask(out=self.buffer), dim=-1), self.value)


def make_cases(args: argparse.Namespace) -> list[Case]:
    """All choices, each with scores and values as its operations."""
    attention = Attention(args.patches)
    flop = 4.0 * args.patches**2 * HEADS * HEAD_DIM
    return [
        Case("no mask", lambda: attention.attend(None), flop),
        Case("a new mask", lambda: attention.attend(attention.mask()), flop),
        Case("a mask in a buffer", lambda: attention.attend(attention.mask(out=attention.buffer)), flop),
        Case("head by head", attention.by_head, flop),
        Case("256 queries at a time", lambda: attention.by_rows(256), flop),
        Case("matrix products", attention.plain, flop),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=int, default=1496, help="1,496 for 30 s, 248 for 5 s")
    run_benchmark(parser, make_cases)


if __name__ == "__main__":
    main()
