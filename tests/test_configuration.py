"""Recipes: each wrong field by its exact line and message."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from pydantic import Field, Tag, model_validator

from triptych.configuration import Composed, Config, Flat, UserFile, by_field, load, tagged
from triptych.errors import RecipeError


class Train(Config):
    steps: int = Field(gt=0)
    width: int = 64


class Base(Config):
    source: str | None = Field(default=None, alias="from")
    train: Train | None = None


class File(Config):
    kind: Literal["file"] = "file"
    file: str
    weight: float = 1.0


class People(Config):
    kind: Literal["people"] = "people"
    store: str


class Reward(Config):
    method: Literal["pairwise", "ensemble"] = "pairwise"
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-5
    members: Annotated[int, Field(ge=1)] | None = None
    ratio: float = Field(default=0.5, ge=0, lt=1)

    @model_validator(mode="after")
    def members_are_of_an_ensemble(self) -> "Reward":
        if self.members is not None and self.method != "ensemble":
            raise ValueError("members needs method: ensemble")
        return self


class Recipe(Config):
    name: str
    base: Base | str = Base()
    feedback: tuple[Annotated[File | People, Field(discriminator="kind")], ...] = ()
    prompts: list[str] = Field(default_factory=list)
    reward: Reward = Reward()
    bold: bool = False
    limits: dict[str, float] = Field(default_factory=dict)


def recipe(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refused(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load(path, Recipe, overrides)
    return str(caught.value).replace(str(path), path.name).splitlines()


GOOD = """\
name: "1.0"
base:
  from: some/model
feedback:
  - kind: file
    file: file
  - {kind: people, store: "sqlite:///a.db"}
prompts: [a.jsonl, 2024-01-01, no, 12:30]
reward:
  learning_rate: 1e-5   # text to PyYAML
