"""torch.export and ONNX files of every registered mechanism, held to other sizes than the traced one."""

import pytest
from torch.testing import assert_close

from regard.integrations.onnx import compare, translate
from tests.contract.cases import LAYERS, first_of_each
from tests.contract.graphs import Graph, answers

FIXED = [case for case in LAYERS if not case.card.dynamic]
DAILY = ("local", "linear_transformer", "luong", "criss_cross")
"""Mechanisms whose ONNX files are made every day: an operator of each kind, a pair, a graph of one size."""


def of_files(wanted):
    """Every sample with this claim; those not made daily are slow."""
    for case in LAYERS:
        if case.card.onnx == wanted:
            daily = case.index == 0 and case.name in DAILY
            yield pytest.param(case, marks=() if daily else pytest.mark.slow, id=str(case))


def check(graph, program):
    for inputs in graph.runs():
        for found, expected in zip(answers(program(**inputs)), answers(graph.module(**inputs)), strict=True):
            # a graph may take another way to the same sum
            assert_close(found, expected, rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize("case", [*first_of_each([case for case in LAYERS if case.card.export])])
def test_an_exported_graph_computes_the_same_at_other_sizes(case):
    graph = Graph(case)
    check(graph, graph.program.module())


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in LAYERS if case.card.export], ids=str)
def test_an_exported_graph_without_masks_computes_the_same(case):
    graph = Graph(case, masked=False)
    check(graph, graph.program.module())


@pytest.mark.parametrize("case", [*first_of_each(FIXED)])
def test_a_graph_of_one_size_is_no_more_than_that(case):
    """A card is not too modest: with dynamic sizes the export, or the graph at another size, raises."""
    graph = Graph(case)
    with pytest.raises(Exception, match=r"Guard failed|Constraints violated|specialized"):
        check_other_size(graph)


def check_other_size(graph):
    graph.export(dynamic=True).module()(**graph.inputs(1))


def check_file(graph):
    written = translate(graph.program, graph.inputs(0), graph.labels())
    for inputs in graph.runs():
        compare(written, graph.module, inputs)


@pytest.mark.parametrize("case", [*of_files(True)])
def test_an_onnx_file_computes_the_same_at_other_sizes(case):
    check_file(Graph(case))


@pytest.mark.slow
@pytest.mark.parametrize("case", [*of_files(False)])
def test_what_has_no_onnx_file_has_none(case):
    """A card is not too modest here either."""
    with pytest.raises(Exception):  # noqa: B017  torch's, onnxruntime's or ours
        check_file(Graph(case))
