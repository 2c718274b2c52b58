"""Fixtures: a clean environment, tiny models of four architectures, and data folders made on the spot."""

from __future__ import annotations

import gc
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import settings

gc.disable()  # while tests import; see pytest_collection_finish

# Before anything of Hugging Face is imported: the tests are offline, and no launcher's or tracker's settings of the
# person who runs them leak in.
for name in list(os.environ):
    if name.startswith(("ACCELERATE_", "WANDB_")) or name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        del os.environ[name]
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported, which torch may do at any time

from peftlib.files import cache_folder  # noqa: E402
from peftlib.training.devices import keep_order_of_sums  # noqa: E402 - imports Hugging Face's

keep_order_of_sums()  # before the first product of the process
# The models here are so small that a second thread costs more than it brings, on a busy machine ten times more.
torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parents[1]
#: The real MRPC and SST-2 in GLUE's layout, where the machine has them: they are not the project's to ship.
GLUE = Path(os.environ.get("GLUE_DIR", ROOT.parent / "shared" / "data" / "glue"))

#: The CPU kernels of the person who runs the tests: built once, and not by every process of theirs.
KERNELS = cache_folder() / "kernels"

# A busy machine is no failure.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

needs_glue = pytest.mark.skipif(
    not (GLUE / "MRPC").is_dir() or not (GLUE / "SST-2").is_dir(),
    reason=f"the GLUE data is not in {GLUE} (set GLUE_DIR)",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start processes come first: they take longest, and one begun last would keep all but one core idle."""
    slow = {item.path for item in items if item.get_closest_marker("launch")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One worker more than cores: many tests wait for a process, a server or a signal."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_finish() -> None:
    """What is imported by now stays: garbage collections (statsmodels makes one per correction) need not walk it."""
    gc.freeze()
    gc.enable()


def share_kernels(cache: Path) -> None:
    """Let a cache folder, made where it is missing, have the CPU kernels of `KERNELS`."""
    if not (cache / "kernels").is_symlink():
        KERNELS.mkdir(parents=True, exist_ok=True, mode=0o700)
        cache.mkdir(parents=True, exist_ok=True)
        (cache / "kernels").symlink_to(KERNELS)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Token caches and accelerate's default configuration of this machine stay out of the tests."""
    cache = tmp_path_factory.getbasetemp() / "peftlib-cache"
    share_kernels(cache)
    monkeypatch.setenv("PEFTLIB_CACHE", str(cache))
    monkeypatch.setenv("HF_HOME", str(tmp_path_factory.getbasetemp() / "hf-home"))


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> Iterator[None]:
    """Accelerate's singletons outlive an Accelerator; a test must not see another one's precision."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def tiny_config(architecture: str, **changes: object) -> object:
    """A two-layer configuration of one of the architectures below."""
    from transformers import AutoConfig

    common = {"vocab_size": 30522, "num_labels": 2, "max_position_embeddings": 140}
    sizes: dict[str, dict[str, object]] = {
        "bert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
        "roberta": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
        "electra": {"embedding_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
                    "intermediate_size": 64},
        "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
        "deberta": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
                    "pooler_hidden_size": 32},
        "deberta-v1": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
                       "pooler_hidden_size": 32, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
        "big_bird": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
        "luke": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
                 "entity_vocab_size": 20, "entity_emb_size": 8},
        "funnel": {"d_model": 32, "block_sizes": [1, 1], "n_head": 4, "d_head": 8, "d_inner": 64,
                   "architectures": ["FunnelModel"]},
        "albert": {"embedding_size": 16, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
                   "intermediate_size": 64},
        "mpnet": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
        "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64},
        "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
        "xlm": {"emb_dim": 32, "n_layers": 2, "n_heads": 4},
        "modernbert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
    }  # fmt: skip
    if architecture == "xlnet":  # has no longest sequence
        del common["max_position_embeddings"]
    kind = {"deberta": "deberta-v2", "deberta-v1": "deberta"}.get(architecture, architecture)
    return AutoConfig.for_model(kind, **{**common, **sizes[architecture], "pad_token_id": 0, **changes})


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes (once each) a folder with a tiny base model, encoder weights only, and the packaged tokenizer."""
    made: dict[str, Path] = {}

    def make(architecture: str = "bert") -> Path:
        if architecture not in made:
            from transformers import AutoModel, AutoTokenizer

            from peftlib.modeling import DEFAULT_MODEL, find_model

            torch.manual_seed(0)
            folder = tmp_path_factory.mktemp(f"tiny-{architecture}")
            AutoModel.from_config(tiny_config(architecture)).save_pretrained(folder)
            tokenizer = AutoTokenizer.from_pretrained(find_model(DEFAULT_MODEL).location)
            tokenizer.model_max_length = 128
            tokenizer.save_pretrained(folder)
            made[architecture] = folder
        return made[architecture]

    return make


@dataclass(frozen=True)
class SmallDisk:
    """A file system of its own with a few MB, whose free room a test sets."""

    folder: Path

    def contents(self) -> dict[str, bytes]:
        """Name -> bytes of what else lies there."""
        return {path.name: path.read_bytes() for path in self.folder.iterdir() if path.name != ".filler"}

    def leave(self, room: int) -> None:
        """Fill it up, or empty it, until `room` bytes are left (whole pages)."""
        filler = self.folder / ".filler"
        filler.unlink(missing_ok=True)
        there = os.statvfs(self.folder)
        filler.write_bytes(b"x" * max(0, there.f_bavail * there.f_frsize - room))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """Real ENOSPC: a tmpfs, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    yield SmallDisk(folder)
    subprocess.run(["umount", "--lazy", folder], check=True)


def write_glue(folder: Path, train: int = 40, dev: int = 10) -> Path:
    """Fill `folder` in GLUE's layout with a small, learnable SST-2 and MRPC."""
    words = (("dull", "bad"), ("bright", "good"))
    for name, count in (("train", train), ("dev", dev)):
        sst = [f"{words[i % 2][i % 3 > 0]} film number {i} {'so ' * (i % 7)}\t{i % 2}" for i in range(count)]
        mrpc = [f'{i % 2}\t{i}\t{i + 1}\tHe said " {i} .\tShe {"said" if i % 2 else "ran"} {i} .' for i in range(count)]
        (folder / "SST-2").mkdir(parents=True, exist_ok=True)
        (folder / "MRPC").mkdir(parents=True, exist_ok=True)
        (folder / "SST-2" / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *sst]) + "\n", encoding="utf-8")
        (folder / "MRPC" / f"{name}.tsv").write_text(
            "\n".join(["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", *mrpc]) + "\n", encoding="utf-8-sig"
        )
    return folder


