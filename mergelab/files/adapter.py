"""A PEFT LoRA adapter as the low-rank deltas that it stands for. What has no exact delta is refused by name.

ΔW = α/r · B A (rsLoRA: α/√r), r and α per module where the adapter has patterns; transposed for Conv1D and embeddings.
DoRA (arXiv 2402.09353) has a magnitude m per output: W' = m · (W + ΔW) / ‖W + ΔW‖; the exact difference is taken.
Tensors that are stored whole (modules_to_save, biases) are taken as they are. Format: peft's adapter_config.json and
adapter_model.safetensors.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from mergelab.errors import MergeError, brief
from mergelab.files.checkpoint import Entry, entries_of, read_json, read_tensor
from mergelab.files.stamp import stamp_of
from mergelab.maths.spectral import LowRank

_PREFIX = "base_model.model."
_LORA = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<part>[AB])(\.default)?(\.weight)?")
_MAGNITUDE = re.compile(r"(?P<module>.+)\.lora_magnitude_vector(\.default)?(\.weight)?")
_BIAS = re.compile(r"(?P<module>.+)\.lora_B(\.default)?\.bias")  # of a LoRA with `lora_bias`
_SAVED = re.compile(r"(?P<module>.+?)(\.modules_to_save(\.default)?|\.base_layer)?\.(?P<kind>weight|bias)")
_REPEATS, _NESTED = re.compile(r"[*+{]"), re.compile(r"\)[*+{]")  # such patterns can take for ever to match
_LONG, _WAYS = 300, 4096  # characters of a pattern or a module's name; ways to read a pattern that are tried
_INEXACT = ("use_qalora", "use_bdlora", "alora_invocation_tokens", "layer_replication", "kasa_config", "arrow_config")
_INEXACT += ("monteclora_config", "target_parameters", "trainable_token_indices")
_MOVED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # initialisations that change the base's own weights


class Adapter:
    """The deltas of a LoRA adapter, by the names of the base's tensors. base: what it is laid upon.

    stamps: its two files, as they were when they were opened.
    """

    def __init__(self, folder: Path, source: str, base: Mapping[str, Entry]):
        self.path, self.source = folder / "adapter_model.safetensors", source
        if not self.path.is_file():
            raise MergeError(f"Adapter '{source}' has no adapter_model.safetensors (pickles are never opened).")
        self.stamps = {path: stamp_of(path) for path in (self.path, folder / "adapter_config.json")}
        self.config = read_json(folder / "adapter_config.json")
        _check_kind(self.config, source)
        self.entries = entries = entries_of(self.path, source)
        _check_floats(entries, source)
        keys = _sorted_keys(entries, source)
        self._own: dict[str, str] = {}  # the base's name -> the adapter's, where that is another
        self.pairs, self.saved, self.magnitudes, self.biases = (
            {self._on_disk(name, base): key for name, key in some.items()}
            for some in (keys.pairs, keys.saved, keys.magnitudes, keys.biases)
        )
        shapes = {name: (entries[b].shape[0], entries[a].shape[1]) for name, (a, b) in self.pairs.items()}
        whole = {name: entries[key].shape for name, key in (self.saved | self.biases).items()}
        for name, shape in (shapes | whole).items():
            self._check_fit(name, shape, base)
        self._flipped = {name for name, shape in shapes.items() if self._is_flipped(name, shape, base[name].shape)}
        self._scales = {name: self._scale(name, entries[a].shape[0]) for name, (a, _) in self.pairs.items()}
        for name in self.pairs if self.config.get("use_dora") else self.magnitudes:
            key = self.magnitudes.get(name)
            self._check_magnitude(name, entries[key].shape if key else (), shapes)

    def __contains__(self, name: str) -> bool:
        return name in self.pairs or name in self.saved or name in self.biases

    @property
    def base_name(self) -> str:
        """The model that the adapter says it was trained on."""
        return str(self.config.get("base_model_name_or_path") or "")

    def delta(self, name: str, base: Tensor, rows: slice | None = None) -> LowRank | Tensor:
        """What the adapter adds to a tensor that it touches, or to some rows. base: those rows, in the wanted dtype."""
        whole = _rows(self._read(self.saved[name]), rows).to(base) - base if name in self.saved else None
        if name in self.biases:
            bias = _rows(self._read(self.biases[name]), rows).to(base)
            added = bias * self._scales[name.removesuffix("bias") + "weight"]
            return added if whole is None else whole + added
        if name not in self.pairs:
            return whole
        a, b = (self._read(key).to(base) for key in self.pairs[name])  # (r, in), (out, r)
        lifted = b * self._scales[name]
        left, right = (a.T, lifted.T) if name in self._flipped else (lifted, a)
        low_rank = LowRank(_rows(left, rows), right)
        if name in self.magnitudes:
            return self._rescaled(name, base if whole is None else base + whole, low_rank, rows) - base
        return low_rank if whole is None else whole + low_rank.dense()

    def needs_all_rows(self, name: str) -> bool:
        """Whether a few rows of a tensor cannot be had without the others: DoRA's lengths go down its columns."""
        return name in self.magnitudes and name in self._flipped

    def _rescaled(self, name: str, start: Tensor, change: LowRank, rows: slice | None) -> Tensor:
        """DoRA's weights: every output's row of start + change, brought to its trained length."""
        moved, across = start + change.dense(), 0 if name in self._flipped else 1
        length = torch.linalg.vector_norm(moved, dim=across, keepdim=True)
        trained = self._read(self.magnitudes[name]).to(start).flatten()
        return moved * ((_rows(trained, rows) if across else trained).unsqueeze(across) / length)

    def _on_disk(self, name: str, base: Mapping[str, Entry]) -> str:
        """The base's name for a tensor: its files may lack the prefix that it has in memory, which peft goes by."""
        short = name.partition(".")[2]
        if name in base or short not in base:
            return name
        self._own[short] = name
        return short

    def _read(self, key: str) -> Tensor:
        return read_tensor(self.path.parent, key, self.entries[key], self.source)

    def _scale(self, name: str, rank: int) -> float:
        said = self._said("rank_pattern", name, self.config.get("r"))
        if said is not None and said != rank:
            raise MergeError(
                f"Adapter '{self.source}' says that '{name}' has rank {brief(said)}, but its matrices have {rank}: "
                "adapter_config.json and weights are not of one training. Take both from one place."
            )
        alpha = self._said("alpha_pattern", name, self.config.get("lora_alpha", 8))
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not abs(alpha) < 1e30:
            raise MergeError(f"Adapter '{self.source}' has no usable lora_alpha for '{name}': {brief(alpha)}.")
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def _said(self, pattern: str, name: str, elsewhere: object) -> object:
        """What one of the configuration's patterns says of a module; else what holds where none does."""
        own = self._own.get(name, name)
        found = _patterned(pattern, self.config.get(pattern), own.removesuffix(".weight"))
        return elsewhere if found is None else found

    def _is_flipped(self, name: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
        """Whether the base holds (in, out): its shape tells; for a square one the adapter's configuration."""
        embedding = "lora_embedding" in self.pairs[name][0]
        return shape != wanted or embedding or (len(set(wanted)) == 1 and bool(self.config.get("fan_in_fan_out")))

    def _check_fit(self, name: str, shape: tuple[int, ...], base: Mapping[str, Entry]) -> None:
        origin = f"It says it was trained on '{self.base_name}'." if self.base_name else ""
        if name not in base:
            raise MergeError(
                f"Adapter '{self.source}' changes '{name}', which the base does not have. {origin}".rstrip()
            )
        wanted = base[name].shape
        if shape != wanted and not (name in self.pairs and shape[::-1] == wanted):
            found = f"'{name}' is {list(shape)}, but in the base it is {list(wanted)}."
            raise MergeError(f"Adapter '{self.source}' is for another base: {found} {origin}".rstrip())

    def _check_magnitude(self, name: str, shape: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]]) -> None:
        if name not in shapes or math.prod(shape) != shapes[name][0]:
            found = f"The magnitude of '{name}' has the shape {list(shape)}"
            raise MergeError(f"Adapter '{self.source}' is broken: {found}, which fits no pair A, B in it.")