"""


def test_a_recipe_is_read(tmp_path: Path) -> None:
    read = load(recipe(tmp_path, GOOD), Recipe)
    assert read == Recipe(
        name="1.0",
        base=Base.model_validate({"from": "some/model"}),
        feedback=(File(file="file"), People(store="sqlite:///a.db")),
        prompts=["a.jsonl", "2024-01-01", "no", "12:30"],
        reward=Reward(learning_rate=0.00001),
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        ("-2.5e+3", -2500.0),
        (".5", 0.5),
        ("3", 3.0),
        ("1_000", 1000.0),
        ("1.", 1.0),
        ("0x10", 16.0),
        (".inf", float("inf")),
    ],
)
def test_numbers_are_numbers(tmp_path: Path, text: str, value: object) -> None:
    class One(Config):
        number: float | str

    assert load(recipe(tmp_path, f"number: {text}"), One).number == value
    assert load(recipe(tmp_path, "number: 0"), One, [f"number={text}"]).number == value


WRONG = [
    (
        "name: a\nreward:\n  method: pairwise\n\n  learning_rat: 1\n",
        ["recipe.yaml:5: reward.learning_rat: unknown field; did you mean learning_rate?"],
    ),
    (
        "name: a\nxyz: 1\n",
        [
            "recipe.yaml:2: xyz: unknown field; the fields here are "
            "base, bold, feedback, limits, name, prompts, reward"
        ],
    ),
    (
        "name: a\nreward:\n  learning_rate: fast\n",
        ["recipe.yaml:3: reward.learning_rate: must be a number greater than 0 and at most 1, got 'fast'"],
    ),
    (
        "name: a\nreward: {learning_rate: -1, ratio: 1}\n",
        [
            "recipe.yaml:2: reward.learning_rate: must be a number greater than 0 and at most 1, got -1",
            "recipe.yaml:2: reward.ratio: must be a number at least 0 and less than 1, got 1",
        ],
    ),
    (
        "name: a\nreward:\n  members: 0\n",
        ["recipe.yaml:3: reward.members: must be a whole number at least 1, got 0"],
    ),
    (
        "name: a\nreward:\n  members: 2\n",
        ["recipe.yaml:2: reward: members needs method: ensemble"],
    ),
    (
        "name: a\nreward: {method: pairwize}\n",
        [
            "recipe.yaml:2: reward.method: "
            "must be one of pairwise, ensemble, got 'pairwize'; did you mean pairwise?"
        ],
    ),
    ("name: a\nreward: fast\n", ["recipe.yaml:2: reward: must be a mapping of fields, got 'fast'"]),
    ("name: a\nreward:\n", ["recipe.yaml:2: reward: must be a mapping of fields, got nothing"]),
    ("bold: true\n", ["recipe.yaml: name: missing"]),
    ("name: 1.0\n", ["recipe.yaml:1: name: must be text, got 1.0; put it in quotes"]),
    ("name: a\nbold: perhaps\n", ["recipe.yaml:2: bold: must be true or false, got 'perhaps'"]),
    ("name: a\nprompts: a.jsonl\n", ["recipe.yaml:2: prompts: must be a list, got 'a.jsonl'"]),
    ("name: a\nprompts:\n  - a\n  - [b]\n", ["recipe.yaml:4: prompts.1: must be text, got a list"]),
    (
        "name: a\nlimits:\n  memory: 1\n  time: long\n",
        ["recipe.yaml:4: limits.time: must be a number, got 'long'"],
    ),
    (
        "name: a\nfeedback:\n- kind: file\n  file: file\n  wait: 1\n",
        ["recipe.yaml:5: feedback.0.wait: unknown field; did you mean weight?"],
    ),
    (
        "name: a\nfeedback:\n- kind: file\n  file: file\n- kind: people\n  stor: x\n",
        [
            "recipe.yaml:5: feedback.1.store: missing",
            "recipe.yaml:6: feedback.1.stor: unknown field; did you mean store?",
        ],
    ),
    (
        "name: a\nfeedback:\n- kind: file\n  file:\n    file: x\n",
        ["recipe.yaml:4: feedback.0.file: must be text, got a mapping"],
    ),
    (
        "name: a\nfeedback:\n- {kind: peeple}\n",
        ["recipe.yaml:3: feedback.0: kind must be one of file, people, got 'peeple'; did you mean people?"],
    ),
    (
        "name: a\nfeedback:\n- {file: x}\n",
        ["recipe.yaml:3: feedback.0: missing kind, which says of what kind it is"],
    ),
    (
        "name: a\nbase:\n  train:\n    steps: 0\n",
        ["recipe.yaml:4: base.train.steps: must be a whole number greater than 0, got 0"],
    ),
    (
        "name: a\nbase:\n  train:\n    stepps: 3\n",
        [
            "recipe.yaml:3: base.train.steps: missing",
            "recipe.yaml:4: base.train.stepps: unknown field; did you mean steps?",
        ],
    ),
    ("name: a\nbase: {form: x}\n", ["recipe.yaml:2: base.form: unknown field; did you mean from?"]),
    ("name: a\nbase: 3\n", ["recipe.yaml:2: base: must be a mapping of fields or text, got 3"]),
    (
        "name: a\nreward:\n  ratio: 0.1\nname: b\nreward:\n  ratio: x\n",
        [
            "recipe.yaml:4: name: given twice, first on line 1",
            "recipe.yaml:5: reward: given twice, first on line 2",
            "recipe.yaml:6: reward.ratio: must be a number at least 0 and less than 1, got 'x'",
        ],
    ),
    ("name: a\nbase: &b\n  train: *b\n", ["recipe.yaml:3: base.train: an alias inside what it stands for"]),
    ("", ["recipe.yaml: empty: expected fields, as in `name: my-model`; `triptych init` writes a recipe"]),
    ("# nothing\n", ["recipe.yaml: empty: expected fields, as in `name: my-model`; `triptych init` writes a recipe"]),
    ("- name\n", ["recipe.yaml:1: must hold fields, as in `name: my-model`"]),
    (
        "name: a\nreward: {ratio: 1\nbold: true\n",
        [
            "recipe.yaml:3: not YAML: while parsing a flow mapping, "
            "expected ',' or '}', but got ':' (column 5)"
        ],
    ),
    (
        "name: a\n\tbold: true\n",
        [
            "recipe.yaml:2: not YAML: while scanning for the next token, "
            "found character '\\t' that cannot start any token (column 1)"
        ],
    ),
    (
        "name: a\n---\nname: b\n",
        [
            "recipe.yaml:2: not YAML: expected a single document in the stream, "
            "but found another document (column 1)"
        ],
    ),
    ("name: !!python/object:os.system a\n", None),
]


@pytest.mark.parametrize(("text", "messages"), WRONG, ids=[text for text, _ in WRONG])
def test_a_wrong_field_is_named_with_its_line(tmp_path: Path, text: str, messages: list[str] | None) -> None:
    found = refused(recipe(tmp_path, text))
    if messages is None:
        assert found[0].startswith("recipe.yaml:1: name: cannot be read: ")
    else:
        assert found == messages


class Forms(Config):
    """Unions without tags: the nearest member complains."""

    feedback: list[File | People | str] = Field(default_factory=list)
    rounds: int | Literal["auto"] = 1
    where: str | Path | None = None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("feedback: [{store: 3}]", "feedback.0.store: must be text, got 3; put it in quotes"),
        (
            "feedback: [{store: x, file: y}]",
            "feedback.0.store: unknown field; it does not go with the other fields here, but with `kind: people`; "
            "feedback.0.file: unknown field; it does not go with the other fields here, but with `kind: file`",
        ),
        ("feedback: [3]", "feedback.0: must be a mapping of fields or text, got 3"),
        ("rounds: many", "rounds: must be a whole number or auto, got 'many'"),
        ("rounds: [1]", "rounds: must be a whole number or auto, got a list"),
        ("where: {a: 1}", "where: must be text or a path, got a mapping"),
    ],
)
def test_of_a_union_the_nearest_member_complains(tmp_path: Path, text: str, message: str) -> None:
    path = recipe(tmp_path, text)
    with pytest.raises(RecipeError) as caught:
        load(path, Forms)
    assert str(caught.value).replace(f"{path}:1: ", "").replace("\n", "; ") == message


class Length(Config):
    """How long a training is."""

    steps: int = Field(default=10, gt=0)
    warmup: int | Literal["auto"] = "auto"


class Sgd(Config):
    """A method."""

    method: Literal["sgd"] = "sgd"
    momentum: float = Field(default=0.9, lt=1)


class Adam(Config):
    """Another."""

    method: Literal["adam"] = "adam"
    betas: tuple[float, float] = (0.9, 0.99)

    @model_validator(mode="after")
    def rise(self) -> "Adam":
        if self.betas[0] > self.betas[1]:
            raise ValueError("betas must rise")
        return self


class Stage(Composed):
    """A stage's settings and its files."""

    length: Flat[Length] = Length()
    method: Flat[Annotated[Sgd | Adam, Field(discriminator="method"), tagged("method", "sgd")]] = Sgd()
    data: tuple[UserFile, ...] = ()


