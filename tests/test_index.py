"""A query is matched by embedding, subject name and hidden state."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from meg_editor.routing.index import QueryIndex, nearest
from meg_editor.routing.subject_names import SubjectNameIndex

E = 32


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


# --------------------------------------------------------------------------------- nearest


@pytest.mark.parametrize("count", [1, 3, 100])
@pytest.mark.parametrize("chunk", [1, 7, 64, 100, 65536])
def test_nearest_in_chunks_is_brute_force(chunk: int, count: int) -> None:
    queries, keys = unit(13, E), unit(100, E, seed=2)
    cosine, index = nearest(queries, keys, count, chunk)
    assert cosine.shape == index.shape == (13, count) and index.dtype == torch.int64
    for row, query in enumerate(queries):
        products = [
            sum(a * b for a, b in zip(query.tolist(), key.tolist(), strict=True)) for key in keys
        ]
        best = sorted(range(100), key=products.__getitem__, reverse=True)[:count]
        assert index[row].tolist() == best
        assert cosine[row].tolist() == pytest.approx([products[i] for i in best], abs=1e-5)


def test_nearest_of_negative_similarities() -> None:
    key = unit(1, E)
    cosine, index = nearest(-key, torch.cat([key, key]), chunk=1)
    assert float(cosine) == pytest.approx(-1) and index.tolist() in ([[0]], [[1]])


def test_nearest_of_no_queries() -> None:
    cosine, index = nearest(torch.empty(0, E), unit(3, E), 2)
    assert cosine.shape == index.shape == (0, 2)


# ----------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    "subject, text, share",
    [
        ("Ada Lovelace", "Where was Ada Lovelace born?", 1.0),
        ("Ada Lovelace", "where was ADA LOVELACE'S mother born?", 1.0),
        ("Ada Lovelace", "Where was Ada Byron born?", 0.5),
        ("Ada Lovelace", "Where was Bea Turing born?", 0.0),
        ("Ada", "The Canadian capital is", 0.0),  # not a word of it
        ("São Tomé", "The capital of Sao Tome is", 1.0),
        ("Sao Tome", "The capital of São Tomé is", 1.0),
        ("東京", "東京の人口は", 1.0),
        ("東京", "大阪の人口は", 0.0),
        ("서울", "서울의 인구는", 1.0),
        ("Apollo 11", "When did Apollo 12 fly?", 0.5),
    ],
)
def test_the_share_of_a_name_that_a_text_gives(subject: str, text: str, share: float) -> None:
    index = SubjectNameIndex(["Somebody else", subject])
    shares = index.overlap(index.tokenize([text]), torch.tensor([[1, 0]]))
    assert shares.tolist() == [[share, 0.0]]


def test_names_without_words_are_not_known() -> None:
    index = SubjectNameIndex(["Somebody else", None, "", "?!"])
    assert index.known(torch.tensor([0, 1, 2, 3])).tolist() == [True, False, False, False]
    assert index.overlap(index.tokenize(["Somebody"]), torch.tensor([[0, 1]])).tolist() == [
        [0.5, 0]
    ]
    assert not SubjectNameIndex([None, None]).known(torch.tensor([0, 1])).any()


def test_posting_lists_are_counted_by_hand() -> None:
    names = ["Ada Lovelace", "Ada Byron", "Bea", None, "Ada"]
    index = SubjectNameIndex(names)
    candidates = index.candidates(index.tokenize(["Byron and Ada", "Bea?", "Cid"]), limit=9)
    # Byron, the rarer word, comes first.
    assert [[n for n in row if n >= 0] for row in candidates.tolist()] == [[1, 0, 4], [2], []]


# ---------------------------------------------------------------------------------- search


def test_without_weights_the_similarity_is_the_cosine() -> None:
    keys, queries = unit(9, E), unit(5, E, seed=1)
    match = QueryIndex(keys, ["Nobody"] * 9).search(queries, ["Somebody"] * 5)
    torch.testing.assert_close(match.score, (queries @ keys.T).amax(1))
    assert torch.equal(match.score, match.cosine)
    assert torch.equal(match.index, (queries @ keys.T).argmax(1))


def test_a_named_subject_outdoes_a_slightly_closer_question() -> None:
    query = unit(1, E)
    near, nearer = (F.normalize(query + t * unit(1, E, seed=3), dim=-1) for t in (0.5, 0.4))
    index = QueryIndex(torch.cat([nearer, near]), ["Bea Turing", "Ada Lovelace"], name_weight=0.25)
    match = index.search(query, ["Where was Ada Lovelace born?"])
    assert match.index.tolist() == [1]
    cosine = float((query * near).sum())
    assert float(match.cosine) == pytest.approx(cosine, abs=1e-5)
    assert float(match.score) == pytest.approx(0.75 * cosine + 0.25, abs=1e-5)
    # Who is not named at all falls back by the whole weight.
    other = index.search(query, ["Where was she born?"])
    assert other.index.tolist() == [0]
    assert float(other.score) == pytest.approx(0.75 * float((query * nearer).sum()), abs=1e-5)


@pytest.mark.parametrize("standardised", [False, True])
def test_the_similarity_is_the_documented_sum(standardised: bool) -> None:
    """Against loops over plain lists, with every key among the candidates."""
    keys, queries = unit(6, E), unit(4, E, seed=1)
    states, query_states = (3 * torch.randn(n, 7) + 1 for n in (6, 4))
    mean, spread = (torch.randn(7), torch.rand(7) + 1) if standardised else (0.0, 1.0)
    usual = torch.stack([mean, spread]) if standardised else None
    names = ["Ada", "Bea", None, "Cid", "Dan", "Eve"]
    texts = ["Is it Bea?", "Dan and Eve", "Nobody", "Ada"]
    index = QueryIndex(keys, names, states, usual, name_weight=0.2, state_weight=0.5)
    match = index.search(queries, texts, lambda rows: query_states[rows])
    for row in range(4):
        sums = []
        for n, name in enumerate(names):
            cosine = float(F.cosine_similarity(queries[row], keys[n], dim=0))
            ours, theirs = (query_states[row] - mean) / spread, (states[n] - mean) / spread
            agreement = float(F.cosine_similarity(ours, theirs, dim=0))
            others = 0.3 * cosine + 0.5 * agreement
            sums.append(others / 0.8 if name is None else others + 0.2 * (name in texts[row]))
        assert int(match.index[row]) == max(range(6), key=sums.__getitem__)
        assert float(match.score[row]) == pytest.approx(max(sums), abs=2e-3)  # float16 states


def test_edits_without_a_name_score_as_if_names_had_no_weight() -> None:
    """Once they had the whole weight of the name, and so their neighbours too."""
    keys, queries = unit(6, E), unit(4, E, seed=1)
    states, own = (torch.randn(n, 7) for n in (6, 4))
    texts, nobody = ["Is it Bea?"] * 4, [None] * 6
    nameless = QueryIndex(keys, nobody, states, name_weight=0.2, state_weight=0.4)
    without = QueryIndex(keys, nobody, states, state_weight=0.5)  # of the 0.8 that are left
    ours = nameless.search(queries, texts, lambda rows: own[rows])
    theirs = without.search(queries, texts, lambda rows: own[rows])
    torch.testing.assert_close(ours.score, theirs.score)
    assert torch.equal(ours.index, theirs.index)


@pytest.mark.parametrize("crowd", [0, 20, 70])
def test_who_is_named_is_found_among_many_closer_questions(crowd: int) -> None:
    """The named edit is the farthest of all, and no candidate by its cosine."""
    query = unit(1, E)
    others = F.normalize(query + 0.3 * unit(99, E, seed=3), dim=-1)
    subjects = ["Ada Lovelace"] + ["Bea Turing"] * (99 - crowd) + ["Cid Lovelace"] * crowd
    index = QueryIndex(torch.cat([-query, others]), subjects, name_weight=0.8)
    match = index.search(query, ["Where was Ada Lovelace born?"])
    assert match.index.tolist() == [0]
    assert float(match.score) == pytest.approx(-0.2 + 0.8, abs=1e-5)
    assert float(match.cosine) == pytest.approx(-1.0, abs=1e-5)


@pytest.mark.parametrize("count", [1, 3, 8, 40])
def test_an_edited_query_is_found_whatever_the_size(count: int) -> None:
    keys, states = unit(count, E), torch.randn(count, 5)
    subjects = [None if row % 3 else f"Name{row}" for row in range(count)]
    texts = [f"Who is Name{row}?" for row in range(count)]
    index = QueryIndex(keys, subjects, states, name_weight=0.3, state_weight=0.3)
    match = index.search(keys, texts, lambda rows: states[rows])
    assert match.index.tolist() == list(range(count))
    torch.testing.assert_close(match.score, torch.ones(count), atol=1e-3, rtol=0)


def test_states_are_read_only_of_queries_which_could_be_edits() -> None:
    keys = torch.eye(E)[:4]
    states = unit(4, 6)
    index = QueryIndex(keys, ["A", "B", "C", "D"], states, name_weight=0.2, state_weight=0.3)
    queries = torch.eye(E)[[0, 1, 9]]  # an edit; one that names nobody; one about nothing known
    texts = ["A?", "it?", "it?"]
    read: list[int] = []

    def states_of(rows: list[int]) -> Tensor:
        read.extend(rows)
        return states[[0, 1, 2]][rows]

    whole = index.search(queries, texts, states_of)
    assert read == [0, 1, 2]
    read.clear()
    some = index.search(queries, texts, states_of, min_score=0.75)
    assert read == [0, 1]  # 0.5 + 0.2, 0.5 + 0, but 0 + 0 cannot reach it
    assert torch.equal(whole.score[:2], some.score[:2])
    assert float(some.score[2]) < 0.75
    read.clear()
    index.search(queries, texts, states_of, min_score=0.9)
    assert read == [0]


def test_no_queries_have_no_matches() -> None:
    index = QueryIndex(unit(3, E), ["A", "B", None], unit(3, 4), name_weight=0.3, state_weight=0.1)
    match = index.search(torch.empty(0, E), [], lambda rows: torch.empty(0, 4))
    assert match.index.shape == match.score.shape == match.cosine.shape == (0,)


def test_as_many_subjects_and_states_as_anchors_are_needed() -> None:
    with pytest.raises(ValueError, match="one subject .* per anchor, got 2 and 3"):
        QueryIndex(unit(3, E), ["A", "B"])
    with pytest.raises(ValueError, match="expected 3 states, got none"):
        QueryIndex(unit(3, E), [None] * 3, state_weight=0.1)
    with pytest.raises(ValueError, match="expected 3 states, got 2"):
        QueryIndex(unit(3, E), [None] * 3, unit(2, 4), state_weight=0.1)


def test_many_anchors_are_kept_and_searched_in_half_precision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("meg_editor.routing.index._MANY", 99)
    keys = unit(100, E)
    queries = F.normalize(keys[[5, 77]] + 0.3 * unit(2, E, seed=4), dim=-1)
    index = QueryIndex(keys, [None, "Ada"] * 50, name_weight=0.2)
    assert index.anchors.dtype == torch.float16
    match = index.search(queries, ["Ada?", "Ada?"])
    assert match.index.tolist() == [5, 77] and match.score.dtype == torch.float32
    exact = (queries * keys[[5, 77]]).sum(1)
    torch.testing.assert_close(match.cosine, exact, atol=1e-3, rtol=0)
    torch.testing.assert_close(match.score, 0.8 * match.cosine + 0.2)


def test_cosines_of_keys_in_half_precision_are_exact_and_in_order() -> None:
    queries, keys = unit(13, E), unit(100, E, seed=2).half()
    cosine, index = nearest(queries, keys, 8, chunk=7)
    products = queries @ keys.float().T
    assert cosine.dtype == torch.float32
    torch.testing.assert_close(cosine, products.gather(1, index))
    assert bool((cosine[:, :-1] >= cosine[:, 1:]).all())
    assert torch.equal(index[:, 0], products.argmax(1))


def test_the_names_are_on_the_device_of_the_anchors() -> None:
    """Else a search on a GPU indexes a table of the CPU, as calibration did on the first GPU."""
    index = QueryIndex(torch.empty(2, E, device="meta"), ["Ada Lovelace", None])
    assert index.names.table.device.type == "meta"


def test_many_queries_are_searched_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"Ada{n}" for n in range(20)]
    index = QueryIndex(unit(20, E), names, torch.randn(20, 3), name_weight=0.2, state_weight=0.3)
    queries, texts, states = (
        unit(8, E),
        [f"Who is {name}?" for name in names[:8]],
        torch.randn(8, 3),
    )
    least = torch.linspace(-1, 0.9, 8)
    expected = index.candidates(queries, texts, lambda rows: states[rows], least)
    monkeypatch.setattr("meg_editor.routing.index._QUERIES", 3)
    found = index.candidates(queries, texts, lambda rows: states[rows], least)
    torch.testing.assert_close(found.score, expected.score)
    assert torch.equal(found.index, expected.index)
    assert index.candidates(queries[:0], [], None).index.shape[0] == 0


def test_a_part_of_the_queries_may_have_fewer_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    index = QueryIndex(unit(2, E), ["Ada", "Bea"], name_weight=0.2)
    queries, texts = unit(4, E), ["Who is Ada?", "Ada and Bea?", "Who?", "Why?"]
    expected = index.search(queries, texts)
    monkeypatch.setattr("meg_editor.routing.index._QUERIES", 2)
    found = index.search(queries, texts)
    torch.testing.assert_close(found.score, expected.score)
    assert torch.equal(found.index, expected.index)