@pytest.fixture
def glue_folder(tmp_path: Path) -> Callable[..., Path]:
    """`write_glue` into a folder of the test's own."""
    return lambda train=40, dev=10: write_glue(tmp_path / "glue", train, dev)


STSB_HEADER = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore"


def write_stsb(folder: Path, train: int = 60, dev: int = 18, test: int = 7) -> Path:
    """Fill `folder` with a small STS-B in GLUE's layout: the score is how many words of five two sentences share.

    The test split has none, as GLUE's.
    """
    words = ["apple", "river", "stone", "cloud", "tiger", "window", "music", "garden", "silver", "candle"]
    (folder / "STS-B").mkdir(parents=True)
    for name, count in (("train", train), ("dev", dev), ("test", test)):
        lines = [STSB_HEADER if name != "test" else STSB_HEADER.removesuffix("\tscore")]
        for i in range(count):
            first = [words[(i * 3 + place) % 10] for place in range(5)]
            shared = (i * 7 + len(name)) % 6
            second = first[:shared] + [words[(i * 3 + place) % 10] for place in range(5 + shared, 10)]
            about = f"{i}\tmain-news\tMSRvid\t2012test\t{i:04d}\tnone\tnone"
            score = [f"{shared - 0.2 * (i % 3) * (shared > 0):.3f}"] * (name != "test")
            lines.append("\t".join([about, " ".join(first), " ".join(second), *score]))
        (folder / "STS-B" / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
