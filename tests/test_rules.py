"""Conversion rules on made-up models: what they cut, both directions, and what they refuse."""

import itertools

import ml_dtypes
import numpy as np
import pytest

from infu_jax.convert import rules
from infu_jax.convert.errors import ConversionError
from infu_jax.convert.rules import Rule, conv, linear, norm, plan, same, under

DRAW = np.random.default_rng(0)


def model(d=6, heads=2, size=4, mlp=10, layers=3):
    """A made-up model with every kind of rule: our shapes, rules, and for each of their keys how it is made from ours by hand."""
    h, k = heads, size
    shapes = {
        "first.kernel": (d, d),
        "first.bias": (d,),
        "blocks.qkv.kernel": (layers, d, 3, h, k),
        "blocks.qkv.bias": (layers, 3, h, k),
        "blocks.out.kernel": (layers, h, k, d),
        "blocks.mlp_out.kernel": (layers, mlp, d),
        "blocks.both_q.kernel": (layers, d, 3, h, k),
        "blocks.both_m.kernel": (layers, d, mlp),
        "blocks.norm.scale": (layers, d),
        "blocks.norm.bias": (layers, d),
        "mod.kernel": (d, 2, d),
        "mod.bias": (2, d),
        "conv.kernel": (3, 2, 5, d),
        "conv.bias": (d,),
        "point.kernel": (d, 2, d),
        "flat.kernel": (2, 3, 5, d),
        "table": (7, d),
        "count": (),
        "none.kernel": (0, d, d),
    }
    table = [
        *linear("first", "a"),
        *under(
            "blocks.",
            "layers.{i}.",
            [
                *linear("qkv", ("q", "k", "v")),
                Rule(("out.kernel", "mlp_out.kernel"), ("proj.weight",), join="in"),
                *linear(("both_q", "both_m"), "one", bias=False),
                *norm("norm", "ln"),
            ],
        ),
        *linear(("mod[1]", "mod[0]"), "swapped"),
        *conv("conv", "c"),
        *linear("point", ("p.0", "p.1"), kind="conv1x1", bias=False),
        Rule(("flat.kernel",), ("f.weight",), "flatten_chw"),
        *same("table", "t"),
        *same("count", "n"),
        *linear("none", "nothing.{i}", bias=False),
    ]

    def theirs(ours):
        made = {
            "a.weight": ours["first.kernel"].T,
            "a.bias": ours["first.bias"],
            "swapped.weight": np.concatenate([ours["mod.kernel"][:, 1], ours["mod.kernel"][:, 0]], axis=1).T,
            "swapped.bias": np.concatenate([ours["mod.bias"][1], ours["mod.bias"][0]]),
            "c.weight": ours["conv.kernel"].transpose(3, 2, 0, 1),
            "c.bias": ours["conv.bias"],
            "p.0.weight": ours["point.kernel"][:, 0].T[..., None, None],
            "p.1.weight": ours["point.kernel"][:, 1].T[..., None, None],
            "f.weight": ours["flat.kernel"].transpose(3, 2, 0, 1).reshape(d, -1),
            "t": ours["table"],
            "n": ours["count"],
        }
        for i in range(layers):
            b = {name.removeprefix("blocks."): x[i] for name, x in ours.items() if name.startswith("blocks.")}
            for n, name in enumerate("qkv"):
                made[f"layers.{i}.{name}.weight"] = b["qkv.kernel"][:, n].reshape(d, h * k).T
                made[f"layers.{i}.{name}.bias"] = b["qkv.bias"][n].reshape(-1)
            made[f"layers.{i}.proj.weight"] = np.concatenate([b["out.kernel"].reshape(h * k, d), b["mlp_out.kernel"]]).T
            made[f"layers.{i}.one.weight"] = np.concatenate([b["both_q.kernel"].reshape(d, -1), b["both_m.kernel"]], axis=1).T
            made[f"layers.{i}.ln.weight"], made[f"layers.{i}.ln.bias"] = b["norm.scale"], b["norm.bias"]
        return made

    return shapes, table, theirs


SIZES = [{}, {"d": 1, "heads": 1, "size": 1, "mlp": 1, "layers": 1}, {"d": 8, "heads": 4, "size": 2, "mlp": 3, "layers": 2}, {"heads": 3, "layers": 1}]


