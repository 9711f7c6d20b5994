"""What a storage holds, for the commands that look at it."""

from pathlib import Path

from robust_eval.errors import InvalidArgument
from robust_eval.evaluators.outcomes import rebuilt
from robust_eval.job import Job, JobStatus
from robust_eval.storage.base import Storage


def open_storage(text: str) -> Storage:
    """Open a storage by its URL, or a file of SQLite by its path.

    Raises:
        InvalidArgument: there is no such file: looking must not make one.
    """
    url = text if "://" in text else f"sqlite:///{text}"
    path = url.removeprefix("sqlite:///")
    if path != url and not Path(path).is_file():
        raise InvalidArgument(f"There is no file {path!r}. Pass a search's storage: robust-eval run makes runs.db.")
    return Storage.from_url(url).connect()


def search_of(storage: Storage, search_id: str | None) -> str:
    """Give the search that is meant: by default the last one.

    Raises:
        InvalidArgument: there is none, or not this one.
    """
    known = storage.load_all_search_ids()
    if search_id is None and known:
        return known[-1]
    if search_id is None or search_id not in known:
        raise InvalidArgument(f"There is no search {search_id or ''!r}. There are: {', '.join(known) or 'none'}.")
    return search_id


def jobs_of(storage: Storage, search_id: str) -> list[Job]:
    """Give all jobs of a search, those without an outcome too."""
    data = storage.load_search(search_id)
    return [_job(f"{search_id}.{number}", each) for number, each in data.items()]


def job_of(storage: Storage, job_id: str) -> Job:
    """Give one job.

    Raises:
        InvalidArgument: there is none with this id.
    """
    try:
        return _job(job_id, storage.load_job(job_id))
    except KeyError:
        raise InvalidArgument(f"There is no job {job_id!r}. An id has the search and the number: 0.12.") from None


def _job(job_id: str, data: dict[str, object]) -> Job:
    job = rebuilt(job_id, data)
    job.status = JobStatus.READY if data["out"] is None else JobStatus.DONE
    return job
