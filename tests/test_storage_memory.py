import pickle
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robust_eval.storage import MemoryStorage, Storage


class Minimal(MemoryStorage):
    """Falls back to what the interface itself offers."""

    create_new_jobs = Storage.create_new_jobs
    store_job_outcome = Storage.store_job_outcome
    load_jobs = Storage.load_jobs
    load_metadata_from_all_jobs = Storage.load_metadata_from_all_jobs
    load_out_from_all_jobs = Storage.load_out_from_all_jobs


@pytest.fixture(params=[MemoryStorage, Minimal])
def storage(request):
    return request.param().connect()


def test_storages_are_made_by_name():
    """Storage.create knows its kinds and says which there are."""
    storage = Storage.create("memory", {})
    assert isinstance(storage, MemoryStorage)
    assert not storage.connected
    assert storage.connect() is storage
    assert storage.connected
    with pytest.raises(ValueError, match=r"'paper'.*memory"):
        Storage.create("paper")


def test_ids_are_those_of_deephyper(storage):
    """Searches count from "0", jobs from "0.0" in each."""
    assert [storage.create_new_search() for _ in range(2)] == ["0", "1"]
    assert [storage.create_new_job("0"), storage.create_new_job("0"), storage.create_new_job("1")] == [
        "0.0",
        "0.1",
        "1.0",
    ]
    assert storage.create_new_jobs("0", [{"x": 1}, {"x": 2}]) == ["0.2", "0.3"]
    assert storage.create_new_job("0") == "0.4"
    assert storage.load_all_search_ids() == ["0", "1"]
    assert storage.load_all_job_ids("0") == ["0.0", "0.1", "0.2", "0.3", "0.4"]


def test_a_job_has_the_form_of_deephyper(storage):
    """Each part can be stored and loaded; a loaded copy is one's own."""
    job_id = storage.create_new_job(storage.create_new_search())
    empty = {"in": None, "out": None, "metadata": {}, "intermediate": {"budget": [], "objective": []}}
    before = storage.load_job(job_id)
    assert before == empty
    storage.store_job_in(job_id, args=(1,), kwargs={"y": [2]})
    storage.store_job_out(job_id, 3.0)
    storage.store_job_metadata(job_id, "a", 1)
    storage.store_job_metadata(job_id, "b", 2)
    storage.store_job_status(job_id, 2)
    assert before == empty
    data = storage.load_job(job_id)
    expected = {"in": {"args": (1,), "kwargs": {"y": [2]}}, "out": 3.0, "metadata": {"a": 1, "b": 2}, "status": 2}
    assert data == {**empty, **expected}
    data["in"]["kwargs"]["y"].append(3)
    assert storage.load_job(job_id)["in"]["kwargs"] == {"y": [2]}
    storage.store_job(job_id, "metadata", {"c": 3})
    assert storage.load_search("0") == {"0": {**empty, **expected, "metadata": {"c": 3}}}
    assert storage.load_jobs([job_id]) == {job_id: storage.load_job(job_id)}


def test_batches_are_as_good_as_single_steps(storage):
    """Configurations are the only argument, outcomes are kept whole."""
    search_id = storage.create_new_search()
    first, second = storage.create_new_jobs(search_id, [{"x": 1}, {"x": 2}])
    assert storage.load_job(first)["in"] == {"args": ({"x": 1},), "kwargs": None}
    metadata = {"a": 1}
    storage.store_job_outcome(first, 0.5, metadata)
    storage.store_job_metadata(first, "b", 2)
    storage.store_job_metadata(second, "b", 3)
    storage.store_job_outcome(second, "F", {"a": None})
    assert metadata == {"a": 1}
    assert storage.load_job(first)["metadata"] == {"a": 1, "b": 2}
    assert storage.load_job(second)["metadata"] == {"a": None, "b": 3}
    assert storage.load_out_from_all_jobs(search_id) == [0.5, "F"]
    assert storage.load_metadata_from_all_jobs(search_id, "a") == [1]
    storage.store_job_in(second, args=(7,))
    assert storage.load_job(second)["in"] == {"args": (7,), "kwargs": None}


@given(st.dictionaries(st.text(), st.integers()))
def test_a_search_keeps_values(values):
    """Any key will do, and none gets in the way of the jobs."""
    storage = MemoryStorage()
    search_id = storage.create_new_search()
    for key, value in values.items():
        storage.store_search_value(search_id, key, value)
    assert {key: storage.load_search_value(search_id, key) for key in values} == values
    assert storage.load_all_job_ids(search_id) == []
    with pytest.raises(KeyError):
        storage.load_search_value(search_id, "not there" + "".join(values))


def test_a_pickled_copy_is_empty_and_connected(storage):
    """Another process cannot share this one's memory, as in DeepHyper."""
    storage.create_new_search()
    back = pickle.loads(pickle.dumps(storage))
    assert type(back) is type(storage)
    assert back.connected
    assert back.load_all_search_ids() == []


def test_ids_are_given_once():
    """Several threads never get the same id."""
    storage = MemoryStorage()
    search_id = storage.create_new_search()
    ids = []

    def make():
        for _ in range(200):
            ids.append(storage.create_new_job(search_id))
            ids.extend(storage.create_new_jobs(search_id, [{}, {}]))

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == len(set(ids)) == 4 * 200 * 3
