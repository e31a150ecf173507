"""Configurations: what is refused, how it is named, and that text and object say the same."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelgrowth.experiments import (
    ConfigError,
    DataConfig,
    ExperimentConfig,
    NetConfig,
    OutputConfig,
    TrackingConfig,
    TrainingConfig,
    demo_config,
    load_config,
    parse_config,
)
from kernelgrowth.experiments.config import differing_keys
from kernelgrowth.experiments.toml_text import format_toml, key_lines

SECTIONS = (DataConfig, NetConfig, TrainingConfig, TrackingConfig, OutputConfig)
SMALLEST = '[data]\nname = "digits"\n\n[training]\nlr = 0.1\nsteps = 10\n'
KEYS = [(section.section, item.name) for section in SECTIONS for item in dataclasses.fields(section)]


def problem_of(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "experiment.toml")
    assert "\n" not in str(caught.value)
    return caught.value


def with_key(section: str, key: str, value: str) -> tuple[str, int]:
    """Return a configuration that sets one more key (or another value), and the key's line."""
    lines = {
        "data": ['name = "digits"'],
        "net": [],
        "training": ["lr = 0.1", "steps = 10"],
        "tracking": [],
        "output": [],
    }
    lines[section] = [line for line in lines[section] if not line.startswith(f"{key} =")] + [f"{key} = {value}"]
    written = [line for name, keys in lines.items() for line in (f"[{name}]", *keys)]
    return "\n".join(written), written.index(f"{key} = {value}") + 1


def test_the_smallest_configuration_has_the_documented_defaults():
    config = parse_config(SMALLEST)
    assert config.net.hidden == (100,)
    assert config.training == TrainingConfig(lr=0.1, steps=10)
    assert (config.training.loss, config.training.optimizer, config.training.dtype) == ("mse", "gd", "float64")
    assert config.data.whitening is True
    assert config.tracking.every == 10


@pytest.mark.parametrize(("section", "key"), KEYS)
def test_a_value_of_the_wrong_type_is_named_with_its_line(section, key):
    # No key takes a date.
    text, line = with_key(section, key, "2024-01-01")
    error = problem_of(text)
    assert (error.key, error.line) == (f"{section}.{key}", line)
    assert str(error).startswith(f"experiment.toml:{line}: {section}.{key}")


@pytest.mark.parametrize("section", [section.section for section in SECTIONS])
def test_an_unknown_key_is_named_with_its_line(section):
    text, line = with_key(section, "colour", '"blue"')
    error = problem_of(text)
    assert (error.key, error.line) == (f"{section}.colour", line)


@pytest.mark.parametrize(
    ("section", "wrong", "right"),
    [
        ("training", "step", "training.steps"),
        ("training", "optimiser", "training.optimizer"),
        ("training", "LR", "training.lr"),
        ("data", "whiten", "data.whitening"),
        ("net", "activations", "net.activation"),
        ("tracking", "topk", "tracking.top_k"),
        ("output", "folders", "output.folder"),
    ],
)
def test_a_misspelt_key_is_answered_with_the_right_one(section, wrong, right):
    text, _ = with_key(section, wrong, "1")
    assert f'did you mean "{right}"?' in str(problem_of(text))


def test_an_unknown_section_is_named_with_its_line():
    error = problem_of(SMALLEST + "\n[trainig]\nlr = 1\n")
    assert error.line == SMALLEST.count("\n") + 2
    assert 'did you mean "training"?' in str(error)


