"""torch.export of every registered mechanism, held to other sizes than the traced one."""

import pytest
from torch.testing import assert_close

from tests.contract.cases import LAYERS, first_of_each
from tests.contract.graphs import Graph, answers

FIXED = [case for case in LAYERS if not case.card.dynamic]


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