class Sold(Config):
    sold: UserFile


class Rented(Composed):
    rented: str
    length: Flat[Length] = Length()


class Stages(Config):
    """Settings in settings."""

    stages: dict[str, Stage] = Field(default_factory=dict)
    cars: tuple[
        Annotated[Annotated[Sold, Tag("sold")] | Annotated[Rented, Tag("rented")], by_field("sold", "rented")], ...
    ] = ()


def test_composed_settings_are_flat_in_a_recipe_and_nested_in_python(tmp_path: Path) -> None:
    text = "stages:\n  a: {data: [x, ~/y], steps: 3, method: adam, betas: [0, 1]}\n  b: {}\n"
    read = load(recipe(tmp_path, f"{text}cars: [{{rented: x, steps: 4}}]\n"), Stages)
    assert read.stages["a"] == Stage(
        length=Length(steps=3), method=Adam(betas=(0, 1)),
        data=(UserFile("x", tmp_path / "x"), UserFile("~/y", Path.home() / "y")),
    )
    assert read.stages["b"] == Stage()
    assert read.cars == (Rented(rented="x", length=Length(steps=4)),)
    written = {"steps": 3, "warmup": "auto", "method": "adam", "betas": [0, 1], "data": ["x", "~/y"]}
    assert read.model_dump(mode="json")["stages"]["a"] == written
    assert list(read.model_dump()["stages"]["a"]) == list(written)
    again = recipe(tmp_path, yaml.safe_dump(read.model_dump(mode="json")))
    assert load(again, Stages) == read
    assert Stages.model_validate({"cars": [{"sold": "x"}]}).cars == (Sold(sold=UserFile("x", Path("x"))),)


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("stages: {a: {steps: 0}}", ["stages.a.steps: must be a whole number greater than 0, got 0"]),
        ("stages: {a: {warmup: x}}", ["stages.a.warmup: must be a whole number or auto, got 'x'"]),
        ("stages: {a: {step: 0}}", ["stages.a.step: unknown field; did you mean steps?"]),
        ("stages: {a: {dat: x}}", ["stages.a.dat: unknown field; did you mean data?"]),
        ("stages: {a: {momentom: 0}}", ["stages.a.momentom: unknown field; did you mean momentum?"]),
        ("stages: {a: {length: 3}}", [
            "stages.a.length: unknown field; the fields here are betas, data, method, momentum, steps, warmup"
        ]),
        ("stages: {a: {betas: [0, 1]}}", ["stages.a.betas: unknown field; it does not go with the other fields here, "
                                          "but with `method: adam`"]),
        ("stages: {a: {method: adam, betas: [x, 1]}}", ["stages.a.betas.0: must be a number, got 'x'"]),
        ("stages: {a: {method: adam, betas: [1, 0]}}", ["stages.a: betas must rise"]),
        ("stages: {a: {method: adm}}", ["stages.a: method must be one of sgd, adam, got 'adm'; did you mean adam?"]),
        ("stages: {a: [sgd]}", ["stages.a: must be a mapping of fields, got a list"]),
        ("stages: {a: {data: [x, 3], momentum: 1}}", [
            "stages.a.data.1: must be text, got 3; put it in quotes",
            "stages.a.momentum: must be a number less than 1, got 1",
        ]),
        ("cars: [{soled: x}]", ["cars.0: missing one of sold, rented, which says of what kind it is"]),
        ("cars: [x]", ["cars.0: must be a mapping of fields, got 'x'"]),
        ("cars: [{rented: [x]}]", ["cars.0.rented: must be text, got a list"]),
        ("cars: [{sold: x, steps: 3}]", ["cars.0.steps: unknown field; it does not go with the other fields here"]),
    ],
)
def test_a_wrong_field_of_composed_settings_is_named_as_the_recipe_has_it(
    tmp_path: Path, text: str, messages: list[str]
) -> None:
    path = recipe(tmp_path, text)
    with pytest.raises(RecipeError) as caught:
        load(path, Stages)
    assert sorted(str(caught.value).replace(f"{path}:1: ", "").splitlines()) == sorted(messages)


