"""Models of less common kinds are repaired, folded and aligned rightly, or refused by a sentence."""

import json

import pytest
import torch
import transformers as tf
from families import CONFIGS, model
from safetensors.torch import load_file, save_file

from mergelab import Expert, MergeError, Recipe, merge, plan
from mergelab.align import alignment, selftest
from mergelab.align.activations import _counting
from mergelab.assets import ASSETS
from mergelab.lab.lab import Lab
from mergelab.lab.repair import RepairLab
from mergelab.lab.saved import zipped
from mergelab.model import Running, answered, outputs, probe, running, with_biases
from mergelab.repair import applied, fit, fold, joined, sites, statistics
from mergelab.repair.calibration import batches_of, greedy
from mergelab.repair.export import takes_shifts
from mergelab.repair.head import head_of, with_head
from mergelab.repair.job import repairs, worn
from mergelab.repair.order import Order, Wanted
from mergelab.step import result
from mergelab.tasks import own_score, tasks

SMALL = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4}
IDS = torch.randint(3, 40, (6, 7), generator=torch.Generator().manual_seed(0))


def made(kind, config, seed=0):
    """A model whose norms and biases are not 1 and 0."""
    torch.manual_seed(seed)
    found = kind(config)
    for parameter in found.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return found.eval()


def fitted(wearer, expert, batch, where="foldable"):
    """A patch of one model for the statistics of another."""
    chosen = sites(wearer, where)
    return fit(wearer, statistics(expert, [batch], chosen), [batch], chosen)


# Repair -------------------------------------------------------------------------------------------------------


def test_norms_of_images_are_repaired_by_channel_and_folded():
    config = tf.ConvNextConfig(hidden_sizes=[12, 16], depths=[1, 1], num_stages=2, image_size=32, num_labels=4)
    one, other = (made(tf.ConvNextForImageClassification, config, seed) for seed in (1, 2))
    batch = {"pixel_values": torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))}
    patch = fitted(one, other, batch)
    assert patch.sites["convnext.embeddings.layernorm|out"].scale.shape == (12,)
    assert fold(one, patch, batch).unfolded == ()
    with pytest.raises(MergeError, match="which of these axes are its channels is not known"):
        fitted(one, other, batch, "convnext.encoder.stages.0|out")


def test_a_map_without_parameters_is_repaired_beside_the_weights():
    one, other = model("GPT2LMHeadModel", 1), model("GPT2LMHeadModel", 2)
    batch = {"input_ids": IDS}
    done = fold(one, fitted(one, other, batch, "transformer.h.0.mlp.act|out"), batch)
    assert done.unfolded == ("transformer.h.0.mlp.act|out",)


@pytest.mark.parametrize("name", ["Qwen2ForSequenceClassification", "MistralModel", "Qwen2ForTokenClassification"])
def test_kin_of_llama_of_any_task_take_biases(name):
    kind = tf.Qwen2Config if name.startswith("Qwen2") else tf.MistralConfig
    own = {"sliding_window": None} if kind is tf.MistralConfig else {}
    config = kind(**SMALL, num_key_value_heads=2, pad_token_id=0, num_labels=3, **own)
    before = made(getattr(tf, name), config)
    after = with_biases(before)
    assert type(after).__name__ == name.replace("Qwen2", "Llama").replace("Mistral", "Llama")
    assert all(m.bias is not None for n, m in after.named_modules() if n.endswith("_proj"))
    batch = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    assert torch.allclose(outputs(before, batch), outputs(after, batch), atol=1e-6)


def test_a_model_with_biases_generates_as_it_did():
    before = running(ASSETS / "numbers/base").model
    before.generation_config.max_new_tokens = 11
    assert with_biases(before).generation_config.max_new_tokens == 11


def test_heads_without_biases_keep_nothing_from_being_shifted():
    config = tf.GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=64, pad_token_id=0)
    assert takes_shifts(made(tf.GPT2ForSequenceClassification, config))


