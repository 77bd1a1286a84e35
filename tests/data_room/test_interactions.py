"""Events of users and items: read, ordered, divided, ranked."""

import dataclasses
from collections import Counter

import numpy as np
import pytest

from transformer_jax.data import interactions, tokenizers
from transformer_jax.data.interactions import Event, Table
from transformer_jax.data.tokenizers.items import ItemTokenizer
from transformer_jax.errors import InputError
from transformer_jax.objectives.masking import Masking
from transformer_jax.tasks.next_item import histories, ranking
from transformer_jax.tasks.next_item.histories import Histories


@dataclasses.dataclass(frozen=True)
class Given(interactions.Source):
    """A user's own source: events in memory."""

    held: tuple[tuple[str, str, float], ...]

    def events(self, skipped):
        return (Event(*one) for one in self.held)


def of(**users):
    """`of(ann="abc")`: Ann chose a, b and c at the times 0, 1 and 2."""
    return Given(tuple((user, item, float(t)) for user, items in users.items() for t, item in enumerate(items)))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "user_id,item_id,timestamp\nu2,x,2026-11-02\nu1,y,2026-11-03T10:00:00\nu1,x,2026-11-01\n"),
        ("a.tsv", "user_id\titem_id\ttimestamp\nu2\tx\t5\nu1\ty\t7.5\nu1\tx\t-1\n"),
        (
            "a.inter",
            "user_id:token\titem_id:token\trating:float\ttimestamp:float\nu2\tx\t3\t5\nu1\ty\t4\t7\nu1\tx\t1\t2\n",
        ),
    ],
)
def test_events_of_files_in_the_order_of_time(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    made = interactions.read(Table((str(tmp_path / name),)))
    assert made.keys == ("x", "y")
    of_users = np.split(made.items, made.starts[1:-1])
    assert [[made.keys[i] for i in items] for items in of_users] == [["x"], ["x", "y"]]


def test_parquet_and_names(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pa.table({"user_id": [1, 1, 2], "item_id": [7, 8, 7], "timestamp": [2, 1, 3]})
    pq.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "n.csv").write_text('item_id,title\n7,"Heat, The"\n9,other\n')
    made = interactions.read(Table((str(tmp_path / "a.parquet"),), names=str(tmp_path / "n.csv")))
    assert made.titles == ("Heat, The", "8")
    assert made.items.tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("u,i\nu1,x", r"a.csv:2: no column 'user_id'; there are 'u', 'i'; choose with --data.source.user"),
        ("user_id,item_id,timestamp\nu1,,3", r"a.csv:2: column 'item_id' holds nothing, not a name"),
        ("user_id,item_id,timestamp\nu1,x,yesterday", r"a.csv:2: column 'timestamp' holds 'yesterday', neither a num"),
        ("user_id,item_id,timestamp\nu1,x,nan", r"a.csv:2: column 'timestamp' holds 'nan'"),
        ("user_id,item_id,timestamp\n", r"there are none; name another file"),
    ],
)
def test_bad_events_are_refused_in_a_line(tmp_path, row, message):
    (tmp_path / "a.csv").write_text(row + "\n")
    with pytest.raises(InputError, match=message) as raised:
        interactions.read(Table((str(tmp_path / "a.csv"),)))
    assert "\n" not in str(raised.value)


def test_the_core_by_definition():
    """Removing one user or item at a time, in any order, ends in the same set."""
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 30, 200), rng.integers(0, 40, 200)
    alive = list(range(200))
    while True:
        u, i = Counter(users[alive]), Counter(items[alive])
        drop = [e for e in alive if u[users[e]] < 5 or i[items[e]] < 4]
        if not drop:
            break
        alive.remove(drop[-1])
    assert np.flatnonzero(interactions.core(users, items, 5, 4)).tolist() == alive
    assert 0 < len(alive) < 200


def test_one_event_a_user_and_no_core_are_refused():
    data = Histories(of(a="x", b="x", c="y"), min_user=1, min_item=1)
    with pytest.raises(InputError, match="longest history has 1 event, but leave-one-out needs 3"):
        histories.divide(data)
    with pytest.raises(InputError, match="no user with 5 events of items with 5 is left, of 3 events"):
        histories.divide(dataclasses.replace(data, min_user=5, min_item=5))


def test_leave_one_out_and_ties_keep_the_order_of_the_file():
    source = Given(
        (("u", "a", 1.0), ("u", "b", 1.0), ("u", "c", 1.0), ("u", "d", 0.0), ("v", "a", 3.0), ("v", "b", 4.0))
    )
    sides = histories.divide(Histories(source, min_user=1, min_item=1))
    spelled = sides.tokenizer.decode
    assert spelled(sides.items[:4]) == "d, a, b, c"
    assert sides.facts["events_at_the_time_of_the_one_before"] == 2
    assert sides.facts["users_too_short_to_be_asked"] == 1
    assert [spelled(sides.items[cases.at]) for cases in (sides.validation, sides.test)] == ["b", "c"]
    assert spelled(sides.items[sides.in_training()]) == "d, a, a, b"


def test_by_time_no_training_event_is_later_than_a_question():
    rng = np.random.default_rng(1)
    held = tuple((f"u{rng.integers(20)}", f"i{rng.integers(9)}", float(rng.integers(1000))) for _ in range(400))
    sides = histories.divide(Histories(Given(held), split="by_time", min_user=1, min_item=1))
    times, trained = sides.made.times, sides.in_training()
    assert times[trained].max() < min(times[sides.validation.at].min(), times[sides.test.at].min())
    assert times[sides.validation.at].max() < times[sides.test.at].min()
    for cases in (sides.validation, sides.test):  # the user's first event after the border, from all before it
        assert (cases.at > cases.firsts).all()
        assert (times[cases.at - 1] < times[cases.at].min()).all()