def test_no_name_in_a_recipe_means_two_fields() -> None:
    with pytest.raises(AssertionError, match="Twice: a name in a recipe means one field"):

        class Twice(Composed):
            length: Flat[Length] = Length()
            steps: int = 3


def test_all_problems_come_in_the_order_of_the_file(tmp_path: Path) -> None:
    path = recipe(tmp_path, "nam: a\nreward:\n  ratio: x\nprompts:\n- 1\nbold: 7\n")
    assert refused(path, "reward.learning_rate=0", "feedback.0.file=x") == [
        "recipe.yaml: name: missing",
        "recipe.yaml:1: nam: unknown field; did you mean name?",
        "recipe.yaml:3: reward.ratio: must be a number at least 0 and less than 1, got 'x'",
        "recipe.yaml:5: prompts.0: must be text, got 1; put it in quotes",
        "recipe.yaml:6: bold: must be true or false, got 7",
        "--set reward.learning_rate=0: reward.learning_rate: "
        "must be a number greater than 0 and at most 1, got 0",
        "--set feedback.0.file=x: feedback: must be a list, got a mapping",
    ]


def test_overrides_set_values(tmp_path: Path) -> None:
    read = load(
        recipe(tmp_path, GOOD),
        Recipe,
        [
            "name=b=c",
            "reward.learning_rate=2e-5",
            "feedback.0.file=other",
            "prompts=[x, y]",
            "prompts.1=z",
            "base.from=",
            "base.train.steps=3",
            "limits.time=4",
        ],
    )
    assert read.name == "b=c"
    assert read.reward.learning_rate == 2e-5
    assert read.feedback[0] == File(file="other")
    assert read.prompts == ["x", "z"]
    assert read.base == Base(train=Train(steps=3))
    assert read.limits == {"time": 4.0}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("reward.learning_rat=1", "reward.learning_rat: unknown field; did you mean learning_rate?"),
        ("rewrd.ratio=1", "rewrd: unknown field; did you mean reward?"),
        ("reward.ratio=high", "reward.ratio: must be a number at least 0 and less than 1, got 'high'"),
        ("reward={ratio: 2}", "reward.ratio: must be a number at least 0 and less than 1, got 2"),
        ("feedback.2.file=x", "feedback: has entries 0 to 1, no 2"),
        ("feedback.first.file=x", "feedback: has entries 0 to 1, no first"),
        ("name.first=x", "name: is '1.0' and has no field first"),
        ("name", "expected a field and its value, as in reward.learning_rate=1e-5"),
        ("=x", "expected a field and its value, as in reward.learning_rate=1e-5"),
        ("reward..ratio=1", "expected a field and its value, as in reward.learning_rate=1e-5"),
    ],
)
def test_an_override_that_does_not_fit_is_named(tmp_path: Path, override: str, message: str) -> None:
    assert refused(recipe(tmp_path, GOOD), override) == [f"--set {override}: {message}"]