def test_all_that_labels_are_read_off_by_is_the_experts_own():
    config = tf.DistilBertConfig(vocab_size=40, dim=16, n_layers=1, n_heads=2, hidden_dim=24, num_labels=3)
    one, other = (made(tf.DistilBertForSequenceClassification, config, seed) for seed in (1, 2))
    headed = with_head(one, other)
    for name in ("pre_classifier", "classifier"):
        assert torch.equal(headed.get_submodule(name).weight, other.get_submodule(name).weight)
    assert torch.equal(one.pre_classifier.weight, with_head(one, one).pre_classifier.weight)
    with pytest.raises(MergeError, match="The head of the merged model and that of the expert are not the same"):
        with_head(one, made(tf.DistilBertForMaskedLM, config))


def test_sidecars_of_a_classifier_bring_the_head_that_their_scores_are_of(tmp_path):
    merged = tmp_path / "merged"
    recipe = Recipe("digits/base", (Expert("digits/rot90"), Expert("digits/mirror")), "linear")
    result(merge(plan(recipe), merged))
    order = Order(merged, (Wanted("mirror", "digits/mirror"),), recipe, sidecar=True)
    (report,) = result(repairs(order, tmp_path / "out"))
    body, patch = worn(tmp_path / "out", "mirror")
    with applied(body.model, patch):
        assert own_score("digits/mirror", None)(body.model) == pytest.approx(report.scores["repaired"], abs=0.01)
    expert, plain = running(ASSETS / "digits/mirror").model, running(tmp_path / "out").model
    (name,) = {name for name in head_of(expert) if name.endswith("weight")}
    assert torch.equal(body.model.state_dict()[name], expert.state_dict()[name])
    assert not torch.equal(body.model.state_dict()[name], plain.state_dict()[name])


def test_answers_end_where_generation_does():
    expert = running(ASSETS / "numbers/english")
    prompts = [torch.tensor(expert.tokenizer.encode(prompt)) for prompt, _ in tasks()["english"].test[:8]]
    whole = [row.tolist() for row in greedy(expert, prompts)]
    expert.tokenizer.eos_token = expert.tokenizer.convert_ids_to_tokens(5)  # at which generation does not stop
    assert [row.tolist() for row in greedy(expert, prompts)] == whole and len({*map(len, whole)}) > 1


def test_prompts_need_no_token_for_padding_and_must_fit_with_their_answers():
    class Letters:
        eos_token_id, pad_token_id, chat_template = None, None, None

        def __call__(self, text, **how):
            ids = torch.tensor([[3 + ord(letter) % 30 for letter in text]])
            return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

        def encode(self, text, **how):
            return [3 + ord(letter) % 30 for letter in text]

    (batch,) = batches_of(
        Running(made(tf.GPT2Model, CONFIGS["GPT2LMHeadModel"]), Letters()), [("ab", None), ("abcd", None)]
    )
    assert batch["attention_mask"].sum(1).tolist() == [2, 4]
    writer = Running(model("GPT2LMHeadModel"), Letters(), "writer")
    with pytest.raises(MergeError, match="A prompt with its answer has 100 tokens; 'writer' has room for 64"):
        batches_of(writer, [("a" * 40, "b" * 60)] * 4)
    (row,) = greedy(writer, [torch.full((60,), 5)])
    assert len(row) <= 4


def test_calibration_data_of_several_tasks_must_be_alike():
    ids = {"input_ids": IDS}
    with pytest.raises(MergeError, match="must hold the same inputs for all tasks"):
        joined([ids, ids | {"token_type_ids": IDS}])
    with pytest.raises(MergeError, match=r"pixel_values is \[3, 8, 8\] and \[3, 9, 9\] per sample"):
        joined([{"pixel_values": torch.zeros(2, 3, size, size)} for size in (8, 9)])


