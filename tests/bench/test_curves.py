import math

import pytest

from regard.bench.curves import crossover, exponent

K = 1024


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_is_its_power(power):
    found = exponent({length * K: 3e-4 * length**power for length in (1, 4, 16)})
    assert found.value == pytest.approx(power, abs=1e-6)
    assert found.lengths == (K, 4 * K, 16 * K)


def test_the_exponent_is_that_of_the_largest_lengths():
    seconds = {length: 5.0 + length**2 * 1e-2 for length in (4, 1000, 2000, 4000)}
    assert exponent(seconds).lengths == (1000, 2000, 4000)
    assert exponent(seconds).value == pytest.approx(2.0, abs=1e-2)


def test_the_line_is_the_one_of_least_squares():
    import numpy

    seconds = {100: 1.0, 300: 7.0, 1000: 9.0}
    slope, _ = numpy.polyfit(numpy.log(list(seconds)), numpy.log(list(seconds.values())), 1)
    assert exponent(seconds).value == pytest.approx(slope, abs=1e-6)


def test_one_length_has_no_exponent():
    assert exponent({}) is None
    assert exponent({K: 1.0}) is None
    assert exponent({K: 1.0, 2 * K: 2.0}).value == pytest.approx(1.0)


def test_curves_that_are_powers_cross_where_the_powers_do():
    lengths = [K, 4 * K, 16 * K]
    linear, dense = {n: 3e-3 * n for n in lengths}, {n: 1e-6 * n**2 for n in lengths}
    found = crossover(linear, dense)
    assert found.length == pytest.approx(3000)
    assert found.words == "3000"


def test_outside_the_measured_lengths_it_is_told_in_words():
    lengths = [K, 16 * K]
    dense = dict.fromkeys(lengths, 1.0)
    assert crossover(dict.fromkeys(lengths, 0.5), dense).words == "below 1k"
    assert crossover(dict.fromkeys(lengths, 2.0), dense).words == "not up to 16k"
    assert crossover(dict.fromkeys(lengths, 1.0), dense).words == "not up to 16k"  # as fast is not faster
    assert crossover(dict.fromkeys(lengths, 2.0), dense).length is None


def test_only_common_lengths_are_compared():
    dense = {K: 1.0, 2 * K: 4.0}
    assert crossover({K: 2.0, 2 * K: 4.0, 4 * K: 8.0}, dense).words == "not up to 2k"
    assert crossover({2 * K: 2.0}, dense).words == "below 2k"
    assert crossover({8 * K: 2.0}, dense).words == ""


def test_the_last_crossing_counts():
    dense = dict.fromkeys([1, 10, 100, 1000], 1.0)
    found = crossover({1: 0.5, 10: 2.0, 100: 4.0, 1000: 0.25}, dense)
    assert found.length == pytest.approx(100 * math.sqrt(10))
    assert crossover({1: 0.5, 10: 0.5, 100: 0.5, 1000: 2.0}, dense).words == "not up to 1000"
