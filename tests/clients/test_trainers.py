"""Trainers, checkpoints and adapters of other packages, on one model whose layers are all forms of the table
of modules.
"""

import copy

import lightning
import pytest
import torch
from accelerate import Accelerator, init_empty_weights, load_checkpoint_and_dispatch
from modules import FORMS
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from test_distributed import Forms
from torch import nn
from torch.utils.data import DataLoader
from transformers import PretrainedConfig, PreTrainedModel, Trainer, TrainingArguments

WIDTH = max(form.shape[1] for form in FORMS)


class Model(Forms):
    """Every layer learns the mean of its input, and the forward pass returns the loss."""

    def forward(self, v):
        layers, goal = super().forward(v), v.mean(1, keepdim=True)
        return sum((Y - goal).square().mean() for Y in layers.values())


class Config(PretrainedConfig):
    model_type = "forms"


class Pretrained(PreTrainedModel):
    config_class = Config

    def __init__(self, config):
        super().__init__(config)
        self.model = Model(seed=5, assigned=False)
        self.post_init()

    def forward(self, v):
        return {"loss": self.model(v)}


class Module(lightning.LightningModule):
    def __init__(self, seed=5):
        super().__init__()
        self.model = Model(seed)

    def training_step(self, batch, _):
        return self.model(batch["v"])

    def configure_optimizers(self):
        return optimiser(self)


def pretrained(seed):
    made = Pretrained(Config())
    made.model.load_state_dict(Model(seed).state_dict())
    return made


def optimiser(model):
    return torch.optim.Adam(model.parameters(), lr=0.01)


@pytest.fixture
def rows():
    return [{"v": v} for v in torch.randn(8, WIDTH)]


def state(model):
    return {key: t.detach().clone() for key, t in model.state_dict().items()}


def same(model, other):
    torch.testing.assert_close(state(model), state(other), rtol=0, atol=0)


def has_trained(layers, start):
    """The weight of every layer has changed since the start, and still satisfies its constraint."""
    for form in start.forms:
        W = layers[form.name].weight
        assert form.holds(W) and not torch.equal(W, start.layers[form.name].weight), form.name


# ---- trainers: another model goes on from the checkpoint of half a run and ends where the whole run does --


def test_transformers_trainer(rows, tmp_path):
    options = TrainingArguments(
        tmp_path,
        max_steps=4,
        save_steps=2,
        per_device_train_batch_size=4,
        learning_rate=0.01,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    model, resumed = pretrained(seed=0), pretrained(seed=1)
    Trainer(model, options, train_dataset=rows).train()
    has_trained(model.model.layers, Model(seed=0))
    Trainer(resumed, options, train_dataset=rows).train(resume_from_checkpoint=f"{tmp_path}/checkpoint-2")
    same(model, resumed)


def test_lightning(rows, tmp_path):
    def fit(module, epochs, checkpoint=None):
        quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            enable_checkpointing=False,
            default_root_dir=tmp_path,
            **quiet,
        )
        trainer.fit(module, DataLoader(rows, 4), ckpt_path=checkpoint)
        return trainer

    whole, half, resumed = Module(seed=0), Module(seed=0), Module(seed=1)
    fit(whole, 2)
    has_trained(whole.model.layers, Model(seed=0))
    fit(half, 1).save_checkpoint(tmp_path / "half.ckpt")
    same(half, Module.load_from_checkpoint(tmp_path / "half.ckpt"))
    fit(resumed, 2, tmp_path / "half.ckpt")
    same(whole, resumed)


def test_accelerate(rows, tmp_path):
    def run(seed, epochs, load=False):
        accelerator, model = Accelerator(cpu=True), Model(seed)
        model, optimise, loader = accelerator.prepare(model, optimiser(model), DataLoader(rows, 4))
        if load:
            accelerator.load_state(tmp_path)
        for _ in range(epochs):
            for batch in loader:
                optimise.zero_grad()
                accelerator.backward(model(**batch))
                optimise.step()
        accelerator.save_state(tmp_path)
        return model

    run(seed=0, epochs=1)
    resumed, whole = run(seed=1, epochs=1, load=True), run(seed=0, epochs=2)
    has_trained(whole.layers, Model(seed=0))
    same(whole, resumed)


# ---- checkpoints -----------------------------------------------------------------------------------------


def test_safetensors(tmp_path):
    source, target = Model(seed=0), Model(seed=1)
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    target.load_state_dict(load_file(tmp_path / "model.safetensors"))
    same(source, target)


def test_from_pretrained(rows, tmp_path):
    source, v = pretrained(seed=0), rows[0]["v"][None]
    source.save_pretrained(tmp_path)
    target, said = Pretrained.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(said.values()), said
    same(source, target)
    assert torch.equal(source(v)["loss"], target(v)["loss"])


def test_load_checkpoint_and_dispatch(rows, tmp_path):
    source, file, v = Model(seed=0), str(tmp_path / "model.safetensors"), rows[0]["v"][None]
    save_file(source.state_dict(), file)
    with init_empty_weights():
        target = Model(seed=1, assigned=False)
    assert all(p.is_meta for p in target.parameters())
    target = load_checkpoint_and_dispatch(target, file, device_map={"": "cpu"})
    same(source, target)
    assert torch.equal(source(v), target(v))


# ---- adapters --------------------------------------------------------------------------------------------


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.head, self.model = nn.Linear(WIDTH, WIDTH), Model(seed=0)

    def forward(self, v):
        return self.model(self.head(v))


def test_peft(rows, tmp_path):
    """Our layers are trained next to an adapter and saved with it. The base model keeps its layers, and
    loading a second adapter changes neither.
    """
    base, v = Base(), torch.stack([row["v"] for row in rows])
    untouched, start, names = state(base), base(v), list(base.model.layers)
    adapted = get_peft_model(copy.deepcopy(base), LoraConfig(target_modules=["head"], modules_to_save=names))
    adapted.save_pretrained(tmp_path / "first")
    optimise = optimiser(adapted)
    for _ in range(3):
        optimise.zero_grad()
        adapted(v).backward()
        optimise.step()
    ours = adapted.model.model
    has_trained({name: wrapper.modules_to_save.default for name, wrapper in ours.layers.items()}, base.model)
    trained = adapted(v)
    with adapted.disable_adapter():
        assert torch.equal(adapted(v), start)
    adapted.save_pretrained(tmp_path / "second")

    again = PeftModel.from_pretrained(base, tmp_path / "first")
    assert torch.equal(again(v), start)
    again.load_adapter(tmp_path / "second", "second")
    assert torch.equal(again(v), start)
    again.set_adapter("second")
    assert torch.equal(again(v), trained)
    again.set_adapter("default")
    assert torch.equal(again(v), start)
    torch.testing.assert_close(state(again.unload()), untouched, rtol=0, atol=0)


def test_peft_adapter_beside_our_layers(tmp_path):
    """An adapter that does not name our layers does not change them when it is loaded and merged."""
    base = Base()
    untouched = state(base.model)
    adapted = get_peft_model(base, LoraConfig(target_modules=["head"]))
    adapted.save_pretrained(tmp_path)
    adapted.load_adapter(tmp_path, "second")
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(state(merged.model), untouched, rtol=0, atol=0)
