"""The block pool by hand: who holds what, what is found again, and what goes first."""

from __future__ import annotations

import pytest
from integrity import check_pool

from mini_vllm.engine.block_pool import BlockPool, block_hash, salt_hash

A, B, C, D = (block_hash(salt_hash(""), [token]) for token in range(4))


def test_nothing_is_taken_when_there_is_not_enough() -> None:
    pool = BlockPool(4)
    assert pool.allocate(2) == [0, 1]
    assert pool.allocate(3) is None
    assert pool.num_free == 2


def test_a_block_returned_twice_is_refused() -> None:
    pool = BlockPool(4)
    pool.allocate(2)
    pool.free([0])
    with pytest.raises(ValueError, match="block 0 is freed and is already free; 3 of 4 are free"):
        pool.free([0])


def test_a_shared_block_is_free_when_its_last_holder_lets_go() -> None:
    pool = BlockPool(3)
    [block] = pool.allocate(1)
    pool.cache(block, A)
    assert pool.find([A, B]) == [block]
    assert pool.allocate(1, shared=[block]) == [1]
    pool.free([block])
    assert pool.num_free == 1, "the second holder has it still"
    pool.free([block])
    assert pool.num_free == 2
    assert pool.find([A]) == [block], "free, and known"


def test_a_prefix_is_found_up_to_its_first_gap() -> None:
    pool = BlockPool(4)
    blocks = pool.allocate(3)
    for block, name in zip(blocks, (A, C, D), strict=True):
        pool.cache(block, name)
    assert pool.find([A, B, C, D]) == [blocks[0]]


def test_the_one_let_go_longest_ago_is_evicted_first_and_nameless_ones_before_it() -> None:
    pool = BlockPool(4)
    a, b, c, nameless = pool.allocate(4)
    for block, name in ((a, A), (b, B), (c, C)):
        pool.cache(block, name)
    for block in (b, a, nameless, c):
        pool.free([block])
    assert pool.allocate(1) == [nameless]
    assert pool.evictions == 0
    assert pool.allocate(0, shared=pool.find([A])) == [], "used again, so no longer let go"
    assert pool.allocate(1) == [b]
    assert (pool.evictions, pool.find([B]), pool.find([C])) == (1, [], [c])


def test_the_end_of_a_prefix_goes_before_its_beginning() -> None:
    pool = BlockPool(3)
    blocks = pool.allocate(3)
    for block, name in zip(blocks, (A, B, C), strict=True):
        pool.cache(block, name)
    pool.free(blocks)
    pool.allocate(2)
    assert pool.find([A, B, C]) == [blocks[0]]


def test_hits_that_nobody_holds_are_not_counted_as_room() -> None:
    pool = BlockPool(3)
    blocks = pool.allocate(2)
    pool.cache(blocks[0], A)
    pool.free(blocks)
    assert pool.allocate(3, shared=[blocks[0]]) is None, "three are free, and one of them is the shared one"
    assert pool.num_free == 3
    assert pool.allocate(2, shared=[blocks[0]]) is not None


def test_a_hash_names_everything_up_to_its_end_and_the_salt() -> None:
    def chain(salt: str, *blocks: list[int]) -> bytes:
        parent = salt_hash(salt)
        for block in blocks:
            parent = block_hash(parent, block)
        return parent

    assert chain("", [1, 2], [3, 4]) == chain("", [1, 2], [3, 4])
    names = {
        chain("", [1, 2], [3, 4]),
        chain("", [9, 2], [3, 4]),
        chain("", [1, 2], [3, 5]),
        chain("", [3, 4]),
        chain("lora 7", [1, 2], [3, 4]),
        chain("", [1, 2, 3, 4]),
    }
    assert len(names) == 6


def test_two_blocks_with_the_same_tokens_are_one_name() -> None:
    pool = BlockPool(3)
    first, second = pool.allocate(2)
    pool.cache(first, A)
    pool.cache(second, A)
    assert pool.find([A]) == [first]
    check_pool(pool, [[first, second]])
    pool.free([first, second])
    assert pool.allocate(1) == [second], "the nameless one"


@pytest.mark.parametrize(
    ("held", "sentence"),
    [
        ([], "block 0 is in 0 block tables and has 1 references"),
        ([[0], [0]], "block 0 is in 2 block tables"),
        ([[0, 3]], "block 3 is in 1 block tables and has 0 references"),
    ],
)
def test_check_integrity_sees_what_the_books_do_not_agree_on(held: list[list[int]], sentence: str) -> None:
    pool = BlockPool(4)
    pool.allocate(1)
    check_pool(pool, [[0]])
    with pytest.raises(RuntimeError, match=sentence):
        check_pool(pool, held)


def test_check_integrity_sees_a_block_both_free_and_held_and_a_wrong_name() -> None:
    pool = BlockPool(2)
    pool.allocate(1)
    pool._free[0] = None
    with pytest.raises(RuntimeError, match="block 0 has 1 references and is free"):
        check_pool(pool, [[0]])
    pool = BlockPool(2)
    pool.cache(*pool.allocate(1), A)  # type: ignore[misc]
    pool._cached[A] = 1
    with pytest.raises(RuntimeError, match="cached hashes do not match"):
        check_pool(pool, [[0]])