@pytest.mark.parametrize("sizes", SIZES)
def test_both_directions(sizes):
    shapes, table, by_hand = model(**sizes)
    ours = {name: DRAW.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    theirs = by_hand(ours)
    made = plan(table, shapes)
    assert made.their_shapes == {key: x.shape for key, x in theirs.items()}
    for key, x in theirs.items():
        np.testing.assert_array_equal(made.read_theirs(key, ours, np.float32), x)
    for name, x in ours.items():
        np.testing.assert_array_equal(made.read_ours(name, None, theirs, np.float32), x)
    rules.check_file(made, {key: x.shape for key, x in theirs.items()})


@pytest.mark.parametrize("sizes", SIZES)
def test_a_box_is_the_whole_sliced(sizes):
    """As devices read their shards: even parts of every axis, and any other box."""
    shapes, table, by_hand = model(**sizes)
    ours = {name: DRAW.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    theirs, made = by_hand(ours), plan(table, shapes)
    for name, shape in shapes.items():
        for _ in range(8):
            box = tuple(tuple(int(n) for n in sorted(DRAW.integers(0, n + 1, 2))) for n in shape)
            np.testing.assert_array_equal(made.read_ours(name, box, theirs, np.float32), ours[name][tuple(slice(*b) for b in box)])
        for parts in itertools.product(*({1, 2} if n and n % 2 == 0 else {1} for n in shape)):
            steps = [n // p for n, p in zip(shape, parts)]
            for corner in itertools.product(*(range(p) for p in parts)):
                box = tuple((c * s, (c + 1) * s) for c, s in zip(corner, steps))
                np.testing.assert_array_equal(made.read_ours(name, box, theirs, np.float32), ours[name][tuple(slice(*b) for b in box)])


def test_pieces_are_views():
    """Nothing is copied, hence nothing read from a mapped file, before a shard is put together; and only what the shard needs."""
    shapes, table, by_hand = model()
    theirs = {key: np.ascontiguousarray(x) for key, x in by_hand({name: DRAW.standard_normal(shape) for name, shape in shapes.items()}).items()}
    for piece in plan(table, shapes).pieces:
        assert np.shares_memory(piece.to_ours(theirs[piece.theirs]), theirs[piece.theirs]), piece
        back = piece.to_theirs(piece.to_ours(theirs[piece.theirs]))
        np.testing.assert_array_equal(back, theirs[piece.theirs][tuple(slice(*b) for b in piece.their_box)])


def test_dtypes():
    made = plan(linear("x", ("q", "k"), bias=False), {"x.kernel": (2, 2, 3)})
    stored = lambda a, b: made.stored_dtype("x.kernel", {"q.weight": np.ones((3, 2), a), "k.weight": np.ones((3, 2), b)}, np.float32)  # noqa: E731
    bfloat16, float8 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn
    for a, b, expected in (
        (bfloat16, bfloat16, bfloat16),
        (bfloat16, np.float32, np.float32),
        (np.float16, np.float32, np.float32),
        (float8, float8, float8),
        (bfloat16, np.float16, np.float32),  # neither holds the other
        (bfloat16, float8, np.float32),
        (np.float64, bfloat16, np.float64),
    ):
        assert stored(a, b) == stored(b, a) == np.dtype(expected), (a, b)
    half = made.read_ours("x.kernel", None, {"q.weight": np.full((3, 2), 1 / 3, np.float32), "k.weight": np.ones((3, 2), np.float32)}, bfloat16)
    assert half.dtype == bfloat16 and float(half[0, 0, 0]) == float(bfloat16(1 / 3))
    assert plan(linear("x", "a.{i}", bias=False), {"x.kernel": (0, 2, 3)}).stored_dtype("x.kernel", {}, np.float32) == np.float32


SHAPES = {"a.kernel": (4, 6), "b.kernel": (4, 3), "s.kernel": (2, 4, 6), "t.kernel": (3, 4, 6), "v.bias": (5,)}


@pytest.mark.parametrize(
    ("table", "names", "message"),
    [
        ([], "a", "no conversion rule for 1 of our parameters: a.kernel"),
        (linear("a", "x", bias=False), "ab", "no conversion rule for 1 of our parameters: b.kernel"),
        (linear("a", "x", bias=False) + linear("a", "y", bias=False), "a", r"a.kernel \[4, 6\] is not covered exactly once .* \(48 of 24 elements\)"),
        (linear("a", "x", bias=False) + linear("b", "x", bias=False), "ab", r"x.weight \[6, 4\] is not covered exactly once"),
        (linear("c", "x", bias=False), "a", "a conversion rule names c.kernel, which the model does not have"),
        (linear("a", ("x", "y", "z", "w"), bias=False), "a", r"\('a.kernel',\): 6 rows do not divide into 4 tensors"),
        (linear(("a", "b"), "x", bias=False, join="in"), "ab", r"cannot lie side by side: sizes \[3, 6\] differ"),
        (linear(("s", "t"), "x.{i}", bias=False), "st", r"have different numbers of layers: \[2, 3\]"),
        (linear("a[2]", "x", bias=False), "a", r"a.kernel \[4, 6\] is not covered exactly once .* \(4 of 24 elements\)"),
        (linear("s", ("x", "y.{i}"), bias=False), "s", r"x.weight \[3, 4\] is not covered exactly once"),  # one tensor for two layers
        ([Rule(("v.bias",), ("x",), "vector"), Rule(("v.bias",), ("y",), "same")], "v", r"v.bias \[5\] is not covered exactly once"),
        (linear("s", ("x", "y", "z"), bias=False), "s", "is not a box"),  # 24 outputs of (4, 6) do not part into three
    ],
)
def test_tables_that_do_not_fit(table, names, message):
    with pytest.raises(ConversionError, match=message):
        plan(table, {name: shape for name, shape in SHAPES.items() if name[0] in names})


def test_a_hole_that_an_overlap_hides():
    """As many elements as there are, but some twice and some never."""
    boxes = [((0, 2), (0, 2)), ((1, 3), (1, 3)), ((3, 4), (0, 4)), ((0, 1), (2, 4)), ((2, 3), (0, 1)), ((0, 1), (0, 1))]
    with pytest.raises(ConversionError, match=r"x \[4, 4\] is not covered exactly once"):
        rules._check_tiling("x", (4, 4), boxes)
    with pytest.raises(ConversionError, match=r"\(16 of 16 elements\)"):
        rules._check_tiling("x", (4, 4), [((0, 2), (0, 4)), ((1, 3), (0, 4))])
    rules._check_tiling("x", (4, 4), [((0, 2), (0, 4)), ((2, 4), (0, 3)), ((2, 4), (3, 4))])


def test_check_file():
    shapes, table, by_hand = model()
    made = plan(table, shapes)
    found = dict(made.their_shapes)
    with pytest.raises(ConversionError, match=r"^model.bin does not fit its configuration: 2 missing: a.bias, t$"):
        rules.check_file(made, {k: s for k, s in found.items() if k not in ("t", "a.bias")}, source="model.bin")
    extra = {**found, "lora.up": (2, 2), "position_ids": (1, 9)}
    with pytest.raises(ConversionError, match=r"the file does not fit its configuration: 1 unexpected: lora.up$"):
        rules.check_file(made, extra, ignore=(r"position_ids",))
    rules.check_file(made, extra, ignore=(r"position_ids", r"lora\..*"))
    with pytest.raises(ConversionError, match="1 unexpected: position_ids"):
        rules.check_file(made, {**found, "position_ids": (9,)}, ignore=(r"position",))  # a whole name, not its beginning
    with pytest.raises(ConversionError, match=r"1 of another shape: t is \[7, 7\], expected \[7, 6\]$"):
        rules.check_file(made, {**found, "t": (7, 7)})
    with pytest.raises(ConversionError, match=r"25 missing: (\S+, ){8}\.\.\. \(17 more\); 1 unexpected: other"):
        rules.check_file(made, {"other": (1,), **dict(list(found.items())[25:])})


def test_shorthands():
    assert linear("x", ("p", "q"), join="in") == [
        Rule(("x.kernel",), ("p.weight", "q.weight"), "linear", "in"),
        Rule(("x.bias",), ("p.bias", "q.bias"), "vector"),
    ]
    assert linear(("m[1]", "m[0]"), "y", bias=False) == [Rule(("m.kernel[1]", "m.kernel[0]"), ("y.weight",))]
    assert norm("n", "m", scale_name="gamma", bias=False) == [Rule(("n.scale",), ("m.gamma",), "vector")]
    assert under("u.", "v.", same("a", "b")) == [Rule(("u.a",), ("v.b",), "same")]
