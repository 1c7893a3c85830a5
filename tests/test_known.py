"""What training knows of a symbol is what the nodes know of it: contexts and expectations, integer for integer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="pip install 'latent-downlink[training]'")

from downlink import context, dct  # noqa: E402
from downlink.latent import TileCode, TileSymbols, expect_tile, running_energy  # noqa: E402
from downlink.prior import FEATURES, GRAPHS, Context, Features, Prior  # noqa: E402
from tests import priors  # noqa: E402
from training import known as knowns  # noqa: E402
from training.config import Model  # noqa: E402
from training.integer import binomial  # noqa: E402
from training.known import Symbols, known, predict  # noqa: E402
from training.model import PlaneCodec, known_channels, symbol_channels  # noqa: E402
from training.objective import root_forward, root_inverse  # noqa: E402

SMALL = Model(hyper_latents=2, hyper_width=6, prior_widths=(8, 8, 8, 8), prior_features=3, decoder_width=8)


@pytest.fixture(scope="module")
def codec() -> PlaneCodec:
    torch.manual_seed(1)
    return PlaneCodec(SMALL).double().eval()


def tensor(array: np.ndarray) -> Any:
    return torch.from_numpy(np.ascontiguousarray(array)).double()


def made(counts: tuple[int, ...], seed: int, height: int = 8, width: int = 12) -> tuple[TileCode, TileSymbols]:
    code = priors.code(counts, 1, seed)
    symbols = priors.symbols(code, height, width, seed)
    return code, symbols


def known_of(codec: PlaneCodec, code: TileCode, symbols: TileSymbols) -> knowns.Known:
    planes = code.planes
    turn = np.zeros((1, planes, planes))
    turn[0, : code.counts[1], : code.counts[0]] = code.turn
    live = [torch.arange(count) for count in code.counts]
    return known(codec, Symbols(tensor(symbols.root), tensor(symbols.latent)), planes, tensor(turn), live)


@settings(max_examples=25, deadline=None)
@given(
    counts=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(0, 4), st.integers(0, 4)),
    seed=st.integers(0, 60),
)
def test_inputs_are_those_of_the_nodes(codec: PlaneCodec, counts: tuple[int, ...], seed: int):
    """All but features and levels, which both add behind them; the nodes' as downlink.latent makes them."""
    code, symbols = made(counts, seed)
    have = known_of(codec, code, symbols)
    none = Features(*(np.zeros((code.planes, 0, *sides), np.float32) for sides in ((2, 3), (8, 12))))
    fall = context.slopes(dct.root_means(symbols.root))
    own = np.abs(context.compand(symbols.latent))
    own[:, 0] = context.steepness(fall)
    for number, count in enumerate(counts):
        if not count:
            assert have.inputs[number].shape[0] == 0
            continue
        at = dct.subband(number)
        magnitudes = own[:count, at] if number else np.abs(context.compand(symbols.root[:count]))
        values = (symbols.root[:count, 0], context.turned(fall, code.turn), None, None)[number]
        made_context = Context(number, running_energy(magnitudes), magnitudes, own[:count, : at.start], values)
        wanted, predicted = Prior(priors.run).known(none.of(np.s_[:count]), code.levels[:count, :0], made_context)
        assert have.inputs[number].shape == wanted.shape
        assert (have.inputs[number].numpy() == wanted).all()
        if number == 0:
            assert (have.near.numpy() == predicted).all()
        if number == 1:
            assert (-have.slope.numpy() == predicted).all()


@pytest.mark.parametrize("counts", [(3, 3, 3, 3), (4, 2, 1, 0), (1, 1, 1, 1)])
def test_expectations_are_those_of_the_nodes(codec: PlaneCodec, counts: tuple[int, ...]):
    """The same networks, called by training with batches and by downlink.prior through `run`."""
    code, symbols = made(counts, 11)

    def run(name: str, inputs: dict[str, np.ndarray]) -> list[Any]:
        with torch.no_grad():
            if name == FEATURES:
                return [part.numpy() for part in codec.prior.features(tensor(inputs["hyper"]))]
            return [codec.prior.subbands[GRAPHS.index(name)](tensor(inputs["known"])).numpy()]

    with torch.no_grad():
        have = known_of(codec, code, symbols)
        level = tensor(code.levels.astype(float))[:, :, None, None]
        live = [torch.arange(count) for count in counts]
        found = predict(codec, tensor(symbols.hyper), have, level, live)
    varied = 0
    for one, two in zip(expect_tile(code, symbols, Prior(run)), found, strict=True):
        assert (one.index == two[0].numpy()).all()
        assert (one.mean == two[1].numpy()).all()
        varied += len(np.unique(one.index))
    assert varied > 20


def test_crops_of_a_batch_do_not_see_each_other(codec: PlaneCodec):
    code, symbols = made((2, 2, 2, 2), 3)
    _, other = made((2, 2, 2, 2), 4)
    turn = tensor(code.turn[None]).expand(2, 2, 2)
    both = Symbols(*(torch.cat([tensor(getattr(s, name)) for s in (symbols, other)]) for name in ("root", "latent")))
    have = known(codec, both, 2, turn, [torch.arange(4)] * 4)
    alone = known_of(codec, code, symbols)
    for one, two in zip(have.inputs, alone.inputs, strict=True):
        assert (one[:2] == two).all()


@pytest.mark.parametrize("number", range(4))
def test_networks_have_as_many_inputs_as_they_are_given(codec: PlaneCodec, number: int):
    code, symbols = made((2, 2, 2, 2), 5)
    given_ = known_of(codec, code, symbols).inputs[number].shape[1]
    features = SMALL.hyper_width if number == 0 else SMALL.prior_features
    assert known_channels(SMALL, number) == given_ + features + 4
    assert symbol_channels(number) == priors.coded_channels(number)


def test_pieces_are_those_of_the_nodes():
    random = np.random.default_rng(0)
    magnitudes = random.integers(0, 128, (2, 3, 5, 6)).astype(np.int16)
    assert (binomial(tensor(magnitudes)).numpy() == context.smooth(magnitudes)).all()
    assert (knowns.around(tensor(magnitudes)).numpy() == context.around(magnitudes)).all()
    root = random.integers(-(2**24), 2**24, (2, 16, 2, 3)).astype(np.int32)
    assert (knowns.root_means(tensor(root))[:, 0].numpy() == dct.root_means(root)).all()
    means = random.normal(size=(2, 8, 12)).astype(np.float32)
    assert np.allclose(root_forward(torch.from_numpy(means)[:, None]).numpy(), dct.root_forward(means), atol=1e-5)
    channels = dct.root_forward(means)
    assert np.allclose(root_inverse(torch.from_numpy(channels))[:, 0].numpy(), dct.root_inverse(channels), atol=1e-5)


def test_companding_is_the_nodes(codec: PlaneCodec):
    values = np.array([0, 1, -1, 7, -300, 65535, 65536, -(2**24), 2**24], np.int32)
    assert (codec.compand(tensor(values)).numpy() == context.compand(values)).all()