def _rows(tensor: Tensor, rows: slice | None) -> Tensor:
    return tensor if rows is None else tensor[rows]


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter instead of a model."""
    return (folder / "adapter_config.json").is_file() and not any(folder.glob("model*.safetensors"))


def _check_kind(config: dict, source: str) -> None:
    kind = str(config.get("peft_type") or "LORA").upper()
    start = str(config.get("init_lora_weights")).lower()
    if kind != "LORA":
        why = f"is of the kind {kind}, and only LoRA has an exact delta"
    elif inexact := [key for key in _INEXACT if config.get(key)]:
        why = f"uses '{inexact[0]}', whose change is no plain B·A"
    elif start.startswith(_MOVED_BASE):
        why = f"was initialised with '{start}', which changed the base itself"
    else:
        return
    raise MergeError(f"Adapter '{source}' {why}. Merge it into its base with peft first, and name the result.")


def _check_floats(entries: Mapping[str, Entry], source: str) -> None:
    """MergeError for codes that would be taken for weights."""
    for key, entry in entries.items():
        if not entry.mergeable:
            said = f"'{key}' of adapter '{source}' is {entry.dtype}"
            raise MergeError(f"{said}: only floating-point weights can be merged. Take the unquantised adapter.")


@dataclass
class _Keys:
    """An adapter's tensors: name in the base -> (A's key, B's key); name -> key of what is stored whole, and so on."""

    pairs: dict[str, tuple[str, str]] = field(default_factory=dict)
    saved: dict[str, str] = field(default_factory=dict)
    magnitudes: dict[str, str] = field(default_factory=dict)
    biases: dict[str, str] = field(default_factory=dict)


