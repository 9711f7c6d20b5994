"""One contract for all storages."""

import pickle
import threading
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from storages import CONFIGS, KINDS, VALUES, same, url_of

from robust_eval.storage import Storage

EMPTY = {"in": None, "out": None, "metadata": {}, "intermediate": {"budget": [], "objective": []}}
QUICK = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
KEYS = st.text(st.characters(), max_size=3).filter(lambda key: key not in EMPTY)
METADATA = st.dictionaries(st.text(max_size=3), VALUES, max_size=3)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def storage(kind, tmp_path):
    with url_of(kind, tmp_path) as url:
        storage = Storage.from_url(url).connect()
        yield storage
        if kind != "memory":
            storage.close()


def test_the_storage_tests_of_deephyper(storage):
    """Its ids, its form of a job, and loaded data that what is stored later does not change."""
    search0 = storage.create_new_search()
    job00, job01 = storage.create_new_job(search0), storage.create_new_job(search_id=search0)
    assert (search0, job00, job01) == ("0", "0.0", "0.1")
    search1 = storage.create_new_search()
    assert (search1, storage.create_new_job(search1), storage.create_new_job(search1)) == ("1", "1.0", "1.1")
    assert storage.load_all_search_ids() == ["0", "1"]
    assert storage.load_all_job_ids(search0) == ["0.0", "0.1"]
    assert storage.load_job(job00) == EMPTY
    storage.store_job_in(job00, args=(1, 2), kwargs={"foo": 0})
    before = storage.load_job(job00)
    assert before["in"] == {"args": (1, 2), "kwargs": {"foo": 0}}
    storage.store_job_out(job00, 0)
    storage.store_job_metadata(job00, "timestamp", 10)
    assert (before["out"], before["metadata"]) == (None, {})
    after = storage.load_job(job00)
    assert (after["out"], after["metadata"]) == (0, {"timestamp": 10})
    assert storage.load_out_from_all_jobs(search0) == [0]
    assert storage.load_metadata_from_all_jobs(search0, "timestamp") == [10]
    assert storage.load_search(search0) == {"0": after, "1": EMPTY}
    assert storage.load_jobs([job00, job01]) == {job00: after, job01: EMPTY}
    storage.store_job_status(job01, 2)
    assert storage.load_job(job01) == {**EMPTY, "status": 2}
    assert storage.load_job_status(job01) == 2
    with pytest.raises(KeyError):
        storage.load_job_status(job00)
    assert storage.is_connected()


@QUICK
@given(value=VALUES, key=KEYS)
def test_every_value_comes_back(storage, value, key):
    """As arguments, objective, metadata, a value of the job and of the search."""
    search_id = storage.create_new_search()
    job_id = storage.create_new_job(search_id)
    storage.store_job_in(job_id, args=(value,), kwargs={"x": value})
    storage.store_job_out(job_id, value)
    storage.store_job_metadata(job_id, key, value)
    storage.store_job(job_id, key, value)
    storage.store_search_value(search_id, key, value)
    data = storage.load_job(job_id)
    assert same(data["in"], {"args": (value,), "kwargs": {"x": value}})
    assert all(same(each, value) for each in (data["out"], data["metadata"][key], data[key]))
    assert same(storage.load_search_value(search_id, key), value)


@QUICK
@given(configs=st.lists(CONFIGS, max_size=4), metadata=METADATA)
def test_batches_are_as_good_as_single_steps(storage, configs, metadata):
    """Each configuration is the only argument of its job; an outcome adds to the metadata that was there."""
    search_id = storage.create_new_search()
    job_ids = storage.create_new_jobs(search_id, configs)
    assert storage.load_all_job_ids(search_id) == job_ids == [f"{search_id}.{i}" for i in range(len(configs))]
    for job_id, config in zip(job_ids, configs, strict=True):
        assert same(storage.load_job(job_id)["in"], {"args": (config,), "kwargs": None})
        storage.store_job_metadata(job_id, "before", 1)
        storage.store_job_outcome(job_id, 0.5, metadata)
        assert same(storage.load_job(job_id)["metadata"], {"before": 1, **metadata})
    assert storage.load_out_from_all_jobs(search_id) == [0.5] * len(configs)


@pytest.mark.parametrize(
    "ask",
    [
        lambda storage: storage.create_new_job("7"),
        lambda storage: storage.create_new_jobs("no search", [{}]),
        lambda storage: storage.load_search_value("0", "missing"),
        lambda storage: storage.load_search_value("7", "missing"),
        lambda storage: storage.store_search_value("7", "key", 1),
        lambda storage: storage.load_search("7"),
        lambda storage: storage.load_all_job_ids("7"),
        lambda storage: storage.load_job("0.7"),
        lambda storage: storage.load_jobs(["0.0", "0.7"]),
        lambda storage: storage.store_job_out("0.7", 1),
        lambda storage: storage.store_job_metadata("7.0", "key", 1),
    ],
)
def test_what_is_not_there_is_a_key_error(storage, ask):
    """Never a value out of nothing, and never a job without a search."""
    storage.create_new_job(storage.create_new_search())
    with pytest.raises(KeyError):
        ask(storage)