def test_an_override_that_is_not_yaml_is_named(tmp_path: Path) -> None:
    (message,) = refused(recipe(tmp_path, GOOD), "prompts=[a")
    assert message.startswith("--set prompts=[a: the value is not YAML: while parsing a flow sequence")


def test_an_override_mends_what_the_file_has_wrong(tmp_path: Path) -> None:
    assert (
        load(recipe(tmp_path, "name: a\nreward: {ratio: x}\n"), Recipe, ["reward.ratio=0.1"]).reward.ratio
        == 0.1
    )


def test_merged_and_aliased_values_are_read(tmp_path: Path) -> None:
    text = "name: a\nfeedback:\n- &first\n  kind: file\n  file: x\n- {<<: *first, weight: 2}\n- *first\n"
    first = File(file="x")
    assert load(recipe(tmp_path, text), Recipe).feedback == (first, File(file="x", weight=2), first)


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    path = recipe(tmp_path, "name: a\n")
    with pytest.raises(RecipeError) as caught:
        load(tmp_path / "recipes.yaml", Recipe)
    assert str(caught.value) == f"{tmp_path / 'recipes.yaml'}: no such file; did you mean {path}?"
    with pytest.raises(RecipeError, match=r"none/a.yaml: no such file$"):
        load(tmp_path / "none" / "a.yaml", Recipe)
    with pytest.raises(RecipeError, match="is a folder: expected a recipe, a YAML file"):
        load(tmp_path, Recipe)
    path.write_bytes(b"name: a\n# caf\xe9\n")
    assert refused(path) == ["recipe.yaml:2: not UTF-8: byte 0xe9; save the file as UTF-8"]


def test_configs_are_frozen_and_closed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Reward().ratio = 0.1
    with pytest.raises(ValueError, match="extra"):
        Reward.model_validate({"rate": 1})


def test_starting_up_imports_nothing_heavy() -> None:
    code = (
        "import sys, triptych.configuration\n"
        "import triptych.data.files, triptych.data.splits, triptych.data.template, triptych.data.lengths\n"
        "print(*{'torch', 'transformers', 'datasets', 'pyarrow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


NESTED = "a: &a0 [x, x, x]\n" + "".join(
    f"b{n}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(9)
)
MERGED = "a: &a0 {x: 1}\n" + "".join(
    f"b{n}: &a{n + 1} {{<<: [{', '.join([f'*a{n}'] * 9)}], k{n}: 1}}\n" for n in range(9)
)


@pytest.mark.attack("data files")
@pytest.mark.parametrize(("content", "message"), [
    (NESTED, "has more than 20,000 values, those that aliases repeat included"),
    (MERGED, "unknown field"),
    ("name: " + "[" * 5000, "holds values inside values without end"),
    ("name: " + "{a: " * 5000, "holds values inside values without end"),
    ("# " + "a" * (1 << 20), "is larger than 1 MiB, which no recipe is"),
    ("name: !!int ''", "cannot be read as int"),
    ("name: !!bool x", "cannot be read as bool"),
    ("name: !!timestamp x", "cannot be read as timestamp"),
    ("name: " + "9" * 5000, "cannot be read: Exceeds the limit"),
    ("name: !!python/object/apply:os.system [ls]", "name: must be text"),
    ("name: a\0b", "not YAML"),
    ("name: {<<: 3}", "expected a mapping or list of mappings for merging"),
])
def test_a_recipe_that_grows_without_bounds_is_refused(tmp_path: Path, content: str, message: str) -> None:
    began = time.process_time()
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    with pytest.raises(RecipeError, match=re.escape(message)):
        load(path, Named)
    assert time.process_time() - began < 10


class Named(Config):
    """A recipe with a name."""

    name: str


@pytest.mark.attack("data files")
@pytest.mark.parametrize("override", ["name=" + "[" * 5000, "name=!!int ''", "name=!!bool x", "name=" + "9" * 5000])
def test_an_override_that_cannot_be_read_is_named(tmp_path: Path, override: str) -> None:
    (tmp_path / "recipe.yaml").write_text("name: a")
    with pytest.raises(RecipeError, match="--set name="):
        load(tmp_path / "recipe.yaml", Named, [override])


@pytest.mark.attack("data files")
def test_a_recipe_that_is_no_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "recipe.yaml")
    with pytest.raises(RecipeError, match="is a FIFO: expected a recipe"):
        load(tmp_path / "recipe.yaml", Named)
    with pytest.raises(RecipeError, match="is a device: expected a recipe"):
        load("/dev/zero", Named)