@pytest.mark.parametrize(
    ("section", "key", "value", "said"),
    [
        ("data", "name", '"imagenet"', "'digits'"),
        ("data", "classes", "[1]", "at least 2"),
        ("data", "classes", "[1, 1]", "repeat"),
        ("data", "classes", "[0, -1]", "data.classes[1] must be at least 0"),
        ("data", "n_train", "0", "at least 1"),
        ("data", "n_train", "1.5", "integer"),
        ("data", "whitening", "1", "write 1.0"),
        ("data", "whitening", "1.5", "at most 1"),
        ("data", "whitening", "nan", "finite"),
        ("data", "root", '"x"', "no key of data set 'digits'"),
        ("data", "noise", "0.1", "no key of data set 'digits'"),
        ("data", "targets", '"index"', "for loss 'mse'"),
        ("data", "seed", "-1", "at least 0"),
        ("data", "seed", str(2**64), "at most"),
        ("net", "hidden", "[100, 0]", "net.hidden[1] must be at least 1"),
        ("net", "hidden", "100", "must be a list"),
        ("net", "widths", "[3]", "at least 2"),
        ("net", "sigma", "0.0", "greater than 0"),
        ("net", "sigma", "inf", "finite"),
        ("net", "activation", '"sigmoid"', "'relu'"),
        ("net", "bias", '"output"', "true, false or one of 'hidden'"),
        ("training", "lr", "0", "greater than 0"),
        ("training", "lr", '"0.1"', "must be a number"),
        ("training", "lr", "1" + "0" * 400, "float can hold"),
        ("training", "steps", "0", "at least 1"),
        ("training", "steps", "true", "integer"),
        ("training", "beta1", "0.5", "for optimizer 'adam', not for 'gd'"),
        ("training", "alpha", "0.5", "for optimizer 'rmsprop', not for 'gd'"),
        ("training", "eps", "1e-6", "for optimizer 'adam' or 'rmsprop', not for 'gd'"),
        ("training", "layer_lr", "{layer1 = -1}", "training.layer_lr.layer1 must be at least 0"),
        ("training", "layer_lr", "0.5", "must be a table"),
        ("training", "dtype", '"float16"', "'float64'"),
        ("training", "batch_size", "0", "at least 1"),
        ("tracking", "every", "0", "at least 1"),
        ("tracking", "every", "[3, 2]", "ascending"),
        ("tracking", "every", "[]", "at least 1 entries"),
        ("tracking", "stretch", "0.9", "at least 1"),
        ("tracking", "outputs", '"diagonal"', "'full'"),
        ("tracking", "n_probe", "1", "at least 2"),
        ("output", "folder", '""', "not empty"),
        ("output", "report", '"yes"', "true or false"),
    ],
)
def test_an_impossible_value_is_named_with_its_line(section, key, value, said):
    text, line = with_key(section, key, value)
    error = problem_of(text)
    assert error.line == line
    assert f"{section}.{key}" in error.problem
    assert said in str(error)


@pytest.mark.parametrize(
    ("addition", "key", "said"),
    [
        ("[net]\nhidden = [3]\nwidths = [2, 3, 1]\n", "net.widths", "exclude each other"),
        ("[tracking]\nevery = [1, 2]\nstretch = 1.5\n", "tracking.stretch", "lists the steps"),
    ],
)
def test_keys_that_exclude_each_other(addition, key, said):
    error = problem_of(SMALLEST + addition)
    assert error.key == key
    assert said in str(error)


def test_what_the_loss_needs_of_the_data():
    teacher = '[data]\nname = "gaussian_teacher"\n[training]\nlr = 0.1\nsteps = 1\nloss = "logistic"\n'
    assert problem_of(teacher).key == "training.loss"
    labels = '[data]\nname = "digits"\ntargets = "sign"\n[training]\nlr = 0.1\nsteps = 1\nloss = "cross_entropy"\n'
    error = problem_of(labels)
    assert (error.key, error.line) == ("data.targets", 3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "[data] is missing"),
        ('[data]\nname = "digits"\n', "[training] is missing"),
        ("[data]\n[training]\nlr = 0.1\nsteps = 1\n", "data.name is missing"),
        ('[data]\nname = "digits"\n[training]\nlr = 0.1\n', "training.steps is missing"),
        ('[data]\nname = "mnist"\n[training]\nlr = 0.1\nsteps = 1\n', "data.root is missing"),
        ("data = 3\n[training]\nlr = 0.1\nsteps = 1\n", "data must be a table"),
    ],
)
def test_what_is_missing_is_named(text, said):
    assert said in str(problem_of(text))


@pytest.mark.parametrize(
    ("text", "line"), [("[data\n", 1), ('[data]\nname = "digits"\nname = "mnist"\n', 3), ('[data]\nname = "dig', 2)]
)
def test_invalid_toml_is_named_with_its_line(text, line):
    error = problem_of(text)
    assert error.line == line
    assert "is not valid TOML" in str(error)


def test_files_that_cannot_be_read(tmp_path):
    missing, binary = tmp_path / "missing.toml", tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe[data]")
    for path, said in ((missing, "No such file"), (binary, "UTF-8"), (tmp_path, "directory")):
        with pytest.raises(ConfigError, match=said) as caught:
            load_config(path)
        assert str(caught.value).startswith(str(path))