def test_a_repair_of_aligned_experts_starts_from_the_aligned_expert(tmp_path):
    lab = Lab(tmp_path, device="cpu")
    recipe = Recipe(
        "numbers/french", (Expert("numbers/french"), Expert("numbers/scratch-french")), "linear", align="weights"
    )
    run = result(lab.merge(recipe))
    found = RepairLab(lab).patch(run, "numbers/scratch-french")
    body = running(run.folder)
    where = sites(body.model)
    aligned = running(lab.model_folder("numbers/scratch-french", recipe.base, recipe.align))
    batches = batches_of(aligned, tasks()["french"].calibration[:32])
    wanted = fit(body.model, statistics(aligned.model, batches, where), batches, where, how=None)
    site = next(iter(found.sites))
    assert torch.allclose(found.sites[site].scale, wanted.sites[site].scale, rtol=1e-4)
    assert not torch.equal(
        aligned.model.state_dict()["model.embed_tokens.weight"],
        load_file(ASSETS / "numbers/scratch-french/model.safetensors")["model.embed_tokens.weight"],
    )


# Alignment ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("BertForQuestionAnswering", tf.BertConfig(**SMALL, max_position_embeddings=32)),
        ("BertForPreTraining", tf.BertConfig(**SMALL, max_position_embeddings=32)),
        ("LlamaForSequenceClassification", tf.LlamaConfig(**SMALL, num_key_value_heads=2)),
    ],
)
def test_whatever_a_model_answers_its_symmetry_can_be_tested(name, config):
    tensors = made(getattr(tf, name), config).state_dict()
    assert selftest(tensors, config.to_dict() | {"architectures": [name]}) < 1e-4


def test_an_answer_of_an_unknown_kind_is_a_sentence():
    with pytest.raises(MergeError, match=r"What the model gives \(pooler_output\) is not known here"):
        answered({"pooler_output": torch.zeros(1)})


def test_activations_leave_alone_what_the_class_of_a_checkpoint_does_not_load():
    config = tf.BertConfig(**SMALL, max_position_embeddings=32)
    tensors = made(tf.BertForPreTraining, config).state_dict()
    named = config.to_dict() | {"architectures": ["BertForMaskedLM"]}
    found = alignment(tensors, tensors, named, "activations", [probe(named)])
    assert found.objective[-1] == pytest.approx(1)


def test_of_an_encoder_decoder_each_side_has_its_own_padding():
    batch = {
        "input_ids": IDS[:2],
        "attention_mask": torch.tensor([[1] * 7, [1] * 4 + [0] * 3]),
        "decoder_input_ids": IDS[:2],
        "decoder_attention_mask": torch.tensor([[1, 1, 0, 0, 0, 0, 0], [1] * 7]),
    }
    states = torch.zeros(2, 7, 16)
    encoder = _counting(states, batch, "encoder.block.0.layer.0.SelfAttention.q")
    decoder = _counting(states, batch, "decoder.block.0.layer.0.SelfAttention.q")
    assert encoder.sum(1).tolist() == [6, 3] and decoder.sum(1).tolist() == [1, 6]
    config = CONFIGS["T5ForConditionalGeneration"].to_dict() | {"architectures": ["T5ForConditionalGeneration"]}
    one = model("T5ForConditionalGeneration", 1).state_dict()
    found = alignment(one, one, config, "activations", [batch])
    assert found.objective[-1] == pytest.approx(1)


# Models in memory ---------------------------------------------------------------------------------------------


def test_a_model_that_lacks_tensors_is_not_filled_with_random_numbers(tmp_path):
    for path in (ASSETS / "numbers/base").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    name = next(name for name in tensors if name.endswith("layers.1.mlp.up_proj.weight"))
    save_file({key: t for key, t in tensors.items() if key != name}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(MergeError, match=rf"lacks 1 tensor that a LlamaForCausalLM has, '{name}' first"):
        running(tmp_path)


@pytest.mark.parametrize("change", [{"num_hidden_layers": 10**6}, {"intermediate_size": 10**6}])
def test_a_configuration_far_larger_than_its_weights_is_refused_before_it_takes_memory(tmp_path, change):
    for path in (ASSETS / "numbers/base").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(MergeError, match="describes a larger model than its weights are"):
        running(tmp_path)


def test_folders_whose_names_hold_a_point_have_a_zip_each(tmp_path):
    for name in ("Qwen2.5-math", "Qwen2.5-code"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text(name)
    assert zipped(tmp_path / "Qwen2.5-math") != zipped(tmp_path / "Qwen2.5-code")
