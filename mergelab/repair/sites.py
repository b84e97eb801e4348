"""The places in a model where a repair may act: the output, or the input, of a module.

Found by the types of modules and by what the field calls them; no forward pass is run here. A site is written
`module|out` or `module|in`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from mergelab.errors import MergeError, did_you_mean

PRESETS = {
    "foldable": "outputs of linear maps and norms, inputs of those that write to the stream: can become weights again",
    "branches": "only what each branch adds to the residual stream",
    "norms": "only the outputs of norms; for a convolutional net, what its batch norms put out",
    "official": "as the authors of TACT: embeddings, attention context, norms before the MLP, its first map, blocks",
}
_ATTENTION_END = re.compile(
    r"(^|\.)(o_proj|out_proj|attn\.c_proj|(Self|EncDec)Attention\.o|attention\.output\.dense|attention\.dense)$"
)
_MLP_END = re.compile(r"(^|\.)(down_proj|mlp\.c_proj|wo|fc2|mlp\.dense_4h_to_h|(?<!attention\.)output\.dense)$")
_MLP_START = re.compile(r"(^|\.)(gate_proj|up_proj|gate_up_proj|c_fc|wi(_\d)?|fc1|dense_h_to_4h|intermediate\.dense)$")
_MIDDLE_NORM = re.compile(r"(^|\.)(post_attention_layernorm|layernorm_after|ln_2|layer_norm2|layer\.1\.layer_norm)$")
_EMBEDDINGS = re.compile(r"(^|\.)(embeddings|embed_tokens|wte|embedder)$")
CLASSIFIERS = ("classifier", "pre_classifier", "score", "qa_outputs", "head", "fc")  # what labels are read off by
_HEADS = re.compile(rf"^(lm_head|embed_out|cls|{'|'.join(CLASSIFIERS)})(\.|$)")
_INNER_NORM = re.compile(r"(^|\.)([qk]_norm|[qk]_layernorm)$")  # before the rotation: no shift can be folded


@dataclass(frozen=True)
class Site:
    """One place. kind: linear, conv1d, conv2d, norm, batchnorm, embedding or block (any module that is none of those).

    dim: where its channels stand. stream: whether it carries, or writes to, a residual stream.
    """

    module: str
    side: str
    kind: str
    dim: int = -1
    stream: bool = False

    @property
    def name(self) -> str:
        """`module|out` or `module|in`."""
        return f"{self.module}|{self.side}"


def sites(model: nn.Module, wanted: str | Sequence[str] = "foldable") -> tuple[Site, ...]:
    """The sites of a preset, or those that are named, in the order of the model's modules.

    MergeError for a name that is neither, and for a model in which a preset finds nothing.
    """
    if isinstance(wanted, str) and wanted not in PRESETS and "|" not in wanted:
        raise MergeError(f"There is no preset of sites '{wanted}'. {did_you_mean(wanted, PRESETS)}")
    if isinstance(wanted, str) and wanted in PRESETS:
        found = _PRESET_SITES[wanted](model)
    else:
        names = [name.strip() for name in wanted.split(",")] if isinstance(wanted, str) else wanted
        found = [_named(model, name) for name in names]
    if not found:
        raise MergeError(f"The model {type(model).__name__} has no sites of the preset '{wanted}'. Name them yourself.")
    return tuple(found)


def kind_of(module: nn.Module) -> str:
    """What a module is, as far as repair cares; transformers' own layers go by the name of their type."""
    name = type(module).__name__
    if name == "Conv1D":
        return "conv1d"
    for kind, type_ in _KINDS.items():
        if isinstance(module, type_):
            return kind
    weight = getattr(module, "weight", None)
    return "norm" if name.endswith("Norm") and weight is not None and weight.dim() == 1 else "block"


_KINDS = {
    "linear": nn.Linear,
    "conv2d": nn.Conv2d,
    "batchnorm": (nn.BatchNorm2d, nn.GroupNorm),
    "norm": nn.LayerNorm,
    "embedding": nn.Embedding,
}


def blocks(model: nn.Module) -> dict[str, nn.ModuleList]:
    """The outermost lists of layers: name -> list."""
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    return {name: one for name, one in lists.items() if not any(name.startswith(f"{other}.") for other in lists)}


def _site(name: str, module: nn.Module, side: str = "out") -> Site:
    kind = kind_of(module)
    images = kind in ("conv2d", "batchnorm") or getattr(module, "data_format", "") == "channels_first"
    end = bool(_ATTENTION_END.search(name) or _MLP_END.search(name))
    return Site(name, side, kind, 1 if images else -1, kind in ("block", "embedding") or end)


def _named(model: nn.Module, name: str) -> Site:
    path, _, side = name.partition("|")
    modules = dict(model.named_modules())
    if path not in modules or side not in ("", "in", "out"):
        known = [site.name for site in _foldable(model)]
        raise MergeError(
            f"The model has no site '{name}': write the name of a module, then |out or |in. {did_you_mean(name, known)}"
        )
    return _site(path, modules[path], side or "out")


def before_head(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules before the head."""
    heads = {id(head) for head in (_output_embeddings(model),) if head is not None}
    return [(n, m) for n, m in model.named_modules() if n and not _HEADS.search(n) and id(m) not in heads]


def _output_embeddings(model: nn.Module) -> nn.Module | None:
    return model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None


def _foldable(model: nn.Module) -> list[Site]:
    found = []
    for name, module in before_head(model):
        if (_ATTENTION_END.search(name) or _MLP_END.search(name)) and kind_of(module) in ("linear", "conv1d"):
            found.append(_site(name, module, "in"))
        if _has_place_for_both(name, module):
            found.append(_site(name, module))
    return found


def _has_place_for_both(name: str, module: nn.Module) -> bool:
    """Whether scale and shift of the module's output have, or can be given, a place in weights."""
    kind, bias = kind_of(module), getattr(module, "bias", None)
    if getattr(module, "weight", None) is None:
        return False
    if kind == "conv2d":
        return bias is not None  # one without is followed by a norm that has one
    if kind == "norm" and bias is None:  # its consumers take the shift; a last norm's is a head without biases
        return not _INNER_NORM.search(name) and any(part.isdecimal() for part in name.split("."))
    return kind in ("linear", "conv1d", "norm", "batchnorm")


def _branches(model: nn.Module) -> list[Site]:
    found = [_site(n, m) for n, m in before_head(model) if _ATTENTION_END.search(n) or _MLP_END.search(n)]
    return found or _convolutional(model)


def _norms(model: nn.Module) -> list[Site]:
    return [_site(n, m) for n, m in before_head(model) if kind_of(m) in ("norm", "batchnorm")]


def _convolutional(model: nn.Module) -> list[Site]:
    return [_site(name, module) for name, module in before_head(model) if kind_of(module) == "batchnorm"]


def _official(model: nn.Module) -> list[Site]:
    if found := _convolutional(model):
        return found
    layers = {id(layer) for one in blocks(model).values() for layer in one}
    for name, module in before_head(model):
        if _ATTENTION_END.search(name):
            found.append(_site(name, module, "in"))
        elif id(module) in layers or any(r.search(name) for r in (_MLP_START, _MIDDLE_NORM, _EMBEDDINGS)):
            found.append(_site(name, module))
    return found


_PRESET_SITES = {"foldable": _foldable, "branches": _branches, "norms": _norms, "official": _official}