def _sorted_keys(entries: Mapping[str, Entry], source: str) -> _Keys:
    parts: dict[str, dict[str, str]] = {}
    keys = _Keys()
    for key in entries:
        plain = key.removeprefix(_PREFIX)
        if match := _LORA.fullmatch(plain):
            parts.setdefault(f"{match['module']}.weight", {})[match["part"]] = key
        elif match := _MAGNITUDE.fullmatch(plain):
            keys.magnitudes[f"{match['module']}.weight"] = key
        elif match := _BIAS.fullmatch(plain):
            keys.biases[f"{match['module']}.bias"] = key
        elif "lora_" not in plain and (match := _SAVED.fullmatch(plain)):
            keys.saved[f"{match['module']}.{match['kind']}"] = key
        else:
            raise MergeError(f"Adapter '{source}' holds '{key}', which is no LoRA matrix that can be merged exactly.")
    for name, pair in parts.items():
        if len(pair) < 2:
            raise MergeError(f"Adapter '{source}' has only half of the pair A, B for '{name}'.")
        a, b = entries[pair["A"]].shape, entries[pair["B"]].shape
        if len(a) != 2 or len(b) != 2 or a[0] != b[1] or not a[0]:
            raise MergeError(f"Adapter '{source}': A {list(a)} and B {list(b)} for '{name}' are no pair of matrices.")
    if not parts and not keys.saved:
        raise MergeError(f"Adapter '{source}' is empty.")
    if alone := [name for name in keys.biases if name.removesuffix("bias") + "weight" not in parts]:
        raise MergeError(f"Adapter '{source}' has a bias of B for '{alone[0]}', and no pair A, B that it belongs to.")
    keys.pairs = {name: (pair["A"], pair["B"]) for name, pair in parts.items()}
    return keys


def _patterned(title: str, pattern: object, module: str) -> object:
    """PEFT's rule: the first key of a pattern that matches the end of a module's name wins; None if none does."""
    for key, value in pattern.items() if isinstance(pattern, dict) else ():
        if len(module) > _LONG or _is_endless(key):
            raise MergeError(f"The adapter's {title} {brief(key)} repeats parts of a name in too many ways to try.")
        try:
            if re.match(rf"(.*\.)?({key})$", module):
                return value
        except re.error:
            raise MergeError(f"The adapter's {title} '{key}' is not a valid pattern.") from None
    return None


def _is_endless(key: str) -> bool:
    """Whether a pattern may be read in so many ways that trying them could take for ever."""
    ways = math.prod(1 + part.count("|") for part in key.split("(")) * 2 ** min(key.count("?"), 20)
    repeats = len(_REPEATS.findall(key))
    return len(key) > _LONG or repeats > 2 or bool(_NESTED.search(key)) or ways > _WAYS >> (3 * repeats)