def test_a_dotted_key_and_an_inline_table_have_lines():
    text = 'data.name = "digits"\ntraining.lr = 0.1\ntraining.steps = 1\nnet = { sigma = -1 }\n'
    assert problem_of(text).line == 4
    assert problem_of(text.replace("-1 }", "1 }").replace("0.1", "-0.1")).line == 2


def test_the_commented_example_is_valid_and_explains_every_key():
    path = Path(__file__).parent.parent / "examples" / "digits.toml"
    config = load_config(path)
    assert parse_config(config.to_toml()) == config
    text = path.read_text(encoding="utf-8")
    for _, key in KEYS:
        assert key in text


def test_configurations_built_in_python_are_checked_too():
    with pytest.raises(ConfigError, match="training.lr must be greater than 0"):
        TrainingConfig(lr=0.0, steps=1)
    with pytest.raises(ConfigError, match="data.root is missing"):
        DataConfig(name="cifar10")
    with pytest.raises(dataclasses.FrozenInstanceError):
        demo_config().training.lr = 1.0


def test_differing_keys_names_what_makes_another_run():
    first = demo_config(0)
    second = ExperimentConfig.from_dict(
        {**first.to_dict(), "net": {"hidden": [50], "sigma": 0.01}, "output": {"folder": "elsewhere"}}
    )
    assert differing_keys(first, first) == []
    assert differing_keys(first, second) == ["net.hidden"]
    assert differing_keys(first, demo_config(1)) == ["data.seed", "training.seed"]


@pytest.mark.parametrize(
    ("every", "stretch", "expected"),
    [
        (10, 1.0, 10),
        ((0, 5, 7), 1.0, [0, 5, 7]),
        (2, 2.0, [0, 2, 4, 8, 16, 32, 64]),
        (3, 1.5, [0, 3, 6, 9, 13, 19, 28, 42, 63, 94]),
    ],
)
def test_schedules(every, stretch, expected):
    assert TrackingConfig(every=every, stretch=stretch).schedule(100) == expected


names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_-]{0,8}", fullmatch=True)
plain_text = st.text(st.characters(codec="utf-8"), max_size=20)
scalars = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    plain_text,
)
values = st.one_of(scalars, st.lists(scalars, max_size=4))
keys = st.one_of(names, plain_text)
tables = st.dictionaries(keys, st.one_of(values, st.dictionaries(names, values, max_size=3)), max_size=4)


@settings(deadline=None, max_examples=100)
@given(st.dictionaries(keys, tables, max_size=4))
def test_written_toml_reads_back_equal(content):
    assert tomllib.loads(format_toml(content)) == content


@settings(deadline=None, max_examples=100)
@given(st.text(max_size=200))
def test_any_text_is_a_configuration_or_refused(text):
    with pytest.raises(ConfigError):
        parse_config(text)


@settings(deadline=None, max_examples=100)
@given(
    st.sampled_from(KEYS),
    st.one_of(st.none(), values, st.floats(), st.integers(), st.dictionaries(names, values, max_size=2)),
)
def test_any_value_is_taken_or_refused_by_name(place, value):
    section, key = place
    content = parse_config(SMALLEST).to_dict()
    content[section] = {**content[section], key: value}
    if (section, key) == ("net", "widths"):
        del content["net"]["hidden"]
    try:
        config = ExperimentConfig.from_dict(content)
    except ConfigError as error:
        named = error.key
    else:
        assert parse_config(config.to_toml()) == config
        return
    # Another key may be what a value makes impossible, as a data set does its classes.
    assert named.startswith((f"{section}.{key}", "training.", "data."))


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(names, st.lists(names, unique=True, max_size=4), max_size=4), st.randoms(use_true_random=False))
def test_key_lines_finds_every_key(content, random):
    lines = []
    expected = {}
    for table, keys in content.items():
        lines += ["# a comment = 1"] * random.randrange(3)
        lines.append(f"[{table}]  # {table}")
        expected[table] = len(lines)
        for key in keys:
            lines += [""] * random.randrange(2) + [f"  {key} = 1"]
            expected[f"{table}.{key}"] = len(lines)
    text = "\n".join(lines)
    tomllib.loads(text)
    assert key_lines(text) == expected
