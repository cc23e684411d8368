"""make_model.py LIBRARY FOLDER: a TorchScript MLP that uses Hypatia, its input
and the classes that Python predicts, for run.sh to compare with serve's."""

import sys
from pathlib import Path

import torch

ROWS, COLS, CLASSES = 1000, 32, 10


class FusedMlp(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = torch.nn.Linear(COLS, 48)
        self.last = torch.nn.Linear(48, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.ops.hypatia.fused_linear_relu(x, self.hidden.weight, self.hidden.bias)
        return self.last(y)


def main(library: str, folder: Path) -> None:
    torch.ops.load_library(library)
    torch.manual_seed(3)
    model = torch.jit.script(FusedMlp().eval())
    model.save(folder / "model.pt")
    rows = torch.randn(ROWS, COLS)
    rows.numpy().astype("<f4").tofile(folder / "input.bin")
    with torch.no_grad():
        classes = model(rows).argmax(-1).tolist()
    # One class for every row would compare nothing.
    assert len(set(classes)) > 3, set(classes)
    (folder / "expected.txt").write_text("".join(f"{c}\n" for c in classes))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
