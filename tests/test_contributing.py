"""A loss is added by touching what CONTRIBUTING.md says, and nothing else."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

BRIER = '''

class Brier(nn.Module):
    """The squared error of the probabilities (Brier 1950)."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits [B, C] and labels [B] -> scalar."""
        p = at_least_float32(logits).softmax(dim=1)
        return (p - F.one_hot(labels, p.shape[1])).square().sum(dim=1).mean()
'''
TRAIN = """
from dlops import Experiment, run
from dlops.build import Objective

experiment = Experiment.from_preset("q1.1", "test", loss="brier", per_class=6, epochs=3)
history = run(experiment).history
assert history.train_loss.iloc[-1] < history.train_loss.iloc[0] < 2, history
plain = Experiment.from_preset("q1.1", "test", per_class=6, epochs=3)
print(experiment.id, plain.id)
"""


def replaced(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, f"{path.name}: {old!r}"
    path.write_text(text.replace(old, new))


def test_a_loss_is_added_by_the_steps_of_the_guide(tmp_path):
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    line = next(line for line in guide.splitlines() if line.startswith("| a loss |"))
    for name in ("losses.py", "settings.py", "build.py"):
        assert f"`{name}`" in line
    package = tmp_path / "dlops"
    shutil.copytree(ROOT / "dlops", package, ignore=shutil.ignore_patterns("__pycache__"))
    losses = package / "losses.py"
    losses.write_text(losses.read_text() + BRIER)
    replaced(
        package / "settings.py",
        'choices=("cross-entropy", "triplet", "center", "reconstruction")',
        'choices=("cross-entropy", "triplet", "center", "reconstruction", "brier")',
    )
    replaced(
        package / "build.py",
        "        self.on_logits = CrossEntropy(loss.label_smoothing)\n",
        "        self.on_logits = CrossEntropy(loss.label_smoothing)\n"
        '        if loss.name == "brier":\n'
        "            self.on_logits = losses.Brier()\n",
    )
    replaced(
        package / "build.py",
        "from dlops.losses import",
        "from dlops import losses\nfrom dlops.losses import",
    )
    done = subprocess.run(
        [sys.executable, "-c", TRAIN], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    brier, plain = done.stdout.split()
    assert brier != plain
    sys.path_importer_cache.clear()
    from dlops import Experiment

    assert Experiment.from_preset("q1.1", "test", per_class=6, epochs=3).id == plain
