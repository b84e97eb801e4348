"""The symmetries of transformers, as data: for each family, which axis of which tensor belongs to which group.

Names are those on disk; where transformers renames in memory (ViT, GPT-NeoX) a pattern takes both. Every family's
random element is tested to leave its outputs as they are, and a tensor that no rule knows makes the model an unknown
one: no symmetry is claimed that was not looked at.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """Tensors whose whole name matches `pattern` have the units of a group along `axis`.

    kind: q, k, v, o, qkv or order of attention heads; any other word is a group of units that stand in any order.
    (?P<at>…) in the pattern tells one group of a kind from another, (?P<layer>…) one layer of a group from another.
    layout: how parts share the axis: "" (it is all one), "stacked" (part after part), "interleaved" (head by head).
    site: what comes into this tensor's module shows the units at work.
    """

    kind: str
    pattern: str
    axis: int
    layout: str = ""
    site: bool = False


@dataclass(frozen=True)
class Family:
    """A family of transformers. still: tensors that no group moves.

    positions: what ties the dimensions of queries and keys: "rotary" pairs, "normed" (a shared norm), or "free".
    """

    rules: tuple[Rule, ...]
    positions: str = "free"
    still: str = "(?!)"


# Buffers that old checkpoints hold, and biases of outputs.
STILL = (
    r"(.*\.)?(rotary_emb\.inv_freq|(attn|attention)\.(masked_)?bias|position_ids|logit_scale)"
    r"|(.*\.)?(score|classifier|lm_head|predictions|decoder|qa_outputs|seq_relationship|out_proj)\.bias"
)


def _attention(at: str, q: str, k: str, v: str, o: str) -> tuple[Rule, ...]:
    parts = zip("qkv", (q, k, v))
    rows = (Rule(part, rf"{at}\.{name}\.(weight|bias)", 0) for part, name in parts)
    return (*rows, Rule("o", rf"{at}\.{o}\.weight", 1, site=True))


def _mlp(at: str, first: str, second: str) -> tuple[Rule, Rule]:
    units = Rule("mlp", rf"{at}\.{first}\.(weight|bias)", 0)
    return units, Rule("mlp", rf"{at}\.{second}\.weight", 1, site=True)


def _stream(at: str, seen: str, read: str, written: str, kind: str = "residual") -> tuple[Rule, ...]:
    """The residual stream in a block: `seen` and `read` take it in, `written` adds to it."""
    return (
        Rule(kind, rf"{at}\.({seen})\.weight", 1, site=True),
        Rule(kind, rf"{at}\.({read})\.weight", 1),
        Rule(kind, rf"{at}\.({written})\.(weight|bias)", 0),
    )


_BLOCK = r"(?P<at>(model\.)?layers\.\d+)"
_ANY = r"(model\.)?layers\.\d+"
_EDGES = (
    Rule("residual", r"(model\.)?embed_tokens\.weight|(lm_head|score)\.weight", 1),
    Rule("residual", rf"(model\.)?norm\.weight|{_ANY}\.\w+_layernorm\.weight", 0),
)
_LLAMA = (
    *_EDGES,
    *_stream(
        _ANY,
        r"self_attn\.q_proj|mlp\.gate_proj",
        r"self_attn\.[kv]_proj|mlp\.up_proj",
        r"self_attn\.o_proj|mlp\.down_proj",
    ),
    *_attention(rf"{_BLOCK}\.self_attn", "q_proj", "k_proj", "v_proj", "o_proj"),
    *_mlp(rf"{_BLOCK}\.mlp", "(gate|up)_proj", "down_proj"),
)
_PHI3 = (
    *_EDGES,
    *_stream(_ANY, r"self_attn\.qkv_proj|mlp\.gate_up_proj", "(?!)", r"self_attn\.o_proj|mlp\.down_proj"),
    Rule("qkv", rf"{_BLOCK}\.self_attn\.qkv_proj\.weight", 0, "stacked"),
    Rule("o", rf"{_BLOCK}\.self_attn\.o_proj\.weight", 1, site=True),
    Rule("mlp", rf"{_BLOCK}\.mlp\.gate_up_proj\.weight", 0, "stacked"),
    Rule("mlp", rf"{_BLOCK}\.mlp\.down_proj\.weight", 1, site=True),
)

_H, _TOP = r"(?P<at>(transformer\.)?h\.\d+)", r"(transformer\.)?"
_GPT2 = (  # its Conv1D weights are (in, out)
    Rule("residual", rf"{_TOP}(wte|wpe)\.weight|(lm_head|score)\.weight", 1),
    Rule("residual", rf"{_TOP}(h\.\d+\.ln_[12]|ln_f)\.(weight|bias)", 0),
    Rule("residual", rf"{_TOP}h\.\d+\.(attn\.c_attn|mlp\.c_fc)\.weight", 0, site=True),
    Rule("residual", rf"{_TOP}h\.\d+\.(attn|mlp)\.c_proj\.weight", 1),
    Rule("residual", rf"{_TOP}h\.\d+\.(attn|mlp)\.c_proj\.bias", 0),
    Rule("qkv", rf"{_H}\.attn\.c_attn\.weight", 1, "stacked"),
    Rule("qkv", rf"{_H}\.attn\.c_attn\.bias", 0, "stacked"),
    Rule("o", rf"{_H}\.attn\.c_proj\.weight", 0, site=True),
    Rule("mlp", rf"{_H}\.mlp\.c_fc\.weight", 1),
    Rule("mlp", rf"{_H}\.mlp\.c_fc\.bias", 0),
    Rule("mlp", rf"{_H}\.mlp\.c_proj\.weight", 0, site=True),
)

_X = r"(?P<at>(gpt_neox\.)?layers\.\d+)"
_NEOX = (
    Rule("residual", r"(gpt_neox\.)?embed_in\.weight|(embed_out|lm_head|score)\.weight", 1),
    Rule("residual", r"(gpt_neox\.)?(layers\.\d+\.\w+_layernorm|final_layer_norm)\.(weight|bias)", 0),
    *_stream(
        r"(gpt_neox\.)?layers\.\d+",
        r"attention\.query_key_value|mlp\.dense_h_to_4h",
        "(?!)",
        r"attention\.dense|mlp\.dense_4h_to_h",
    ),
    Rule("qkv", rf"{_X}\.attention\.query_key_value\.(weight|bias)", 0, "interleaved"),
    Rule("o", rf"{_X}\.attention\.dense\.weight", 1, site=True),
    *_mlp(rf"{_X}\.mlp", "dense_h_to_4h", "dense_4h_to_h"),
)

_B, _E = r"((bert|roberta)\.)?", r"(?P<at>((bert|roberta)\.)?encoder\.layer\.\d+)"
_BERT = (
    Rule("residual", rf"{_B}embeddings\.\w+_embeddings\.weight", 1),
    Rule(
        "residual",
        rf"{_B}(embeddings|encoder\.layer\.\d+\.(attention\.)?output)\.LayerNorm\.(weight|bias|gamma|beta)",
        0,
    ),
    *_stream(
        rf"{_B}encoder\.layer\.\d+",
        r"attention\.self\.query|intermediate\.dense",
        r"attention\.self\.(key|value)",
        r"(attention\.)?output\.dense",
    ),
    *_attention(rf"{_E}\.attention", r"self\.query", r"self\.key", r"self\.value", r"output\.dense"),
    *_mlp(_E, r"intermediate\.dense", r"output\.dense"),
    # The output of the masked-language head is looked up in the embeddings: its units are the stream's.
    Rule("residual", r"(cls\.predictions\.transform|lm_head)\.dense\.weight", 1),
    Rule("residual", r"(cls\.predictions\.transform|lm_head)\.dense\.(weight|bias)", 0),
    Rule("residual", r"(cls\.predictions\.transform\.LayerNorm|lm_head\.layer_norm)\.(weight|bias|gamma|beta)", 0),
    Rule("residual", r"(cls\.predictions|lm_head)\.decoder\.weight|qa_outputs\.weight", 1),
    # What pools it has units of its own, if something reads them.
    Rule("residual", rf"({_B}pooler|classifier)\.dense\.weight", 1),
    Rule("pooler", rf"({_B}pooler|classifier)\.dense\.(weight|bias)", 0),
    Rule("pooler", r"cls\.seq_relationship\.weight|classifier\.out_proj\.weight", 1, site=True),
)
_HEAD_OF_POOLER = Rule("pooler", r"classifier\.weight", 1, site=True)
_HEAD_OF_STREAM = Rule("residual", r"classifier\.weight", 1)

_V = r"(?P<at>(vit\.)?(encoder\.layer|layers)\.\d+)"
_VIT = (
    Rule("residual", r"(vit\.)?embeddings\.(cls_token|mask_token|position_embeddings)", 2),
    Rule("residual", r"(vit\.)?embeddings\.patch_embeddings\.projection\.(weight|bias)", 0),
    Rule("residual", r"(vit\.)?((encoder\.layer|layers)\.\d+\.)?layernorm(_before|_after)?\.(weight|bias)", 0),
    *_stream(
        r"(vit\.)?(encoder\.layer|layers)\.\d+",
        r"attention\.(attention\.query|q_proj)|intermediate\.dense|mlp\.fc1",
        r"attention\.(attention\.(key|value)|[kv]_proj)",
        r"(attention\.)?output\.dense|attention\.o_proj|mlp\.fc2",
    ),
    *_attention(
        rf"{_V}\.attention",
        r"(attention\.query|q_proj)",
        r"(attention\.key|k_proj)",
        r"(attention\.value|v_proj)",
        r"(output\.dense|o_proj)",
    ),
    *_mlp(_V, r"(intermediate\.dense|mlp\.fc1)", r"(output\.dense|mlp\.fc2)"),
    Rule("residual", r"classifier\.weight|(vit\.)?pooler\.dense\.weight", 1),
)


def _clip(tower: str, embeddings: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """One tower of CLIP; its residual stream is its own."""
    stream = f"{tower.split('_')[0]} residual"
    block = rf"{tower}\.encoder\.layers\.\d+"
    return (
        *embeddings,
        Rule(
            stream,
            rf"{tower}\.((pre_layr|post_layer|final_layer_)norm|encoder\.layers\.\d+\.layer_norm[12])\.(weight|bias)",
            0,
        ),
        *_stream(
            block, r"self_attn\.q_proj|mlp\.fc1", r"self_attn\.[kv]_proj", r"self_attn\.out_proj|mlp\.fc2", stream
        ),
        *_attention(rf"(?P<at>{block})\.self_attn", "q_proj", "k_proj", "v_proj", "out_proj"),
        *_mlp(rf"(?P<at>{block})\.mlp", "fc1", "fc2"),
    )


_CLIP = (
    *_clip(
        "vision_model",
        (
            Rule("vision residual", r"vision_model\.embeddings\.(class_embedding|patch_embedding\.(weight|bias))", 0),
            Rule(
                "vision residual", r"vision_model\.embeddings\.position_embedding\.weight|visual_projection\.weight", 1
            ),
            Rule("vision residual", r"classifier\.weight", 1),
        ),
    ),
    *_clip(
        "text_model",
        (
            Rule("text residual", r"text_model\.embeddings\.(token|position)_embedding\.weight", 1),
            Rule("text residual", r"text_projection\.weight", 1),
        ),
    ),
)

_T, _SELF = (
    r"(en|de)coder\.block\.\d+\.layer\.\d+",
    r"(?P<at>(en|de)coder)\.block\.(?P<layer>\d+)\.layer\.0\.SelfAttention",
)
_CROSS = r"(?P<at>decoder\.block\.\d+\.layer\.1\.EncDecAttention)"
_T5 = (
    Rule("residual", r"(shared|(en|de)coder\.embed_tokens|lm_head)\.weight", 1),
    Rule("residual", rf"({_T}\.layer_norm|(en|de)coder\.final_layer_norm)\.weight", 0),
    *_stream(
        _T,
        r"SelfAttention\.q|DenseReluDense\.wi(_0)?",
        r"SelfAttention\.[kv]|EncDecAttention\.[qkv]|DenseReluDense\.wi_1",
        r"(SelfAttention|EncDecAttention)\.o|DenseReluDense\.wo",
    ),
    # Block 0 holds the position bias of every block's heads, so their order is one for the whole stack.
    Rule("order", r"(?P<at>(en|de)coder)\.block\.0\.layer\.0\.SelfAttention\.relative_attention_bias\.weight", 1),
    *_attention(_SELF, "q", "k", "v", "o"),
    *_attention(_CROSS, "q", "k", "v", "o"),
    *_mlp(rf"(?P<at>{_T})\.DenseReluDense", r"wi(_[01])?", "wo"),
)

FAMILIES = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "gemma", "gemma2"), Family(_LLAMA, "rotary")),
    "qwen3": Family(_LLAMA, "normed", still=rf"{_ANY}\.self_attn\.[qk]_norm\.weight"),
    "phi3": Family(_PHI3, "rotary"),
    "gpt2": Family(_GPT2),
    "gpt_neox": Family(_NEOX, "rotary"),
    **dict.fromkeys(("bert", "roberta"), Family(_BERT)),
    "vit": Family(_VIT, still=r"(vit\.)?pooler\.dense\.bias"),
    **dict.fromkeys(("clip", "clip_vision_model", "clip_text_model"), Family(_CLIP)),
    "t5": Family(_T5),
}


def rules_of(family: Family, names: Iterable[str]) -> tuple[Rule, ...]:
    """The family's rules for a model with these tensors: BERT's classifier reads the pooler, if there is one."""
    if family.rules is not _BERT:
        return family.rules
    pooled = any(name.endswith("pooler.dense.weight") for name in names)
    return (*_BERT, _HEAD_OF_POOLER if pooled else _HEAD_OF_STREAM)