@pytest.mark.parametrize("masks", [None, Masking(rate=0.3, mask_share=1.0, random_share=0.0)])
def test_rows_ask_for_every_training_event_once_and_never_for_others(masks):
    data = Histories(of(ann="abcdefghij", bob="aab", cyd="ba"), length=4, min_user=1, min_item=1)
    sides = histories.divide(data)
    popularity = sides.popularity(20)
    np.testing.assert_allclose(np.exp(popularity).sum(), 1, rtol=1e-6)
    train = histories.training(sides, data, masks, popularity, seed=0, longest=0)
    rows = [train[i] for i in range(len(train.los))]
    asked = Counter(sides.tokenizer.decode(row["targets"][row["weights"] > 0]) for row in rows)
    if masks is None:
        assert asked == {"e, f, g, h": 1, "b, c, d": 1, "a": 1} or asked == {"e, f, g, h": 1, "b, c, d": 1, "a": 1}
        for row in rows:
            n = int((row["tokens"] > 0).sum())
            assert row["tokens"][1:n].tolist() == row["targets"][: n - 1].tolist()
    for row in rows if masks else []:
        assert ((row["tokens"] == 1) == (row["weights"] > 0)).all()
        assert (row["targets"] > 0).sum() == (row["tokens"] > 0).sum()
    test = histories.evaluation(sides, sides.test, data, masks, popularity, longest=12)
    row = test[0]
    (at,) = np.flatnonzero(row["weights"])
    assert sides.tokenizer.decode([row["targets"][at]]) == "j"
    assert sides.tokenizer.decode(row["tokens"]) == ("g, h, i" if masks else "f, g, h, i")
    assert sides.tokenizer.decode(row["seen"]) == "a, b, c, d, e, f, g, h, i"
    assert row["popularity"][at] == popularity[row["targets"][at]]
    with pytest.raises(InputError, match=r"a user has 9 events, more than data.longest = 8.*--data.longest 9"):
        histories.evaluation(sides, sides.test, data, masks, popularity, longest=8)


def test_hit_rate_and_ndcg_by_hand():
    found = ranking.numbers(np.array([1, 3, 11]), "full")
    assert found["hit_rate_10_full"] == pytest.approx(2 / 3)
    assert found["ndcg_10_full"] == pytest.approx((1 + 0.5) / 3)
    assert found["mrr_full"] == pytest.approx((1 + 1 / 3 + 1 / 11) / 3)


def test_baselines_by_hand():
    """b always follows a, and c is the most frequent item."""
    source = of(p="abccc", q="abccc", r="abcccab")
    sides = histories.divide(Histories(source, min_user=1, min_item=1))
    share = dict(zip(sides.made.keys, ranking._Counted(sides).share_V[2:], strict=True))
    assert share == pytest.approx({"a": 3 / 11, "b": 3 / 11, "c": 5 / 11})  # of the training events abc, abc, abccc
    ranks = [ranking._ranks(make, sides, sides.test, False) for make in _scores(sides)]
    assert ranks[0].tolist() == [1, 1, 3]  # popularity: c, c, b; a and b are equally frequent, so b is last
    assert ranks[1].tolist() == [1, 1, 1]  # what follows c, c, a
    popularity, markov = (ranking._ranks(make, sides, sides.test, True).tolist() for make in _scores(sides))
    assert popularity == markov == [5, 5, 5]  # all were seen: no candidate is right
    found = ranking.baselines(sides, sides.test, unseen=True)
    assert found["markov_ndcg_10_full_unseen"] == pytest.approx(1 / np.log2(6))  # rank 5 of 5 ids
    assert "item_item_ndcg_10_full_unseen" in found


def _scores(sides):
    counted = ranking._Counted(sides)
    return ranking._popularity(counted), ranking._markov(counted, (1,))


def test_items_are_a_vocabulary(tmp_path):
    made = ItemTokenizer(("1", "2", "3"), ("Heat", "Toy Story, The", "Heat"))
    assert made.encode('1, "Toy Story, The" ,3').tolist() == [2, 3, 4]
    assert made.decode([0, 1, 3, 2, 99]) == "Toy Story, The, Heat"
    with pytest.raises(InputError, match=r"'Heat' is none of the 3 items"):  # two films have the name: say which
        made.encode("Heat")
    assert made.known("1, 9")[1] == ["9"]
    made.save(tmp_path)
    assert tokenizers.load(tmp_path) == made
    (tmp_path / "items.json").write_text('{"keys": ["1", "1"], "titles": ["a", "b"]}')
    with pytest.raises(InputError, match="must be distinct"):
        tokenizers.load(tmp_path)


def test_events_of_items_that_a_model_does_not_know_are_left_out():
    data = Histories(of(ann="axbxc", bob="xxx", cyd="abc"), min_user=1, min_item=1)
    sides = histories.divide(data, ItemTokenizer(("a", "b", "c"), ("a", "b", "c")))
    assert sides.facts["events_of_unknown_items"] == 5
    assert (sides.tokenizer.decode(sides.items), sides.made.users) == ("a, b, c, a, b, c", 2)
