"""The examples of the documentation run and print the results that it shows."""

import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.utils import parametrize

import fastparam

ROOT = Path(__file__).resolve().parents[1]
MODULES = ["fastparam"] + [m.name for m in pkgutil.walk_packages(fastparam.__path__, "fastparam.")]
MODULES.remove("fastparam.__main__")


def examples():
    names = {"torch": torch, "parametrize": parametrize, "fastparam": fastparam}
    for module in map(importlib.import_module, MODULES):
        for test in doctest.DocTestFinder(exclude_empty=True).find(module, extraglobs=names):
            if test.examples:
                yield pytest.param(test, id=test.name)


@pytest.mark.parametrize("test", list(examples()))
def test_docstring(test):
    result = doctest.DocTestRunner().run(test)
    assert result.attempted > 0 and result.failed == 0


@pytest.mark.parametrize("name", [*fastparam.functional.__all__, *fastparam.__all__])
def test_every_public_name_has_an_example(name):
    thing = getattr(fastparam.functional, name, None) or getattr(fastparam, name)
    if callable(thing):
        assert ">>>" in thing.__doc__ and ".. math::" in thing.__doc__


@pytest.mark.parametrize("name", fastparam.__all__)
def test_signatures_name_their_arguments(name):
    thing = getattr(fastparam, name)
    if isinstance(thing, type) and issubclass(thing, torch.nn.Module):
        assert not {"args", "kwargs"} & set(inspect.signature(thing).parameters)


@pytest.mark.parametrize("name", fastparam.parametrizations.__all__)
def test_every_verb_has_an_example(name):
    assert ">>>" in getattr(fastparam.parametrizations, name).__doc__


def test_examples_of_subpackages_are_found():
    assert (
        "fastparam.parametrizations.prune" in MODULES and "fastparam.parametrizations.orthogonal" in MODULES
    )


DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def python_blocks():
    for path in DOCUMENTS:
        for i, block in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)):
            yield pytest.param(block, id=f"{path.name}-{i}")


@pytest.mark.parametrize("block", list(python_blocks()))
def test_code_of_documents_runs(block):
    exec(block, {})


# ---- "Signs" of docs/conventions.md ----------------------------------------------------------------------

REFLECTION = torch.diag(torch.tensor([1.0, 1.0, 1.0, -1.0]))


def orthogonal_layer(module=None):
    layer = torch.nn.Linear(4, 4)
    parametrize.register_parametrization(layer, "weight", module or fastparam.SkewCayley())
    return layer


def test_one_instance_on_two_weights_keeps_the_signs_of_the_one_assigned_last():
    shared = fastparam.SkewCayley()
    first, second = orthogonal_layer(shared), orthogonal_layer(shared)
    before = first.weight.clone()
    second.weight = REFLECTION
    assert torch.equal(first.weight, before * torch.tensor([1.0, 1.0, 1.0, -1.0]))


def test_raw_tensors_tied_without_their_modules_keep_signs_of_their_own():
    first, second = orthogonal_layer(), orthogonal_layer()
    second.parametrizations.weight.original = first.parametrizations.weight.original
    assert torch.equal(first.weight, second.weight)
    first.weight = REFLECTION
    assert torch.equal(second.weight, first.weight.abs())


def test_signs_change_before_an_earlier_parametrization_refuses():
    class Refuses(torch.nn.Module):
        def forward(self, X):
            return X

        def right_inverse(self, X):
            raise ValueError("refused")

    layer = torch.nn.Linear(4, 4)
    parametrize.register_parametrization(layer, "weight", torch.nn.Identity(), unsafe=True)
    layer.parametrizations.weight[0] = Refuses()
    module = fastparam.SkewCayley()
    module.right_inverse(torch.eye(4))
    parametrize.register_parametrization(layer, "weight", module, unsafe=True)
    raw = layer.parametrizations.weight.original.clone()
    with pytest.raises(ValueError, match="refused"):
        layer.weight = REFLECTION
    assert torch.equal(layer.parametrizations.weight.original, raw) and module.signs.tolist() == [1, 1, 1, -1]


def test_signs_after_an_unsafe_registration_on_a_parametrized_weight():
    key = "parametrizations.weight.1.signs"
    for before in (lambda module: None, lambda module: module.right_inverse(torch.eye(4))):
        layer, module = fastparam.parametrizations.symmetric(torch.nn.Linear(4, 4)), fastparam.SkewCayley()
        before(module)
        parametrize.register_parametrization(layer, "weight", module, unsafe=True)
        assert (key in layer.state_dict()) == (module.signs is not None)
        with pytest.raises(fastparam.NotOrthogonalError):
            layer.weight = 2 * torch.eye(4)
        assert layer.state_dict()[key].tolist() == [1, 1, 1, 1]


def run_benchmarks(script, *arguments):
    command = [sys.executable, str(ROOT / "benchmarks" / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_tables_come_from_the_saved_results():
    checked = run_benchmarks("report.py", "--check", ROOT / "docs" / "benchmarks.md")
    assert checked.returncode == 0, checked.stderr


def test_the_chart_and_the_numbers_of_the_readme_come_from_the_saved_results():
    checked = run_benchmarks("chart.py", "--check")
    assert checked.returncode == 0, checked.stderr


def test_another_number_in_the_readme_would_be_found(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    chart = importlib.import_module("chart")
    text = (ROOT / "README.md").read_text()
    part = chart.MARKS.search(text)[0]
    changed = tmp_path / "README.md"
    changed.write_text(text.replace(part, re.sub(r"(\d+) times", r"1\1 times", part, count=1)))
    monkeypatch.setattr(chart, "README", changed)
    assert chart.main(["--check"]) == 1 and str(changed) in capsys.readouterr().err


# ---- the form of README ----------------------------------------------------------------------------------


def test_the_readme_is_short_and_its_headings_are_unique():
    lines = (ROOT / "README.md").read_text().splitlines()
    headings = [line for line in lines if line.startswith("#")]
    assert len(lines) <= 120 and len(set(headings)) == len(headings)


def anchors(path):
    """The names by which links refer to the headings of a document."""
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def dead(path):
    """The links of a document that lead to no file, or to no heading."""
    found = re.findall(r"\]\(([^)#:]*)#?([^):]*)\)|src(?:set)?=\"([^\":]+)\"", path.read_text())
    for link, anchor, image in found:
        target = path.parent / (link or image) if link or image else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            yield f"{link or image}#{anchor}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_of_documents_lead_somewhere(path):
    assert list(dead(path)) == []


def test_dead_links_are_found(tmp_path):
    (tmp_path / "other.md").write_text("# A `heading`, here\n")
    (tmp_path / "document.md").write_text(
        '[1](other.md#a-heading-here) [2](other.md#nothing) [3](none.md) <img src="none.svg">\n'
    )
    assert list(dead(tmp_path / "document.md")) == ["other.md#nothing", "none.md#", "none.svg#"]