def test_a_job_with_an_outcome_is_told_once_for_each_cursor(storage):
    """What settled since the last time, in its order."""
    search_id = storage.create_new_search()
    job_ids = storage.create_new_jobs(search_id, [{}] * 3)
    cursor, found = storage.load_settled_since(search_id, 0)
    assert found == []
    storage.store_job_out(job_ids[2], 1.0)
    storage.store_job_outcome(job_ids[0], 2.0, {})
    cursor, found = storage.load_settled_since(search_id, cursor)
    assert found == [job_ids[2], job_ids[0]]
    storage.store_job_out(job_ids[1], 3.0)
    assert storage.load_settled_since(search_id, cursor)[1] == [job_ids[1]]


@pytest.mark.parametrize("kind", ["redis"])
def test_the_redis_tests_of_deephyper(storage):
    """Where its Redis storage gave a list of arguments, and a search by numbers, ours can be read in the same way."""
    job_id = storage.create_new_job(storage.create_new_search())
    storage.store_job_in(job_id, args=(1, 2), kwargs={"foo": 0})
    data = storage.load_job(job_id)
    assert data["in"]["args"] == [1, 2]
    assert data["in"]["args"] == (1, 2)
    assert data["in"]["args"] != [1, 3]
    assert hash(data["in"]["args"]) == hash((1, 2))
    search = storage.load_search("0")
    assert search[0] == search["0"] == data
    with pytest.raises(KeyError):
        search[1]
    with pytest.raises(KeyError):
        search["no"]


def test_ids_are_given_once(storage):
    """To whichever thread asks."""
    search_id = storage.create_new_search()
    ids = []

    def make():
        for _ in range(30):
            ids.append(storage.create_new_job(search_id))
            ids.extend(storage.create_new_jobs(search_id, [{}, {}]))

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == len(set(ids)) == 4 * 30 * 3
    assert set(storage.load_all_job_ids(search_id)) == set(ids)


def test_a_pickled_copy_is_connected(storage, kind):
    """To the same data where there is a place that holds it; that of memory is empty, as in DeepHyper."""
    storage.create_new_search()
    back = pickle.loads(pickle.dumps(storage))
    assert type(back) is type(storage)
    assert back.connected
    assert back.load_all_search_ids() == ([] if kind == "memory" else ["0"])
    if kind != "memory":
        back.close()


class Storing(RuleBasedStateMachine):
    """A storage beside a model of dicts: whatever is done, both tell the same."""

    def __init__(self, storage: Storage) -> None:
        super().__init__()
        self.storage = storage
        self.searches: dict[str, SimpleNamespace] = {}

    @initialize()
    def begin(self):
        self.new_search()

    @rule()
    def new_search(self):
        search_id = self.storage.create_new_search()
        assert search_id not in self.searches
        self.searches[search_id] = SimpleNamespace(jobs={}, values={})

    def _search(self, data):
        return data.draw(st.sampled_from(sorted(self.searches)))

    def _job(self, data):
        search_id = self._search(data)
        jobs = self.searches[search_id].jobs
        job_id = data.draw(st.sampled_from(sorted(jobs))) if jobs else self._new(search_id)
        return job_id, jobs[job_id]

    def _new(self, search_id):
        job_id = self.storage.create_new_job(search_id)
        self.searches[search_id].jobs[job_id] = dict(EMPTY)
        return job_id

    @rule(data=st.data(), configs=st.lists(CONFIGS, max_size=2))
    def new_jobs(self, data, configs):
        search_id = self._search(data)
        for job_id, config in zip(self.storage.create_new_jobs(search_id, configs), configs, strict=True):
            self.searches[search_id].jobs[job_id] = {**EMPTY, "in": {"args": (config,), "kwargs": None}}

    @rule(data=st.data(), key=KEYS, value=VALUES)
    def search_value(self, data, key, value):
        search_id = self._search(data)
        self.storage.store_search_value(search_id, key, value)
        self.searches[search_id].values[key] = value
        assert same(self.storage.load_search_value(search_id, key), value)

    @rule(data=st.data(), key=KEYS | st.sampled_from(["in", "out"]), value=VALUES)
    def job_value(self, data, key, value):
        job_id, model = self._job(data)
        self.storage.store_job(job_id, key, value)
        model[key] = value

    @rule(data=st.data(), key=st.text(max_size=3), value=VALUES)
    def metadata(self, data, key, value):
        job_id, model = self._job(data)
        self.storage.store_job_metadata(job_id, key, value)
        model["metadata"] = {**model["metadata"], key: value}

    @rule(data=st.data(), objective=st.floats(), metadata=METADATA)
    def outcome(self, data, objective, metadata):
        job_id, model = self._job(data)
        self.storage.store_job_outcome(job_id, objective, metadata)
        model |= {"out": objective, "metadata": {**model["metadata"], **metadata}}

    @rule(data=st.data())
    def load(self, data):
        search_id = self._search(data)
        jobs = self.searches[search_id].jobs
        loaded = self.storage.load_search(search_id)
        assert sorted(loaded) == sorted(job_id.rpartition(".")[2] for job_id in jobs)
        for job_id, model in jobs.items():
            assert same(sorted(loaded[job_id.rpartition(".")[2]].items()), sorted(model.items()))
        outs = [model["out"] for model in jobs.values() if model["out"] is not None]
        assert same(self.storage.load_out_from_all_jobs(search_id), outs)
        assert self.storage.load_all_job_ids(search_id) == list(jobs)


def test_whatever_is_stored_is_loaded(storage):
    """Random histories of several searches in one storage."""
    run_state_machine_as_test(
        lambda: Storing(storage),
        settings=settings(
            max_examples=8, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
